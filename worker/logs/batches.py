"""Gathers log lines into the batches that are stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from worker.model.claim import LogLine


class Batcher:
    """Gathers lines into batches, due when they are full or their oldest line is ``linger`` seconds old.

    ``now`` is the reading of any clock, in seconds.
    """

    def __init__(self, max_lines: int = 1_000, max_bytes: int = 512 * 1024, linger: float = 0.2) -> None:
        self.bytes = 0
        """UTF-8 bytes of all lines that wait."""
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._linger = linger
        self._waiting: deque[tuple[LogLine, int, float]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lines: Sequence[LogLine], now: float) -> None:
        """Adds lines to those that wait."""
        for line in lines:
            size = len(line.message) if line.message.isascii() else len(line.message.encode())
            self.bytes += size
            self._waiting.append((line, size, now))

    def due_in(self, now: float) -> float | None:
        """Seconds until a batch should leave: 0 at once, None while there is nothing."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._max_lines or self.bytes >= self._max_bytes:
            return 0.0
        return max(0.0, self._waiting[0][2] + self._linger - now)

    def take(self) -> list[LogLine]:
        """The next batch, due or not: within both bounds, but at least one line; empty when there is none."""
        batch: list[LogLine] = []
        room = self._max_bytes
        while self._waiting and len(batch) < self._max_lines:
            line, size, _ = self._waiting[0]
            if batch and size > room:
                break
            self._waiting.popleft()
            batch.append(line)
            room -= size
            self.bytes -= size
        return batch
