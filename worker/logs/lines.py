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

from worker.logs.levels import BEGINNINGS, LEVELS, LevelReader
from worker.logs.redact import Redactor
from worker.model.claim import LogLine

MAX_LINE_BYTES = 65_536
"""A longer line is cut here, and says how long it was."""

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

_KEPT_BYTES = MAX_LINE_BYTES + 1  # ... and the \r of a \r\n
_SHORT_BYTES = MAX_LINE_BYTES // 3
"""A byte that is replaced takes three: what is shorter than this needs no cut."""

_NEWLINE, _RETURN, _NUL, _SPACE, _Z = b"\n\r\0 Z"  # numbers: Python finds them ten times as fast as bytes
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_ERASE_LINE, _ERASE_REST = ("\x1b[2K",), ("\x1b[K", "\x1b[0K")

_JSON_KEYS = ("level", "levelname", "severity")


class _Stream:
    """What is known of one stream: its levels so far, and the line under way."""

    __slots__ = ("folded", "kept", "levels", "name", "open", "size", "stamp")

    def __init__(self, name: str, level: str) -> None:
        self.name = name
        self.levels = LevelReader(level)
        self.open = False
        self.stamp = b""
        self.kept = bytearray()
        self.size = 0
        self.folded = 0  # bytes that were overwritten, and are in size but not in kept


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
            self._text(stream, stamp, self._mend(stream, data[text:after]), lines)

    def _mend(self, stream: _Stream, text: bytes) -> bytes:
        """The text of an entry, where it goes on with a line within a character.

        The engine cuts a long line every 16 KiB, also within a character, and stores U+FFFD for each byte of it. The
        character is lost; one question mark is put for it, so that all after it keep their columns.
        """
        if not (stream.open and text.startswith(_REPLACED) and stream.kept.endswith(_REPLACED)):
            return text
        if len(stream.kept) >= self._kept_bytes:
            return text
        before = _run(bytes(stream.kept[: -4 * len(_REPLACED) : -1]), _REPLACED[::-1])
        after = _run(text, _REPLACED)
        del stream.kept[-before:]
        stream.kept += b"?"
        stream.size -= before - 1
        self.bytes += after
        return text[after:]

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
        missing = stream.size - stream.folded - len(stream.kept)
        stream.size += len(part)
        self.bytes += len(part)
        if missing:
            return  # the line is cut already
        room = self._kept_bytes - len(stream.kept)
        while len(part) > room:
            stream.kept += part[:room]
            part = part[room:]
            room = self._fold(stream)
            if not room:
                return
        stream.kept += part

    def _fold(self, stream: _Stream) -> int:
        """Removes what is overwritten from a line that is too long to be kept; returns the room that this frees.

        It frees at least a quarter of the room or none, so that the work grows no faster than the line.
        """
        end = stream.kept.rfind(b"\r", 0, _KEPT_BYTES)
        if end < 0:
            return 0
        shown = self._shown(bytes(stream.kept[:end]))
        if end - len(shown) < MAX_LINE_BYTES // 4:
            return 0
        stream.kept[:end] = shown
        stream.folded += end - len(shown)
        return self._kept_bytes - len(stream.kept)

    def _shown(self, raw: bytes) -> bytes:
        return as_shown(self._redactor.mask(raw, _KEPT_BYTES) if self._redactor else raw)

    def _end(self, stream: _Stream, lines: list[LogLine]) -> None:
        if len(stream.kept) > _KEPT_BYTES:
            self._fold(stream)
        raw, size, folded = bytes(stream.kept), stream.size, stream.folded
        stream.open, stream.kept, stream.size, stream.folded = False, bytearray(), 0, 0
        self._line(stream, stream.stamp, raw, size, lines, folded)

    def _line(
        self, stream: _Stream, stamp: bytes, raw: bytes, size: int, lines: list[LogLine], folded: int = 0
    ) -> None:
        """A complete line of ``size`` bytes, of which ``folded`` were overwritten; of the others ``raw`` has all, or
        at least as many as are kept.
        """
        self.position = position = self.position + 1
        cost = min(size, MAX_LINE_BYTES) + LINE_BYTES
        self._room = room = self._room - cost
        if _RETURN in raw:
            raw, size = self._without_returns(raw, size - folded)
        levels = stream.levels
        may_name = raw[:3] in BEGINNINGS
        level = levels.read(raw, may_name=may_name) if may_name or levels.left else levels.level
        if room >= 0:
            self._head = position
            if position <= self._skip:
                return
        if self._redactor is not None:
            whole = size <= _KEPT_BYTES
            raw = self._redactor.mask(raw, _KEPT_BYTES)
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
            self._keep_end(line, cost)

    def _without_returns(self, raw: bytes, size: int) -> tuple[bytes, int]:
        whole = size <= _KEPT_BYTES
        raw = raw.rstrip(b"\r")
        if _RETURN in raw:
            raw = self._shown(raw)
        return raw, len(raw) if whole else size

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


def as_shown(line: bytes) -> bytes:
    """What a terminal shows of a line once all of it is written.

    A carriage return goes back to the first column, and what follows overwrites what is there, one character per
    column. The sequences that erase the line, or the rest of it, do so. Every other control sequence, as for colours,
    stays with the character that it is written before.
    """
    cells: list[str] = []
    for part in line.decode("utf-8", "surrogateescape").split("\r"):
        if "\x1b" in part:
            _overwrite(cells, part)
        else:
            cells[: len(part)] = part
    return "".join(cells).encode("utf-8", "surrogateescape")


def _overwrite(cells: list[str], part: str) -> None:
    """Writes a part with control sequences over the cells, from the first column on."""
    column = at = 0
    controls = ""
    for control in _CONTROL.finditer(part):
        text = part[at : control.start()]
        if text:
            cells[column : column + len(text)] = [controls + text[0], *text[1:]]
            column, controls = column + len(text), ""
        if control[0] in _ERASE_LINE:
            del cells[:]
            column = 0
        elif control[0] in _ERASE_REST:
            del cells[column:]
        else:
            controls += control[0]
        at = control.end()
    text = part[at:]
    if text:
        cells[column : column + len(text)] = [controls + text[0], *text[1:]]
    elif controls and column:
        cells[column - 1] += controls


def _run(data: bytes, piece: bytes) -> int:
    """The bytes of the copies of the piece with which the data begins; three copies at most."""
    size = 0
    while size < 3 * len(piece) and data.startswith(piece, size):
        size += len(piece)
    return size


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
