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
from datetime import UTC, datetime
from struct import Struct

from worker.logs.levels import BEGINNINGS, LEVELS
from worker.logs.redact import Redactor
from worker.logs.streams import KEPT_BYTES, MAX_LINE_BYTES, LogStream
from worker.model.claim import LogLine

TAIL_BYTES = 1 << 20
"""How much of the end of a log is kept when its middle is left out."""

LINE_BYTES = 64
"""What a line counts beside its text: an empty one takes room in the database too."""

MAX_FRAME_BYTES = 1 << 20
"""The engine sends 16 KiB a frame at most; one that claims more than this is never whole in memory."""

_HEADER = Struct(">BxxxL")
_HEADER_BYTES = _HEADER.size
_STDOUT, _STDERR, _ENGINE = 1, 2, 3
_UNKNOWN = datetime.fromtimestamp(0, UTC)  # the time of a line that comes without one
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")
_STAMP_BYTES = 40
"""More than any timestamp takes."""

_SHORT_BYTES = MAX_LINE_BYTES // 3
"""A byte that is replaced takes three: what is shorter than this needs no cut."""

_NEWLINE, _RETURN, _NUL, _SPACE, _Z = b"\n\r\0 Z"  # numbers: Python finds them ten times as fast as bytes

_JSON_KEYS = ("level", "levelname", "severity")


class LineAssembler:
    """Fed with arbitrary pieces of one reading of the log from its first byte, gives complete lines.

    Lines up to number ``skip`` are counted but not returned: the database has them already. No input is an
    error.

    The level of a line is the one that ``LevelReader`` finds, or as JSON its ``level``, ``levelname`` or ``severity``.
    A line that names none is info on stdout and warn on stderr: what a program says there is worth a look, and no
    error.

    A line with carriage returns is stored as a terminal would show it at its end; see ``as_shown``. Secrets are masked
    before, so that no rest of a masked one is shown, and again after, so that one that is only put together on the
    screen is masked too. A piece of a secret that a program writes alone is no secret to this search, before or after.
    The part of such a line that is overwritten takes no room: a line that is written over for hours is whole.

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
        self._tail = _Tail()
        self._redactor = redactor or None  # one without secrets is none
        self._rest = b""
        self._streams = {
            _STDOUT: LogStream("stdout", "info", self._redactor),
            _STDERR: LogStream("stderr", "warn", self._redactor),
        }
        # The last frame: where its text belongs, and, if it is very long, how many bytes are missing.
        self._long: tuple[LogStream | None, bytes] = None, b""
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
        while end - at >= _HEADER_BYTES:
            kind, size = _HEADER.unpack_from(data, at)
            start = at + _HEADER_BYTES
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
            kept, omitted = self._tail.take(self._head)
            self.omitted += omitted
            lines += [line for line in kept if line.seq > self._skip]
            self._head = self.position
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
        if self._missing:
            self._long = stream, stamp
        if stream is None:
            if kind == _ENGINE:
                said = data[start:after]
                said = self._redactor.mask(said, 1000) if self._redactor else said[:1000]
                self.fault = said.decode("utf-8", "replace").strip()
            return
        last = after - 1
        if not stream.open and data.find(_NEWLINE, text, after) == last:
            self.bytes += last - text
            self._line(stream, stamp, data[text:last], last - text, lines)  # the usual case, without a detour
        else:
            piece = data[text:after]
            mended = stream.mend(piece)
            self.bytes += len(piece) - len(mended)
            self._text(stream, stamp, mended, lines)

    def _text(self, stream: LogStream | None, stamp: bytes, text: bytes, lines: list[LogLine]) -> None:
        """A piece of a stream that may begin, continue and end lines."""
        if stream is None:
            return
        *ended, rest = text.split(b"\n")
        self.bytes += sum(map(len, ended)) + len(rest)
        for part in ended:
            stream.keep(stamp, part)
            self._end(stream, lines)
        if rest:
            stream.keep(stamp, rest)

    def _end(self, stream: LogStream, lines: list[LogLine]) -> None:
        raw, size, folded = stream.take()
        self._line(stream, stream.stamp, raw, size, lines, folded)

    def _line(
        self, stream: LogStream, stamp: bytes, raw: bytes, size: int, lines: list[LogLine], folded: int = 0
    ) -> None:
        """A complete line of ``size`` bytes, of which ``folded`` were overwritten; of the others ``raw`` has all, or
        at least as many as are kept.
        """
        self.position = position = self.position + 1
        cost = min(size, MAX_LINE_BYTES) + LINE_BYTES
        self._room = room = self._room - cost
        if _RETURN in raw:
            raw, size = stream.without_returns(raw, size - folded)
        levels = stream.levels
        may_name = raw[:3] in BEGINNINGS
        level = levels.read(raw, may_name=may_name) if may_name or levels.left else levels.level
        if room >= 0:
            self._head = position
            if position <= self._skip:
                return
        if self._redactor is not None:
            whole = size <= KEPT_BYTES
            raw = self._redactor.mask(raw, KEPT_BYTES)
            size = len(raw) if whole else size
        message = raw.decode("utf-8", "replace") if size < _SHORT_BYTES and _NUL not in raw else _bounded(raw, size)
        if message[:1] == "{":
            level = _json_level(message) or level
        try:
            time = datetime.fromisoformat(stamp.decode("ascii"))
        except ValueError:
            time = _UNKNOWN
        line = LogLine(position, stream.name, level, message, time)
        if room >= 0:
            lines.append(line)
        else:
            self._tail.add(line, cost)


class _Tail:
    """The last ``TAIL_BYTES`` of a log that is too long, each line with what it counts."""

    def __init__(self) -> None:
        self._lines: deque[tuple[LogLine, int]] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, line: LogLine, cost: int) -> None:
        self._lines.append((line, cost))
        self._bytes += cost
        while self._bytes > TAIL_BYTES:
            self._bytes -= self._lines.popleft()[1]

    def take(self, head: int) -> tuple[list[LogLine], int]:
        """Its lines, once, and how many were left out behind line ``head``; a line in their place tells how many."""
        lines = [line for line, _ in self._lines]
        self._lines.clear()
        self._bytes = 0
        omitted = lines[0].seq - head - 1
        if omitted:
            message = f"[{omitted:,} lines left out here: the log is longer than this host keeps]"
            lines.insert(0, lines[0]._replace(seq=head + 1, level="warn", message=message))
        return lines, omitted


def _bounded(raw: bytes, size: int) -> str:
    """The line as PostgreSQL can store it: UTF-8 without NUL, and bounded."""
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
        if (level := LEVELS.get(str(record.get(key)).lower())) is not None:
            return level
    return None
