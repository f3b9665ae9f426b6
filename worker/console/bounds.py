"""How much one client, and all clients together, may ask of the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

BODY_SECONDS = 10.0
"""How long a body may take. A forge waits as long for the whole answer."""

STREAMS_OF_ONE, STREAMS = 8, 200
"""Live logs that one user, and all users together, may follow at once."""

MOST_DELIVERY = 25 << 20
"""Bytes of a delivery: GitHub sends none that is larger. ``ops.receive_push`` has the same limit."""

MOST_HELD = 4 * MOST_DELIVERY
"""Bytes of all deliveries that are held in memory at once."""

AT_ONCE = 2
"""Connections to the database that deliveries use at once; the others stay for the pages."""

TURN_SECONDS = 5.0
_CLOSE = {"Connection": "close"}


async def body_of(request: Request, most: int, what: str, more: Callable[[int], None] = lambda _: None) -> bytes:
    """The body of a request, of at most ``most`` bytes. ``more`` is called with the size of each part of it.

    Raises ``HTTPException``: 413 if it is larger, 408 if it is not complete within ``BODY_SECONDS``, 400 if it ends
    early.
    The connection is closed then, so that the rest is not read.
    """
    too_large = HTTPException(413, f"{what} has at most {most} bytes.", _CLOSE)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise too_large
                more(len(chunk))
                body += chunk
    except TimeoutError:
        raise HTTPException(408, f"{what} must be complete within {BODY_SECONDS:g} s.", _CLOSE) from None
    except ClientDisconnect:
        raise HTTPException(400, f"{what} ended before it was complete.", _CLOSE) from None
    return bytes(body)


class Streams:
    """Counts the live logs that are followed."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def begin(self, owner: str) -> None:
        """Counts a stream. Raises ``HTTPException`` if that user, or all together, follow as many as they may."""
        if self._open[owner] >= STREAMS_OF_ONE or self._open.total() >= STREAMS:
            raise HTTPException(429, f"At most {STREAMS_OF_ONE} live logs at once.", {"Retry-After": "10"})
        self._open[owner] += 1

    def end(self, owner: str) -> None:
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]


class Deliveries:
    """Bounds what all senders together take of the console: memory, and connections to the database."""

    def __init__(self) -> None:
        self._held = 0
        self._turns = anyio.Semaphore(AT_ONCE)

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """A function that counts bytes of one body until the end of the block. It raises ``HTTPException`` (503)."""
        mine = 0

        def more(count: int) -> None:
            nonlocal mine
            if self._held + count > MOST_HELD:
                raise _busy()
            mine += count
            self._held += count

        try:
            yield more
        finally:
            self._held -= mine

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A block that at most ``AT_ONCE`` deliveries are in. Raises ``HTTPException`` (503)."""
        with anyio.move_on_after(TURN_SECONDS) as scope:
            await self._turns.acquire()
        if scope.cancelled_caught:
            raise _busy()
        try:
            yield
        finally:
            self._turns.release()


def _busy() -> HTTPException:
    headers = {"Retry-After": "30"} | _CLOSE
    return HTTPException(503, "The console receives too many deliveries at the moment.", headers)
