"""The floor below which a host claims nothing and ends who wrote most; and the limit of each run."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from worker.errors import EngineUnavailable
from worker.model.container import Written
from worker.model.outcome import Stop
from worker.run.disk import NOTABLE, Disk, DiskGuard
from worker.run.quota import DiskQuota

MIB = 2**20
FLOOR = 1000 * MIB
A, B, C = (uuid.UUID(int=n) for n in range(3))


def test_a_disk_with_room_is_no_matter(tmp_path: Path) -> None:
    disk = Disk((tmp_path,), tmp_path, 1)
    assert (disk.shortage(), disk.short_of()) == (None, None)


@pytest.mark.parametrize("whose", ["engine", "containerd", "store"])
def test_a_disk_below_the_floor_is_named_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    room = os.statvfs(tmp_path)
    left = os.statvfs_result((room.f_bsize, 4096, room.f_blocks, 9999, 2560, *room[5:]))
    roomy = tmp_path / "roomy"
    monkeypatch.setattr(os, "statvfs", lambda folder: room if folder == roomy else left)
    engine: tuple[Path, ...] = {"engine": (tmp_path, roomy), "containerd": (roomy, tmp_path)}.get(whose, ())
    store = tmp_path if whose == "store" else None
    said = Disk(engine, store, floor=11 * MIB).shortage()
    assert said == f"10m left on the disk of {tmp_path}, and the setting min_free_disk is 11m"
    assert Disk(engine, store, floor=10 * MIB).shortage() is None
    assert Disk(engine, store, floor=11 * MIB).short_of() == (None if whose == "store" else 10 * MIB)


def test_a_folder_that_cannot_be_seen_from_here_is_passed_over(tmp_path: Path) -> None:
    assert Disk((tmp_path / "of another host",), None, 2**62).shortage() is None


class ScriptedDisk(Disk):
    """An engine's disk with so much left."""

    left = 2 * FLOOR

    def short_of(self) -> int | None:
        return self.left if self.left < self.floor else None


class ScriptedEngine:
    def __init__(self) -> None:
        self.written_bytes: dict[str, Written] = {}
        self.error: Exception | None = None
        self.looks = 0

    async def written(self) -> dict[str, Written]:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return self.written_bytes


class ScriptedRun:
    def __init__(self) -> None:
        self.stops: list[Stop] = []
        self.quota = DiskQuota(self.stops.append)


class World:
    """Runs of this worker, a disk, and an engine that knows what they wrote."""

    def __init__(self, **written: int) -> None:
        self.disk = ScriptedDisk((), None, FLOOR)
        self.engine = ScriptedEngine()
        self.runs: dict[uuid.UUID, ScriptedRun] = {}
        self.guard = DiskGuard(self.disk, self.engine, self.runs)

    def wrote(self, run_id: uuid.UUID, size: int, *, mine: bool = True, running: bool = True) -> None:
        self.engine.written_bytes[str(run_id)] = Written(size, running)
        if mine:
            self.runs.setdefault(run_id, ScriptedRun())

    def gone(self, *run_ids: uuid.UUID) -> None:
        for run_id in run_ids:
            del self.runs[run_id], self.engine.written_bytes[str(run_id)]

    async def short_of(self, left: int) -> None:
        ScriptedDisk.left = left
        await self.guard.look()

    @property
    def stopped(self) -> dict[uuid.UUID, list[Stop]]:
        return {run_id: run.stops for run_id, run in self.runs.items() if run.stops}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    for pause in ("ROOMY_PAUSE", "ROOMY_SHARE", "SHORT_PAUSE", "SHORT_SHARE"):
        monkeypatch.setattr(f"worker.run.disk.{pause}", 0)
    monkeypatch.setattr(ScriptedDisk, "left", 2 * FLOOR)
    return World()


async def test_who_wrote_most_is_ended_while_the_disk_is_short(world: World) -> None:
    world.wrote(A, NOTABLE)
    world.wrote(B, 2 * NOTABLE)
    await world.short_of(FLOOR)
    assert world.stopped == {}
    await world.short_of(FLOOR - 1)
    assert world.stopped == {B: [Stop.DISK]}
    assert (world.runs[B].quota.written, world.runs[B].quota.left) == (2 * NOTABLE, FLOOR - 1)


async def test_what_a_run_printed_counts_since_its_log_is_on_the_same_disk(world: World) -> None:
    world.wrote(A, 0)
    world.wrote(B, NOTABLE)
    world.runs[A].quota.printed = 2 * NOTABLE
    await world.short_of(0)
    assert world.stopped == {A: [Stop.DISK]}


async def test_nobody_is_ended_for_what_somebody_else_wrote(world: World) -> None:
    world.wrote(A, NOTABLE - 1)
    await world.short_of(0)
    world.wrote(A, NOTABLE)
    world.wrote(C, NOTABLE + 1, mine=False)
    await world.short_of(0)
    assert world.stopped == {}
    world.wrote(C, NOTABLE + 1, mine=False, running=False)
    await world.short_of(0)
    assert world.stopped == {A: [Stop.DISK]}, "what has ended writes no more"


async def test_another_is_ended_only_if_the_first_was_not_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.wrote(A, 2 * NOTABLE)
    world.wrote(B, NOTABLE)
    await world.short_of(FLOOR - 1)
    await world.short_of(FLOOR - NOTABLE)
    assert world.stopped == {A: [Stop.DISK]}, "what it wrote goes with its container"
    world.gone(A)
    await world.short_of(FLOOR - NOTABLE)
    assert world.stopped == {}, "and may take a little to come free"
    monkeypatch.setattr("worker.run.disk.SETTLE_SECONDS", -1.0)
    world.guard._waits_until = 0
    await world.short_of(FLOOR - NOTABLE)
    assert world.stopped == {B: [Stop.DISK]}


async def test_another_is_ended_at_once_if_the_room_still_shrinks(world: World) -> None:
    world.wrote(A, 3 * NOTABLE)
    world.wrote(B, 2 * NOTABLE)
    world.wrote(C, NOTABLE)
    await world.short_of(FLOOR - 1)
    await world.short_of(FLOOR - 1 - NOTABLE)
    assert world.stopped.keys() == {A, B}
    await world.short_of(FLOOR)
    world.gone(A, B)
    await world.short_of(FLOOR - 1)
    assert world.stopped.keys() == {C}, "the next shortage is another matter"


async def test_a_run_beyond_its_limit_is_ended_on_a_disk_with_room(world: World) -> None:
    world.wrote(A, 11 * MIB)
    world.wrote(B, 11 * MIB)
    world.runs[B].quota.limit = 11 * MIB - 1
    await world.guard.look()
    await world.guard.look()
    assert world.stopped == {B: [Stop.DISK_LIMIT]}


async def test_the_engine_is_not_asked_without_runs_or_before_it_has_rested(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.guard.look()
    assert world.engine.looks == 0
    monkeypatch.setattr("worker.run.disk.ROOMY_PAUSE", 1000.0)
    world.wrote(A, 1)
    await world.guard.look()
    await world.guard.look()
    assert world.engine.looks == 1
    await world.short_of(0)
    assert world.engine.looks == 2, "it is more often while the disk is short"


async def test_an_engine_that_cannot_tell_is_asked_again_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.wrote(A, NOTABLE)
    world.engine.error = EngineUnavailable("cannot be reached")
    with pytest.raises(EngineUnavailable):
        await world.short_of(0)
    world.engine.error = None
    await world.short_of(0)
    assert world.stopped == {A: [Stop.DISK]}
