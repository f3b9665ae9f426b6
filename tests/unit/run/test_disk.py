"""The floor of free room below which a host claims nothing and evicts the run that wrote the most."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from tests.unit.claims import make_claim
from tests.unit.fakes import AWAY, ScriptedDisk, ScriptedEngine, ScriptedRun
from worker.errors import EngineUnavailable
from worker.model.claim import DiskSpace
from worker.model.container import Written
from worker.model.outcome import Stop
from worker.run.disk import NOTABLE, Disk, DiskGuard

MIB = 2**20
FLOOR = ScriptedDisk.floor
A, B, C = (uuid.UUID(int=n) for n in range(3))


@pytest.mark.parametrize("short", ["engine", "containerd", "store"])
def test_disk_below_the_floor_is_named_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    room = os.statvfs(tmp_path)
    left = os.statvfs_result((room.f_bsize, 4096, room.f_blocks, 9999, 2560, *room[5:]))
    roomy = tmp_path / "roomy"
    monkeypatch.setattr(os, "statvfs", lambda folder: room if folder == roomy else left)
    engine: tuple[Path, ...] = {"engine": (tmp_path, roomy), "containerd": (roomy, tmp_path)}.get(short, ())
    store = tmp_path if short == "store" else None
    said = Disk(engine, store, floor=11 * MIB).shortage()
    assert said == f"10m left on the disk of {tmp_path}, and the setting min_free_disk is 11m"
    assert Disk(engine, store, floor=10 * MIB).shortage() is None
    assert Disk(engine, store, floor=10 * MIB).short_of() is None
    assert Disk(engine, store, floor=11 * MIB).short_of() == (None if short == "store" else 10 * MIB)
    space = None if short == "store" else DiskSpace(10 * MIB, 4096 * room.f_blocks)
    assert Disk(engine, store, floor=0).space() == space


def test_folder_of_another_host_is_ignored(tmp_path: Path) -> None:
    disk = Disk((tmp_path / "of another host",), None, 2**62)
    assert (disk.shortage(), disk.short_of()) == (None, None)


class Host:
    """Runs of this worker, a disk, and an engine that knows what they wrote."""

    def __init__(self) -> None:
        self.disk = ScriptedDisk()
        self.engine = ScriptedEngine([])
        self.runs: dict[uuid.UUID, ScriptedRun] = {}
        self.guard = DiskGuard(cast("Any", self.disk), self.engine, self.runs)

    def wrote(self, run_id: uuid.UUID, size: int, *, mine: bool = True, running: bool = True, kept: int = 0) -> None:
        self.engine.written_bytes[str(run_id)] = Written(size, running, kept)
        if mine:
            self.runs.setdefault(run_id, ScriptedRun(make_claim(run_id)))

    def gone(self, *run_ids: uuid.UUID) -> None:
        for run_id in run_ids:
            del self.runs[run_id], self.engine.written_bytes[str(run_id)]

    async def short_of(self, left: int) -> dict[uuid.UUID, list[Stop]]:
        """Looks at a disk with so much left; returns which runs were stopped, and why."""
        self.disk.left = left
        await self.guard.look()
        return {run_id: run.stops for run_id, run in self.runs.items() if run.stops}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    for pause in ("ROOMY_PAUSE", "ROOMY_SHARE", "SHORT_PAUSE", "SHORT_SHARE"):
        monkeypatch.setattr(f"worker.run.disk.{pause}", 0)
    return Host()


async def test_run_that_wrote_most_is_evicted_below_the_floor(host: Host) -> None:
    host.wrote(A, NOTABLE)
    host.wrote(B, 2 * NOTABLE)
    assert await host.short_of(FLOOR) == {}
    assert await host.short_of(FLOOR - 1) == {B: [Stop.DISK]}
    assert (host.runs[B].quota.written, host.runs[B].quota.left) == (2 * NOTABLE, FLOOR - 1)


async def test_volume_counts_by_what_it_grew_since_it_was_first_measured(host: Host) -> None:
    host.wrote(A, 0, kept=100 * NOTABLE)
    host.wrote(B, 2 * NOTABLE)
    await host.short_of(2**40)
    assert await host.short_of(FLOOR - 1) == {B: [Stop.DISK]}
    host.gone(B)
    host.wrote(A, 0, kept=103 * NOTABLE)
    assert (await host.short_of(2**40), await host.short_of(FLOOR - 1)) == ({}, {A: [Stop.DISK]})
    assert host.runs[A].quota.written == 3 * NOTABLE


async def test_output_counts_as_written(host: Host) -> None:
    host.wrote(A, 0)
    host.wrote(B, NOTABLE)
    host.runs[A].quota.printed = 2 * NOTABLE
    assert await host.short_of(0) == {A: [Stop.DISK]}


async def test_no_run_is_evicted_for_what_another_worker_wrote(host: Host) -> None:
    host.wrote(A, NOTABLE - 1)
    assert await host.short_of(0) == {}
    host.wrote(A, NOTABLE)
    host.wrote(C, NOTABLE + 1, mine=False)
    assert await host.short_of(0) == {}
    host.wrote(C, NOTABLE + 1, mine=False, running=False)
    assert await host.short_of(0) == {A: [Stop.DISK]}, "what has ended writes no more"


async def test_second_run_is_evicted_only_if_the_first_was_not_enough(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.run.disk.SETTLE_SECONDS", 0.2)
    host.wrote(A, 2 * NOTABLE)
    host.wrote(B, NOTABLE)
    await host.short_of(FLOOR - 1)
    assert await host.short_of(FLOOR - NOTABLE) == {A: [Stop.DISK]}, "its container is about to be removed"
    await anyio.sleep(0.3)
    assert (await host.short_of(FLOOR - NOTABLE)).keys() == {A}, "it is still there"
    host.gone(A)
    assert await host.short_of(FLOOR - NOTABLE) == {}, "the room may take a little to come free"
    await anyio.sleep(0.3)
    assert await host.short_of(FLOOR - NOTABLE) == {B: [Stop.DISK]}


async def test_second_run_is_evicted_at_once_while_the_room_shrinks(host: Host) -> None:
    host.wrote(A, 3 * NOTABLE)
    host.wrote(B, 2 * NOTABLE)
    host.wrote(C, NOTABLE)
    await host.short_of(FLOOR - 1)
    assert (await host.short_of(FLOOR - 1 - NOTABLE)).keys() == {A, B}
    await host.short_of(FLOOR)
    host.gone(A, B)
    assert (await host.short_of(FLOOR - 1)).keys() == {C}, "the next shortage is another one"


async def test_quota_is_applied_on_a_disk_with_room(host: Host) -> None:
    host.wrote(A, 11 * MIB)
    host.wrote(B, 11 * MIB)
    host.runs[A].quota.limit, host.runs[B].quota.limit = 11 * MIB, 11 * MIB - 1
    await host.guard.look()
    assert await host.short_of(FLOOR) == {B: [Stop.DISK_LIMIT]}


async def test_engine_is_asked_seldom_and_more_often_below_the_floor(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.guard.look()
    assert host.engine.story == [], "there is no run"
    monkeypatch.setattr("worker.run.disk.ROOMY_PAUSE", 1000.0)
    host.wrote(A, 1)
    await host.guard.look()
    await host.guard.look()
    assert host.engine.story == ["written"]
    await host.short_of(0)
    assert host.engine.story == ["written"] * 2


async def test_slow_answer_makes_the_next_look_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.run.disk.ROOMY_SHARE", 1000)
    host.wrote(A, 1)
    answer = host.engine.written

    async def slow() -> dict[str, Written]:
        await anyio.sleep(0.05)
        return await answer()

    monkeypatch.setattr(host.engine, "written", slow)
    await host.guard.look()
    await host.guard.look()
    assert host.engine.story == ["written"]


async def test_failed_look_is_repeated_later(host: Host) -> None:
    host.wrote(A, NOTABLE)
    host.engine.faults = {"written": [AWAY]}
    with pytest.raises(EngineUnavailable):
        await host.short_of(0)
    assert await host.short_of(0) == {A: [Stop.DISK]}
