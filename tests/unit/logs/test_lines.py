"""From the bytes of the engine's log endpoint to lines, whatever the bytes and wherever the reader cuts them."""

from __future__ import annotations

import base64
import tracemalloc
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.journal import ENGINE, ERR, OUT, STAMP, LogLine, entries, frame, header, read, rows
from worker.logs.lines import LINE_BYTES, MAX_FRAME_BYTES, TAIL_BYTES, LineAssembler
from worker.logs.streams import MAX_LINE_BYTES

TIME = datetime(2026, 11, 23, 10, 11, 12, 123456, UTC)
ODOO = "2026-01-01 00:00:00,000 12"


def messages(data: bytes) -> list[str]:
    return [line.message for line in read(data)]


# What Docker 20.10 sent for a container that wrote to both streams: lines over 16 KiB, one of exactly 16 KiB, \r\n,
# invalid UTF-8, NUL, a line of stdout that stderr interrupts, and no newline at the end.
RECORDED = zlib.decompress(base64.b85decode(
    "c-rmUL5dSW7>41@ECYH43kDIv300l0>h7!*7vg3XA`J9yVp<SlBF>1eJ&#uq@8Si#f-!MchB&)yo`>G`SN{>-lhM{$6{~Wd(s?y~"
    "o#L!6v$~m-l&c)8w&}xqHH=Sp)62cnlBZ3sbJvIM@0d1Uh;g?4p2QeKs>0>7R~IiYUWCOwtQYI`<o$Z_X*pca!g{$FpKPx`eX#F*"
    "lX4StjCCKb0000000000000000001hquXTy?mw3a0002s4t{?9cDOiKN{rLGuKMr=0000000000000000000ux?Lt<6#kP5_?r_L"
    "J>0izQ%O0+w&}y0kIT3B#)ppn88^A9>dn#9-R{xeT`AMHtxE30uOHt>^LML*NrNtx(v~iDefR(X0000000000000000011_p{hVv"
    "N}IbX=041ao6o~=TNM~RzEf3TSS@ZJoc;Ttoun9Jvr+o6yt=;m4ek0Bq5"
))  # fmt: skip


def test_a_recorded_log() -> None:
    lines = read(RECORDED)
    assert [line.seq for line in lines] == list(range(1, 11))
    assert [(line.stream, line.level, line.message) for line in lines] == [
        ("stdout", "info", "one"),
        ("stderr", "warn", f"{ODOO} WARNING db odoo.modules: old"),
        *(("stdout", "info", message) for message in ("a" * 20_000 + "€", "x" * 16_384, "crlf", "")),
        ("stderr", "warn", "��bin"),
        ("stderr", "warn", "between"),
        ("stdout", "info", "p" * 16_390 + "end"),
        ("stdout", "info", "last"),
    ]
    assert lines[0].timestamp == datetime(2026, 11, 23, 10, 46, 47, 615250, UTC)
    assert lines[8].timestamp == datetime(2026, 11, 23, 10, 46, 47, 916686, UTC), "that of its first fragment"


@given(cuts=st.lists(st.integers(0, len(RECORDED)), max_size=20))
def test_a_recorded_log_is_the_same_however_it_arrives(cuts: list[int]) -> None:
    assert read(RECORDED, *cuts) == read(RECORDED)


MIXED = b"".join(
    [
        frame(OUT, b"one\n"),
        frame(ERR, f"{ODOO} ERROR db odoo.sql_db: bad\n".encode()),
        frame(ERR, "Traceback €\n".encode()),
        frame(OUT, b"frag"),
        frame(ERR, b"\n"),
        frame(OUT, b"ment\xe2"),
        frame(ENGINE, b"not a line\n"),
        frame(OUT, b"\x82\xac\r\n"),
        frame(OUT, b"two\nlines\n", b"2026-11-23T10:11:12Z"),
        header(OUT, 9) + b"no stamp\n",
        header(OUT, 0),
        frame(OUT, b"open"),
        frame(ERR, b"end"),
    ]
)


def test_every_split_point_gives_the_same_lines() -> None:
    whole = read(MIXED)
    assert [(line.stream, line.message) for line in whole] == [
        ("stdout", "one"),
        ("stderr", f"{ODOO} ERROR db odoo.sql_db: bad"),
        ("stderr", "Traceback €"),
        ("stderr", ""),
        ("stdout", "fragment€"),
        ("stdout", "two"),
        ("stdout", "lines"),
        ("stdout", "no stamp"),
        ("stdout", "open"),
        ("stderr", "end"),
    ]
    for first in range(len(MIXED) + 1):
        assert read(MIXED, first) == whole
    assert read(MIXED, *range(len(MIXED))) == whole, "byte by byte"


@given(cuts=st.lists(st.integers(0, len(MIXED))), skip=st.integers(0, 12))
def test_lines_that_are_stored_already_are_counted_and_left_out(cuts: list[int], skip: int) -> None:
    assert read(MIXED, *cuts, skip=skip) == read(MIXED)[skip:]


@given(
    lines=st.lists(
        st.tuples(st.sampled_from([OUT, ERR]), st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8")))
    ),
    cuts=st.lists(st.integers(0, 5_000)),
)
def test_any_text_comes_through_unchanged(lines: list[tuple[int, str]], cuts: list[int]) -> None:
    data = b"".join(frame(kind, text.encode() + b"\n") for kind, text in lines)
    got = read(data, *cuts)
    assert [(line.seq, line.message) for line in got] == list(enumerate((text for _, text in lines), 1))
    assert [line.stream for line in got] == [("", "stdout", "stderr")[kind] for kind, _ in lines]


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400)))
def test_random_bytes_never_raise(data: bytes, cuts: list[int]) -> None:
    assert read(data, *cuts) == read(data)


@given(
    pieces=st.lists(
        st.tuples(
            st.integers(0, 4), st.binary(max_size=60), st.sampled_from([STAMP, b"", STAMP[:-1], b"x" * 29 + b"Z"])
        )
    ),
    cuts=st.lists(st.integers(0, 3_000)),
)
def test_random_contents_of_frames_never_raise(pieces: list[tuple[int, bytes, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(*piece) for piece in pieces)
    lines = read(data, *cuts)
    assert lines == read(data)
    assert all(line.timestamp.tzinfo is not None for line in lines)
    assert not any("\0" in line.message or "\n" in line.message for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((b"\n", ""), (b"a\r\n", "a"), (b"a\r\r\n", "a"), (b"a\rb\n", "b"), (b"\r\n", ""), (b" a \n", " a ")),
        (b"a\0b\n", "a�b"),
        (b"\xff\xfe\n", "��"),
        ("café\n".encode(), "café"),
        ("café\n".encode("latin-1"), "caf�"),
        (b"\xe2\x82\n", "�"),
        (b"\xed\xa0\x80\n", "���"),
    ],
)
def test_bytes_that_postgresql_cannot_store_are_replaced(text: bytes, message: str) -> None:
    assert messages(frame(OUT, text)) == [message]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"a" * MAX_LINE_BYTES, "a" * MAX_LINE_BYTES),
        (b"a" * MAX_LINE_BYTES + b"\r", "a" * MAX_LINE_BYTES),
        (b"a" * (MAX_LINE_BYTES + 1), "a" * MAX_LINE_BYTES + " … [line cut, 65537 bytes]"),
        ("a€".encode() * 16_384, "a€" * 16_384),
        ("€".encode() * 21_846, "€" * 21_845 + " … [line cut, 65538 bytes]"),
        (b"a" + "€".encode() * 400_000, "a" + "€" * 21_845 + " … [line cut, 1200001 bytes]"),
        (b"\xff" * 30_000, "�" * 21_845 + " … [line cut, 30000 bytes]"),
        (b"\0" * 30_000, "�" * 21_845 + " … [line cut, 30000 bytes]"),
        (b"\0" * 21_845, "�" * 21_845),
        ("😀".encode() * 100_000, "😀" * 16_384 + " … [line cut, 400000 bytes]"),
    ],
)
def test_a_long_line_is_cut_between_characters_with_a_mark(line: bytes, kept: str) -> None:
    for ending in (b"\n", b""):
        [message] = messages(entries(OUT, line + ending))
        assert message == kept
        assert len(message.encode()) <= 65_600


@given(pattern=st.binary(min_size=1, max_size=8), size=st.integers(20_000, 70_000))
def test_no_line_is_longer_than_the_database_takes(pattern: bytes, size: int) -> None:
    line = (pattern.replace(b"\n", b" ") * size)[:size]
    [message] = messages(entries(ERR, line))
    assert len(message.encode()) <= 65_600


@pytest.mark.parametrize(
    ("head", "piece", "end"),
    [
        (b"", frame(OUT, b"x" * 16_384) * 64, frame(OUT, b"\n")),
        (header(OUT, 31 + 2**30) + STAMP + b" ", b"x" * 2**20, b""),
    ],
    ids=["line", "frame"],
)
def test_what_is_a_gigabyte_long_is_never_in_memory(head: bytes, piece: bytes, end: bytes) -> None:
    assembler = LineAssembler()
    tracemalloc.start()
    for data in (head, *[piece] * 1_024):
        assert assembler.feed(data) == []
    [line] = rows([*assembler.feed(end), *assembler.flush()])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.message.endswith(f" … [line cut, {1 << 30} bytes]")
    assert line.timestamp == TIME
    assert peak < 8 << 20
    assert [each.message for each in rows(assembler.feed(frame(OUT, b"next\n")))] == ["next"]


@given(cuts=st.lists(st.integers(0, MAX_FRAME_BYTES + 200), max_size=5))
def test_lines_in_a_very_long_frame_are_the_same_however_it_arrives(cuts: list[int]) -> None:
    data = frame(OUT, b"one\n" + b"x" * MAX_FRAME_BYTES + b"\ntwo\n") + frame(ERR, b"three\n")
    lines = read(data, *cuts)
    assert lines == read(data)
    assert [line.message for line in lines if line.seq != 2] == ["one", "two", "three"]
    assert {line.timestamp for line in lines} == {TIME}


@pytest.mark.parametrize(
    ("data", "output"),
    [
        (frame(OUT, b"hello\n"), 5 + LINE_BYTES),
        (frame(OUT, b"\n") * 3, 3 * LINE_BYTES),
        (frame(OUT, b"no newline"), 10),
        (entries(OUT, b"x" * 50_000 + b"\n") + frame(ERR, b"y"), 50_001 + LINE_BYTES),
    ],
)
def test_all_that_is_read_counts_as_output_with_what_it_takes_on_the_disk(data: bytes, output: int) -> None:
    assembler = LineAssembler()
    assembler.feed(data[:20])
    assembler.feed(data[20:])
    assert assembler.output == output


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        (b"2026-11-23T10:11:12.123456789Z", TIME),
        (b"2026-11-23T10:11:12.1Z", datetime(2026, 11, 23, 10, 11, 12, 100_000, UTC)),
        (b"2026-11-23T12:11:12.123456+02:00", TIME),
        (b"2026-13-23T10:11:12.123456789Z", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_line_has_the_time_at_which_it_was_written(stamp: bytes, time: datetime) -> None:
    [line] = read(frame(OUT, b"x\n", stamp))
    assert (line.message, line.timestamp) == ("x", time)


# --- progress -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"20%\r40%", "40%"),
        (b"\r20%\r40%\r", "40%"),
        (b"20%\r40%\r\r", "40%"),
        (b"100 of 100\rdone", "doneof 100"),
        ("███░\r████".encode(), "████"),
        (b"caf\xe9!\rlong", "long!"),
        (b"downloading\r\x1b[Kdone", "done"),
        (b"downloading\r\x1b[2Kdone", "done"),
        (b"downloading\x1b[2K\rdone", "done"),
        (b"downloading\rab\x1b[0K", "ab"),
        (b"\x1b[32mok\x1b[0m 1\r\x1b[31mno\x1b[0m", "\x1b[31mno\x1b[0m\x1b[0m 1"),
        (b"no return \x1b[K", "no return \x1b[K"),
        (b"a\0b\rc", "c�b"),
    ],
)
def test_a_line_with_carriage_returns_is_what_a_terminal_shows_at_its_end(line: bytes, shown: str) -> None:
    data = frame(OUT, line[:4]) + frame(ERR, b"x") + frame(OUT, line[4:] + b"\n") + frame(OUT, line)
    for cut in range(len(data) + 1):
        assert [each.message for each in read(data, cut) if each.stream == "stdout"] == [shown, shown]


def test_a_line_that_is_written_over_for_hours_is_whole_and_takes_no_memory() -> None:
    line = b"".join(b"\r%6d of 999999 [%s]" % (n, "█".encode() * 20) for n in range(100_000)) + b"\rdone"
    data = entries(OUT, line + b"\r\n") + frame(OUT, b"next\n")
    tracemalloc.start()
    got = read(data, len(data) // 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(each.seq, each.message) for each in got] == [(1, "done99 of 999999 [" + "█" * 20 + "]"), (2, "next")]
    assert peak < 3 * len(data)
    assert read(data, *range(0, len(data), 4_099)) == got


def test_a_line_of_many_returns_costs_no_more_than_one_of_its_length() -> None:
    wide = b"x" * 40_000
    line = wide + b"\rab" * 1_000_000
    [message] = messages(entries(OUT, line + b"\n"))
    assert message.startswith("abx")
    [message] = messages(entries(OUT, (b"\x1b[2K" + wide[:30_000] + b"\r\x1b[K") * 200 + b"\n"))
    assert message == ""


@pytest.mark.parametrize("before", range(4))
def test_a_character_that_the_engine_cut_between_entries_is_one_question_mark(before: int) -> None:
    # What Docker stores of a character of four bytes that lies across the 16 KiB of an entry.
    data = frame(OUT, b"a" + "�".encode() * before) + frame(OUT, "�".encode() * (4 - before) + b"b\n")
    for cut in range(len(data) + 1):
        assert [each.message for each in read(data, cut)] == ["a?b" if before else "a����b"]


def test_the_last_frame_is_kept_to_compare_it_with_the_log_s_end() -> None:
    assembler = LineAssembler()
    first, second = frame(OUT, b"one\n"), frame(ERR, b"two")
    assembler.feed(first + second[:-1])
    assert assembler.last_frame == first
    assembler.feed(second[-1:])
    assert assembler.last_frame == second
    assembler.feed(b"")
    assert assembler.last_frame == second
    assert assembler.position == 1
    assembler.flush()
    assert assembler.position == 2
    assert assembler.flush() == []


def test_what_the_engine_itself_says_is_no_line() -> None:
    assembler = LineAssembler()
    said = b"Error grabbing logs: invalid character 'l' after object key:value pair\n"
    data = frame(OUT, b"one\n") + header(ENGINE, len(said)) + said
    assert [line.message for line in rows(assembler.feed(data))] == ["one"]
    assert assembler.fault == "Error grabbing logs: invalid character 'l' after object key:value pair"
    assert assembler.last_frame != frame(OUT, b"one\n"), "so that the end is not taken for the log's"


# --- a log that is too long ----------------------------------------------------------------------------------------

LONG = [f"{n:06}".encode() + b"." * 994 for n in range(1, 4_001)]
"""4,000 lines of 1,000 bytes: about four times the tail."""


def bounded(
    lines: list[bytes], max_bytes: int, skip: int = 0, each: int = 1
) -> tuple[LineAssembler, list[LogLine], list[LogLine]]:
    """The assembler, what it gave while it read that many frames at a time, and what the end brought."""
    assembler = LineAssembler(skip, max_bytes)
    frames = [frame(OUT, text + b"\n") for text in lines]
    pieces = [b"".join(frames[at : at + each]) for at in range(0, len(frames), each)]
    given = rows(got for piece in pieces for got in assembler.feed(piece))
    return assembler, given, rows(assembler.flush())


@pytest.mark.parametrize("each", [1, 7, 600])
def test_of_a_log_that_is_too_long_head_and_tail_are_kept_and_the_middle_is_counted(each: int) -> None:
    assembler, head, tail = bounded(LONG, 500 * (1000 + LINE_BYTES), each=each)
    kept = TAIL_BYTES // (1000 + LINE_BYTES)
    left_out = 4000 - 500 - kept
    assert [line.seq for line in head] == list(range(1, 501))
    assert [line.seq for line in tail] == [501, *range(4001 - kept, 4001)]
    assert tail[0].message == f"[{left_out:,} lines left out here: the log is longer than this host keeps]"
    assert tail[0].level == "warn"
    assert all(line.message.startswith(f"{line.seq:06}.") for line in [*head, *tail[1:]])
    assert (assembler.omitted, assembler.position, assembler.bytes) == (left_out, 4000, 4_000_000)


def test_the_tail_is_given_out_once() -> None:
    assembler, _, tail = bounded(LONG, 500 * (1000 + LINE_BYTES))
    omitted = assembler.omitted
    assert assembler.flush() == []
    late = rows([*assembler.feed(entries(OUT, b"late\n")), *assembler.flush()])
    assert [(each.seq, each.message) for each in late] == [(tail[-1].seq + 1, "late")]
    assert assembler.omitted == omitted


def test_a_log_that_fits_with_its_tail_is_kept_whole() -> None:
    assembler, head, tail = bounded(LONG[:600], 500 * (1000 + LINE_BYTES))
    assert [each.seq for each in [*head, *tail]] == list(range(1, 601))
    assert len(head) == 500
    assert assembler.omitted == 0


@pytest.mark.parametrize("skip", [0, 1, 499, 500, 501, 3500, 3999, 4000])
@pytest.mark.parametrize("each", [1, 600])
def test_another_reading_goes_on_where_the_first_one_ended(skip: int, each: int) -> None:
    _, head, tail = bounded(LONG, 500 * (1000 + LINE_BYTES))
    _, *again = bounded(LONG, 500 * (1000 + LINE_BYTES), skip, each)
    assert [*again[0], *again[1]] == [line for line in [*head, *tail] if line.seq > skip]


def test_what_was_delivered_is_what_a_second_reading_may_skip() -> None:
    assembler, head, _ = bounded([], 500 * (1000 + LINE_BYTES))
    for text in LONG[:1000]:
        head += rows(assembler.feed(frame(OUT, text + b"\n")))
    assert (assembler.position, assembler.delivered, head[-1].seq) == (1000, 500, 500), "the rest waits for the end"
    assert [line.seq for line in rows(assembler.flush())] == list(range(501, 1001))
    assert assembler.delivered == 1000


def test_an_endless_log_takes_no_more_memory_than_its_tail() -> None:
    data = frame(OUT, b"\n") * 1_000
    assembler = LineAssembler(0, 1_000)
    tracemalloc.start()
    try:
        for _ in range(200):
            assert sum(map(len, assembler.feed(data))) < 16
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20
    assert assembler.position == 200_000
