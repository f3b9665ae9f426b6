"""How much room is left on the disks that runs write to, and which run wrote most.

Below a floor the worker claims nothing, and evicts the run that wrote the most before the disk is full for all. Free
room costs a system call, so it is measured often. What a run wrote makes the engine walk through its files, so that
is measured for a hundredth of the time, and for a tenth while the disk is short.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import structlog

from worker.model.claim import DiskSpace
from worker.model.container import Written
from worker.model.sizes import rounded_size, shown_size
from worker.run.quota import DiskQuota

log = structlog.get_logger()

NOTABLE = 64 * 2**20
"""Bytes below which a run is not evicted: then another program fills the disk."""

SETTLE_SECONDS = 5.0
"""What a run wrote may come free a little after its container was removed; no other run is evicted meanwhile."""

ROOMY_PAUSE, ROOMY_SHARE = 10.0, 100
SHORT_PAUSE, SHORT_SHARE = 1.0, 10
"""Seconds between two looks at what runs wrote, and how many times as long as the look itself took, at least."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The folders of the engine and of the artifacts, without those on other hosts; ``floor`` bytes must stay free."""

    engine: tuple[Path, ...]
    store: Path | None
    floor: int

    def shortage(self) -> str | None:
        """Says which of the folders has less left than the floor for an ordinary user; None when none has."""
        for folder in (self.store, *self.engine):
            space = _space(folder)
            if space is not None and space.free < self.floor:
                said = f"{rounded_size(space.free)} left on the disk of {folder}"
                return f"{said}, and the setting min_free_disk is {shown_size(self.floor)}"
        return None

    def short_of(self) -> int | None:
        """The bytes left on the fullest of the engine's disks; None unless they are fewer than the floor."""
        space = self.space()
        return space.free if space is not None and space.free < self.floor else None

    def space(self) -> DiskSpace | None:
        """The space of the fullest of the engine's disks; None if none can be seen."""
        seen = [space for folder in self.engine if (space := _space(folder)) is not None]
        return min(seen, key=lambda space: space.free, default=None)


def _space(folder: Path | None) -> DiskSpace | None:
    """None where it cannot be seen from here, as that of an engine outside of the worker's container."""
    if folder is None:
        return None
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return DiskSpace(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)


class WritingRun(Protocol):
    """What the guard needs of a run."""

    @property
    def quota(self) -> DiskQuota: ...


class DiskEngine(Protocol):
    """What the guard needs of the engine."""

    async def written(self) -> Mapping[str, Written]:
        """By run id, of all workers' runs on this engine."""
        ...


class DiskGuard:
    """Records what this worker's runs wrote, and evicts the one that wrote the most while the disk is short."""

    def __init__(self, disk: Disk, engine: DiskEngine, runs: Mapping[uuid.UUID, WritingRun]) -> None:
        self._disk = disk
        self._engine = engine
        self._runs = runs
        self._looked, self._took = -math.inf, 0.0
        self._waits_until = -math.inf
        self._left_then = 0

    async def look(self) -> None:
        """Looks at the free room, and at what was written if that is due. Raises what the engine's call raises."""
        short = self._disk.short_of() is not None
        if not short:
            self._waits_until = -math.inf
        pause, share = (SHORT_PAUSE, SHORT_SHARE) if short else (ROOMY_PAUSE, ROOMY_SHARE)
        began = anyio.current_time()
        if not self._runs or began < self._looked + max(pause, share * self._took):
            return
        try:
            written = await self._engine.written()
        finally:
            self._looked = anyio.current_time()
            self._took = self._looked - began
        for run_id, run in self._runs.items():
            if (its := written.get(str(run_id))) is not None:
                run.quota.record(run.quota.counted(its))
        left = self._disk.short_of()
        if left is not None and not self._comes_free(left):
            self._make_room(written, left)

    def _comes_free(self, left: int) -> bool:
        """Whether the removal of an evicted run's container will free room; not if the free room still shrinks."""
        now = anyio.current_time()
        if any(run.quota.exceeded.is_set() for run in self._runs.values()):
            if now >= self._waits_until:
                self._left_then = left
            self._waits_until = now + SETTLE_SECONDS
        return now < self._waits_until and left > self._left_then - NOTABLE

    def _make_room(self, written: Mapping[str, Written], left: int) -> None:
        """Evicts the run that wrote the most, unless it is another worker's: that worker evicts it."""
        mine = {
            run_id: run.quota.counted(its) + run.quota.printed
            for run_id, run in self._runs.items()
            if not run.quota.exceeded.is_set() and (its := written.get(str(run_id))) is not None
        }
        heaviest = max(mine, key=mine.__getitem__, default=None)
        if heaviest is None or mine[heaviest] < NOTABLE:
            return
        ours = set(map(str, self._runs))
        if any(its.running and its.size > mine[heaviest] for run_id, its in written.items() if run_id not in ours):
            return
        log.warning("ending a run: the disk is short", run_id=str(heaviest), written=mine[heaviest], left=left)
        self._runs[heaviest].quota.evict(mine[heaviest], left)
        self._left_then, self._waits_until = left, anyio.current_time() + SETTLE_SECONDS
