"""The body of a streaming answer, in large pieces: the engine sends a chunk for each log line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import requests

READ_BYTES = 1 << 17
BUSY_BYTES = 1 << 15
"""A read that brings less than this has caught up with the engine."""

PAUSE_SECONDS = 0.002
"""The pause after a read that brought little, so that the next one brings more: a read costs as much as 20 lines."""

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
