"""The health check of a served run: one HTTP request, of whose answer only the first line is read."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import anyio

Probe = Callable[[str, int, str, float], Awaitable[bool]]
"""Asks an address and a port for a path; returns whether the answer of 2xx or 3xx began within so many seconds."""

MAX_FIRST_LINE = 1024

_GOOD = re.compile(rb"HTTP/1\.[01] [23][0-9]{2}\b")


async def answers(host: str, port: int, path: str, seconds: float) -> bool:
    """See ``Probe``. Follows no redirect, so it asks nothing but that port."""
    name = f"[{host}]" if ":" in host else host
    request = f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nUser-Agent: ops-worker\r\nConnection: close\r\n\r\n"
    first = b""
    with anyio.move_on_after(seconds):
        try:
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(request.encode("ascii"))
                while b"\n" not in first and len(first) < MAX_FIRST_LINE:
                    first += await stream.receive()
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            return False
    return _GOOD.match(first) is not None
