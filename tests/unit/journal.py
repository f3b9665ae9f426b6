"""The log of a container as the engine's endpoint sends it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from worker.logs.lines import LineAssembler
from worker.model.claim import LogLines

STAMP = b"2026-11-23T10:11:12.123456789Z"
OUT, ERR, ENGINE = 1, 2, 3
LEVELS = {"d": "debug", "i": "info", "w": "warn", "e": "error"}


class LogLine(NamedTuple):
    """A line as ``ops.run_logs`` has it."""

    seq: int
    stream: str
    level: str
    message: str
    timestamp: datetime


def rows(batches: Iterable[LogLines]) -> list[LogLine]:
    """The lines of these batches."""
    return [
        LogLine(
            seq,
            "stdout" if mark.islower() else "stderr",
            LEVELS[mark.lower()],
            message,
            datetime.fromisoformat(timestamp),
        )
        for lines in batches
        for seq, (mark, message, timestamp) in enumerate(
            zip(lines.marks, lines.messages, lines.timestamps, strict=True), lines.first_seq
        )
    ]


def frame(kind: int, text: bytes, stamp: bytes = STAMP) -> bytes:
    """What it sends for one entry of the log file."""
    return header(kind, len(stamp) + 1 + len(text)) + stamp + b" " + text


def header(kind: int, size: int) -> bytes:
    """What comes before ``size`` bytes."""
    return struct.pack(">BxxxL", kind, size)


def entries(kind: int, line: bytes) -> bytes:
    """A line as the engine stores it: in entries of at most 16 KiB, each with the same timestamp."""
    pieces = [line[at : at + 16_384] for at in range(0, len(line), 16_384)]
    return b"".join(frame(kind, piece) for piece in pieces)


def read(data: bytes, *cuts: int, skip: int = 0) -> list[LogLine]:
    """All lines of a log that arrives in pieces cut at those places."""
    assembler = LineAssembler(skip)
    places = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    batches = [lines for start, end in pairwise(places) for lines in assembler.feed(data[start:end])]
    return rows(batches + assembler.flush())
