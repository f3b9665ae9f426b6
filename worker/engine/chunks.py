"""The body of a streaming answer, in large pieces: the engine sends a chunk for each log line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import requests

READ_BYTES = 1 << 16
BUSY_BYTES = 1 << 15
"""A read that brings less than this has caught up with the engine."""

PAUSE_SECONDS = 0.002
"""The pause after a read that brought little, so that the next one brings more: a read costs as much as 20 lines."""

_SIZE_LINE = re.compile(rb"\r\n([0-9a-f]{1,5})\r\n")
_SIZE_LINE_BYTES = 20
"""More than the line with the size of a chunk takes."""


def body(response: requests.Response) -> Iterator[bytes]:
    """Yields the body as it comes in. Raises one of ``BROKEN`` if it is cut."""
    raw: Any = response.raw
    if raw.chunked:
        # urllib3's own way costs several calls for each chunk. The SDK gets its sockets in the same way.
        read = partial(raw._fp.fp.read1, READ_BYTES)  # noqa: SLF001
        return unchunked(read, lambda: time.sleep(PAUSE_SECONDS))
    stream: Iterator[bytes] = raw.stream(READ_BYTES, decode_content=False)
    return stream


def unchunked(read: Callable[[], bytes], pause: Callable[[], object]) -> Iterator[bytes]:
    """Yields what the chunks contain, never an empty piece. Calls ``pause`` before a read that should wait.

    Raises ``ConnectionError`` if the connection ends before the last chunk, or sends something else.
    """
    rest, missing = b"\r\n", 0  # before each size there is the end of the previous chunk
    while more := read():
        data = rest + more
        at = min(missing, len(data))
        missing -= at
        contents, size = [data[:at]], 1
        if not missing:
            many, at = _many(data, at)
            contents += many
        while not missing and size > 0 and (end := data.find(b"\r\n", at + 2, at + _SIZE_LINE_BYTES)) >= 0:
            try:
                size = int(data[at:end], 16)
            except ValueError:
                raise ConnectionError(f"the engine's answer has a chunk of the size {data[at:end]!r}") from None
            at = end + 2 + size
            contents.append(data[end + 2 : at])
            missing = max(0, at - len(data))
        if content := b"".join(contents):
            yield content
        if size == 0:
            return
        if size < 0:
            raise ConnectionError("the engine's answer has a chunk of a negative size")
        rest = data[at:]
        if len(rest) >= _SIZE_LINE_BYTES:
            raise ConnectionError("the engine's answer has a chunk without a size")
        if len(more) < BUSY_BYTES:
            pause()
    raise ConnectionError("the engine's answer is cut off")


def _many(data: bytes, at: int) -> tuple[Sequence[bytes], int]:
    """What the chunks from ``at`` on contain, without the last one, and where that begins.

    Finds nothing if a chunk contains what looks like the size of one.
    """
    before, *parts = _SIZE_LINE.split(data[at:])
    sizes, contents, last = parts[:-2:2], parts[1:-2:2], parts[-2:]
    if before or not contents or list(map(len, contents)) != list(map(int, sizes, repeat(16))):
        return (), at
    return contents, len(data) - sum(map(len, last)) - len(b"\r\n\r\n")
