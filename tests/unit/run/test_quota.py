"""A run that writes more than its quota, or is evicted, is stopped at once and keeps no artifacts."""

from __future__ import annotations

from anyio import wait_all_tasks_blocked

from tests.unit.fakes import SAID, World
from worker.model.outcome import Stop


async def test_eviction_kills_without_grace_and_without_artifacts(world: World) -> None:
    world.engine.lasts = True
    async with world.executing() as (run, result):
        run.quota.evict(2**30, left=2**20)
    assert result == ["failed"]
    assert world.outcome == ("disk_full", 143)
    assert "1,024m" in world.message
    assert world.engine.grace_seconds == 0
    assert world.said == SAID
    assert world.queue.artifacts == []
    assert world.engine.status is None, "the removal frees the disk"


async def test_disk_limit_stops_the_run_beyond_its_quota(world: World) -> None:
    world.engine.lasts = True
    async with world.executing() as (run, result):
        run.quota.record(20 * 2**30)
        await wait_all_tasks_blocked()
        assert result == []
        run.quota.record(20 * 2**30 + 1)
    assert world.outcome == ("disk_limit", 143)
    assert world.queue.artifacts == []


async def test_eviction_kills_during_the_grace_of_a_cancel(world: World) -> None:
    world.engine.lasts = world.engine.ignores_sigterm = True
    async with world.executing() as (run, result):
        run.stop(Stop.CANCEL)
        await wait_all_tasks_blocked()
        assert result == []
        run.quota.evict(2**30, left=2**20)
    assert world.outcome == ("canceled", 143)
    assert world.engine.grace_seconds == 0
    assert world.queue.artifacts == []
