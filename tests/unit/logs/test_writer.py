"""Lines in, batches out: when a batch leaves, how much may wait, and what an error of the store does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from worker.errors import LeaseLost
from worker.logs import writer as log_writer
from worker.logs.batches import Batcher
from worker.logs.writer import LogWriter
from worker.model.claim import LogLines

FOREVER = 3600.0
PATIENCE = 30.0


def lines(first: int, last: int, message: str = "x") -> list[LogLines]:
    count = last - first + 1
    return [LogLines(first, [message] * count, "i" * count, [datetime.now(UTC).isoformat()] * count)]


def seqs(batches: Sequence[LogLines]) -> list[list[int]]:
    return [list(range(batch.first_seq, batch.last_seq + 1)) for batch in batches]


class Store:
    """Takes batches; while the gate is closed the database is away."""

    def __init__(self) -> None:
        self.batches: list[LogLines] = []
        self.gate = anyio.Event()
        self.gate.set()
        self.waiting = 0

    async def __call__(self, batch: LogLines) -> None:
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        self.batches.append(batch)

    async def until(self, batches: int) -> None:
        with anyio.fail_after(PATIENCE):
            while len(self.batches) < batches:
                await anyio.sleep(0.001)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches leave when they are full, and not before."""
    monkeypatch.setattr(log_writer, "Batcher", lambda: Batcher(linger=FOREVER))


@pytest.mark.usefixtures("unhurried")
async def test_a_full_batch_leaves_at_once_and_the_rest_waits(store: Store) -> None:
    async with LogWriter(store).running() as writer:
        await writer.put(lines(1, 999))
        await wait_all_tasks_blocked()
        assert store.batches == []
        await writer.put(lines(1000, 1500))
        await store.until(1)
        await wait_all_tasks_blocked()
        assert seqs(store.batches) == [list(range(1, 1001))]
    assert seqs(store.batches)[1:] == [list(range(1001, 1501))]


@pytest.mark.usefixtures("unhurried")
async def test_a_batch_is_full_by_its_bytes_too(store: Store) -> None:
    async with LogWriter(store).running() as writer:
        await writer.put(lines(1, 9, "x" * 65_536))
        await store.until(1)
        assert seqs(store.batches) == [list(range(1, 9))]
    assert seqs(store.batches) == [list(range(1, 9)), [9]]


async def test_a_line_does_not_wait_for_others(store: Store) -> None:
    async with LogWriter(store).running() as writer:
        await writer.put(lines(1, 1))
        await store.until(1)


async def test_lines_that_keep_coming_do_not_hold_back_the_first(store: Store) -> None:
    async with LogWriter(store).running() as writer:
        with anyio.fail_after(PATIENCE):
            n = 0
            while not store.batches:
                n += 1
                await writer.put(lines(n, n))
                await anyio.sleep(0.01)
        assert store.batches[0].first_seq == 1
        assert len(store.batches[0]) < 1000  # it left by its age


@pytest.mark.usefixtures("unhurried")
async def test_leaving_stores_what_is_there_in_order(store: Store) -> None:
    async with LogWriter(store).running() as writer:
        for n in range(1, 8):
            await writer.put(lines(n, n))
    assert seqs(store.batches) == [list(range(1, 8))]


async def test_nothing_is_stored_of_nothing(store: Store) -> None:
    async with LogWriter(store).running() as writer:
        await writer.put([])
    assert store.batches == []


@pytest.mark.parametrize(
    ("message", "per_put", "most"),
    [
        ("x", 100, log_writer.MAX_WAITING_LINES + 100 + 1000),
        ("x" * 32_768, 4, (log_writer.MAX_WAITING_BYTES + 512 * 1024) // 32_768 + 4),
    ],
)
async def test_while_the_database_is_away_the_reader_has_to_wait(
    store: Store, message: str, per_put: int, most: int
) -> None:
    store.gate = anyio.Event()
    taken = 0

    async def read() -> None:
        nonlocal taken
        for first in range(1, 3 * most, per_put):
            await writer.put(lines(first, first + per_put - 1, message))
            taken = first + per_put - 1

    async with LogWriter(store).running() as writer, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        with anyio.fail_after(PATIENCE):
            while not store.waiting:
                await checkpoint()
            before = -1
            while taken != before:
                before = taken
                await wait_all_tasks_blocked()
        assert 0 < taken <= most
        store.gate.set()
    stored = [seq for batch in seqs(store.batches) for seq in batch]
    assert stored == list(range(1, len(stored) + 1))
    assert len(stored) == taken >= 3 * most - per_put


async def test_an_error_of_the_store_ends_the_reader_as_itself(store: Store) -> None:
    async def lost(batch: LogLines) -> None:
        raise LeaseLost(uuid.UUID(int=1))

    with pytest.raises(LeaseLost), anyio.fail_after(PATIENCE):
        async with LogWriter(lost).running() as writer:
            await writer.put(lines(1, 1))
            await anyio.sleep(FOREVER)


async def test_an_error_of_the_store_at_the_last_batch_is_not_swallowed() -> None:
    async def lost(batch: LogLines) -> None:
        raise LeaseLost(uuid.UUID(int=1))

    with pytest.raises(LeaseLost):
        async with LogWriter(lost).running() as writer:
            await writer.put(lines(1, 1))


async def test_an_error_of_the_store_frees_a_reader_that_waits_for_room() -> None:
    gate = anyio.Event()

    async def lost(batch: LogLines) -> None:
        await gate.wait()
        raise LeaseLost(uuid.UUID(int=1))

    with pytest.raises(LeaseLost), anyio.fail_after(PATIENCE):
        async with LogWriter(lost).running() as writer:
            for first in range(1, 100_000, 1000):
                await writer.put(lines(first, first + 999))
                if first > 3 * log_writer.MAX_WAITING_LINES:
                    pytest.fail("nothing held the reader back")
                if len(writer._lines) >= log_writer.MAX_WAITING_LINES:
                    gate.set()


async def test_a_cancelled_reader_leaves_nothing_running(store: Store) -> None:
    store.gate = anyio.Event()
    with anyio.move_on_after(0.05) as scope:
        async with LogWriter(store).running() as writer:
            await writer.put(lines(1, 5000))
            await anyio.sleep(FOREVER)
    assert scope.cancelled_caught
    assert store.batches == []
