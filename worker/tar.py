"""A strict reader of tar streams (ustar, with pax and GNU extensions).

``tarfile`` reads a cut or damaged header as the end of the archive, and only its private methods distinguish the two.
Here an archive ends with its end mark, which is two blocks of zeros, and only zeros may follow. Everything else raises
``DamagedError``. Memory does not depend on the content of the archive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
END_MARK = bytes(2 * BLOCK)
"""The whole of an archive without members."""

MAX_HEADER = 1 << 20
"""Most bytes of a long name or of extended attributes, which are read whole."""

FILE, FOLDER, HARD_LINK, SYMBOLIC_LINK = "0", "5", "1", "2"
CHARACTER_DEVICE, BLOCK_DEVICE, NAMED_PIPE = "3", "4", "6"

_WITHOUT_CONTENT = frozenset({FOLDER, HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, NAMED_PIPE})
"""Kinds of members without content in the archive, whatever size their header has."""

_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK, _SPARSE = "x", "g", "L", "K", "S"
_EXTENSIONS = frozenset({_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK})
_MAGIC = (b"ustar\x0000", b"ustar  \x00")
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=]+)=")
_MAX_SIZE = (1 << 63) - 1
_PIECE = 1 << 16


class DamagedError(Exception):
    """The archive is cut or damaged; the text names the damage."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive. ``kind`` is one character, such as ``FILE``; ``size`` counts bytes that follow it.

    Bytes of the name that are not UTF-8 are decoded with ``surrogateescape``.
    """

    name: str
    kind: str
    size: int


def piecewise(chunks: Iterator[bytes]) -> Callable[[int], bytes]:
    """Makes the source of a ``TarReader`` from chunks of any size."""
    rest = memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal rest
        while not rest:
            chunk = next(chunks, None)
            if chunk is None:
                return b""
            rest = memoryview(chunk)
        piece, rest = rest[:size], rest[size:]
        return bytes(piece)

    return read


def first_file(chunks: Iterator[bytes], max_bytes: int) -> bytes | None:
    """The content of an archive's first member; None unless it is a file of at most that size.

    It does not read beyond that member. Raises ``DamagedError``.
    """
    tar = TarReader(piecewise(chunks))
    member = tar.next()
    if member is None or member.kind != FILE or member.size > max_bytes:
        return None
    return tar.read(member.size)


class TarReader:
    """Reads the members one after the other. ``read`` returns at most as many bytes as asked for, none at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._source = read
        self._left = 0
        self._padding = 0

    def next(self) -> Member | None:
        """The next member; None at the end of a whole archive. Skips the unread content of the member before."""
        while self.read(_PIECE):
            pass
        self._exactly(self._padding)
        self._padding = 0
        long_name = None
        records: dict[bytes, bytes] = {}
        seen: set[str] = set()
        while (block := self._exactly(BLOCK)).count(0) < BLOCK:
            member = _member(block)
            if member.kind not in _EXTENSIONS:
                return self._begin(_extended(member, long_name, records))
            if member.kind in seen:
                raise DamagedError("an extended header twice")
            seen.add(member.kind)
            data = self._header(member.size)
            if member.kind == _PAX:
                records = _records(data)
            elif member.kind == _LONG_NAME:
                long_name = data.partition(b"\0")[0]
        if seen:
            raise DamagedError("an extended header of nothing")
        self._end()
        return None

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes of the member's content, fewer only at its end."""
        piece = self._exactly(min(size, self._left))
        self._left -= len(piece)
        return piece

    def _begin(self, member: Member) -> Member:
        self._left, self._padding = member.size, -member.size % BLOCK
        return member

    def _header(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise DamagedError("a header with an impossible size")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _end(self) -> None:
        if self._exactly(BLOCK).count(0) < BLOCK:
            raise DamagedError("half an end mark")
        while piece := self._source(_PIECE):
            if piece.count(0) < len(piece):
                raise DamagedError("bytes after the end mark")

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._source(size)
            if not piece:
                raise DamagedError("it ends before its end mark")
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _member(block: bytes) -> Member:
    """The member of one header, without the extensions before it."""
    sum_of_bytes = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _number(block[148:156]) != sum_of_bytes:
        raise DamagedError("a header with a wrong checksum")
    if block[257:265] not in _MAGIC:
        raise DamagedError("a header of an unknown format")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:265] == _MAGIC[0] else b""
    kind = chr(block[156])
    if kind == _SPARSE:
        raise DamagedError("a sparse file, which no engine writes")
    return _named(b"/".join([prefix, name] if prefix else [name]), kind, _number(block[124:136]))


def _named(name: bytes, kind: str, size: int) -> Member:
    if kind == "\0":  # an archive older than ustar
        kind = FOLDER if name.endswith(b"/") else FILE
    if kind == FOLDER:
        name = name.rstrip(b"/") or name
    return Member(name.decode("utf-8", "surrogateescape"), kind, 0 if kind in _WITHOUT_CONTENT else size)


def _extended(member: Member, long_name: bytes | None, records: dict[bytes, bytes]) -> Member:
    size, path = records.get(b"size"), records.get(b"path") or long_name
    if size is not None and not re.fullmatch(rb"[0-9]{1,19}", size):
        raise DamagedError("a member with an impossible size")
    name = member.name.encode("utf-8", "surrogateescape") if path is None else path
    return _named(name, member.kind, _possible(member.size if size is None else int(size)))


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or binary if the first bit is set."""
    if field[0] & 0x80:
        return _possible(int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else  # noqa: PLR2004
                         int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big"))  # fmt: skip
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise DamagedError("a header with an impossible number")
    return int(digits[1] or b"0", 8)


def _possible(size: int) -> int:
    if not 0 <= size <= _MAX_SIZE:
        raise DamagedError("a member with an impossible size")
    return size


def _records(data: bytes) -> dict[bytes, bytes]:
    """The pax records ``size`` and ``path``. A record is ``LENGTH KEY=VALUE`` and a line feed."""
    records = {}
    at = 0
    while at < len(data):
        record = _RECORD.match(data, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise DamagedError("an extended header that cannot be read")
        if record[2].startswith(b"GNU.sparse."):
            raise DamagedError("a sparse file, which no engine writes")
        if record[2] in (b"size", b"path"):
            records[record[2]] = data[record.end() : end - 1]
        at = end
    return records
