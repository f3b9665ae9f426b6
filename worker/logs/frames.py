"""Many frames of the log endpoint at once, as columns. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress, count
from operator import ne
from struct import pack

from worker.logs.levels import ODOO_LEVEL

HEADER_BYTES = 8
UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)
"""The time of a line that comes without one."""

MAX_TEXT = 20_000
"""The engine cuts a line after 16 KiB."""

# What the engine sends of a line that is one entry, and, where something else comes, the rest.
_FRAME = re.compile(
    rb"([\x01\x02])\0\0\0(.{4})((.{29}Z) ((?:%b)?[^\n]{0,%d})\n)|.+" % (ODOO_LEVEL, MAX_TEXT), re.DOTALL
)
_BESIDE_TEXT = 30 + len(b" \n")


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames that have one whole line each: where they come from, their lines and their times."""

    kinds: Sequence[bytes]
    stamps: Sequence[bytes]
    texts: Sequence[bytes]
    levels: Sequence[bytes]
    """The level of each line in Odoo's format, empty for other lines."""
    size: int
    """The bytes of all lines."""
    last: int
    """Where the last of the frames begins."""
    end: int


def whole_lines(data: bytes, at: int) -> Frames | None:
    """The frames from ``at`` on, as far as each has one whole line of usual length; None if the first one has not."""
    found = _FRAME.findall(data, at)
    if not found[-1][0]:
        found.pop()
    if not found:
        return None
    kinds, sizes, entries, stamps, texts, levels = zip(*found, strict=True)
    lengths = list(map(len, entries))
    if b"".join(sizes) != pack(f">{len(lengths)}L", *lengths):
        wrong = map(ne, sizes, (pack(">L", length) for length in lengths))
        places = next(compress(count(), wrong))
        if not places:
            return None
        kinds, stamps, texts, levels = (column[:places] for column in (kinds, stamps, texts, levels))
        del lengths[places:]
    total = sum(lengths)
    end = at + total + HEADER_BYTES * len(lengths)
    return Frames(
        kinds, stamps, texts, levels, total - _BESIDE_TEXT * len(lengths), end - lengths[-1] - HEADER_BYTES, end
    )


def times(stamps: Sequence[bytes]) -> list[datetime]:
    """The times that these timestamps tell."""
    try:
        found = list(map(datetime.fromisoformat, b"\n".join(stamps).decode("ascii").split("\n")))
    except ValueError:
        found = []
    return found if len(found) == len(stamps) else list(map(_time, stamps))


def _time(stamp: bytes) -> datetime:
    try:
        return datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return UNKNOWN_TIME
