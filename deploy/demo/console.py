"""The console on the demo's database, for as long as a person looks at it."""

from __future__ import annotations

import asyncio
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.demo.screen import Screen
from deploy.demo.show import worker

PORT = 8090
START_SECONDS = 30


async def show(screen: Screen, url: str, log: Path) -> None:
    """Prints the console's address, and keeps it until Enter is pressed."""
    async with _running(url, log) as address:
        if address is None:
            screen.fail(f"The console did not start; {log} has the reason.")
            return
        screen.heading("Console")
        screen.say(f"  {address}")
        screen.say("Press Enter to end the demo.")
        await _enter()


@asynccontextmanager
async def _running(url: str, log: Path) -> AsyncIterator[str | None]:
    """The address of the console, on the loopback address and with the rights of the URL; None if it does not start."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    async with worker(["console", f"--listen=127.0.0.1:{port}"], url, log) as process:
        yield address if await _answers(address, process) else None


async def _answers(address: str, process: asyncio.subprocess.Process) -> bool:
    for _ in range(START_SECONDS * 10):
        if process.returncode is not None:
            return False
        try:
            await asyncio.to_thread(urllib.request.urlopen, f"{address}/healthz", timeout=5)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return True
    return False


def _free_port() -> int:
    """The console's own port, or another one if that is in use."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError("no port is free on 127.0.0.1")


async def _enter() -> None:
    """Returns when a line is typed, or the terminal is closed."""
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin)
    sys.stdin.readline()
