"""Moves bytes from a thread that blocks on them to the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.from_thread


class Pipe:
    """A bounded buffer. It passes many small pieces at once, because waking the event loop costs more than a log line.

    The thread calls ``opened``, ``put`` and ``end``; the event loop calls ``receive`` and ``close``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._lock = threading.Condition()
        self._ended = False
        self._error: Exception | None = None
        self._closed = False
        self._cut: Callable[[], None] = lambda: None
        self._data = anyio.Event()

    def opened(self, cut: Callable[[], None]) -> None:
        """Sets the function that ends a waiting read; calls it at once if the pipe is closed already."""
        with self._lock:
            self._cut = cut
            closed = self._closed
        if closed:
            cut()

    def put(self, chunk: bytes) -> None:
        """Adds a piece; waits while ``limit`` bytes are pending and the pipe is open."""
        with self._lock:
            while len(self._buffer) >= self._limit and not self._closed:
                self._lock.wait()
            if self._closed:
                return
            wake = not self._buffer
            self._buffer += chunk
        if wake:
            anyio.from_thread.run_sync(self._wake)

    def end(self, error: Exception | None) -> None:
        """Marks the end. ``error`` is the reason of an early end, None for a regular one."""
        with self._lock:
            self._ended, self._error = True, error
        anyio.from_thread.run_sync(self._wake)

    async def receive(self) -> bytes:
        """Waits for the next bytes; empty at the end. Raises the error of ``end`` after the bytes before it."""
        await self._data.wait()
        with self._lock:
            chunk, self._buffer = bytes(self._buffer), bytearray()
            if chunk and not self._ended:
                self._data = anyio.Event()
            self._lock.notify()
        if not chunk and self._error is not None:
            raise self._error
        return chunk

    def close(self) -> None:
        """Ends the thread's read; later calls of ``put`` have no effect."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._cut()

    def _wake(self) -> None:
        self._data.set()
