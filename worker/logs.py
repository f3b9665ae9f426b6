"""From the bytes of Docker's log endpoint to the lines of a run. Pure: bytes in, lines out.

The endpoint sends one frame per entry of the container's log file: 8 bytes of header (stream, length), an RFC
3339 timestamp, a space, and the text. A line over 16 KiB is several entries, each with a timestamp of its
own, and the entries of the two streams interleave; so fragments are joined per stream, and a line is numbered
when it is complete. The file replays the same every time, hence line n is line n in every reading of it.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from struct import Struct

from worker.models import LogLine
from worker.redact import Redactor

MAX_LINE_BYTES = 65_536
"""A longer line is cut here, and says how long it was."""

TAIL_BYTES = 1 << 20
"""How much of the end of a log is kept when its middle is left out."""

LINE_BYTES = 64
"""What a line counts beside its text: an empty one takes room in the database too."""

MAX_FRAME_BYTES = 1 << 20
"""The engine sends 16 KiB a frame at most; one that claims more than this is never whole in memory."""

_HEADER = Struct(">BxxxL")
_STDOUT, _STDERR, _ENGINE = 1, 2, 3
_UNKNOWN = datetime.fromtimestamp(0, UTC)  # the time of a line that comes without one
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")
_STAMP_BYTES = 40
"""More than any timestamp takes."""

_KEPT_BYTES = MAX_LINE_BYTES + 1  # ... and the \r of a \r\n
_NEWLINE, _SPACE, _Z, _ZERO, _NINE, _BRACE = b"\n Z09{"

_ODOO = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ (?:\x1b\[[\d;]*m)*(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_LEVELS = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "notice": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "critical": "error",
    "fatal": "error",
}
_ODOO_LEVELS = {name.upper().encode(): level for name, level in _LEVELS.items()}
_JSON_KEYS = ("level", "levelname", "severity")


class _Stream:
    """What is known of one stream: the line under way, and the level of lines that name none."""

    __slots__ = ("kept", "level", "name", "open", "size", "stamp")

    def __init__(self, name: str, level: str) -> None:
        self.name = name
        self.level = level
        self.open = False
        self.stamp = b""
        self.kept = bytearray()
        self.size = 0


class LineAssembler:
    """Fed with arbitrary pieces of one reading of the log from its first byte, gives complete lines.

    Lines up to number ``skip`` are counted but not returned: the database has them already. No input is an
    error.

    The level of a line is what it says itself, in Odoo's log format or as JSON with ``level``, ``levelname``
    or ``severity``. Odoo writes tracebacks and other long messages as further lines, so a line that says
    nothing has the level of the last Odoo line on its stream. Before the first of those, stdout is info and
    stderr warn: what a program says there is worth a look, and no error.

    Of a log beyond ``max_bytes`` (``LINE_BYTES`` a line included) the last ``TAIL_BYTES`` come with ``flush``, after a
    line in the place of the first one left out that says how many those are. What is left out depends on the journal
    alone, so another reading of it, from another ``skip``, comes to the same.
    """

    def __init__(self, skip: int = 0, max_bytes: int = 1 << 62, redactor: Redactor | None = None) -> None:
        self.position = 0
        """How many lines were complete so far."""
        self.bytes = 0
        """How much text was read so far, whole lines or not."""
        self.delivered = skip
        """The number of the last line that was returned."""
        self.omitted = 0
        """How many lines ``flush`` left out."""
        self.last_frame = b""
        """The last whole frame, as ``tail=1`` of the endpoint would return it."""
        self.fault = ""
        """What the engine itself said instead of a line, as when its log file is damaged."""
        self._skip = skip
        self._room = max_bytes
        self._head = 0  # the last line within max_bytes
        # What may turn out to be the end of the log, each line with what it counts.
        self._tail: deque[tuple[LogLine, int]] = deque()
        self._tail_bytes = 0
        self._redactor = redactor or None  # one without secrets is none
        self._kept_bytes = _KEPT_BYTES + (redactor.reach if redactor else 0)
        self._rest = b""
        self._streams = {_STDOUT: _Stream("stdout", "info"), _STDERR: _Stream("stderr", "warn")}
        # The last frame: where its text belongs, and, if it is very long, how many bytes are missing.
        self._long: tuple[_Stream | None, bytes] = None, b""
        self._missing = 0

    @property
    def output(self) -> int:
        """What counts against a run's limit of output: an empty line takes room in the engine's log file too."""
        return self.bytes + self.position * LINE_BYTES

    def feed(self, data: bytes) -> list[LogLine]:
        """Takes the next bytes and returns the lines that they complete."""
        lines: list[LogLine] = []
        at = 0
        if self._missing:
            at = min(self._missing, len(data))
            self._missing -= at
            self._text(*self._long, data[:at], lines)
        if self._rest:
            data = self._rest + data
        end, frame = len(data), -1
        while end - at >= _HEADER.size:
            kind, size = _HEADER.unpack_from(data, at)
            start = at + _HEADER.size
            after = start + size
            if after > end:
                if size <= MAX_FRAME_BYTES or end - start < _STAMP_BYTES:
                    break
                self._missing, after = after - end, end
            self._entry(kind, data, start, after, lines)
            frame, at = at, after
        if frame >= 0:
            self.last_frame = b"" if self._missing else data[frame:at]
        self._rest = data[at:]
        self.delivered = lines[-1].seq if lines else self.delivered
        return lines

    def flush(self) -> list[LogLine]:
        """What the end of the log brings: lines without a newline, and the tail of a log that is too long."""
        lines: list[LogLine] = []
        for stream in sorted((s for s in self._streams.values() if s.open), key=lambda s: s.stamp):
            self._end(stream, lines)
        if self._tail:
            first = self._tail[0][0]
            omitted = first.seq - self._head - 1
            if omitted:
                message = f"[{omitted:,} lines left out here: the log is longer than this host keeps]"
                self._tail.appendleft((first._replace(seq=self._head + 1, level="warn", message=message), 0))
            lines += [line for line, _ in self._tail if line.seq > self._skip]
            self.omitted += omitted
            self._head = self.position
            self._tail.clear()  # given out once, however often it is asked for
            self._tail_bytes = 0
        self.delivered = lines[-1].seq if lines else self.delivered
        return lines

    def _entry(self, kind: int, data: bytes, start: int, after: int, lines: list[LogLine]) -> None:
        """The contents of a frame, or the beginning of those of a very long one."""
        # The engine's own timestamps are 30 bytes long.
        if after - start > 30 and data[start + 30] == _SPACE and data[start + 29] == _Z:  # noqa: PLR2004
            stamp, text = data[start : start + 30], start + 31
        elif found := _STAMP.match(data, start, min(after, start + _STAMP_BYTES)):
            stamp, text = data[start : found.end() - 1], found.end()
        else:
            stamp, text = b"", start
        stream = self._streams.get(kind)
        self._long = stream, stamp
        if stream is None:
            if kind == _ENGINE:
                said = data[start:after]
                said = self._redactor.mask(said, 1000) if self._redactor else said[:1000]
                self.fault = said.decode("utf-8", "replace").strip()
            return
        last = after - 1
        if data[last] == _NEWLINE and not stream.open and data.find(b"\n", text, after) == last:
            self.bytes += last - text
            self._line(stream, stamp, data[text:last], last - text, lines)  # the usual case, without a detour
        else:
            self._text(stream, stamp, data[text:after], lines)

    def _text(self, stream: _Stream | None, stamp: bytes, text: bytes, lines: list[LogLine]) -> None:
        """A piece of a stream that may begin, continue and end lines."""
        if stream is None:
            return
        *ended, rest = text.split(b"\n")
        for part in ended:
            self._keep(stream, stamp, part)
            self._end(stream, lines)
        if rest:
            self._keep(stream, stamp, rest)

    def _keep(self, stream: _Stream, stamp: bytes, part: bytes) -> None:
        if not stream.open:
            stream.open, stream.stamp = True, stamp
        stream.kept += part[: self._kept_bytes - len(stream.kept)]
        stream.size += len(part)
        self.bytes += len(part)

    def _end(self, stream: _Stream, lines: list[LogLine]) -> None:
        raw, size = bytes(stream.kept), stream.size
        stream.open, stream.kept, stream.size = False, bytearray(), 0
        self._line(stream, stream.stamp, raw, size, lines)

    def _line(self, stream: _Stream, stamp: bytes, raw: bytes, size: int, lines: list[LogLine]) -> None:
        """A complete line of ``size`` bytes, of which ``raw`` has all, or at least as many as are kept."""
        self.position += 1
        cost = min(size, MAX_LINE_BYTES) + LINE_BYTES
        self._room -= cost
        first = raw[0] if raw else 0
        if _ZERO <= first <= _NINE and (odoo := _ODOO.match(raw)):
            stream.level = _ODOO_LEVELS[odoo[1]]
        if self.position <= self._skip and self._room >= 0:
            self._head = self.position
            return
        level = stream.level
        if self._redactor is not None:
            whole = size <= _KEPT_BYTES
            raw = self._redactor.mask(raw, _KEPT_BYTES)
            size = len(raw) if whole else size
        if size < MAX_LINE_BYTES // 3 and b"\0" not in raw:  # a byte that is replaced takes three
            message = raw.decode("utf-8", "replace").rstrip("\r")
        else:
            message = _bounded(raw, size)
        if first == _BRACE:
            level = _json_level(message) or level
        try:
            time = datetime.fromisoformat(stamp.decode("ascii"))
        except ValueError:
            time = _UNKNOWN
        line = LogLine(self.position, stream.name, level, message, time)
        if self._room >= 0:
            self._head = self.position
            lines.append(line)
        else:
            self._keep_end(line, cost)

    def _keep_end(self, line: LogLine, cost: int) -> None:
        self._tail.append((line, cost))
        self._tail_bytes += cost
        while self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= self._tail.popleft()[1]


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
        """Takes lines over."""
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


def _bounded(raw: bytes, size: int) -> str:
    """The line as PostgreSQL can store it: UTF-8 without NUL, and bounded."""
    if size == len(raw):
        raw = raw.rstrip(b"\r")
        size = len(raw)
    # A character that is split at the end of raw lies beyond the cut.
    text = raw.decode("utf-8", "replace").replace("\0", "�")
    encoded = text.encode()
    if size <= MAX_LINE_BYTES and len(encoded) <= MAX_LINE_BYTES:
        return text
    return f"{encoded[:MAX_LINE_BYTES].decode('utf-8', 'ignore')} … [line cut, {size} bytes]"


def _json_level(message: str) -> str | None:
    try:
        record = json.loads(message)
    except (ValueError, RecursionError):
        return None
    for key in _JSON_KEYS:
        if (level := _LEVELS.get(str(record.get(key)).lower())) is not None:
            return level
    return None
