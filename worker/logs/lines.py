"""From the bytes of Docker's log endpoint to the lines of a run. Pure: bytes in, lines out.

The endpoint sends one frame per entry of the container's log file: 8 bytes of header (stream, length), an RFC
3339 timestamp, a space, and the text. A line over 16 KiB is several entries, each with a timestamp of its
own, and the entries of the two streams interleave; so fragments are joined per stream, and a line is numbered
when it is complete. The file replays the same every time, hence line n is line n in every reading of it.

Nearly all frames have one whole line. Many of those are read together, column by column: ``_many``. All others, and
those that come alone, are read one by one: ``_entry``. Both give the same lines.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from worker.logs.frames import HEADER_BYTES, Frames, times, whole_lines
from worker.logs.levels import LEVELS, mark, read_levels
from worker.logs.redact import Redactor
from worker.logs.streams import KEPT_BYTES, MAX_LINE_BYTES, LogStream
from worker.model.claim import LogLines

TAIL_BYTES = 1 << 20
"""How much of the end of a log is kept when its middle is left out."""

_PACK_LINES, _PACK_BYTES = 1_000, 1 << 17
"""So many lines of the end, or so many bytes of them, are joined."""

LINE_BYTES = 64
"""What a line counts beside its text: an empty one takes room in the database too."""

MAX_FRAME_BYTES = 1 << 20
"""The engine sends 16 KiB a frame at most; one that claims more than this is never whole in memory."""

MANY = 8
"""From so many frames on, reading them together takes less time."""

_HEADER = Struct(">BxxxL")
_STDOUT, _STDERR, _ENGINE = 1, 2, 3
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")
_STAMP_BYTES = 40
"""More than any timestamp takes."""

_SHORT_BYTES = MAX_LINE_BYTES // 3
"""A byte that is replaced takes three: what is shorter than this needs no cut."""

_RETURN, _NUL, _SPACE, _Z = b"\r\0 Z"  # numbers: Python finds them ten times as fast as bytes

_JSON_KEYS = ("level", "levelname", "severity")
_MARKS = {
    number: {level: mark(level, name) for level in LEVELS.values()}
    for number, name in ((_STDOUT, "stdout"), (_STDERR, "stderr"))
}


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

    ``dropped``: the log begins with a later line than its first. Its lines have no known numbers then; all are after
    those up to ``skip``, and only the last ``TAIL_BYTES`` of them are returned.
    """

    def __init__(
        self, skip: int = 0, max_bytes: int = 1 << 62, redactor: Redactor | None = None, *, dropped: bool = False
    ) -> None:
        self.position = skip + 1 if dropped else 0
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
        self._room = -1 if dropped else max_bytes
        self._dropped = dropped
        self._head = skip if dropped else 0  # the last line within max_bytes
        self._lines = _Lines()
        self._tail = _Tail()
        self._redactor = redactor or None  # one without secrets is none
        self._rest = b""
        self._stdout = LogStream("stdout", "info", self._redactor)
        self._stderr = LogStream("stderr", "warn", self._redactor)
        self._streams = {_STDOUT: self._stdout, _STDERR: self._stderr}
        self._readers = {number: stream.levels for number, stream in self._streams.items()}
        # The last frame: where its text belongs, and, if it is very long, how many bytes are missing.
        self._long: tuple[LogStream | None, bytes] = None, b""
        self._missing = 0

    @property
    def output(self) -> int:
        """What counts against a run's limit of output: an empty line takes room in the engine's log file too."""
        return self.bytes + self.position * LINE_BYTES

    def feed(self, data: bytes) -> list[LogLines]:
        """Takes the next bytes and returns the lines that they complete."""
        at = 0
        if self._missing:
            at = min(self._missing, len(data))
            self._missing -= at
            self._text(*self._long, data[:at])
        if self._rest:
            data = self._rest + data
        end, frame, single = len(data), -1, at
        while end - at >= HEADER_BYTES:
            if at >= single and not (self._stdout.open or self._stderr.open):
                frames = whole_lines(data, at)
                if len(frames.texts) >= MANY and self._many(frames):
                    frame, at = frames.last, frames.end
                    continue
                single = max(frames.end, at + 1)
            kind, size = _HEADER.unpack_from(data, at)
            start = at + HEADER_BYTES
            after = start + size
            if after > end:
                if size <= MAX_FRAME_BYTES or end - start < _STAMP_BYTES:
                    break
                self._missing, after = after - end, end
            self._entry(kind, data, start, after)
            frame, at = at, after
        if frame >= 0:
            self.last_frame = b"" if self._missing else data[frame:at]
        self._rest = data[at:]
        return self._taken()

    def flush(self) -> list[LogLines]:
        """What the end of the log brings: lines without a newline, and the tail of a log that is too long."""
        for stream in sorted((s for s in self._streams.values() if s.open), key=lambda s: s.stamp):
            self._end(stream)
        if not self._tail:
            return self._taken()
        tail, self._tail = self._tail, _Tail()
        kept, omitted = tail.take(self._head, dropped=self._dropped)
        self._dropped = False
        self.omitted += omitted
        self._head = self.position
        return self._taken(kept)

    def _taken(self, tail: Iterable[LogLines] = ()) -> list[LogLines]:
        """The new lines, and those of the tail, as far as they are not stored already."""
        taken = []
        for lines in (self._lines.joined(), *tail):
            stored = max(0, self._skip + 1 - lines.first_seq)
            if stored < len(lines):
                taken.append(lines.part(stored) if stored else lines)
                self.delivered = lines.last_seq
        self._lines = _Lines()
        return taken

    def _many(self, frames: Frames) -> bool:
        """Many whole lines; False if some are within the room for the head and some are not."""
        count, beyond = len(frames.texts), self._room < 0
        cost = frames.size + count * LINE_BYTES
        if not beyond and cost > self._room:
            return False
        first = self.position + 1
        self.position += count
        self.bytes += frames.size
        self._room -= cost
        if not beyond:
            self._head = self.position
        lines = frames.texts
        text = b"\n".join(lines)
        if _RETURN in text:
            lines = [self._stdout.without_returns(line, len(line))[0] if _RETURN in line else line for line in lines]
            text = b"\n".join(lines)
        levels = read_levels(self._readers, frames.streams, lines, text)
        if not beyond and self.position <= self._skip:
            return True
        if self._redactor is not None:
            text = self._redactor.mask_lines(lines, text)
        messages = text.decode("utf-8", "replace").replace("\0", "�").split("\n")
        if text.startswith(b"{") or b"\n{" in text:
            levels = [_json_level(message) or level for message, level in zip(messages, levels, strict=True)]
        marks = [_MARKS[stream][level] for stream, level in zip(frames.streams, levels, strict=True)]
        if beyond:
            costs = [len(line) + LINE_BYTES for line in frames.texts]
            self._tail.add(first, messages, marks, frames.stamps, costs)
        else:
            self._lines.add(first, messages, marks, frames.stamps)
        return True

    def _entry(self, kind: int, data: bytes, start: int, after: int) -> None:
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
        piece = data[text:after]
        mended = stream.mend(piece)
        self.bytes += len(piece) - len(mended)
        self._text(stream, stamp, mended)

    def _text(self, stream: LogStream | None, stamp: bytes, text: bytes) -> None:
        """A piece of a stream that may begin, continue and end lines."""
        if stream is None:
            return
        *ended, rest = text.split(b"\n")
        self.bytes += sum(map(len, ended)) + len(rest)
        for part in ended:
            stream.keep(stamp, part)
            self._end(stream)
        if rest:
            stream.keep(stamp, rest)

    def _end(self, stream: LogStream) -> None:
        """The line under way is complete."""
        raw, size, folded = stream.take()
        self.position = position = self.position + 1
        cost = min(size, MAX_LINE_BYTES) + LINE_BYTES
        self._room = room = self._room - cost
        if _RETURN in raw:
            raw, size = stream.without_returns(raw, size - folded)
        level = stream.levels.read(raw)
        if room >= 0:
            self._head = position
            if position <= self._skip:
                return
        if self._redactor is not None:
            whole = size <= KEPT_BYTES
            raw = self._redactor.mask(raw, KEPT_BYTES)
            size = len(raw) if whole else size
        message = raw.decode("utf-8", "replace") if size < _SHORT_BYTES and _NUL not in raw else _bounded(raw, size)
        letter = mark(_json_level(message) or level, stream.name)
        if room >= 0:
            self._lines.add(position, [message], [letter], [stream.stamp])
        else:
            self._tail.add(position, [message], [letter], [stream.stamp], [cost])


@dataclass(slots=True)
class _Lines:
    """Consecutive lines that are to be returned."""

    first_seq: int = 0
    messages: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    stamps: list[bytes] = field(default_factory=list)

    def add(self, seq: int, messages: Sequence[str], marks: Sequence[str], stamps: Sequence[bytes]) -> None:
        """Adds lines from number ``seq`` on."""
        if not self.messages:
            self.first_seq = seq
        self.messages += messages
        self.marks += marks
        self.stamps += stamps

    def joined(self) -> LogLines:
        return LogLines(self.first_seq, self.messages, "".join(self.marks), times(self.stamps))


@dataclass(frozen=True, slots=True)
class _Packed:
    """Lines of the tail, joined: a third of the memory that they take as objects."""

    messages: str
    marks: str
    timestamps: str
    costs: array[int]
    bytes: int
    """The sum of ``costs``."""


class _Tail:
    """The last ``TAIL_BYTES`` of a log that is too long."""

    def __init__(self) -> None:
        self._last_seq = 0
        self._packed: deque[_Packed] = deque()
        self._packed_bytes = 0
        self._lines = _Lines()
        self._costs = array("L")
        self._bytes = 0

    def __bool__(self) -> bool:
        return self._last_seq > 0

    def add(
        self, seq: int, messages: Sequence[str], marks: Sequence[str], stamps: Sequence[bytes], costs: Sequence[int]
    ) -> None:
        """Adds lines from number ``seq`` on, each with what it counts."""
        self._last_seq = seq + len(messages) - 1
        self._lines.add(seq, messages, marks, stamps)
        self._costs.extend(costs)
        self._bytes += sum(costs)
        if len(self._costs) >= _PACK_LINES or self._bytes >= _PACK_BYTES:
            self._pack()

    def _pack(self) -> None:
        if not self._costs:
            return
        lines = self._lines.joined()
        messages, timestamps = "\n".join(lines.messages), "\n".join(lines.timestamps)
        self._packed.append(_Packed(messages, lines.marks, timestamps, self._costs, self._bytes))
        self._packed_bytes += self._bytes
        self._lines, self._costs, self._bytes = _Lines(), array("L"), 0
        while self._packed_bytes - self._packed[0].bytes >= TAIL_BYTES:
            self._packed_bytes -= self._packed.popleft().bytes

    def take(self, head: int, *, dropped: bool) -> tuple[list[LogLines], int]:
        """Its lines, and how many were left out behind line ``head``; a line in their place tells how many."""
        self._pack()
        packed = self._packed
        costs = [cost for pack in packed for cost in pack.costs]
        kept, room = 0, TAIL_BYTES
        for cost in reversed(costs):
            room -= cost
            if room < 0:
                break
            kept += 1
        messages = [message for pack in packed for message in pack.messages.split("\n")]
        marks = "".join([pack.marks for pack in packed])
        timestamps = [time for pack in packed for time in pack.timestamps.split("\n")]
        lines = LogLines(self._last_seq - len(marks) + 1, messages, marks, timestamps).part(len(marks) - kept)
        omitted = lines.first_seq - head - 1
        if not omitted:
            return [lines], 0
        message = f"[{omitted:,} lines left out here: the log is longer than this host keeps]"
        if dropped:
            message = f"[{omitted:,} lines or more left out here: the engine no longer had all of them]"
        warn = mark("warn", "stdout" if marks[0].islower() else "stderr")
        return [LogLines(head + 1, [message], warn, lines.timestamps[:1]), lines], omitted


def _bounded(raw: bytes, size: int) -> str:
    """The line as PostgreSQL can store it: UTF-8 without NUL, and bounded."""
    # A character that is split at the end of raw lies beyond the cut.
    text = raw.decode("utf-8", "replace").replace("\0", "�")
    encoded = text.encode()
    if size <= MAX_LINE_BYTES and len(encoded) <= MAX_LINE_BYTES:
        return text
    return f"{encoded[:MAX_LINE_BYTES].decode('utf-8', 'ignore')} … [line cut, {size} bytes]"


def _json_level(message: str) -> str | None:
    """The level in a line of JSON."""
    if message[:1] != "{":
        return None
    try:
        record = json.loads(message)
    except (ValueError, RecursionError):
        return None
    for key in _JSON_KEYS:
        if (level := LEVELS.get(str(record.get(key)).lower())) is not None:
            return level
    return None
