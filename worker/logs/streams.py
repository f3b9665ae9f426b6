"""The line under way of one output stream: what is kept of it, and what a terminal would show. Pure."""

from __future__ import annotations

from worker.logs.levels import LevelReader
from worker.logs.redact import Redactor
from worker.logs.terminal import as_shown

MAX_LINE_BYTES = 65_536
"""A longer line is cut here, and its length is added."""

KEPT_BYTES = MAX_LINE_BYTES + 1  # ... and the \r of a \r\n
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()
(_RETURN,) = b"\r"  # a number: Python finds it ten times as fast as bytes


class LogStream:
    """What is known of one stream: its levels so far, and the line under way.

    The part of a line that is overwritten after a carriage return takes no room. Secrets are masked before that, so
    that no rest of a masked one is shown.
    """

    __slots__ = ("_redactor", "_room", "folded", "kept", "levels", "name", "open", "size", "stamp")

    def __init__(self, name: str, level: str, redactor: Redactor | None) -> None:
        self.name = name
        self.levels = LevelReader(level)
        self.open = False
        self.stamp = b""
        self.kept = bytearray()
        self.size = 0
        self.folded = 0
        """Bytes that were overwritten, and are in ``size`` but not in ``kept``."""
        self._redactor = redactor
        self._room = KEPT_BYTES + (redactor.reach if redactor else 0)

    def keep(self, stamp: bytes, part: bytes) -> None:
        """Adds a part of a line, which begins the line if none is under way."""
        if not self.open:
            self.open, self.stamp = True, stamp
        missing = self.size - self.folded - len(self.kept)
        self.size += len(part)
        if missing:
            return  # the line is cut already
        room = self._room - len(self.kept)
        while len(part) > room:
            self.kept += part[:room]
            part = part[room:]
            room = self._fold()
            if not room:
                return
        self.kept += part

    def mend(self, text: bytes) -> bytes:
        """The text of an entry that may go on with the line within a character.

        The engine cuts a long line every 16 KiB, also within a character, and stores U+FFFD for each byte of it. The
        character is lost; one question mark is put for it, so that all after it keep their columns.
        """
        if not (self.open and text.startswith(_REPLACED) and self.kept.endswith(_REPLACED)):
            return text
        if len(self.kept) >= self._room:
            return text
        before = _run(bytes(self.kept[: -4 * len(_REPLACED) : -1]), _REPLACED[::-1])
        after = _run(text, _REPLACED)
        del self.kept[-before:]
        self.kept += b"?"
        self.size -= before - 1
        return text[after:]

    def take(self) -> tuple[bytes, int, int]:
        """Ends the line: its bytes as far as they are kept, its size, and how many of these were overwritten."""
        if len(self.kept) > KEPT_BYTES:
            self._fold()
        line = bytes(self.kept), self.size, self.folded
        self.open, self.kept, self.size, self.folded = False, bytearray(), 0, 0
        return line

    def without_returns(self, raw: bytes, size: int) -> tuple[bytes, int]:
        """A line of ``size`` bytes as a terminal would show it, and its size then."""
        whole = size <= KEPT_BYTES
        raw = raw.rstrip(b"\r")
        if _RETURN in raw:
            raw = self._shown(raw)
        return raw, len(raw) if whole else size

    def _fold(self) -> int:
        """Removes what is overwritten from a line that is too long to be kept; returns the room that this frees.

        It frees at least a quarter of the room or none, so that the work grows no faster than the line.
        """
        end = self.kept.rfind(b"\r", 0, KEPT_BYTES)
        if end < 0:
            return 0
        shown = self._shown(bytes(self.kept[:end]))
        if end - len(shown) < MAX_LINE_BYTES // 4:
            return 0
        self.kept[:end] = shown
        self.folded += end - len(shown)
        return self._room - len(self.kept)

    def _shown(self, raw: bytes) -> bytes:
        return as_shown(self._redactor.mask(raw, KEPT_BYTES) if self._redactor else raw)


def _run(data: bytes, piece: bytes) -> int:
    """The bytes of the copies of the piece with which the data begins; three copies at most."""
    size = 0
    while size < 3 * len(piece) and data.startswith(piece, size):
        size += len(piece)
    return size
