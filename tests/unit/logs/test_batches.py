"""When a batch is due, and what it takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.journal import rows
from worker.logs.batches import Batcher
from worker.model.claim import LogLines

TIME = "2026-11-23T10:11:12.123456Z"


def lines(first: int, *messages: str) -> LogLines:
    marks = "".join("iE"[len(message) % 2] for message in messages)
    return LogLines(first, list(messages), marks, [TIME] * len(messages))


def seqs(batch: LogLines | None) -> list[int]:
    return [line.seq for line in rows([batch] if batch else [])]


def test_a_batch_is_due_when_its_oldest_line_is() -> None:
    batcher = Batcher(max_lines=3, max_bytes=100, linger=0.2)
    assert batcher.due_in(0.0) is None
    batcher.add(lines(1, "x"), 10.0)
    batcher.add(lines(2, "x"), 10.125)
    assert batcher.due_in(10.125) == pytest.approx(0.075)
    assert batcher.due_in(11.0) == 0.0
    assert seqs(batcher.take()) == [1, 2]
    assert batcher.due_in(11.0) is None
    assert batcher.take() is None


def test_a_batch_is_due_when_it_is_full() -> None:
    batcher = Batcher(max_lines=3, max_bytes=100, linger=0.2)
    batcher.add(lines(1, *"xx"), 0.0)
    assert batcher.due_in(0.0) == pytest.approx(0.2)
    batcher.add(lines(3, *"xx"), 0.0)
    assert batcher.due_in(0.0) == 0.0
    assert seqs(batcher.take()) == [1, 2, 3]
    assert batcher.due_in(0.125) == pytest.approx(0.075), "what stayed keeps its age"
    batcher.add(lines(5, "€" * 33), 0.15)
    assert batcher.bytes == 100
    assert batcher.due_in(0.15) == 0.0


def test_a_batch_has_no_gap() -> None:
    batcher = Batcher()
    for first, messages in ((1, "ab"), (3, "c"), (9, "d"), (10, "e")):  # the middle of a long log is left out
        batcher.add(lines(first, *messages), 0.0)
    assert [seqs(batcher.take()), seqs(batcher.take())] == [[1, 2, 3], [9, 10]]


@given(
    parts=st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=12), max_size=6),
    max_lines=st.integers(1, 5),
    max_bytes=st.integers(1, 100),
)
def test_batches_keep_order_and_bounds(parts: list[list[int]], max_lines: int, max_bytes: int) -> None:
    batcher = Batcher(max_lines, max_bytes)
    waiting: list[LogLines] = []
    for sizes in parts:
        waiting.append(lines(waiting[-1].last_seq + 1 if waiting else 1, *("é" * size for size in sizes)))
        batcher.add(waiting[-1], 0.0)
    assert len(batcher) == sum(map(len, parts))
    taken: list[LogLines] = []
    while batch := batcher.take():
        size = sum(len(message.encode()) for message in batch.messages)
        assert 0 < len(batch) <= max_lines
        assert len(batch) == 1 or size <= max_bytes
        if taken:
            last, first = taken[-1], len(batch.messages[0].encode())
            room = max_bytes - sum(len(message.encode()) for message in last.messages)
            assert len(last) == max_lines or room <= first, "no batch is smaller than it must be"
        taken.append(batch)
    assert rows(taken) == rows(waiting)
    assert (len(batcher), batcher.bytes) == (0, 0)
