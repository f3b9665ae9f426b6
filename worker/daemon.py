"""The worker: claims runs while it has room, keeps their leases, and stops in an orderly way.

    register → adopt what an earlier process left on this engine → claim and run … → drain → unregister

Each run is one task. A heartbeat renews all leases at once and brings back what the database wants stopped. A
notification of a cancel makes the next heartbeat an early one, where the connection delivers it. It is a hint and
decides nothing, since every login of the database can send it.
"""

from __future__ import annotations

import math
import random
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.concurrency import cancel_on, retrying, task_group
from worker.database.connection import is_transient
from worker.database.queue import Queue
from worker.engine.engine import Engine
from worker.errors import DiskShort, EngineError, EngineUnavailable, LeaseLost, Refused, UnreadableRun
from worker.model.claim import Claim, NextRun
from worker.model.outcome import Stop
from worker.run.admission import Admission
from worker.run.adoption import Adopter
from worker.run.disk import Disk, DiskGuard
from worker.run.lifecycle import Run
from worker.run.ports import RunContext
from worker.telemetry import Metrics, notify_systemd

log = structlog.get_logger()

MAX_CRASHES = 3
"""How often this process adopts a run again after an error of the worker itself."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of the loops, in seconds."""

    claim: float = 2.0
    """How long a claim that is under way may take once the worker drains."""
    sweep: float = 60.0
    """How often leftovers are looked for: dead workers' leases in the database, containers on the engine."""
    hint: float = 0.5
    """A heartbeat is no earlier than this after the last one, however many notifications ask for it."""
    disk: float = 0.25
    """How often the free room is looked at: a disk may write a gigabyte a second."""


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How much the daemon does at once, and what the operator set, in seconds.

    ``concurrency`` bounds the runs that end by themselves, ``max_served`` the served ones.
    """

    concurrency: int
    max_served: int
    until_idle: bool
    lease: float
    poll: float
    drain: float | None
    timings: Timings = Timings()

    @property
    def heartbeat(self) -> float:
        """A third of the lease, so that two renewals may fail; at most 10 s, so that a cancel is never far away."""
        return min(self.lease / 3, 10.0)

    @property
    def idle_heartbeats(self) -> int:
        """How many of these times pass between two heartbeats of a worker without runs; never more than lease/3."""
        return max(1, min(2, math.floor(self.lease / 3 / self.heartbeat)))


class Roster:
    """The runs under way, and the runs that this instance may have to adopt."""

    def __init__(self) -> None:
        self.running: dict[uuid.UUID, Run] = {}
        self.orphans: set[uuid.UUID] = set()
        self.changed = anyio.Event()
        """Set when the claim loop has something to look at."""
        self._crashes: Counter[uuid.UUID] = Counter()

    def count(self, *, served: bool) -> int:
        """How many of the runs are served, or are not."""
        return sum(run.served is served for run in self.running.values())

    def add_orphans(self, run_ids: Iterable[uuid.UUID]) -> None:
        """Adds runs that no task of this process works on, without those that it has given up."""
        found = {run_id for run_id in run_ids if self._crashes[run_id] < MAX_CRASHES}
        self.orphans |= found - self.running.keys()
        if self.orphans:
            self.changed.set()

    def record_crash(self, run_id: uuid.UUID) -> bool:
        """Records that the worker itself failed at a run; returns whether the run is given up for that."""
        self._crashes[run_id] += 1
        return self._crashes[run_id] >= MAX_CRASHES


class Daemon:
    """One worker process. ``run`` returns when it has drained or detached, or, until idle, when the queue is empty."""

    def __init__(
        self, context: RunContext, queue: Queue, engine: Engine, metrics: Metrics, options: DaemonOptions, disk: Disk
    ) -> None:
        self._admission = Admission(metrics)
        self.leases = LeaseKeeper(context.database_id, queue, engine, metrics, options, disk, self._note_drain)
        self._context = context
        self._queue = queue
        self._metrics = metrics
        self._options = options
        self._roster = self.leases.roster
        self._adopter = Adopter(context)
        self._disk = disk
        self._guard = DiskGuard(disk, engine, self._roster.running)
        self._draining = anyio.Event()
        self._drained = anyio.Event()
        self._claiming = anyio.CancelScope()

    async def run(self) -> None:
        """The worker's life. Runs still going when it is cancelled are detached: their containers run on."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with task_group() as background:
                background.start_soon(self._stop_on, signals, background.cancel_scope)
                background.start_soon(self.leases.keep, background.cancel_scope)
                for loop in (self._listen, self.leases.sweep, self._watch_disk, self._end_claims):
                    background.start_soon(loop)
                notify_systemd("READY=1", f"STATUS={self._status()}")
                async with task_group() as runs:
                    await self._claims(runs)
                background.cancel_scope.cancel()

    # --- claiming ---------------------------------------------------------------------------------------------------

    async def _claims(self, runs: TaskGroup) -> None:
        with anyio.CancelScope() as self._claiming:
            await _until_done(self.leases.find_orphans, self._options.poll)
        while not self._draining.is_set():
            self._roster.changed = anyio.Event()  # before the look: a change from now on ends the wait below
            found = NextRun(None, waiting=True)
            with anyio.CancelScope() as self._claiming:
                await self._adopt_orphans(runs)
                if self._roster.count(served=False) < self._options.concurrency and self._has_room():
                    found = await self._claim()
            if found.claim is not None:
                log.info("run claimed", **found.claim.named)
                if found.claim.waited is not None:
                    self._metrics.queue_wait.labels(found.claim.workflow.workflow_type).observe(found.claim.waited)
                self._begin(runs, found.claim)
                continue
            if self._options.until_idle and not found.waiting and not self._roster.running:
                return
            with anyio.move_on_after(self._options.poll * random.uniform(0.75, 1.25)):  # noqa: S311 - jitter
                await self._roster.changed.wait()

    async def _adopt_orphans(self, runs: TaskGroup) -> None:
        while self._roster.orphans:
            run_id = next(iter(self._roster.orphans))
            if run_id not in self._roster.running and (claim := await self._adopter.adopt(run_id)) is not None:
                log.info("run adopted", **claim.named, status=claim.status)
                self._begin(runs, claim)
            self._roster.orphans.discard(run_id)  # not before: a sweep meanwhile would add it again

    def _has_room(self) -> bool:
        """Whether the disk has room for another run. Raises ``DiskShort`` if nothing would ever free some."""
        why = self._disk.shortage()
        if why is not None and self._options.until_idle and not self._roster.running:
            raise DiskShort(f"nothing is claimed: {why}")
        if self._admission.record_disk(why):
            self._show_status()
        return why is None

    def _note_drain(self, *, draining: bool) -> None:
        if self._admission.record_drain(draining=draining):
            self._show_status()
            if not draining:
                self._wake_up()

    async def _claim(self) -> NextRun:
        """The next run, if there is one and the worker is not draining; else whether one may become due."""
        try:
            found = await self._queue.claim(served=self._roster.count(served=True) < self._options.max_served)
        except Refused as error:
            log.warning("claim refused", error=str(error), code=error.code)
            return NextRun(None, waiting=True)
        except UnreadableRun as error:
            log.warning("a claimed run cannot be read, the next heartbeat names it", error=str(error))
            return NextRun(None, waiting=True)
        self._note_drain(draining=found.draining)
        if found.repeated:  # an earlier answer is lost: the heartbeat names the run that was claimed with it
            self.leases.hint.set()
        if found.claim is not None and self._draining.is_set():
            with suppress(LeaseLost):
                await self._queue.release(found.claim.run_id)
            return NextRun(None, waiting=False)
        return found

    # --- runs -------------------------------------------------------------------------------------------------------

    def _begin(self, runs: TaskGroup, claim: Claim) -> None:
        """Starts the task of a run that this instance owns."""
        run = Run(claim, self._context)
        self._roster.running[claim.run_id] = run
        self._metrics.active.set(len(self._roster.running))
        if claim.cancel_requested:
            run.stop(Stop.CANCEL)
        self._show_status()
        self._detach_from_served()
        runs.start_soon(self._execute, run, name=f"run {claim.run_id}")

    async def _execute(self, run: Run) -> None:
        status, began, seconds = "detached", run.claim.started_at or datetime.now(UTC), None
        try:
            status = await run.execute() or "lost"
            if status != "lost":
                seconds = max(0.0, (datetime.now(UTC) - began).total_seconds())
            if status == "lost" and await self._adopter.resolve_lost(run.claim):
                self._roster.orphans.add(run.claim.run_id)  # still ours: it continues where its log ended
        except Exception:  # the edge of a run: an error of one must not end the others
            given_up = self._roster.record_crash(run.claim.run_id)
            log.exception("run failed inside the worker", **run.claim.named, given_up=given_up)
            status = "crashed"
        finally:
            del self._roster.running[run.claim.run_id]
            workflow_type = run.claim.workflow.workflow_type
            self._metrics.finished(workflow_type, status, active=len(self._roster.running), seconds=seconds)
            self._show_status()
            self._wake_up()
            self._detach_from_served()

    # --- beside the runs --------------------------------------------------------------------------------------------

    async def _watch_disk(self) -> None:
        await _every(self._options.timings.disk, self._guard.look)

    async def _listen(self) -> None:
        """Subscribes, and again whenever the connection was lost; polling goes on all the while.

        That nothing arrives is logged once, not at each connection: a pooler may close connections often.
        """
        heard = True

        async def once() -> None:
            nonlocal heard
            if not self._queue.listening:
                before, heard = heard, await self._queue.listen(self._wake_up, self._cancel)
                if before and not heard:
                    log.warning(
                        "notifications do not arrive (a transaction pooler?), polling", seconds=self._options.poll
                    )
                self._wake_up()

        await _every(self._options.poll, once)

    def _wake_up(self) -> None:
        self._roster.changed.set()

    def _cancel(self, run_id: uuid.UUID) -> None:
        """A notification says that this run is to be cancelled: the next heartbeat asks whether it is."""
        if run_id in self._roster.running:
            self.leases.hint.set()

    # --- stopping ---------------------------------------------------------------------------------------------------

    async def _stop_on(self, signals: AsyncIterator[signal.Signals], everything: anyio.CancelScope) -> None:
        """The first signal drains; the second, or the end of the drain timeout, detaches.

        So does the end of all runs but the served ones: an update of the worker must not wait until their time is over.
        """
        await anext(signals)
        log.info("stopping: no more claims, waiting for the runs; once more to leave them to the next worker")
        self._draining.set()
        notify_systemd("STOPPING=1", f"STATUS={self._status()}")
        self._wake_up()
        self._detach_from_served()
        with anyio.move_on_after(self._options.drain):
            async with cancel_on(self._drained):
                await anext(signals)
        log.warning("detaching: the containers run on", runs=len(self._roster.running))
        everything.cancel()

    def _detach_from_served(self) -> None:
        """Only served runs are left: while there is none at all, one may still be adopted."""
        if self._draining.is_set() and self._roster.running and not self._roster.count(served=False):
            self._drained.set()

    async def _end_claims(self) -> None:
        """While draining, a claim, an adoption or a look at the engine that is not answered is cancelled."""
        await self._draining.wait()
        await anyio.sleep(self._options.timings.claim)
        self._claiming.cancel()

    def _status(self) -> str:
        """What `systemctl status` shows."""
        number = len(self._roster.running)
        runs = f"{number} run{'' if number == 1 else 's'}"
        if self._draining.is_set():
            return f"waiting for {runs} to end"
        if (why := self._admission.held_back_by) is not None:
            return f"claiming nothing: {why}; {runs}"
        return runs if number else "waiting for runs"

    def _show_status(self) -> None:
        notify_systemd(f"STATUS={self._status()}")


class OnDrain(Protocol):
    """Takes whether an operator drains this worker."""

    def __call__(self, *, draining: bool) -> None: ...


class LeaseKeeper:
    """Renews the leases of this instance's runs, and finds the runs and containers of workers that died."""

    def __init__(
        self,
        database_id: uuid.UUID,
        queue: Queue,
        engine: Engine,
        metrics: Metrics,
        options: DaemonOptions,
        disk: Disk,
        on_drain: OnDrain,
    ) -> None:
        self.roster = Roster()
        self.hint = anyio.Event()
        """Set to ask for an early heartbeat."""
        self._database_id = database_id
        self._queue = queue
        self._engine = engine
        self._metrics = metrics
        self._options = options
        self._disk = disk
        self._on_drain = on_drain

    async def keep(self, everything: anyio.CancelScope) -> None:
        """Renews for ever; cancels ``everything`` when another instance has taken this worker's id."""
        pause = min(self._options.timings.hint, self._options.heartbeat)
        try:
            while True:
                self.hint = anyio.Event()  # before the heartbeat: its answer may be older than a hint from now on
                await _until_done(self.heartbeat, self._options.heartbeat / 3)  # within the time that reap() waits
                await anyio.sleep(pause)
                with anyio.move_on_after(self._options.heartbeat - pause):
                    await self.hint.wait()
                for _ in range(1, self._options.idle_heartbeats):
                    if not self.roster.running:  # or a run that is claimed now would wait longer for its first one
                        with anyio.move_on_after(self._options.heartbeat):
                            await self.hint.wait()
        except Refused as error:
            log.warning("detaching: another worker has this worker id now (--worker-id)", error=str(error))
            everything.cancel()

    async def heartbeat(self) -> None:
        """One renewal; stops the runs that were cancelled or are no longer this instance's."""
        if (space := self._disk.space()) is not None:
            self._metrics.disk_free.set(space.free)
            self._metrics.disk_size.set(space.total)
        mine = dict(self.roster.running)  # a run claimed while the answer is under way is not in it
        with anyio.fail_after(self._options.heartbeat):
            answer = await self._queue.heartbeat(space)
        self._metrics.heartbeat.set_to_current_time()
        self._metrics.leases.set(len(answer.runs))
        self._on_drain(draining=answer.draining)
        if not answer.registered:
            await self._queue.register(takeover=False)  # refused: see keep
        for run_id, run in mine.items():
            if run_id in answer.cancel_requested:
                run.stop(Stop.CANCEL)
            elif run_id not in answer.runs:
                run.lose()
        self.roster.add_orphans(answer.runs - mine.keys())  # the answer to their claim was lost

    async def find_orphans(self) -> None:
        """Finds the runs that may be ours and that no task works on: by their containers, and in the database."""
        self.roster.add_orphans(await self._engine.owned(self._database_id) | await self._queue.adoptable())

    async def sweep(self) -> None:
        """Looks for ever for what dead workers left: leases in the database, containers and networks here."""

        async def once() -> None:
            swept = await self._queue.reap()
            if swept is None:  # so soon after an outage the dead cannot be distinguished from the living
                return
            if any(swept.values()):
                log.info("dead workers' runs swept up", **swept)
            await self.find_orphans()
            await self._engine.trim_project_networks(self._database_id)

        await _every(min(self._options.timings.sweep, self._options.lease / 3), once)


async def _every(seconds: float, once: Callable[[], Awaitable[object]]) -> None:
    """Calls ``once`` for ever, ``seconds`` apart; passing faults are logged and waited out."""
    while True:
        await _until_done(once, seconds)
        await anyio.sleep(seconds)


async def _until_done(once: Callable[[], Awaitable[object]], cap: float) -> None:
    """Calls ``once`` until it succeeds; passing faults are logged, with at most ``cap`` seconds between attempts."""

    def on_fault(error: Exception, _attempt: int) -> None:
        log.warning("background task failed, trying again", task=once.__qualname__, error=str(error) or repr(error))

    await retrying(once, transient=_passes, on_fault=on_fault, cap=min(cap, 5.0), first=min(cap, 0.1))


def _passes(error: Exception, _attempt: int) -> bool:
    return is_transient(error) or isinstance(error, (EngineUnavailable, EngineError))
