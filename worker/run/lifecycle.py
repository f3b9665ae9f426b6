"""One run, from its claim to its completion.

    start → outcome → complete → remove

The outcome takes most of the time: resolve the spec, find or pull the image, create the container and its services,
start first these and then it, store the journal until the container has ended, upload the artifacts. The order at the
end is the promise of the whole program: when a run is succeeded, its log and its artifacts are stored. Whatever goes
wrong on the way ends the run as failed with a reason; nothing of it reaches the daemon.

Two things end a run from outside. A request to stop (cancel, timeout or a limit; the first wins) ends the container,
and then the run finishes as above. The cancellation of its task (detach, or the lease lost) leaves the container as
it is. When the next worker adopts the run, each step finds what an earlier attempt at it did.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from traceback import format_exc

import anyio
import structlog

from worker.concurrency import task_group
from worker.errors import EngineError, LeaseLost, Refused, RunFailure
from worker.model.claim import Claim
from worker.model.outcome import ExitFacts, Outcome, Reason, Stop, decide, failure_of
from worker.model.spec import RunTerms
from worker.run.collection import ArtifactCollection
from worker.run.engine_retry import EngineRetry
from worker.run.journal import JournalReader, LogLimits
from worker.run.ports import RunContainer, RunContext
from worker.run.preparation import Preparation, container_gone, container_name
from worker.run.quota import DiskQuota
from worker.run.reporter import Reporter
from worker.run.services import Services
from worker.run.serving import Serving, left_of
from worker.run.stopping import StopRequest
from worker.run.traces import RUN, result_of


class Run:
    """One attempt at a run. ``execute`` is its whole life; ``stop`` may be called at any moment of it."""

    def __init__(self, claim: Claim, context: RunContext) -> None:
        self.claim = claim
        self.container_name = container_name(claim.run_id, context.database_id)
        self.served = claim.served
        """Whether the run stays until its ttl. Its container tells; before that, the present configuration."""
        self.quota = DiskQuota(self.stop)
        self._context = context
        self._queue = context.queue
        self._engine = context.engine
        self._log = structlog.get_logger().bind(**claim.named)
        self._reporter = Reporter(context.queue, claim.run_id)
        self._calls = EngineRetry(self._log, self._reporter.text)
        self._stop = StopRequest()
        self._trace = context.traces.of(claim)
        self._preparation = Preparation(claim, context, self._reporter, self._calls, self._stop, self._trace)
        self._scope = anyio.CancelScope()
        self._completing = False

    def stop(self, why: Stop) -> None:
        """Asks the run to stop; see :class:`StopRequest`."""
        self._stop.request(why)

    def lose(self) -> None:
        """Ends the work on the run at once and leaves its container as it is: another worker may own the run.

        Does nothing once the run is being completed: a heartbeat may find no lease because the run has just ended, and
        the answer to the completion tells whether another worker owns the run.
        """
        if not self._completing:
            self._scope.cancel()

    async def execute(self) -> str | None:
        """Runs it to the end and returns the final status; None when the lease was lost."""
        status = None
        with self._scope, suppress(LeaseLost):
            started_at = await self._start()
            outcome = await self._outcome()
            if outcome.reason is Reason.SUCCEEDED:
                await self._preparation.caches.keep()
            status = await self._complete(outcome, started_at)
        if status is not None:
            await self._remove()
        return status

    # --- start, complete, remove ------------------------------------------------------------------------------------

    async def _start(self) -> datetime:
        if self.claim.status == "claimed":
            await self._queue.start(self.claim.run_id)
            self._trace.queued()
        return self.claim.started_at or datetime.now(UTC)

    async def _complete(self, outcome: Outcome, started_at: datetime) -> str:
        outcome = self._reporter.masked(outcome)
        self._completing = True
        try:
            status = await self._queue.complete(self.claim.run_id, outcome)
        except Refused as error:
            self._log.error("the outcome was refused, the run fails", reason=outcome.reason, error=str(error))
            message = f"the database refused the outcome {outcome.reason}: {error.code}"
            outcome = Outcome(None, Reason.WORKER_ERROR, message)
            status = await self._queue.complete(self.claim.run_id, outcome)
        getattr(self._log, outcome.log_level)(
            "run finished",
            status=status,
            reason=outcome.reason,
            exit_code=outcome.exit_code,
            error_message=outcome.message,
            duration_seconds=round(max(0.0, (datetime.now(UTC) - started_at).total_seconds()), 1),
        )
        self._trace.ended(outcome, started_at)
        return status

    async def _remove(self) -> None:
        with anyio.move_on_after(self._context.timings.cleanup), suppress(EngineError):
            await self._calls(self._engine.container(self.container_name).remove)
            if self._preparation.has_more:
                await self._calls(self._engine.remove_beside, self._context.database_id, self.claim.run_id)
                await self._preparation.caches.trim()
            if self._preparation.in_project:
                await self._calls(self._engine.trim_project_networks, self._context.database_id)

    # --- outcome ----------------------------------------------------------------------------------------------------

    async def _outcome(self) -> Outcome:
        """Everything between start and complete. Raises ``LeaseLost`` only."""
        try:
            container, terms = await self._preparation.run()
            return await self._supervise(container, terms)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - a run must end with a reason, whatever the worker did wrong
            failure = failure_of(error)
            if failure is None:
                traceback = self._reporter.text(format_exc())
                self._log.error("the worker failed at this run", exception=traceback)
                failure = RunFailure(Reason.WORKER_ERROR, f"an error in the worker itself: {error!r}")
            return Outcome.of(failure)

    async def _supervise(self, container: RunContainer, terms: RunTerms) -> Outcome:
        """The container's life from its start on, with the log and the artifacts that it leaves."""
        self.quota.limit = terms.disk_bytes
        self.served = terms.serve is not None
        start = partial(self._preparation.start, terms=terms)
        services = Services(self._engine, self.container_name, terms, self._reporter, self._calls, self._stop, start)
        started_now = await self._start_all(container, terms, services)
        serving = Serving(self.claim, self._context, terms, self._reporter, self._calls, self._stop)
        limits = LogLimits.of(self.claim, terms, self._context.max_log_bytes)
        journal = JournalReader(
            container, self._context, self._reporter, self.quota, self._calls, self.stop, limits, self._log
        )
        async with task_group() as tasks:
            tasks.start_soon(partial(self._stop_on_request, container, terms, serving, started_now=started_now))
            tasks.start_soon(self._kill_over_quota, container, services)
            tasks.start_soon(serving.watch, container)
            if terms.services:
                tasks.start_soon(services.watch, container, self._context.timings)
            state = await journal.run(self.claim.run_id)
            tasks.cancel_scope.cancel()
        if state is None:
            raise container_gone()
        if state.lasted >= terms.limit_seconds:  # also when a limit or the program itself ended it
            self.stop(serving.expired)
        await services.look_back(state)
        await services.settle(self._context.stop_grace_seconds)
        artifacts_error = None
        if terms.artifacts and state.started_at is not None:
            collection = ArtifactCollection(self.claim, self._context, self._reporter, self._calls, self._stop)
            with self._trace.measured("artifacts"):
                artifacts_error = await collection.run(container, state, terms, self.quota)
        facts = ExitFacts(
            self.quota.written,
            self.quota.left,
            artifacts_error,
            journal.engine_restarted,
            services.failure,
            serving.said,
        )
        outcome = decide(state, terms, facts, self._stop.reason)
        if state.started_at is not None:
            self._trace.task(RUN, state.started_at, state.finished_at or datetime.now(UTC), result_of(outcome))
        return outcome

    async def _start_all(self, container: RunContainer, terms: RunTerms, services: Services) -> bool:
        """Starts the services and then the container; False if it was started before, or is not to be started."""
        began = datetime.now(UTC)
        await services.start(container, self._context.timings)
        ready = datetime.now(UTC)
        started_now = False
        if not self._stop.requested.is_set():
            started_now = await self._preparation.start(container, terms)
        if terms.services and (started_now or services.failure is not None):  # not again when the run is adopted
            self._trace.task("services", began, ready, "success" if started_now else "failure")
        return started_now

    async def _stop_on_request(
        self, container: RunContainer, terms: RunTerms, serving: Serving, *, started_now: bool
    ) -> None:
        """Stops the container on request, or once it has run longer than it may, before an adoption included."""
        state = None if started_now else await self._calls(container.inspect)
        left = terms.limit_seconds if state is None else left_of(state, terms.limit_seconds)
        with anyio.move_on_after(left) as waiting:
            await self._stop.requested.wait()
        if waiting.cancelled_caught:
            state = await self._calls(container.inspect)
            if state is None or not state.running:
                return  # it ended in time; what takes long is storing its log
            self.stop(serving.expired)
        self._log.info("stopping the container", why=self._stop.reason)
        fills_the_disk = self._stop.reason is Stop.OUTPUT or self.quota.exceeded.is_set()
        grace = 0 if fills_the_disk else self._context.stop_grace_seconds
        await self._calls(container.stop, grace)

    async def _kill_over_quota(self, container: RunContainer, services: Services) -> None:
        """Kills the containers of a run that exceeds its quota, even during the grace after another reason."""
        await self.quota.exceeded.wait()
        await self._calls(container.stop, 0)
        await services.kill()
