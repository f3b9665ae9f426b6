"""One run, from its claim to its completion.

    start → outcome → complete → remove

The outcome takes most of the time: resolve the spec, find or pull the image, create and start the container, store
the journal until the container has ended, upload the artifacts. The order at the end is the promise of the whole
program: when a run is succeeded, its log and its artifacts are stored. Whatever goes wrong on the way ends the run as
failed with a reason; nothing of it reaches the daemon.

Two things end a run from outside. A request to stop (cancel, timeout or a limit; the first wins) ends the container,
and then the run finishes as above. The cancellation of its task (detach, or the lease lost) leaves the container as
it is. When the next worker adopts the run, each step finds what an earlier attempt at it did.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import anyio
import anyio.to_thread
import structlog

from worker.concurrency import cancel_on, task_group
from worker.errors import EngineError, ImageMissing, LeaseLost, Refused, RunFailure
from worker.model.claim import Claim
from worker.model.container import (
    LABEL_DATABASE,
    LABEL_RUN,
    LABEL_TERMS,
    LABEL_WORKER,
    ContainerState,
    Image,
    Secret,
)
from worker.model.outcome import ExitFacts, Outcome, Reason, Stop, decide, failure_of
from worker.model.spec import RunSpec, RunTerms, resolve
from worker.run.collection import ArtifactCollection
from worker.run.journal import JournalReader, LogLimits
from worker.run.patience import PatientCalls
from worker.run.ports import RunContainer, RunContext
from worker.run.quota import DiskQuota
from worker.run.reporter import Reporter
from worker.run.secrets import changed_values
from worker.run.stopping import StopRequest


def container_name(run_id: uuid.UUID, database_id: uuid.UUID) -> str:
    """The name of a run's container, the same for every attempt to create it, so that it exists at most once.

    A copy of a database has the same runs, and perhaps the same engine. The name does not contain the run's id,
    because every container on the bridge can look up the names of its neighbours (reverse DNS).
    """
    return f"ops-run-{uuid.uuid5(database_id, str(run_id))}"


class Run:
    """One attempt at a run. ``execute`` is its whole life; ``stop`` may be called at any moment of it."""

    def __init__(self, claim: Claim, context: RunContext) -> None:
        self.claim = claim
        self.container_name = container_name(claim.run_id, context.database_id)
        self.quota = DiskQuota(self.stop)
        self._context = context
        self._queue = context.queue
        self._engine = context.engine
        self._log = structlog.get_logger().bind(**claim.named)
        self._calls = PatientCalls(self._log)
        self._reporter = Reporter(context.queue, claim.run_id)
        self._stop = StopRequest()
        self._scope = anyio.CancelScope()

    def stop(self, why: Stop) -> None:
        """Asks the run to stop; see :class:`StopRequest`."""
        self._stop.request(why)

    def lose(self) -> None:
        """Ends the work on the run at once and leaves its container as it is: another worker may own the run."""
        self._scope.cancel()

    async def execute(self) -> str | None:
        """Runs it to the end and returns the final status; None when the lease was lost."""
        status = None
        with self._scope, suppress(LeaseLost):
            started_at = await self._start()
            status = await self._complete(await self._outcome(), started_at)
        if status is not None:
            await self._remove()
        return status

    # --- start, complete, remove ------------------------------------------------------------------------------------

    async def _start(self) -> datetime:
        if self.claim.status == "claimed":
            await self._queue.start(self.claim.run_id)
        return self.claim.started_at or datetime.now(UTC)

    async def _complete(self, outcome: Outcome, started_at: datetime) -> str:
        outcome = self._reporter.masked(outcome)
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
        return status

    async def _remove(self) -> None:
        with anyio.move_on_after(self._context.timings.cleanup), suppress(EngineError):
            await self._calls(self._engine.container(self.container_name).remove)

    # --- outcome ----------------------------------------------------------------------------------------------------

    async def _outcome(self) -> Outcome:
        """Everything between start and complete. Raises ``LeaseLost`` only."""
        try:
            container, terms = await self._container()
            return await self._supervise(container, terms)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - a run must end with a reason, whatever the worker did wrong
            failure = failure_of(error)
            if failure is None:
                self._log.exception("the worker failed at this run")
                failure = RunFailure(Reason.WORKER_ERROR, f"an error in the worker itself: {error!r}")
            return Outcome.of(failure)

    async def _container(self) -> tuple[RunContainer, RunTerms]:
        """The container of the run: the one of an earlier attempt, or a new one."""
        container = self._engine.container(self.claim.container_id or self.container_name)
        state = await self._earlier_state(container)
        if state is not None:  # goes on as it was made: a later change of configuration, host or image does not count
            terms = RunTerms.model_validate_json(state.labels[LABEL_TERMS])
            await self._mask_held_secrets(container, terms.secrets)
            return container, terms
        if self.claim.container_id is not None:  # made once in a run's life: one that is gone may have run
            raise _gone()
        spec = resolve(self.claim, self._context.policy)
        secrets = await self._read_secrets(spec.secrets)
        image = await self._image(spec.image)
        return await self._create(spec, image, secrets), spec.terms

    async def _earlier_state(self, container: RunContainer) -> ContainerState | None:
        """The state of the container that an earlier attempt recorded or started; None if none did, or it is gone."""
        if self.claim.status == "claimed":
            return None
        state = await self._calls(container.inspect)
        made = self.claim.container_id is not None or (state is not None and state.started_at is not None)
        return state if made else None

    async def _read_secrets(self, names: Sequence[str], *, required: bool = True) -> tuple[Secret, ...]:
        """The host's secrets of those names, which are masked from now on. Raises ``SpecError``."""
        if not names:
            return ()
        read = partial(self._context.secrets.read, self.claim.project.workspace_key, names, required=required)
        secrets = await anyio.to_thread.run_sync(read)
        await self._reporter.mask([secret.value for secret in secrets])
        return secrets

    async def _mask_held_secrets(self, container: RunContainer, names: Sequence[str]) -> None:
        """Masks what the host holds now, and what it held when the container was made: its files show that."""
        known = await self._read_secrets(names, required=False)
        if names:
            held = await self._calls(container.secrets, names)
            await self._reporter.mask([*(secret.value for secret in known), *changed_values(held, known)])

    async def _image(self, reference: str) -> Image:
        """The image, pulled if the engine does not have it. Raises ``ImageMissing``, or ``RunFailure`` on a cancel."""
        image = await self._calls(self._engine.image, reference)
        if image is not None:
            return image
        await self._reporter.event("info", f"pulling image {reference}", {"image": reference})
        pull_seconds = self._context.pull_seconds
        with anyio.move_on_after(pull_seconds) as waiting:  # a registry may send a byte now and then
            async with cancel_on(self._stop.requested):
                await self._calls(self._engine.pull, reference)
                image = await self._calls(self._engine.image, reference)
                if image is None:
                    raise ImageMissing(reference, "the registry's answer did not contain it")
        if waiting.cancelled_caught:
            limit = f"{pull_seconds:g} s, the host's setting pull_timeout"
            raise ImageMissing(reference, f"the registry took longer than {limit}")
        if image is None:
            raise RunFailure(Reason.CANCELED, "canceled before its container was created")
        return image

    async def _create(self, spec: RunSpec, image: Image, secrets: Sequence[Secret]) -> RunContainer:
        labels = {
            LABEL_RUN: str(self.claim.run_id),
            LABEL_DATABASE: str(self._context.database_id),
            LABEL_WORKER: self._context.worker_id,
            LABEL_TERMS: spec.terms.model_dump_json(),
        }
        if self._context.policy.secrets_as_env:
            reserved = {name: value for name, value in spec.env.items() if name.startswith("OPS_")}
            spec = replace(spec, env={**spec.env, **dict(secret.variable for secret in secrets), **reserved})
        container = await self._calls(self._engine.create, self.container_name, image, spec, labels, secrets)
        details = {"image": image.reference, "image_id": image.image_id, "digest": image.digest}
        limits = {
            "cpus": spec.cpus,
            "memory_bytes": spec.memory_bytes,
            "pids": spec.pids,
            "nofile": spec.nofile,
            "disk_bytes": spec.disk_bytes,
            "network": spec.network,
        }
        recorded = self._reporter.redactor.value({**details, **limits})
        await self._queue.record_container(self.claim.run_id, container.ref, recorded)
        return container

    async def _supervise(self, container: RunContainer, terms: RunTerms) -> Outcome:
        """The container's life from its start on, with the log and the artifacts that it leaves."""
        self.quota.limit = terms.disk_bytes
        if not self._stop.requested.is_set():
            await self._calls(container.start)
        limits = LogLimits(self.claim.log_position, self._context.max_log_bytes, terms.output_bytes)
        journal = JournalReader(
            container, self._context, self._reporter, self.quota, self._calls, self.stop, limits, self._log
        )
        async with task_group() as tasks:
            tasks.start_soon(self._stop_on_request, container, terms.timeout_seconds)
            tasks.start_soon(self._kill_over_quota, container)
            state = await journal.run(self.claim.run_id)
            tasks.cancel_scope.cancel()
        if state is None:
            raise _gone()
        if state.lasted >= terms.timeout_seconds:  # also when a limit or the program itself ended it
            self.stop(Stop.TIMEOUT)
        artifacts_error = None
        if terms.artifacts and state.started_at is not None:
            collection = ArtifactCollection(self.claim, self._context, self._reporter, self._calls, self._stop)
            artifacts_error = await collection.run(container, terms, self.quota)
        facts = ExitFacts(self.quota.written, self.quota.left, artifacts_error, journal.engine_restarted)
        return decide(state, terms, facts, self._stop.reason)

    async def _stop_on_request(self, container: RunContainer, timeout_seconds: float) -> None:
        """Stops the container on request, or once it has run longer than it may, before an adoption included."""
        state = await self._calls(container.inspect)
        left = timeout_seconds
        if state is not None and state.started_at is not None:
            left = max(0.0, left - (datetime.now(UTC) - state.started_at).total_seconds())
        with anyio.move_on_after(left) as waiting:
            await self._stop.requested.wait()
        if waiting.cancelled_caught:
            state = await self._calls(container.inspect)
            if state is None or not state.running:
                return  # it ended in time; what takes long is storing its log
            self.stop(Stop.TIMEOUT)
        self._log.info("stopping the container", why=self._stop.reason)
        fills_the_disk = self._stop.reason is Stop.OUTPUT or self.quota.exceeded.is_set()
        grace = 0 if fills_the_disk else self._context.stop_grace_seconds
        await self._calls(container.stop, grace)

    async def _kill_over_quota(self, container: RunContainer) -> None:
        """Kills the container that exceeds its quota, even during the grace after another reason."""
        await self.quota.exceeded.wait()
        await self._calls(container.stop, 0)


def _gone() -> RunFailure:
    return RunFailure(Reason.ENGINE_LOST, "the container is gone from the engine")
