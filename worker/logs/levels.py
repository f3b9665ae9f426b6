"""The level of a log line, from its text and from the record that it continues. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LEVELS = {
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
"""The words that programs use, and the four levels of ``ops.run_logs``."""

CONTINUED_LINES = 500
"""How many lines at most have the level of the record that they continue."""

_HEAD_BYTES = 256
"""Within how many bytes of its begin a line must name its level."""

_DIGITS = "0123456789"
BEGINNINGS = frozenset(
    beginning.encode()
    for beginning in (
        *("DEB", "INF", "WAR", "ERR", "CRI", "FAT", "FAI", "E  ", "npm", "Tra", "===", "!!!", "\x1b[m"),
        *(f"\x1b[{n}" for n in _DIGITS),
        *(f"{n:03}" for n in range(1_000)),
        *(f"{n} " for n in range(10, 100)),
        *(f"{n} {letter}" for n in _DIGITS for letter in "abcdefghijklmnopqrstuvwxyz"),
    )
)
"""The first three bytes of each line that names a level, and of a traceback."""

_SHORTEST_SUMMARY = len("1 failed in 0")

_COLOUR = re.compile(rb"\x1b\[[\d;]*m")
_NAMED = re.compile(
    rb"""
    # Odoo's log format
    \d{4}-\d\d-\d\d[ ]\d\d:\d\d:\d\d,\d{3}[ ]\d+[ ](?:\x1b\[[\d;]*m)*(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b
    | (?:(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL) | npm[ ](ERR!|error|WARN|warn|notice))(?=[:\s]|$)
    # pytest: what failed, why, and the summary; always an error
    | E[ ]{3}
    | FAILED[ ]
    | !+[ ].*\b(?:Interrupted|errors?|failures?)\b
    | (?:=+[ ])?(?:\d+[ ][a-z]+,[ ])*0*[1-9]\d*[ ](?:failed|errors?)\b.*[ ]in[ ]\d
    """,
    re.VERBOSE,
)
_ODOO = 1
_ODOO_LINE = re.compile(rb"\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d{1,20} (DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
"""The begin of a line in Odoo's format without colours."""

_WORDS = {name.upper().encode(): level for name, level in LEVELS.items()} | {
    b"ERR!": "error",
    b"error": "error",
    b"warn": "warn",
    b"notice": "info",
}

_INDENT = b" ", b"\t"
_ALARMING = "warn", "error"
_TRACEBACK = b"Traceback (most recent call last):"
_FRAME = b'  File "'
_EXCEPTION = re.compile(rb"[A-Za-z_][\w.]*(?::|$)")
_CHAINED = re.compile(
    rb"During handling of the above exception, another exception occurred:"
    rb"|The above exception was the direct cause of the following exception:"
    rb"|(?:DETAIL|HINT|CONTEXT|LINE \d+):"  # what PostgreSQL adds to an error
)


def mark(level: str, stream: str) -> str:
    """The letter for a line with that level, as ``ops.append_run_logs`` takes it."""
    return level[0].upper() if stream == "stderr" else level[0]


class LevelReader:
    """Gives each line of one stream its level, in the order of the stream.

    A line that names a level begins a record. The record goes on with indented and empty lines and with the lines of
    a Python traceback, ``CONTINUED_LINES`` of them at most; these have the level of the record. A traceback is an error
    unless it continues a warning or an error: it ends a program more often than it is part of what went well. Every
    other line has the level of the stream; after a line in Odoo's format with ``info`` or ``debug`` that is ``info``,
    also on stderr: Odoo writes all of its log there.
    """

    __slots__ = ("_record", "_stream", "_traceback", "left", "level")

    def __init__(self, stream: str) -> None:
        self.level = stream
        """The level of a line that names none and continues no record."""
        self.left = 0
        """How many lines may still continue the record. While it is 0, only a line with one of the ``BEGINNINGS`` needs
        to be read."""
        self._stream = stream
        self._record = stream
        self._traceback = False  # whether the line that names the exception is still to come

    def read(self, line: bytes) -> str:
        """The level of the next line, given without its end."""
        if line[:3] in BEGINNINGS:
            if (level := self._named(line)) is not None:
                self._record, self.left, self._traceback = level, CONTINUED_LINES, False
                return level
            if line.startswith(_TRACEBACK) and not (self.left and self._record in _ALARMING):
                self._record, self.left, self._traceback = "error", CONTINUED_LINES, True
                return self._record
        if not self.left or line.startswith(b"{"):  # a line of JSON is a record of its own
            return self.level
        if not self._continues(line):
            self.left = 0
            return self.level
        self.left -= 1
        return self._record

    def read_odoo(self, word: bytes) -> str:
        """The level of the next line, which has that word for it in Odoo's format."""
        level = _WORDS[word]
        self._record, self.left, self._traceback = level, CONTINUED_LINES, False
        self.level = self._after_odoo(level)
        return level

    def _named(self, line: bytes) -> str | None:
        """The level that the line names itself, None if it names none."""
        if len(line) < _SHORTEST_SUMMARY and line[:1].isdigit():
            return None
        found = _NAMED.match(line, 0, _HEAD_BYTES)
        if found is None and b"\x1b[" in line:
            found = _NAMED.match(_COLOUR.sub(b"", line[: 2 * _HEAD_BYTES]), 0, _HEAD_BYTES)
        if found is None:
            return None
        group = found.lastindex
        if group is None:
            return "error"
        level = _WORDS[found[group]]
        if group == _ODOO:
            self.level = self._after_odoo(level)
        return level

    def _after_odoo(self, level: str) -> str:
        """The level of a line that names none, after one in Odoo's format."""
        return "info" if level in ("info", "debug") else self._stream

    def _continues(self, line: bytes) -> bool:
        if not line or line.startswith(_INDENT):
            self._traceback = self._traceback or line.startswith(_FRAME)
            return True
        if line.startswith(_TRACEBACK):
            self._traceback = True
            return True
        if self._traceback and _EXCEPTION.match(line):
            self._traceback = False
            return True
        return _CHAINED.match(line) is not None


def read_levels(readers: Mapping[int, LevelReader], streams: bytes, lines: Sequence[bytes], text: bytes) -> list[str]:
    """The levels of the next lines; ``streams`` tells the reader of each, and ``text`` has them all, with newlines."""
    words = _ODOO_LINE.findall(b"\n" + text)
    if len(words) == len(lines) == streams.count(streams[0]):  # each line begins a record
        readers[streams[0]].read_odoo(words[-1])
        return [_WORDS[word] for word in words]
    levels = []
    for stream, line in zip(streams, lines, strict=True):
        reader = readers[stream]
        levels.append(reader.read(line) if reader.left or line[:3] in BEGINNINGS else reader.level)
    return levels
