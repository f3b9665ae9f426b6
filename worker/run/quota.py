"""What one run may write to the engine's disk."""

from __future__ import annotations

import math
from collections.abc import Callable

import anyio

from worker.model.container import Written
from worker.model.outcome import Stop


class DiskQuota:
    """What one run wrote, in bytes, and whether it is stopped for that: at once, and without its artifacts."""

    def __init__(self, stop: Callable[[Stop], None]) -> None:
        self.limit = math.inf
        """Unlimited until the terms of the run are known."""
        self.printed = 0
        """What was read of its log, which is on the same disk."""
        self.written = 0
        self.left = 0
        """What was left of the disk when it was stopped."""
        self.exceeded = anyio.Event()
        self._stop = stop
        self._kept_before: int | None = None

    def counted(self, found: Written) -> int:
        """What the run wrote. Of the project's volumes only what they grew by since they were first measured counts."""
        if self._kept_before is None:
            self._kept_before = found.kept
        return found.size + max(0, found.kept - self._kept_before)

    def record(self, size: int) -> None:
        """Records what the run wrote to the disk; stops the run if that is more than its limit."""
        if size > self.limit:
            self._exceed(Stop.DISK_LIMIT, size)

    def evict(self, size: int, left: int) -> None:
        """Stops the run, which holds ``size`` bytes, because the disk has only ``left`` bytes left."""
        self.left = left
        self._exceed(Stop.DISK, size)

    def _exceed(self, why: Stop, size: int) -> None:
        if not self.exceeded.is_set():
            self.written = size
            self.exceeded.set()
            self._stop(why)
