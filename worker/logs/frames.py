"""Many frames of the log endpoint at once, as columns. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress, count
from operator import itemgetter, ne
from struct import pack, unpack

HEADER_BYTES = 8
UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)
"""The time of a line that comes without one."""

MAX_TEXT = 20_000
"""The engine cuts a line after 16 KiB."""

_STAMP_END = HEADER_BYTES + 30
_FRAME = rb"[\x01\x02]\0\0\0.{4}.{29}Z [^\n]{0,%d}\n" % MAX_TEXT
_FRAME_OR_REST = re.compile(_FRAME + b"|.+", re.DOTALL)
"""Has no group: a tuple for each frame would keep Python's garbage collection busy."""

_WHOLE_FRAME = re.compile(_FRAME, re.DOTALL)
_USUAL_STAMP = b"0000-00-00T00:00:00.000000000Z\n"
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames that have one whole line each, without its newline."""

    streams: bytes
    """The number of each line's stream."""
    stamps: Sequence[bytes]
    texts: Sequence[bytes]
    size: int
    """The bytes of all texts."""
    last: int
    """Where the last of the frames begins."""
    end: int


def whole_lines(data: bytes, at: int) -> Frames:
    """The frames from ``at`` on, as far as each has one whole line of usual length."""
    frames = _FRAME_OR_REST.findall(data, at)
    if frames and _WHOLE_FRAME.fullmatch(frames[-1]) is None:
        frames.pop()
    lengths = list(map(len, frames))
    told = b"".join([frame[4:HEADER_BYTES] for frame in frames])
    if told != pack(f">{len(lengths)}L", *[length - HEADER_BYTES for length in lengths]):
        told_lengths = [size + HEADER_BYTES for size in unpack(f">{len(lengths)}L", told)]
        good = next(compress(count(), map(ne, lengths, told_lengths)))
        del frames[good:], lengths[good:]
    end = at + sum(lengths)
    return Frames(
        bytes(map(itemgetter(0), frames)),
        [frame[HEADER_BYTES:_STAMP_END] for frame in frames],
        [frame[_STAMP_END + 1 : -1] for frame in frames],
        end - at - len(frames) * (_STAMP_END + 2),
        end - lengths[-1] if frames else at,
        end,
    )


def times(stamps: Sequence[bytes]) -> list[str]:
    """The times that these timestamps tell, in UTC and to the microsecond, as PostgreSQL reads them."""
    shape = b"\n".join([*stamps, b""]).translate(_ZEROS)
    if stamps and shape == _USUAL_STAMP * len(stamps) and all(map(_time, {stamp[:19] for stamp in stamps})):
        return (b"Z\n".join([stamp[:26] for stamp in stamps]) + b"Z").decode("ascii").split("\n")
    return [(_time(stamp) or UNKNOWN_TIME).isoformat() for stamp in stamps]


def _time(stamp: bytes) -> datetime | None:
    try:
        return datetime.fromisoformat(stamp.decode("ascii")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
