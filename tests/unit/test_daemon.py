"""The claim loop, renewals, adoption and stopping, with a scripted database, engine and runs."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

from tests.unit.claims import make_claim
from worker import daemon as module
from worker.daemon import MAX_CRASHES, Daemon, DaemonOptions, Timings
from worker.errors import DiskShort, EngineError, EngineUnavailable, LeaseLost, Refused, UnreadableRun
from worker.model.claim import Adoption, Claim, Heartbeat, NextRun, NotAdopted
from worker.model.container import Written
from worker.model.outcome import Outcome, Reason, Stop
from worker.run.disk import NOTABLE
from worker.run.lifecycle import container_name
from worker.run.ports import RunContext
from worker.run.quota import DiskQuota
from worker.telemetry import Metrics

DATABASE = uuid.UUID(int=99)
FOREVER = 3600.0
PATIENCE = 30.0


class ScriptedRun:
    """A run that lasts until the test ends it."""

    def __init__(self, claim: Claim, context: RunContext) -> None:
        self.claim = claim
        self.stops: list[Stop] = []
        self.quota = DiskQuota(self.stop)
        self.lost = False
        self.result: str | Exception | None = "succeeded"
        self.ended = anyio.Event()
        self.detached = False

    def stop(self, why: Stop) -> None:
        self.stops.append(why)

    def lose(self) -> None:
        self.lost = True
        self.end(None)

    def end(self, result: str | Exception | None = "succeeded") -> None:
        self.result = result
        self.ended.set()

    async def execute(self) -> str | None:
        try:
            await self.ended.wait()
        except BaseException:
            self.detached = True
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class ScriptedQueue:
    """Gives out what is queued; what else it answers is set by the test."""

    def __init__(self) -> None:
        self.queued: list[Claim | Exception] = []
        self.waiting = False
        self.adoptions: dict[uuid.UUID, Claim | str | Exception] = {}
        self.ended: dict[uuid.UUID, Outcome | None] = {}
        self.held: set[uuid.UUID] = set()
        self.beats: list[Heartbeat | Exception] = []
        self.swept: dict[str, object] | None = {}
        self.released: list[uuid.UUID] = []
        self.adopted: list[uuid.UUID] = []
        self.registered: list[bool] = []
        self.claims = 0
        self.reaps = 0
        self.listening = False
        self.gate = anyio.Event()
        self.gate.set()
        self.beating: Callable[[], Awaitable[None]] | None = None
        self.on_queue: Callable[[], None] = lambda: None
        self.on_cancel: Callable[[uuid.UUID], None] = lambda _: None

    async def claim(self) -> NextRun:
        self.claims += 1
        found = self.queued.pop(0) if self.queued else None
        await self.gate.wait()
        if isinstance(found, Exception):
            raise found
        return NextRun(found, waiting=found is None and self.waiting)

    async def release(self, run_id: uuid.UUID) -> None:
        self.released.append(run_id)

    async def adopt(self, run_id: uuid.UUID) -> Adoption:
        self.adopted.append(run_id)
        await self.gate.wait()
        found = self.adoptions[run_id]
        if isinstance(found, Exception):
            raise found
        return Adoption(found) if isinstance(found, Claim) else Adoption(why_not=NotAdopted(found))

    async def start(self, run_id: uuid.UUID) -> None:
        self.ended[run_id] = None

    async def complete(self, run_id: uuid.UUID, outcome: Outcome) -> str:
        assert run_id in self.ended, "only a run that was started can be completed"
        self.ended[run_id] = outcome
        return "failed"

    async def adoptable(self) -> set[uuid.UUID]:
        return self.held

    async def heartbeat(self) -> Heartbeat:
        if self.beating is not None:
            await self.beating()
        if not self.beats:
            await anyio.sleep_forever()
        answer = self.beats.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def register(self, *, takeover: bool) -> uuid.UUID:
        self.registered.append(takeover)
        raise Refused("worker_id_taken", "another has it")

    async def reap(self) -> dict[str, object] | None:
        self.reaps += 1
        return self.swept

    async def listen(self, on_queue: Callable[[], None], on_cancel: Callable[[uuid.UUID], None]) -> bool:
        self.on_queue, self.on_cancel, self.listening = on_queue, on_cancel, True
        return True


class ScriptedEngine:
    """Containers by the run that they belong to."""

    def __init__(self) -> None:
        self.containers: set[uuid.UUID] = set()
        self.done: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.written_bytes: dict[str, Written] = {}

    async def written(self) -> dict[str, Written]:
        return self.written_bytes

    async def owned(self, database_id: uuid.UUID) -> set[uuid.UUID]:
        assert database_id == DATABASE
        return set(self.containers)

    def container(self, ref: str) -> ScriptedContainer:
        return ScriptedContainer(self, ref)


class ScriptedContainer:
    def __init__(self, engine: ScriptedEngine, ref: str) -> None:
        self._engine = engine
        self._ref = ref

    async def stop(self, grace_seconds: float) -> None:
        if self._engine.error is not None:
            raise self._engine.error
        self._engine.done.append(("stop", self._ref))

    async def remove(self) -> None:
        self._engine.done.append(("remove", self._ref))
        gone = {run_id for run_id in self._engine.containers if container_name(run_id, DATABASE) == self._ref}
        self._engine.containers -= gone


class World:
    """A daemon between scripted neighbours."""

    def __init__(self, runs: dict[uuid.UUID, ScriptedRun]) -> None:
        self.queue = ScriptedQueue()
        self.engine = ScriptedEngine()
        self.metrics = Metrics()
        self.short: str | None = None
        self.runs = runs
        self.finished = False

    def daemon(self, **changed: Any) -> Daemon:
        context = RunContext(
            queue=cast("Any", self.queue), engine=cast("Any", self.engine), store=cast("Any", None),
            policy=cast("Any", None), worker_id="host-a", database_id=DATABASE, stop_grace_seconds=1,
            pull_seconds=60, max_log_bytes=2**20,
        )  # fmt: skip
        values = {"concurrency": 2, "until_idle": False, "lease": FOREVER, "poll": FOREVER, "drain": None} | changed
        engine = cast("Any", self.engine)
        options = DaemonOptions(**{"timings": Timings(disk=0.01, hint=0.0), **values})
        return Daemon(context, cast("Any", self.queue), engine, self.metrics, options, cast("Any", self))

    def shortage(self) -> str | None:
        return self.short

    def short_of(self) -> int | None:
        return 1 if self.short else None

    @asynccontextmanager
    async def working(self, **pace: Any) -> AsyncIterator[Daemon]:
        """The daemon at work, until the block ends; ``finished`` tells whether it ended by itself."""
        daemon = self.daemon(**pace)

        async def work() -> None:
            await daemon.run()
            self.finished = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await wait_all_tasks_blocked()
            yield daemon
            tasks.cancel_scope.cancel()

    def push(self, **changed: Any) -> uuid.UUID:
        """Queues a run."""
        claim = make_claim(**changed)
        self.queue.queued.append(claim)
        return claim.run_id

    def count(self, status: str) -> float:
        labels = {"workflow_type": "build", "status": status}
        return self.metrics.registry.get_sample_value("ops_worker_runs_total", labels) or 0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    runs: dict[uuid.UUID, ScriptedRun] = {}

    def made(claim: Claim, context: RunContext) -> ScriptedRun:
        assert claim.run_id not in runs or runs[claim.run_id].ended.is_set(), "a run was begun twice"
        runs[claim.run_id] = ScriptedRun(claim, context)
        return runs[claim.run_id]

    monkeypatch.setattr(module, "Run", made)
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 0.0)
    monkeypatch.setattr("worker.run.disk.SHORT_PAUSE", 0.0)
    return World(runs)


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():
            await anyio.sleep(0.001)


def beat(*runs: uuid.UUID, cancel: tuple[uuid.UUID, ...] = (), registered: bool = True) -> Heartbeat:
    return Heartbeat(registered, frozenset(runs), frozenset(cancel))


# --- claiming -------------------------------------------------------------------------------------------------------


async def test_no_more_runs_are_claimed_than_there_is_room_for(world: World) -> None:
    first, second, third = (world.push() for _ in range(3))
    async with world.working(concurrency=2):
        assert world.runs.keys() == {first, second}
        assert world.queue.claims == 2
        world.runs[first].end()
        await until(lambda: third in world.runs)
        assert world.count("succeeded") == 1


async def test_systemd_is_told_of_each_run_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "notify_systemd", lambda *states: said.extend(states))
    first, second = world.push(), world.push()
    async with world.working(concurrency=2):
        world.runs[first].end()
        await until(lambda: world.count("succeeded") == 1)
        world.runs[second].end()
        await until(lambda: world.count("succeeded") == 2)
    counts = [state.removeprefix("STATUS=") for state in said if state.startswith("STATUS=")]
    assert counts[:5] == ["waiting for runs", "1 run", "2 runs", "1 run", "waiting for runs"]


async def test_a_notification_wakes_the_claim_loop(world: World) -> None:
    async with world.working():
        run_id = world.push()
        await wait_all_tasks_blocked()
        assert world.runs == {}
        world.queue.on_queue()
        await until(lambda: run_id in world.runs)


async def test_what_is_queued_while_a_claim_is_under_way_is_not_slept_over(world: World) -> None:
    world.queue.gate = anyio.Event()
    async with world.working():
        run_id = world.push()  # too late for the answer that is under way
        world.queue.on_queue()
        world.queue.gate.set()
        await until(lambda: run_id in world.runs)


async def test_what_was_queued_before_the_subscription_is_looked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(on_queue: Callable[[], None], on_cancel: Callable[[uuid.UUID], None]) -> bool:
        await wait_all_tasks_blocked()
        world.push()
        world.queue.listening = True
        return True

    monkeypatch.setattr(world.queue, "listen", late)
    async with world.working():
        await until(lambda: world.runs)


async def test_a_subscription_that_was_lost_is_made_again(world: World) -> None:
    async with world.working(poll=0.01):
        world.queue.listening = False
        await until(lambda: world.queue.listening)


async def test_polling_finds_what_no_notification_told(world: World) -> None:
    async with world.working(poll=0.01):
        run_id = world.push()
        await until(lambda: run_id in world.runs)


async def test_until_idle_ends_when_the_queue_is_empty_and_the_last_run_has_ended(world: World) -> None:
    first = world.push()
    async with world.working(until_idle=True):
        assert not world.finished
        second = world.push()  # as the first one may do
        world.runs[first].end()
        await until(lambda: second in world.runs)
        world.runs[second].end()
        await until(lambda: world.finished)


async def test_until_idle_waits_for_what_may_become_due(world: World) -> None:
    world.queue.waiting = True
    async with world.working(until_idle=True, poll=0.01):
        await until(lambda: world.queue.claims > 3)
        assert not world.finished
        world.queue.waiting = False
        await until(lambda: world.finished)


async def test_a_refused_claim_is_tried_again(world: World) -> None:
    world.queue.queued = [Refused("worker_id_taken", "taken")]
    run_id = world.push()
    async with world.working(poll=0.01, until_idle=True):
        await until(lambda: run_id in world.runs)


async def test_a_run_whose_cancel_was_asked_before_its_claim_is_stopped_at_once(world: World) -> None:
    run_id = world.push(cancel_requested=True)
    async with world.working():
        assert world.runs[run_id].stops == [Stop.CANCEL]


async def test_a_run_that_breaks_ends_no_other_and_frees_its_place(world: World) -> None:
    first, second = world.push(), world.push()
    async with world.working(concurrency=1):
        world.runs[first].end(RuntimeError("a bug"))
        await until(lambda: second in world.runs)
        assert world.count("crashed") == 1
        assert not world.runs[second].ended.is_set()


# --- renewing -------------------------------------------------------------------------------------------------------


async def test_a_renewal_cancels_what_was_asked_for_and_loses_what_is_not_ours(world: World) -> None:
    kept, cancelled, lost = (world.push() for _ in range(3))
    async with world.working(concurrency=3) as daemon:
        world.queue.adoptions[lost] = "not_owner"
        world.queue.beats = [beat(kept, cancelled, cancel=(cancelled,))]
        await daemon.leases.heartbeat()
        assert (world.runs[kept].stops, world.runs[kept].lost) == ([], False)
        assert (world.runs[cancelled].stops, world.runs[cancelled].lost) == ([Stop.CANCEL], False)
        assert (world.runs[lost].stops, world.runs[lost].lost) == ([], True)


async def test_a_run_that_was_claimed_while_the_answer_was_under_way_is_not_lost(world: World) -> None:
    async with world.working() as daemon:

        async def claim_meanwhile() -> None:
            world.push()
            world.queue.on_queue()
            await wait_all_tasks_blocked()

        world.queue.beats = [beat()]
        world.queue.beating = claim_meanwhile
        await daemon.leases.heartbeat()
        (run,) = world.runs.values()
        assert not run.lost


@pytest.mark.parametrize("asked", [True, False])
async def test_a_notified_cancel_asks_the_database_at_once_and_its_answer_decides(world: World, *, asked: bool) -> None:
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


async def test_a_flood_of_notifications_is_no_flood_of_renewals(world: World) -> None:
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
        renewals = 50 - len(world.queue.beats)
        assert renewals <= 1 + (anyio.current_time() - began) / hint


async def test_a_renewal_that_fails_for_a_while_is_repeated(world: World) -> None:
    world.queue.beats = [ConnectionResetError(), TimeoutError(), beat()]
    async with world.working():
        await until(lambda: not world.queue.beats)
        await until(lambda: world.metrics.registry.get_sample_value("ops_worker_last_heartbeat_timestamp_seconds"))
        assert not world.finished


async def test_a_run_at_which_the_worker_fails_again_and_again_is_given_up(world: World) -> None:
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


async def test_a_renewal_without_an_answer_is_given_up_before_the_lease_ends(world: World) -> None:
    daemon = world.daemon(lease=0.03)
    with pytest.raises(TimeoutError), anyio.fail_after(PATIENCE):
        await daemon.leases.heartbeat()


def test_three_renewals_fit_into_a_lease_and_none_is_later_than_ten_seconds() -> None:
    assert DaemonOptions(concurrency=1, until_idle=False, lease=15, poll=1, drain=None).heartbeat == 5
    assert DaemonOptions(concurrency=1, until_idle=False, lease=3000, poll=1, drain=None).heartbeat == 10


async def test_a_worker_whose_id_another_took_leaves_its_containers_and_ends(world: World) -> None:
    run_id = world.push()
    async with world.working(lease=0.03):
        world.queue.beats = [beat(run_id, registered=False)]
        await until(lambda: world.finished)
        assert world.queue.registered == [False]
        assert world.runs[run_id].detached
        assert world.engine.done == []


async def test_a_run_whose_claim_was_answered_into_the_void_is_taken_up(world: World) -> None:
    async with world.working() as daemon:
        claim = make_claim()
        world.queue.adoptions[claim.run_id] = claim
        world.queue.beats = [beat(claim.run_id)]
        await daemon.leases.heartbeat()
        await until(lambda: claim.run_id in world.runs)


# --- what was lost, and what others left ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "cleared"),
    [("final", True), ("not_found", True), ("not_owner", False), ("worker_id_taken", False), ("not_claimed", False)],
)
async def test_the_container_of_a_lost_run_ends_unless_somebody_may_need_it(
    world: World,
    found: str,
    cleared: bool,  # noqa: FBT001 - a table's column
) -> None:
    run_id = world.push()
    async with world.working():
        world.queue.adoptions[run_id] = found
        world.runs[run_id].lose()
        await until(lambda: world.count("lost") == 1)
        container = container_name(run_id, DATABASE)
        assert world.engine.done == ([("stop", container), ("remove", container)] if cleared else [])


async def test_a_lost_run_that_nobody_took_goes_on_here(world: World) -> None:
    run_id = world.push()
    async with world.working():
        first = world.runs[run_id]
        world.queue.adoptions[run_id] = make_claim(run_id, status="running", log_position=7)
        first.lose()
        await until(lambda: world.runs[run_id] is not first)
        assert world.runs[run_id].claim.log_position == 7
        assert world.engine.done == []


async def test_containers_found_at_the_start_are_taken_up_or_removed(world: World) -> None:
    running, ended, others, back, unknown = (uuid.uuid4() for _ in range(5))
    world.engine.containers = {running, ended, others, back, unknown}
    world.queue.adoptions = {
        running: make_claim(running, status="running"),
        ended: "final",
        others: "not_owner",
        back: "not_claimed",
        unknown: "not_found",
    }
    async with world.working():
        assert world.runs.keys() == {running}
        gone = {container_name(run_id, DATABASE) for run_id in (ended, unknown)}
        assert sorted(world.engine.done) == sorted((what, name) for what in ("stop", "remove") for name in gone)


async def test_runs_that_have_no_container_yet_are_taken_up_too(world: World) -> None:
    claim = make_claim(uuid.uuid4(), status="running")
    world.queue.held = {claim.run_id}
    world.queue.adoptions = {claim.run_id: claim}
    async with world.working():
        assert world.runs.keys() == {claim.run_id}


async def test_more_may_be_taken_up_than_there_is_room_for_but_nothing_more_is_claimed_then(world: World) -> None:
    left = [make_claim(status="running") for _ in range(3)]
    world.engine.containers = {claim.run_id for claim in left}
    world.queue.adoptions = {claim.run_id: claim for claim in left}
    queued = world.push()
    async with world.working(concurrency=2):
        assert world.runs.keys() == world.engine.containers
        for claim in left[:2]:
            world.runs[claim.run_id].end()
        await until(lambda: queued in world.runs)


@pytest.mark.parametrize("error", [EngineUnavailable("away"), EngineError(500, "no")])
async def test_an_engine_that_is_away_for_a_while_ends_no_worker(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    faults, owned = [error] * 3, world.engine.owned

    async def at_last(database_id: uuid.UUID) -> set[uuid.UUID]:
        if faults:
            raise faults.pop()
        return await owned(database_id)

    monkeypatch.setattr(world.engine, "owned", at_last)
    run_id = world.push()
    async with world.working():
        await until(lambda: run_id in world.runs)


@pytest.mark.parametrize("error", [EngineUnavailable("away"), EngineError(500, "no")])
async def test_a_container_that_cannot_be_removed_now_holds_nothing_up(world: World, error: Exception) -> None:
    ended = uuid.uuid4()
    world.engine.containers, world.engine.error = {ended}, error
    world.queue.adoptions = {ended: "final"}
    run_id = world.push()
    async with world.working():
        assert world.runs.keys() == {run_id}


async def test_sweeping_takes_up_what_dead_workers_left_and_leaves_our_own_alone(world: World) -> None:
    run_id = world.push()
    async with world.working(lease=0.03):
        left = make_claim(status="running")
        world.engine.containers = {run_id, left.run_id}
        world.queue.adoptions = {left.run_id: left}
        await until(lambda: left.run_id in world.runs)
        assert world.queue.reaps > 0
        assert world.queue.adopted == [left.run_id]


async def test_too_early_after_an_outage_nothing_is_swept(world: World) -> None:
    world.queue.swept = None
    async with world.working(lease=0.03):
        world.engine.containers, before = {uuid.uuid4()}, world.queue.reaps
        await until(lambda: world.queue.reaps > before + 3)
        assert world.queue.adopted == []


# --- the disk -------------------------------------------------------------------------------------------------------


async def test_while_the_disk_is_short_nothing_is_claimed_and_the_worker_says_why(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    why = world.short = "10m left on the disk of /var/lib/docker"
    run_id = world.push()
    async with world.working(poll=0.01):
        await until(lambda: why in capsys.readouterr().out)
        await anyio.sleep(0.05)
        assert world.runs == {}
        assert world.metrics.registry.get_sample_value("ops_worker_disk_short") == 1
        assert capsys.readouterr().out.count("the disk") == 0, "it says so once"
        world.short = None
        await until(lambda: run_id in world.runs)
        assert world.metrics.registry.get_sample_value("ops_worker_disk_short") == 0


async def test_a_worker_that_runs_until_idle_does_not_wait_for_the_disk(world: World) -> None:
    world.short = "10m left"
    world.push()
    with pytest.raises(ExceptionGroup) as raised:
        async with world.working(until_idle=True):
            await until(lambda: world.finished)
    assert raised.group_contains(DiskShort, match="10m left")


async def test_while_runs_go_on_they_are_told_what_they_wrote_and_one_gives_way_to_the_rest(world: World) -> None:
    greedy, modest = world.push(), world.push()
    world.engine.written_bytes = {
        str(greedy): Written(2 * NOTABLE, running=True),
        str(modest): Written(1, running=True),
    }
    async with world.working():
        assert (world.runs[greedy].stops, world.runs[modest].stops) == ([], [])
        world.short = "10m left"
        await until(lambda: world.runs[greedy].stops == [Stop.DISK])
        assert world.runs[modest].stops == []


# --- stopping -------------------------------------------------------------------------------------------------------


async def test_the_first_signal_drains_and_claims_nothing_more(world: World) -> None:
    first = world.push()
    async with world.working():
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep(0.01)
        await wait_all_tasks_blocked()
        world.push()
        world.queue.on_queue()
        await wait_all_tasks_blocked()
        assert world.runs.keys() == {first}
        assert not world.finished
        world.runs[first].end()
        await until(lambda: world.finished)
    assert len(world.queue.queued) == 1


async def test_a_claim_that_is_answered_while_draining_goes_back(world: World) -> None:
    world.queue.gate = anyio.Event()
    run_id = world.push()
    async with world.working():
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep(0.01)
        await wait_all_tasks_blocked()
        world.queue.gate.set()
        await until(lambda: world.finished)
    assert world.queue.released == [run_id]
    assert world.runs == {}


async def test_a_claim_that_was_lost_by_the_time_it_goes_back_is_no_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(run_id: uuid.UUID) -> None:
        raise LeaseLost(run_id)

    monkeypatch.setattr(world.queue, "release", lost)
    world.queue.gate = anyio.Event()
    world.push()
    async with world.working():
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep(0.01)
        await wait_all_tasks_blocked()
        world.queue.gate.set()
        await until(lambda: world.finished)


@pytest.mark.parametrize("drain", [None, 0.02])
async def test_the_second_signal_or_the_drain_timeout_detaches(world: World, drain: float | None) -> None:
    run_id = world.push()
    async with world.working(drain=drain):
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep(0.01)
        await wait_all_tasks_blocked()
        if drain is None:
            assert not world.finished
            os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: world.finished)
    assert world.runs[run_id].detached
    assert world.count("detached") == 1
    assert world.engine.done == []


@pytest.mark.timeout(30)
async def test_draining_ends_while_the_database_does_not_answer_a_claim(world: World) -> None:
    world.queue.gate = anyio.Event()
    async with world.working():
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: world.finished)


@pytest.mark.timeout(30)
async def test_draining_ends_while_the_database_does_not_answer_an_adoption(world: World) -> None:
    run_id = uuid.uuid4()
    world.queue.held = {run_id}
    world.queue.gate = anyio.Event()
    async with world.working():
        await until(lambda: world.queue.adopted == [run_id])
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: world.finished)


async def test_a_run_that_cannot_be_read_fails_and_leaves_nothing_and_the_next_is_claimed(world: World) -> None:
    unreadable, error = uuid.uuid4(), UnreadableRun("invalid_config", "it nests too deeply")
    world.queue.queued = [error]
    world.queue.adoptions[unreadable] = error
    world.queue.beats = [Heartbeat(True, frozenset({unreadable}), frozenset())]
    world.engine.containers = {unreadable}
    following = world.push()
    async with world.working(lease=0.3):
        await until(lambda: following in world.runs)
        await until(lambda: world.engine.containers == set())
    assert world.queue.ended == {unreadable: Outcome(None, Reason.INVALID_CONFIG, "it nests too deeply")}


async def test_an_error_of_the_database_at_an_adoption_does_not_end_the_worker(world: World) -> None:
    refused = uuid.uuid4()
    world.queue.adoptions[refused] = Refused("54001", "stack depth limit exceeded")
    world.queue.held = {refused}
    following = world.push()
    async with world.working():
        await until(lambda: following in world.runs)
    assert refused in world.queue.adopted
    assert world.queue.ended == {}


async def test_an_unexpected_error_in_the_background_ends_the_worker_as_itself(world: World) -> None:
    world.queue.beats = [KeyError("a bug")]
    with pytest.raises(ExceptionGroup) as raised:
        async with world.working():
            await anyio.sleep(PATIENCE)
    assert raised.group_contains(KeyError, depth=1)
