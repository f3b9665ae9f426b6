"""The claim loop, renewals, adoption and stopping, with a scripted database, engine and runs."""

from __future__ import annotations

import os
import signal
import uuid
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

from tests.unit.fakes import PATIENCE, DaemonWorld, beat, until
from worker import daemon as module
from worker.daemon import DaemonOptions, Timings
from worker.errors import DiskShort, LeaseLost, Refused, UnreadableRun
from worker.model.claim import DiskSpace
from worker.model.container import Written
from worker.model.outcome import Stop
from worker.run.disk import NOTABLE


@pytest.fixture
def world(daemon_world: DaemonWorld) -> DaemonWorld:
    return daemon_world


async def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)
    await anyio.sleep(0.01)
    await wait_all_tasks_blocked()


# --- claiming -------------------------------------------------------------------------------------------------------


async def test_concurrency_limits_the_claims(world: DaemonWorld) -> None:
    first, second, third = (world.push() for _ in range(3))
    async with world.working(concurrency=2):
        assert world.runs.keys() == {first, second}
        assert world.story.count("claim") == 2
        world.runs[first].end()
        await until(lambda: third in world.runs)
        assert world.count("succeeded") == 1


async def test_figures_of_a_run_have_its_wait_and_its_duration(world: DaemonWorld) -> None:
    queued = {"queued_at": "2026-01-01T00:00:00+00:00", "claimed_at": "2026-01-01T00:00:04+00:00"}
    first, adopted = world.push(**queued), world.leave("running")
    world.engine.containers = {adopted}
    async with world.working(until_idle=True):
        for run_id in (first, adopted):
            await until(lambda: run_id in world.runs)  # noqa: B023 - awaited here
        world.runs[first].end()
        world.runs[adopted].end(RuntimeError("a bug"))
        await until(lambda: world.count("succeeded") and world.count("crashed"))
        waits = [world.metric("queue_wait_seconds_bucket", workflow_type="build", le=le) for le in ("1.0", "5.0")]
        assert waits == [0, 1]
        assert world.metric("run_duration_seconds_count", workflow_type="build") == 1, "a crash is no end of a run"


async def test_systemd_status_counts_the_runs(world: DaemonWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "notify_systemd", lambda *states: said.extend(states))
    first, second = world.push(), world.push()
    async with world.working(concurrency=2):
        for number, run_id in enumerate((first, second), 1):
            world.runs[run_id].end()
            await until(lambda: world.count("succeeded") == number)  # noqa: B023 - awaited here
    counts = [state.removeprefix("STATUS=") for state in said if state.startswith("STATUS=")]
    assert counts[:5] == ["waiting for runs", "1 run", "2 runs", "1 run", "waiting for runs"]


async def test_notification_wakes_the_claim_loop(world: DaemonWorld) -> None:
    async with world.working():
        run_id = world.push()
        await wait_all_tasks_blocked()
        assert world.runs == {}
        world.queue.on_queue()
        await until(lambda: run_id in world.runs)


async def test_notification_during_a_claim_is_not_lost(world: DaemonWorld) -> None:
    world.queue.gate = anyio.Event()
    async with world.working():
        run_id = world.push()  # too late for the answer that is under way
        world.queue.on_queue()
        world.queue.gate.set()
        await until(lambda: run_id in world.runs)


async def test_run_queued_before_the_subscription_is_claimed(world: DaemonWorld) -> None:
    async def push_late() -> None:
        await wait_all_tasks_blocked()
        world.push()

    world.queue.subscribing = push_late
    async with world.working():
        await until(lambda: world.runs)


async def test_lost_subscription_is_made_again_and_one_that_holds_is_not(world: DaemonWorld) -> None:
    subscriptions: list[int] = []

    async def count() -> None:
        subscriptions.append(1)

    world.queue.subscribing = count
    async with world.working(poll=0.01):
        claims = world.story.count("claim")
        await until(lambda: world.story.count("claim") > claims + 3)
        assert len(subscriptions) == 1
        world.queue.listening = False
        await until(lambda: world.queue.listening)


async def test_polling_claims_without_notifications_and_warns_once(
    world: DaemonWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.queue.hears = False
    async with world.working(poll=0.01):
        run_id = world.push()
        await until(lambda: run_id in world.runs)
        claims = world.story.count("claim")
        await until(lambda: world.story.count("claim") > claims + 5)
    assert capsys.readouterr().out.count("notifications do not arrive") == 1


async def test_until_idle_ends_when_queue_and_runs_are_done(world: DaemonWorld) -> None:
    first = world.push()
    async with world.working(until_idle=True):
        assert not world.finished
        second = world.push()  # as the first one may do
        world.runs[first].end()
        await until(lambda: second in world.runs)
        world.runs[second].end()
        await until(lambda: world.finished)


async def test_until_idle_waits_for_scheduled_runs(world: DaemonWorld) -> None:
    world.queue.waiting = True
    async with world.working(until_idle=True, poll=0.01):
        await until(lambda: world.story.count("claim") > 3)
        assert not world.finished
        world.queue.waiting = False
        await until(lambda: world.finished)


@pytest.mark.parametrize("error", [Refused("worker_id_taken", "taken"), UnreadableRun("invalid_config", "too deep")])
async def test_failed_claim_is_repeated(world: DaemonWorld, error: Exception) -> None:
    world.queue.queued = [error]
    run_id = world.push()
    async with world.working(poll=0.01, until_idle=True):
        await until(lambda: run_id in world.runs)


async def test_cancel_before_the_claim_stops_the_run_at_once(world: DaemonWorld) -> None:
    run_id = world.push(cancel_requested=True)
    async with world.working():
        assert world.runs[run_id].stops == [Stop.CANCEL]


async def test_crash_of_a_run_ends_no_other_and_frees_its_place(world: DaemonWorld) -> None:
    first, second = world.push(), world.push()
    async with world.working(concurrency=1):
        world.runs[first].end(RuntimeError("a bug"))
        await until(lambda: second in world.runs)
        assert world.count("crashed") == 1
        assert not world.runs[second].ended.is_set()


# --- renewing -------------------------------------------------------------------------------------------------------


async def test_heartbeat_cancels_and_loses_runs(world: DaemonWorld) -> None:
    kept, cancelled, lost = (world.push() for _ in range(3))
    async with world.working(concurrency=3) as daemon:
        world.queue.adoptions[lost] = "not_owner"
        world.queue.beats = [beat(kept, cancelled, cancel=(cancelled,))]
        await daemon.leases.heartbeat()
        assert (world.runs[kept].stops, world.runs[kept].lost) == ([], False)
        assert (world.runs[cancelled].stops, world.runs[cancelled].lost) == ([Stop.CANCEL], False)
        assert (world.runs[lost].stops, world.runs[lost].lost) == ([], True)


async def test_run_claimed_during_a_heartbeat_is_not_lost(world: DaemonWorld) -> None:
    async def claim_meanwhile() -> None:
        world.push()
        world.queue.on_queue()
        await wait_all_tasks_blocked()

    async with world.working() as daemon:
        world.queue.beats = [beat()]
        world.queue.beating = claim_meanwhile
        await daemon.leases.heartbeat()
        (run,) = world.runs.values()
        assert not run.lost


@pytest.mark.parametrize("asked", [True, False])
async def test_notified_cancel_makes_an_early_heartbeat_which_decides(world: DaemonWorld, *, asked: bool) -> None:
    first, second = world.push(), world.push()
    world.queue.beats = [beat()]
    async with world.working():
        assert world.queue.beats == [], "the renewal at the start; the next is due in 10 s"
        world.queue.beats = [beat(first, second, cancel=(first,) if asked else ())]
        world.queue.on_cancel(uuid.uuid4())
        await wait_all_tasks_blocked()
        assert len(world.queue.beats) == 1, "a run of another worker"
        world.queue.on_cancel(first)
        await until(lambda: not world.queue.beats)
        assert world.runs[first].stops == ([Stop.CANCEL] if asked else [])
        assert world.runs[second].stops == []


async def test_many_notifications_are_few_heartbeats(world: DaemonWorld) -> None:
    run_id = world.push()
    world.queue.beats = [beat()]
    hint = 0.2
    async with world.working(timings=Timings(hint=hint)):
        world.queue.beats = [beat(run_id)] * 50
        began = anyio.current_time()
        for _ in range(1_000):
            world.queue.on_cancel(run_id)
            await anyio.lowlevel.checkpoint()
        await until(lambda: len(world.queue.beats) < 50)
        assert 50 - len(world.queue.beats) <= 1 + (anyio.current_time() - began) / hint


async def test_failed_heartbeat_is_repeated(world: DaemonWorld) -> None:
    world.queue.beats = [ConnectionResetError(), TimeoutError(), beat()]
    async with world.working():
        await until(lambda: not world.queue.beats)
        await until(lambda: world.metric("last_heartbeat_timestamp_seconds"))
        assert not world.finished


async def test_heartbeat_without_an_answer_times_out_within_the_lease(world: DaemonWorld) -> None:
    daemon = world.daemon(lease=0.03)
    with pytest.raises(TimeoutError), anyio.fail_after(PATIENCE):
        await daemon.leases.heartbeat()


def test_three_heartbeats_fit_into_a_lease_and_are_at_most_ten_seconds_apart() -> None:
    options = partial(DaemonOptions, concurrency=1, max_served=1, until_idle=False, poll=1, drain=None)
    assert (options(lease=15).heartbeat, options(lease=3000).heartbeat) == (5, 10)
    assert [options(lease=lease).idle_heartbeats for lease in (15, 30, 59, 60, 3000)] == [1, 1, 1, 2, 2]


async def test_worker_without_runs_leaves_out_heartbeats(world: DaemonWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DaemonOptions, "heartbeat", 0.01)
    monkeypatch.setattr(DaemonOptions, "idle_heartbeats", 1_000_000)
    world.queue.beats = [beat()]
    async with world.working():
        world.queue.beats = [beat(run_id := world.push())] * 3
        await anyio.sleep(0.1)
        assert len(world.queue.beats) == 3, "none but that at the start"
        world.queue.on_queue()
        await until(lambda: not world.queue.beats)
        assert not world.runs[run_id].lost


async def test_repeated_claim_asks_for_a_heartbeat_that_names_the_lost_run(world: DaemonWorld) -> None:
    world.queue.beats = [beat()]
    async with world.working():
        world.queue.beats = [beat(lost := world.leave("claimed"))]
        world.queue.repeated = True
        world.queue.on_queue()
        await until(lambda: lost in world.runs)


async def test_worker_id_taken_detaches(world: DaemonWorld) -> None:
    run_id = world.push()
    async with world.working(lease=0.03):
        world.queue.beats = [beat(run_id, registered=False)]
        await until(lambda: world.finished)
        assert world.queue.registered == [False]
        assert world.runs[run_id].detached
        assert world.engine.done == []


async def test_unexpected_error_ends_the_worker(world: DaemonWorld) -> None:
    world.queue.beats = [KeyError("a bug")]
    with pytest.raises(ExceptionGroup) as raised:
        async with world.working():
            await anyio.sleep(PATIENCE)
    assert raised.group_contains(KeyError, depth=1)


# --- an operator drains the worker ----------------------------------------------------------------------------------


async def test_drained_worker_claims_nothing_until_that_is_undone(
    world: DaemonWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "notify_systemd", lambda *states: said.extend(states))
    world.queue.drained = True
    run_id = world.push()
    async with world.working():
        assert (world.runs, world.metric("draining")) == ({}, 1)
        assert said[-1] == "STATUS=claiming nothing: an operator drains this worker; 0 runs"
        world.queue.on_queue()
        await wait_all_tasks_blocked()
        assert capsys.readouterr().out.count("an operator drains this worker") == 1
        world.queue.drained = False
        world.queue.on_queue()  # as the undo notifies
        await until(lambda: run_id in world.runs)
        assert world.metric("draining") == 0


async def test_heartbeat_tells_a_busy_worker_that_it_is_drained_and_the_database_its_disk(world: DaemonWorld) -> None:
    first, second = world.push(), world.push()
    async with world.working(concurrency=1) as daemon:
        world.queue.beats = [beat(first, draining=True), beat(first)]
        world.disk.left = 5 * 2**30
        await daemon.leases.heartbeat()
        assert [world.metric(name) for name in ("leases", "disk_free_bytes")] == [1, 5 * 2**30]
        assert (world.metric("draining"), world.runs[first].stops) == (1, [])
        assert world.queue.disks[-1] == DiskSpace(5 * 2**30, 2**62)
        world.runs[first].end()
        await daemon.leases.heartbeat()  # undone: the worker claims without waiting for its next poll
        await until(lambda: second in world.runs)
        assert world.metric("draining") == 0


async def test_until_idle_ends_a_drained_worker(world: DaemonWorld) -> None:
    world.push()
    world.queue.drained = True
    async with world.working(until_idle=True):
        await until(lambda: world.finished)


# --- the disk -------------------------------------------------------------------------------------------------------


async def test_short_disk_stops_claims_and_is_logged_once(
    world: DaemonWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.disk.left = 0
    run_id = world.push()
    async with world.working(poll=0.01):
        await until(lambda: world.disk.why in capsys.readouterr().out)
        await anyio.sleep(0.05)
        assert world.runs == {}
        assert world.metric("disk_short") == 1
        assert "the disk" not in capsys.readouterr().out
        world.disk.left = world.disk.floor
        await until(lambda: run_id in world.runs)
        assert world.metric("disk_short") == 0


async def test_until_idle_fails_on_a_short_disk_once_no_run_may_free_it(world: DaemonWorld) -> None:
    run_id = world.push()
    with pytest.raises(ExceptionGroup) as raised:
        async with world.working(until_idle=True, poll=0.01):
            world.disk.left = 0
            await anyio.sleep(0.05)
            assert not world.runs[run_id].detached
            world.runs[run_id].end()
            await until(lambda: world.finished)
    assert world.count("succeeded") == 1
    assert raised.group_contains(DiskShort, match="10m left")


async def test_run_that_wrote_most_is_evicted(world: DaemonWorld) -> None:
    greedy, modest = world.push(), world.push()
    sizes = {greedy: 2 * NOTABLE, modest: 1}
    world.engine.written_bytes = {str(run_id): Written(size, running=True) for run_id, size in sizes.items()}
    async with world.working():
        assert (world.runs[greedy].stops, world.runs[modest].stops) == ([], [])
        world.disk.left = 0
        await until(lambda: world.runs[greedy].stops == [Stop.DISK])
        assert world.runs[modest].stops == []


# --- stopping -------------------------------------------------------------------------------------------------------


async def test_sigterm_drains(world: DaemonWorld) -> None:
    first = world.push()
    async with world.working():
        await send()
        world.push()
        world.queue.on_queue()
        await wait_all_tasks_blocked()
        assert world.runs.keys() == {first}
        assert not world.finished
        world.runs[first].end()
        await until(lambda: world.finished)
    assert len(world.queue.queued) == 1


@pytest.mark.parametrize("lost", [True, False])
async def test_claim_answered_during_the_drain_is_released(world: DaemonWorld, *, lost: bool) -> None:
    world.queue.gate = anyio.Event()
    run_id = world.push()
    world.queue.faults = {"release": [LeaseLost(run_id)]} if lost else {}
    async with world.working(timings=Timings(disk=0.01)):
        await send()
        world.queue.gate.set()
        await until(lambda: world.finished)
    assert "release" in world.story
    assert world.queue.released == ([] if lost else [run_id])
    assert world.runs == {}


@pytest.mark.parametrize("drain", [None, 0.02])
async def test_second_signal_or_drain_timeout_detaches(world: DaemonWorld, drain: float | None) -> None:
    run_id = world.push()
    async with world.working(drain=drain):
        await send(signal.SIGINT)
        if drain is None:
            assert not world.finished
            await send()
        await until(lambda: world.finished)
    assert world.runs[run_id].detached
    assert world.count("detached") == 1
    assert world.engine.done == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("call", ["claim", "adoption"])
async def test_drain_does_not_wait_for_a_database_without_an_answer(world: DaemonWorld, call: str) -> None:
    world.queue.held = {uuid.uuid4()} if call == "adoption" else set()
    world.queue.gate = anyio.Event()
    async with world.working():
        await until(lambda: world.queue.adopted or "claim" in world.story)
        await send()
        await until(lambda: world.finished)


# --- served runs ----------------------------------------------------------------------------------------------------

SERVED = {"config": {"serve": {"port": 80}}}


async def test_served_runs_have_places_of_their_own(world: DaemonWorld) -> None:
    first, second = world.push(**SERVED), world.push(**SERVED)
    ordinary, another, third = (world.push() for _ in range(3))
    async with world.working(concurrency=2, max_served=1):
        assert world.runs.keys() == {first, ordinary, another}
        world.runs[ordinary].end()
        await until(lambda: third in world.runs)
        assert second not in world.runs
        world.runs[third].end()
        world.runs[first].end()
        await until(lambda: second in world.runs)


async def test_drain_waits_for_no_served_run(world: DaemonWorld) -> None:
    served, ordinary = world.push(**SERVED), world.push()
    async with world.working():
        await send()
        assert not world.finished
        world.runs[ordinary].end()
        await until(lambda: world.finished)
    assert world.runs[served].detached
    assert world.count("succeeded") == 1
    assert world.count("detached") == 1


async def test_drain_detaches_a_worker_with_served_runs_only(world: DaemonWorld) -> None:
    served = world.push(**SERVED)
    async with world.working():
        await send()
        await until(lambda: world.finished)
    assert world.runs[served].detached


async def test_second_signal_does_not_wait_for_served_runs_either(world: DaemonWorld) -> None:
    served, ordinary = world.push(**SERVED), world.push()
    async with world.working():
        await send()
        await send()
        await until(lambda: world.finished)
    assert (world.runs[served].detached, world.runs[ordinary].detached) == (True, True)


async def test_sweep_removes_networks_that_a_killed_worker_left(world: DaemonWorld) -> None:
    async with world.working():
        await until(lambda: "trim project networks" in world.story)
