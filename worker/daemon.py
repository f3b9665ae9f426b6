"""The worker: claims runs while it has room, keeps their leases, and stops in an orderly way.

    register → adopt what an earlier process left on this engine → claim and run … → drain → unregister

Each run is one task. A heartbeat renews all leases at once and brings back what the database wants stopped. A
notification of a cancel makes the next heartbeat an early one, where the connection delivers it. It is a hint and
decides nothing, since every login of the database can send it.
"""

from __future__ import annotations

import random
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.concurrency import backoff, task_group
from worker.database.connection import is_transient
from worker.database.queue import Queue
from worker.engine.containers import Engine
from worker.errors import DiskShort, EngineError, EngineUnavailable, LeaseLost, Refused, UnreadableRun
from worker.model.claim import Claim
from worker.model.outcome import Outcome, Reason, Stop
from worker.run.disk import Disk, DiskGuard
from worker.run.lifecycle import Host, Run, container_name
from worker.telemetry import Metrics, notify_systemd

log = structlog.get_logger()

CLAIM_SECONDS = 2.0
"""How long a claim that is under way may take once the worker drains."""

SWEEP_SECONDS = 60.0
"""How often leftovers are looked for: dead workers' leases in the database, containers on the engine."""

HINT_SECONDS = 0.5
"""A heartbeat is no earlier than this after the last one, however many notifications ask for it."""

DISK_SECONDS = 0.25
"""How often the free room is looked at: a disk may write a gigabyte a second."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much the daemon does at once, and its times in seconds."""

    concurrency: int
    until_idle: bool
    lease: float
    poll: float
    drain: float | None

    @property
    def heartbeat(self) -> float:
        """A third of the lease, so that two renewals may fail; at most 10 s, so that a cancel is never far away."""
        return min(self.lease / 3, 10.0)


class Daemon:
    """One worker process. ``run`` returns when it has drained or detached, or, until idle, when the queue is empty."""

    def __init__(
        self,
        host: Host,
        queue: Queue,
        engine: Engine,
        metrics: Metrics,
        pace: Pace,
        disk: Disk,
    ) -> None:
        self._host = host
        self._queue = queue
        self._engine = engine
        self._metrics = metrics
        self._pace = pace
        self._disk = disk
        self._short = False
        self._runs: dict[uuid.UUID, Run] = {}
        self._guard = DiskGuard(disk, engine, self._runs)
        self._unknown: set[uuid.UUID] = set()
        self._wake = anyio.Event()
        self._hint = anyio.Event()
        self._draining = anyio.Event()
        self._claiming = anyio.CancelScope()

    async def run(self) -> None:
        """The worker's life. Runs still going when it is cancelled are detached: their containers run on."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with task_group() as background:
                background.start_soon(self._stop_on, signals, background.cancel_scope)
                background.start_soon(self._heartbeats, background.cancel_scope)
                for loop in (self._listen, self._sweeps, self._watch_disk, self._end_claims):
                    background.start_soon(loop)
                notify_systemd("READY=1", f"STATUS={self._status()}")
                async with task_group() as runs:
                    await self._claims(runs)
                background.cancel_scope.cancel()

    # --- claiming ---------------------------------------------------------------------------------------------------

    async def _claims(self, runs: TaskGroup) -> None:
        with anyio.CancelScope() as self._claiming:
            await _until_done(self.look_around, self._pace.poll)
        while not self._draining.is_set():
            self._wake = anyio.Event()  # before the look: what comes up from now on wakes the wait below
            claim, waiting = None, True
            with anyio.CancelScope() as self._claiming:
                while self._unknown:
                    run_id = next(iter(self._unknown))
                    await self._take_up(runs, run_id)
                    self._unknown.discard(run_id)  # not before: a sweep meanwhile would add it again
                if len(self._runs) < self._pace.concurrency and self._has_disk():
                    claim, waiting = await self._claim()
            if claim is not None:
                log.info("run claimed", **claim.named)
                self._begin(runs, claim)
                continue
            if self._pace.until_idle and not waiting and not self._runs:
                return
            with anyio.move_on_after(self._pace.poll * random.uniform(0.75, 1.25)):  # noqa: S311 - jitter
                await self._wake.wait()

    def _has_disk(self) -> bool:
        """Whether there is room for another run. Raises ``DiskShort`` where nobody would wait for it."""
        why = self._disk.shortage()
        if why is not None and self._pace.until_idle and not self._runs:
            raise DiskShort(f"nothing is claimed: {why}")
        if why is not None and not self._short:
            log.warning("claiming nothing: the disk is short", why=why)
        elif why is None and self._short:
            log.info("claiming again: the disk has room")
        if (why is not None) != self._short:
            self._short = why is not None
            self._say_status()
        self._metrics.disk_short.set(self._short)
        return not self._short

    async def _claim(self) -> tuple[Claim | None, bool]:
        """The next run, if there is one and the worker is not draining; else whether one may become due."""
        try:
            claim, waiting = await self._queue.claim()
        except Refused as error:
            log.warning("claim refused", error=str(error), code=error.code)
            return None, True
        except UnreadableRun as error:
            log.warning("a claimed run cannot be read, the next heartbeat names it", error=str(error))
            return None, True
        if claim is not None and self._draining.is_set():
            with suppress(LeaseLost):
                await self._queue.release(claim.run_id)
            return None, False
        return claim, waiting

    async def _take_up(self, runs: TaskGroup, run_id: uuid.UUID) -> None:
        """Goes on with a run that nobody looks after; removes what is left of one that has ended elsewhere."""
        if run_id in self._runs:
            return
        found = await self._adopt(run_id)
        if isinstance(found, Claim):
            log.info("run adopted", **found.named, status=found.status)
            self._begin(runs, found)
        elif found in ("final", "not_found"):
            await self._clear(run_id)

    async def _adopt(self, run_id: uuid.UUID) -> Claim | str:
        """What ``Queue.adopt`` answers; a run that cannot be read is failed, so that it is final.

        An error of the database at one run does not end the others: the next look finds that run again.
        """
        try:
            return await self._queue.adopt(run_id)
        except Refused as error:
            log.warning("adoption refused", run_id=str(run_id), error=str(error), code=error.code)
            return error.code
        except UnreadableRun as error:
            log.warning("the run cannot be read, it fails", run_id=str(run_id), error=str(error))
            with suppress(LeaseLost):
                await self._queue.start(run_id)
                await self._queue.complete(run_id, Outcome(None, Reason(error.reason), str(error)))
            return "final"

    def _begin(self, runs: TaskGroup, claim: Claim) -> None:
        """Starts the task of a run that this instance owns."""
        run = Run(claim, self._host)
        self._runs[claim.run_id] = run
        self._metrics.active.set(len(self._runs))
        if claim.cancel_requested:
            run.stop(Stop.CANCEL)
        self._say_status()
        runs.start_soon(self._execute, run, name=f"run {claim.run_id}")

    async def _execute(self, run: Run) -> None:
        status = "detached"
        try:
            status = await run.execute() or "lost"
            if status == "lost":
                await self._let_go(run.claim)
        except Exception:  # the edge of a run: nothing of it may end the others
            log.exception("run failed inside the worker", **run.claim.named)
            status = "crashed"
        finally:
            del self._runs[run.claim.run_id]
            self._metrics.finished(run.claim.workflow.workflow_type, status, active=len(self._runs))
            self._say_status()
            self._wake_up()

    async def _let_go(self, claim: Claim) -> None:
        """Ends the container of a run that was lost, unless another worker on this engine goes on with it."""
        found = await self._adopt(claim.run_id)
        ours_again = isinstance(found, Claim)
        log.warning("lease lost, nothing more is written for this run", **claim.named, ours_again=ours_again)
        if ours_again:
            self._unknown.add(claim.run_id)  # no other worker took it: it continues where its log ended
        elif found in ("final", "not_found"):
            await self._clear(claim.run_id)

    async def _clear(self, run_id: uuid.UUID) -> None:
        """Ends and removes the container of a run, if there is one."""
        container = container_name(run_id, self._host.database_id)
        try:
            await self._engine.stop(container, self._host.stop_grace_seconds)
            await self._engine.remove(container)
        except (EngineUnavailable, EngineError) as error:
            log.warning("cannot remove a leftover container yet", run_id=str(run_id), error=str(error))

    # --- keeping what is ours ---------------------------------------------------------------------------------------

    async def _heartbeats(self, everything: anyio.CancelScope) -> None:
        pause = min(HINT_SECONDS, self._pace.heartbeat)
        try:
            while True:
                self._hint = anyio.Event()  # before the heartbeat: its answer may be older than a hint from now on
                await _until_done(self.heartbeat, self._pace.heartbeat)
                await anyio.sleep(pause)
                with anyio.move_on_after(self._pace.heartbeat - pause):
                    await self._hint.wait()
        except Refused as error:
            log.warning("detaching: another worker has this worker id now (--worker-id)", error=str(error))
            everything.cancel()

    async def heartbeat(self) -> None:
        """One renewal; stops the runs that were cancelled or are no longer this instance's."""
        mine = dict(self._runs)  # a run claimed while the answer is under way is not in it
        with anyio.fail_after(self._pace.heartbeat):
            answer = await self._queue.heartbeat()
        self._metrics.heartbeat.set_to_current_time()
        if not answer.registered:
            await self._queue.register(takeover=False)  # refused: see _heartbeats
        for run_id, run in mine.items():
            if run_id in answer.cancel_requested:
                run.stop(Stop.CANCEL)
            elif run_id not in answer.runs:
                run.lose()
        # Runs that are ours and nobody knows of: the answer to their claim was lost. The claim loop picks them up.
        self._unknown |= answer.runs - mine.keys()
        if self._unknown:
            self._wake_up()

    async def look_around(self) -> None:
        """Finds the runs that may be ours and no task looks after: by their containers, and in the database."""
        found = await self._engine.owned(self._host.database_id) | await self._queue.adoptable()
        self._unknown |= found - self._runs.keys()
        if self._unknown:
            self._wake_up()

    async def _sweeps(self) -> None:
        """Looks after what dead workers left: their leases in the database, their containers on this engine."""

        async def sweep() -> None:
            swept = await self._queue.reap()
            if swept is None:  # too early after an outage to tell the dead from the living
                return
            if any(swept.values()):
                log.info("dead workers' runs swept up", **swept)
            await self.look_around()

        await _every(min(SWEEP_SECONDS, self._pace.lease / 3), sweep)

    async def _watch_disk(self) -> None:
        await _every(DISK_SECONDS, self._guard.look)

    async def _listen(self) -> None:
        """Subscribes, and again whenever the connection was lost; polling goes on all the while.

        That nothing arrives is said once, not at each connection: a pooler may close one as often as it likes.
        """
        heard = True

        async def once() -> None:
            nonlocal heard
            if not self._queue.listening:
                before, heard = heard, await self._queue.listen(self._wake_up, self._cancel)
                if before and not heard:
                    log.warning(
                        "notifications do not arrive (a transaction pooler?), polling",
                        seconds=self._pace.poll,
                    )
                self._wake_up()

        await _every(self._pace.poll, once)

    def _wake_up(self) -> None:
        self._wake.set()

    def _cancel(self, run_id: uuid.UUID) -> None:
        """A notification says that this run is to be cancelled: the next heartbeat asks whether it is."""
        if run_id in self._runs:
            self._hint.set()

    # --- stopping ---------------------------------------------------------------------------------------------------

    async def _stop_on(self, signals: AsyncIterator[signal.Signals], everything: anyio.CancelScope) -> None:
        """The first signal drains; the second, or the end of the drain timeout, detaches."""
        await anext(signals)
        log.info("stopping: no more claims, waiting for the runs; once more to leave them to the next worker")
        self._draining.set()
        notify_systemd("STOPPING=1", f"STATUS={self._status()}")
        self._wake_up()
        with anyio.move_on_after(self._pace.drain):
            await anext(signals)
        log.warning("detaching: the containers run on", runs=len(self._runs))
        everything.cancel()

    async def _end_claims(self) -> None:
        """While draining, nobody waits for a claim, an adoption, or a look at the engine, that is not answered."""
        await self._draining.wait()
        await anyio.sleep(CLAIM_SECONDS)
        self._claiming.cancel()

    def _status(self) -> str:
        """What `systemctl status` shows."""
        runs = f"{len(self._runs)} run{'' if len(self._runs) == 1 else 's'}"
        if self._draining.is_set():
            return f"waiting for {runs} to end"
        if self._short:
            return f"claiming nothing: the disk is short; {runs}"
        return runs if self._runs else "waiting for runs"

    def _say_status(self) -> None:
        notify_systemd(f"STATUS={self._status()}")


async def _every(seconds: float, once: Callable[[], Awaitable[object]]) -> None:
    """Calls ``once`` for ever; passing faults are logged and waited out, with backoff up to the same interval."""
    while True:
        await _until_done(once, seconds)
        await anyio.sleep(seconds)


async def _until_done(once: Callable[[], Awaitable[object]], cap: float) -> None:
    """Calls ``once`` until no passing fault gets in its way; at most ``cap`` seconds between two attempts."""
    attempt = 0
    while True:
        try:
            await once()
        except Exception as error:
            if not (is_transient(error) or isinstance(error, (EngineUnavailable, EngineError))):
                raise
            log.warning(
                "background task failed, trying again",
                task=once.__qualname__,
                error=str(error) or repr(error),
            )
            await anyio.sleep(min(cap, backoff(attempt)))
            attempt += 1
        else:
            return
