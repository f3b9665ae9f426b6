"""A proxy of the tests' own in front of a server, with everything that can happen to a connection.

It passes bytes through and looks at each piece that a client sends: that is where a request of HTTP or a
message of PostgreSQL begins, since both clients write one at a time. A rule picks a request out and says what
becomes of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Self

from tests.support.docker import PATIENCE, until


class Fate(Enum):
    """What becomes of a request."""

    CUT = "cut"
    """The server never sees it, and the connection breaks."""
    MUTE = "mute"
    """The server never sees it, and there is never an answer: half-open."""
    LOST = "lost"
    """The server carries it out, and the connection breaks before its answer arrives."""
    ANSWERED = "answered"
    """The relay answers in the server's stead."""
    BROKEN = "broken"
    """The answer breaks off after some bytes."""


@dataclass(eq=False)
class Rule:
    """Happens to the next ``times`` requests that match."""

    request: re.Pattern[bytes]
    fate: Fate
    times: int = 1
    answer: bytes = b""
    """What ANSWERED says."""
    mark: bytes = b""
    """LOST: the piece of the answer that must not arrive."""
    passing: int = 0
    """BROKEN: how many bytes of the answer still arrive."""
    struck: int = 0
    """How often it has happened."""

    async def until_struck(self, times: int = 1) -> None:
        await until(lambda: self.struck >= times, pause=0.01)


@dataclass(eq=False)
class _Link:
    """One client's connection and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    rule: Rule | None = None
    left: int = 0
    dead: bool = False
    """Half-open: nothing passes any more, and neither end is closed."""

    def abort(self) -> None:
        for end in (self.client, self.server):
            end.transport.abort()


@dataclass(eq=False)
class Relay:
    """Listens on ``path``, or on a port of 127.0.0.1, and leads to the Unix socket ``upstream``."""

    upstream: str
    path: Path | None = None
    port: int = 0
    down: bool = False
    """New connections are refused."""
    rules: list[Rule] = field(default_factory=list)
    _links: set[_Link] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0.0
    """Seconds that each piece takes longer, in either direction."""
    passed: int = 0
    """Bytes of answers that clients took."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        self._flowing.set()
        if self.path is not None:
            server = await asyncio.start_unix_server(self._serve, str(self.path))
            self.path.chmod(0o666)
        else:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.down = True
            self.flow()
            self.cut()
            await asyncio.gather(*self._tasks)

    # --- what can be done to it -------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Breaks every connection."""
        for link in list(self._links):
            link.abort()

    def freeze(self) -> None:
        """Leaves every present connection half-open; new ones work."""
        for link in self._links:
            link.dead = True

    def stall(self) -> None:
        """Holds all that is sent, and accepts without ever answering, until ``flow``."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def strike(self, request: str, fate: Fate, **details: object) -> Rule:
        """Adds a rule for requests in which the expression is found."""
        rule = Rule(re.compile(request.encode()), fate, **details)  # type: ignore[arg-type]
        self.rules.append(rule)
        return rule

    async def until_quiet(self) -> None:
        """Waits until no client takes any more of what the server says."""
        before = -1
        async with asyncio.timeout(PATIENCE):
            while before != self.passed:
                before = self.passed
                await asyncio.sleep(0.5)

    # --- passing on -------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._flowing.wait()
        try:
            if self.down:
                raise ConnectionRefusedError
            back, forth = await asyncio.open_unix_connection(self.upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, forth)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(reader, link))
                both.create_task(self._answers(back, link))
        finally:
            self._links.discard(link)
            link.abort()

    async def _requests(self, reader: asyncio.StreamReader, link: _Link) -> None:
        muted = False
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._hold()
                if muted or link.dead:
                    continue
                rule = next((rule for rule in self.rules if rule.times and rule.request.search(data)), None)
                if rule is not None:
                    rule.times -= 1
                    muted = self._strike(rule, link)
                if not muted:
                    link.server.write(data)
                    await link.server.drain()
            if not link.dead:
                link.server.write_eof()

    def _strike(self, rule: Rule, link: _Link) -> bool:
        """Lets it happen; whether the client's words go nowhere from now on."""
        if rule.fate in (Fate.LOST, Fate.BROKEN):
            link.rule, link.left = rule, rule.passing
            return False
        if rule.fate is Fate.CUT:
            link.abort()
        elif rule.fate is Fate.ANSWERED:
            link.client.write(rule.answer)
        rule.struck += 1
        return True

    async def _answers(self, reader: asyncio.StreamReader, link: _Link) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._hold()
                if link.dead:
                    continue
                rule = link.rule
                if rule is not None and (rule.fate is Fate.BROKEN or rule.mark in data):
                    data, over = data[: link.left], len(data) >= link.left
                    link.left -= len(data)
                    link.client.write(data)
                    if over:
                        await link.client.drain()
                        link.abort()
                        rule.struck += 1
                        return
                    continue
                link.client.write(data)
                await link.client.drain()
                self.passed += len(data)
            if not link.dead:
                link.client.write_eof()

    async def _hold(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._flowing.wait()


def http_error(status: int, message: str) -> bytes:
    """An answer of the engine that says no."""
    body = json.dumps({"message": message}).encode()
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def fatal(sqlstate: str, message: str) -> bytes:
    """What PostgreSQL says to a client that it turns away."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode()
    return b"E" + struct.pack(">I", len(fields) + 4) + fields


EXECUTED = b"Z\0\0\0\5I"
"""In PostgreSQL's answer to a statement, sent after its commit (ready for the next one): the ``mark`` of an
acknowledgement."""

LOGIN = "user\0"
"""In the first message of a client to PostgreSQL."""
