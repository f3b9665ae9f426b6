"""Frames that are read together give the same lines as one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.journal import ERR, OUT, STAMP, frame, read, rows
from worker.logs.frames import MAX_TEXT
from worker.logs.lines import MANY, LineAssembler
from worker.logs.redact import Redactor

ODOO = "2026-01-01 00:00:00,000 12"
TEXTS = [
    *(b"", b"plain", b"  indented", b"Traceback (most recent call last):", b"ValueError: x", b"ERROR: x", b"E   x"),
    *(f"{ODOO} {level} db odoo: x".encode() for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "INFORMAL")),
    *(b'{"level": "debug"}', b'{"level": "error", "of": "hunter22"}', b'{"level"', b"2 failed in 1s", b"1234"),
    *(b"a\rb", b"40%\r", f"{ODOO} ERROR x\rdone".encode(), f"50%\r{ODOO} ERROR x".encode()),
    *(b"nul\0", b"\xff\xfe", b"caf\xc3", "€".encode(), "�".encode(), b"\x01\0\0\0\0\0\0\x28"),
    *(b"is hunter22.", b"hunter", b"hunt\x1b[1mer22", b"\x1b[31mERROR\x1b[0m: x", b"hunter22\rhunter22"),
    *(b"x" * MAX_TEXT, b"x" * (MAX_TEXT + 1), b"\xff" * MAX_TEXT, f"{ODOO} ERROR ".encode() + b"x" * 19_990),
    f"2026-01-01 00:00:00,000 {'1' * 240} ERROR x".encode(),
]  # fmt: skip
STAMPS = [*[STAMP] * 40, b"", b"2026-11-23T10:11:12Z", b"x" * 29 + b"Z", b"2026-11-23\n20261123T101112.12Z"]


def frames_of(texts: list[bytes], kinds: list[int]) -> st.SearchStrategy[list[bytes]]:
    """Frames with these texts; some are not whole lines."""
    texts_and_ends = st.tuples(st.sampled_from(texts), st.sampled_from([*[b"\n"] * 40, b""])).map(b"".join)
    each = st.builds(frame, st.sampled_from(kinds), texts_and_ends, st.sampled_from(STAMPS))
    return st.lists(each, min_size=2 * MANY, max_size=6 * MANY)


@given(
    frames=st.builds(
        frames_of,
        st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4) | st.just(TEXTS),
        st.sampled_from([[OUT], [ERR], [OUT, ERR]]),
    ).flatmap(lambda frames: frames),
    skip=st.integers(0, 3 * MANY),
    room=st.sampled_from([1 << 30, 500, 2_000]),
    secrets=st.sampled_from([[], [b"hunter22"]]),
)
def test_frames_that_are_read_together_give_the_same_as_one_by_one(
    frames: list[bytes], skip: int, room: int, secrets: list[bytes]
) -> None:
    found = []
    for pieces in (frames, [b"".join(frames)]):
        assembler = LineAssembler(skip, room, Redactor(secrets))
        lines = rows(some for piece in pieces for some in assembler.feed(piece))
        facts = assembler.bytes, assembler.position, assembler.delivered, assembler.last_frame
        found.append((lines, facts, rows(assembler.flush())))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", [OUT, ERR])
def test_frames_that_are_not_one_whole_line_are_read_as_they_are(kind: int) -> None:
    texts = [str(n) for n in range(3 * MANY)]
    whole = [frame(kind, f"{text}\n".encode()) for text in texts]
    two, begun = frame(kind, b"two\nlines\n"), frame(kind, b"line ")
    first, second, third = (slice(at, at + MANY) for at in (0, MANY, 2 * MANY))
    lines = read(b"".join([*whole[first], two, *whole[second], begun, *whole[third], begun]))
    texts[2 * MANY] = f"line {texts[2 * MANY]}"
    assert [line.message for line in lines] == [*texts[first], "two", "lines", *texts[second], *texts[third], "line "]
