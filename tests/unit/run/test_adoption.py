"""Orphans are adopted, and the containers of runs that ended elsewhere are removed; a daemon with scripted runs."""

from __future__ import annotations

import uuid

import pytest
from anyio import wait_all_tasks_blocked

from tests.unit.claims import make_claim
from tests.unit.fakes import AWAY, DATABASE, DaemonWorld, beat, until
from worker.daemon import MAX_CRASHES
from worker.errors import EngineError, LeaseLost, Refused, UnreadableRun
from worker.model.outcome import Outcome, Reason
from worker.run.preparation import container_name


@pytest.fixture
def world(daemon_world: DaemonWorld) -> DaemonWorld:
    return daemon_world


async def test_claim_with_lost_reply_is_adopted(world: DaemonWorld) -> None:
    async with world.working() as daemon:
        run_id = world.leave("claimed")
        world.queue.beats = [beat(run_id)]
        await daemon.leases.heartbeat()
        await until(lambda: run_id in world.runs)


async def test_run_that_crashes_again_and_again_is_given_up(world: DaemonWorld) -> None:
    run_id = world.push()
    world.queue.adoptions[run_id] = world.queue.queued[0]
    async with world.working() as daemon:
        for _ in range(MAX_CRASHES):
            world.runs[run_id].end(RuntimeError("refused"))
            await wait_all_tasks_blocked()
            world.queue.beats.append(beat(run_id))
            await daemon.leases.heartbeat()
            await wait_all_tasks_blocked()
        assert world.count("crashed") == MAX_CRASHES
        assert world.queue.adopted == [run_id] * (MAX_CRASHES - 1)


@pytest.mark.parametrize(
    ("found", "removed"),
    [("final", True), ("not_found", True), ("not_owner", False), ("worker_id_taken", False), ("not_claimed", False)],
)
async def test_container_of_a_lost_run_is_removed_unless_another_worker_may_adopt_it(
    world: DaemonWorld,
    found: str,
    removed: bool,  # noqa: FBT001 - a table's column
) -> None:
    run_id = world.push()
    async with world.working():
        world.queue.adoptions[run_id] = found
        world.runs[run_id].lose()
        await until(lambda: world.count("lost") == 1)
        container = container_name(run_id, DATABASE)
        assert world.engine.done == ([("stop", container), ("remove", container)] if removed else [])


async def test_lost_run_that_no_worker_took_is_adopted_here(world: DaemonWorld) -> None:
    run_id = world.push()
    async with world.working():
        first = world.runs[run_id]
        world.queue.adoptions[run_id] = make_claim(run_id, status="running", log_position=7)
        first.lose()
        await until(lambda: world.runs[run_id] is not first)
        assert world.runs[run_id].claim.log_position == 7
        assert world.engine.done == []


async def test_orphans_are_adopted_at_start_and_containers_of_ended_runs_removed(world: DaemonWorld) -> None:
    running, without_container = world.leave(), world.leave()
    ended, others, back, unknown = (uuid.uuid4() for _ in range(4))
    world.queue.held = {without_container}
    world.engine.containers = {running, ended, others, back, unknown}
    world.queue.adoptions |= {ended: "final", others: "not_owner", back: "not_claimed", unknown: "not_found"}
    async with world.working():
        assert world.runs.keys() == {running, without_container}
        gone = {container_name(run_id, DATABASE) for run_id in (ended, unknown)}
        assert sorted(world.engine.done) == sorted((what, name) for what in ("stop", "remove") for name in gone)


async def test_adoption_may_exceed_the_concurrency_and_then_nothing_is_claimed(world: DaemonWorld) -> None:
    left = [world.leave() for _ in range(3)]
    world.engine.containers = set(left)
    queued = world.push()
    async with world.working(concurrency=2):
        assert world.runs.keys() == set(left)
        for run_id in left[:2]:
            world.runs[run_id].end()
        await until(lambda: queued in world.runs)


@pytest.mark.parametrize("error", [AWAY, EngineError(500, "no")])
async def test_engine_that_fails_ends_no_worker(world: DaemonWorld, error: Exception) -> None:
    ended = uuid.uuid4()
    world.engine.containers, world.queue.adoptions = {ended}, {ended: "final"}
    world.engine.faults = {"owned": [error] * 3, "stop": [error]}
    run_id = world.push()
    async with world.working():
        await until(lambda: run_id in world.runs)
        assert world.engine.faults == {"owned": [], "stop": []}
        assert world.engine.done == []


async def test_sweep_adopts_runs_of_dead_workers_and_leaves_its_own(world: DaemonWorld) -> None:
    run_id = world.push()
    async with world.working(lease=0.03):
        left = world.leave()
        world.engine.containers = {run_id, left}
        await until(lambda: left in world.runs)
        assert "reap" in world.story
        assert world.queue.adopted == [left]


async def test_sweep_waits_after_an_outage(world: DaemonWorld) -> None:
    world.queue.swept = None
    async with world.working(lease=0.03):
        world.engine.containers, before = {uuid.uuid4()}, world.story.count("reap")
        await until(lambda: world.story.count("reap") > before + 3)
        assert world.queue.adopted == []


async def test_unreadable_run_fails_and_the_next_is_claimed(world: DaemonWorld) -> None:
    unreadable, error = uuid.uuid4(), UnreadableRun("invalid_config", "it nests too deeply")
    world.queue.queued = [error]
    world.queue.adoptions[unreadable] = error
    world.queue.beats = [beat(unreadable)]
    world.engine.containers = {unreadable}
    following = world.push()
    async with world.working(lease=0.3):
        await until(lambda: following in world.runs)
        await until(lambda: world.engine.containers == set())
    assert world.queue.outcome == Outcome(None, Reason.INVALID_CONFIG, "it nests too deeply")
    assert [call for call in world.story if call in ("claim→running", "complete", "remove")] == [
        "claim→running", "complete", "remove",
    ]  # fmt: skip


async def test_unreadable_run_that_was_lost_meanwhile_ends_no_worker(world: DaemonWorld) -> None:
    unreadable = uuid.uuid4()
    world.queue.adoptions[unreadable] = UnreadableRun("invalid_config", "it nests too deeply")
    world.queue.faults = {"complete": [LeaseLost(unreadable)]}
    world.queue.held = {unreadable}
    following = world.push()
    async with world.working():
        await until(lambda: following in world.runs)


async def test_refused_adoption_ends_no_worker(world: DaemonWorld) -> None:
    refused = uuid.uuid4()
    world.queue.adoptions[refused] = Refused("54001", "stack depth limit exceeded")
    world.queue.held = {refused}
    following = world.push()
    async with world.working():
        await until(lambda: following in world.runs)
    assert refused in world.queue.adopted
    assert world.queue.outcome is None
