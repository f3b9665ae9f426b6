"""Stores log lines in batches, while the next ones are being read."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from worker.concurrency import task_group
from worker.logs.batches import Batcher
from worker.model.claim import LogLines

MAX_WAITING_BYTES = 1 << 20
MAX_WAITING_LINES = 2_000
"""What may wait for the database before the reader has to wait too."""


class LogWriter:
    """Lines in, batches out, in order. While the database is away ``put`` waits, so memory is bounded."""

    def __init__(self, store: Callable[[LogLines], Awaitable[None]]) -> None:
        self._store = store
        self._lines = Batcher()
        self._closed = False
        self._changed = anyio.Condition()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LogWriter]:
        """Stores in the background; leaving the block waits until all is stored. An error of ``store`` ends it."""
        async with task_group() as tasks:
            tasks.start_soon(self._run)
            yield self
            async with self._changed:
                self._closed = True
                self._changed.notify_all()

    async def put(self, lines: Sequence[LogLines]) -> None:
        """Takes lines over."""
        for some in lines:
            async with self._changed:
                while len(self._lines) >= MAX_WAITING_LINES or self._lines.bytes >= MAX_WAITING_BYTES:
                    await self._changed.wait()
                self._lines.add(some, time.monotonic())
                self._changed.notify_all()

    async def _run(self) -> None:
        while batch := await self._next():
            await self._store(batch)

    async def _next(self) -> LogLines | None:
        """The next batch once it is due; None when all is stored and no more will come."""
        async with self._changed:
            while not self._closed and (due := self._lines.due_in(time.monotonic())) != 0:
                with anyio.move_on_after(due):
                    await self._changed.wait()
            batch = self._lines.take()
            self._changed.notify_all()
            return batch
