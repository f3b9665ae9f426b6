"""A console in a process of its own, and a page of a real browser that shows it."""

from __future__ import annotations

import asyncio
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from tests.support import npm
from tests.support.chromium import browser
from tests.support.docker import PATIENCE, ROOT
from tests.support.postgres import free_port
from tests.support.scripts import environ_of

AXE = Path(npm.__file__).with_name("axe")
SEEN = """name => {
    const line = document.querySelector(`#view.virtual #${name}:not(.wait)`), view = document.getElementById("view");
    if (!line) return null;
    const at = line.getBoundingClientRect(), part = view.getBoundingClientRect();
    return at.bottom > part.top && at.top < part.bottom ? line.querySelector(".m").innerText : null;
}"""
PHONE, DESK = (390, 844), (1280, 900)


@asynccontextmanager
async def console(url: str, *words: str) -> AsyncIterator[str]:
    """The address of a console that runs until the end of the block; SIGTERM then ends it, also with open streams."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "console", "--listen", f"127.0.0.1:{port}", *words,
        cwd=ROOT, env=environ_of(OPS_WORKER_DATABASE_URL=url), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await asyncio.wait_for(_answers(process, port), PATIENCE)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined] # else its pipe is closed by the collector


async def _answers(process: asyncio.subprocess.Process, port: int) -> None:
    """Returns once the console answers."""
    while True:
        assert process.returncode is None, (await process.stderr.read()).decode() if process.stderr else ""
        try:
            await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/healthz", timeout=5)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            return


@dataclass
class Visitor:
    """A page, and what went wrong on it or left this host."""

    page: Page
    address: str
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    async def open(self, path: str) -> None:
        await self.page.goto(self.address + path)

    async def line(self, name: str) -> Any:
        """The text of a line of the log, once it can be seen in the part that is scrolled."""
        shown = await self.page.wait_for_function(SEEN, arg=name)
        return await shown.json_value()

    async def problems(self) -> list[str]:
        """What axe finds."""
        source = (npm.install(AXE) / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
        await self.page.evaluate(source)
        found = await self.page.evaluate("axe.run()")
        return [
            f"{it['id']}: {node['html'][:200]} {node['failureSummary']}"
            for it in found["violations"]
            for node in it["nodes"]
        ]


@asynccontextmanager
async def visitor(
    started: Browser, address: str, size: tuple[int, int] = DESK, **options: Any
) -> AsyncIterator[Visitor]:
    """A visitor with a profile of its own; the block fails if the page had an error, or asked another host."""
    width, height = size
    context = await started.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(PATIENCE * 1000)
    made = Visitor(await context.new_page(), address)
    page = made.page
    page.on("pageerror", lambda error: made.troubles.append(str(error)))
    page.on("console", lambda said: made.troubles.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: made.requests.append(request.url))

    async def refuse(dialog: Any) -> None:
        made.troubles.append(f"a dialog: {dialog.message}")
        await dialog.dismiss()

    page.on("dialog", refuse)
    yield made
    assert made.troubles == []
    assert [url for url in made.requests if not url.startswith(address + "/")] == []
    await context.close()


@asynccontextmanager
async def opened(url: str, *words: str, size: tuple[int, int] = DESK, **options: Any) -> AsyncIterator[Visitor]:
    """A visitor of a console on that database."""
    async with (
        console(url, *words) as address,
        browser() as started,
        visitor(started, address, size, **options) as made,
    ):
        yield made
