"""Gathers log lines into the batches that are stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from worker.model.claim import LogLines


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
        self._count = 0
        self._waiting: deque[tuple[LogLines, int, float]] = deque()

    def __len__(self) -> int:
        return self._count

    def add(self, lines: LogLines, now: float) -> None:
        """Adds lines to those that wait."""
        size = _size(lines)
        self._count += len(lines)
        self.bytes += size
        self._waiting.append((lines, size, now))

    def due_in(self, now: float) -> float | None:
        """Seconds until a batch should leave: 0 at once, None while there is nothing."""
        if not self._waiting:
            return None
        if self._count >= self._max_lines or self.bytes >= self._max_bytes:
            return 0.0
        return max(0.0, self._waiting[0][2] + self._linger - now)

    def take(self) -> LogLines | None:
        """The next batch, due or not: within both bounds, but at least one line; None when there is none."""
        if not self._waiting:
            return None
        parts: list[LogLines] = []
        count = size = 0
        while self._waiting and count < self._max_lines and size < self._max_bytes:
            lines, bytes_, added = self._waiting[0]
            if parts and lines.first_seq != parts[-1].last_seq + 1:
                break  # the middle of a long log is left out
            fits = self._fitting(lines, bytes_, count, size)
            if not fits:
                break
            self._waiting.popleft()
            if fits < len(lines):
                rest = lines.part(fits)
                lines = lines.part(0, fits)
                left = _size(rest)
                self._waiting.appendleft((rest, left, added))
                bytes_ -= left
            parts.append(lines)
            count += len(lines)
            size += bytes_
        self._count -= count
        self.bytes -= size
        return _joined(parts)

    def _fitting(self, lines: LogLines, size: int, count: int, used: int) -> int:
        """How many of the lines still fit into a batch of that many lines and bytes."""
        fits = min(len(lines), self._max_lines - count)
        room = self._max_bytes - used
        if size <= room:
            return fits
        for number, message in enumerate(lines.messages[:fits]):
            room -= len(message.encode())
            if room < 0:
                return number or int(not count)
        return fits


def _size(lines: LogLines) -> int:
    text = "".join(lines.messages)
    return len(text) if text.isascii() else len(text.encode())


def _joined(parts: Sequence[LogLines]) -> LogLines:
    if len(parts) == 1:
        return parts[0]
    return LogLines(
        parts[0].first_seq,
        [message for part in parts for message in part.messages],
        "".join([part.marks for part in parts]),
        [time for part in parts for time in part.timestamps],
    )
