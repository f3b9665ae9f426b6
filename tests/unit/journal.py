"""The log of a container as the engine's endpoint sends it."""

from __future__ import annotations

import struct

STAMP = b"2026-11-23T10:11:12.123456789Z"
OUT, ERR, ENGINE = 1, 2, 3


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
