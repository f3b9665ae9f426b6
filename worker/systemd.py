"""Tells systemd how the service is doing (``sd_notify(3)``); does nothing where systemd did not start it."""

import os
import socket

import anyio


def notify(*states: str) -> None:
    """Sends states such as ``READY=1`` or ``STATUS=...``. Never raises: a lost message is not worth a run."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(states).encode(), address)
    except OSError:
        pass


async def keep_alive() -> None:
    """Tells systemd that the event loop turns, for as long as this lasts; returns at once where it does not ask."""
    seconds = watchdog_seconds()
    while seconds is not None:
        notify("WATCHDOG=1")
        await anyio.sleep(seconds / 3)


def watchdog_seconds() -> float | None:
    """Within how many seconds systemd expects a ``WATCHDOG=1``; None when it does not watch this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 1e6 if microseconds else None
