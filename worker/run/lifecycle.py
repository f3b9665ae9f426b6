"""One run, from its claim to its completion.

    start → resolve → image → create → start the container → pump the log until the container has exited
    → log stored → artifacts uploaded → complete → remove the container

The order at the end is the promise of the whole program: when a run is succeeded, its log and its artifacts are
already there. Whatever goes wrong on the way ends the run as failed with a reason; nothing of it reaches the daemon.

Two things end a run from outside. A request to stop (cancel or timeout; the first wins) ends the container, and then
the run finishes as above. The cancellation of its task (detach, or the lease lost) leaves the container as it is; when
the next worker adopts it, each step finds what an earlier attempt at it already did.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import structlog

from worker.concurrency import TimeLimit, backoff, task_group, unless
from worker.errors import ArtifactError, EngineError, EngineUnavailable, ImageMissing, LeaseLost, SpecError
from worker.logs.lines import LineAssembler
from worker.logs.redact import Redactor
from worker.logs.writer import LogWriter
from worker.model.claim import Artifact, Claim, LogLine
from worker.model.container import (
    LABEL_DATABASE,
    LABEL_RUN,
    LABEL_TERMS,
    LABEL_WORKER,
    ContainerState,
    Image,
    Secret,
)
from worker.model.outcome import Ending, Outcome, Reason, Stop, decide, engine_failure
from worker.model.spec import ArtifactRule, HostPolicy, RunSpec, RunTerms, resolve
from worker.run.disk import RunDisk
from worker.run.secrets import SecretsFolder, changed_values

T = TypeVar("T")

QUIET_SECONDS = 5.0
"""After this long without a byte of log the container is looked at: a half-open stream never ends by itself."""

ENGINE_REFUSALS = 5
"""How often in a row the engine may say that it failed, before that is the end of the run (some 3 s)."""

STALLED_READINGS = 5
"""How often in a row the log of an ended container is read without coming further, before it is taken as it is."""

SERVER_ERROR = 500
"""The HTTP status from which on it is the engine that failed, and not the request."""

ENDED_POLL_SECONDS = 0.2
"""How often a container that is being killed is looked at."""

COLLECT_SECONDS = 600.0
"""How long the artifacts of a run may take to be stored, or as long as the run itself may, if that is more."""

CANCELED_COLLECT_SECONDS = 60.0
"""How long they may still take once a cancel was asked for."""

CLEANUP_SECONDS = 30.0
"""How long a finished run's task may take to remove its container; what is left over is removed by the next sweep."""


class Journal(Protocol):
    """A container's log: Docker's multiplexed frames with timestamps, in arbitrary pieces."""

    async def receive(self) -> bytes:
        """Waits for the next piece; empty at the end of the log. May be cancelled without losing a byte.

        Raises ``EngineUnavailable`` when the stream breaks (the SDK's own stream shows that as a clean end).
        """
        ...


class RunQueue(Protocol):
    """What a run needs of the control plane; every method is repeated over faults and raises ``LeaseLost``."""

    async def start(self, run_id: uuid.UUID) -> None: ...
    async def complete(self, run_id: uuid.UUID, outcome: Outcome) -> str: ...
    async def append_logs(self, run_id: uuid.UUID, lines: Sequence[LogLine]) -> None: ...
    async def add_artifact(self, run_id: uuid.UUID, artifact: Artifact) -> None: ...
    async def add_event(self, run_id: uuid.UUID, event_type: str, message: str, payload: dict[str, Any]) -> None: ...


class RunEngine(Protocol):
    """What a run needs of the container engine."""

    async def image(self, reference: str) -> Image | None: ...
    async def pull(self, reference: str) -> None: ...
    async def create(
        self, name: str, image: Image, spec: RunSpec, labels: Mapping[str, str], secrets: Sequence[Secret]
    ) -> str: ...
    async def secrets(self, container_id: str, names: Sequence[str]) -> tuple[Secret, ...]: ...
    async def start(self, container_id: str) -> None: ...
    async def inspect(self, container_id: str) -> ContainerState | None: ...
    async def stop(self, container_id: str, grace_seconds: float) -> None: ...
    async def started_after(self, moment: datetime) -> bool: ...
    async def remove(self, container_id: str) -> None: ...
    async def last_entry(self, container_id: str) -> bytes: ...
    def follow(self, container_id: str, *, ended: bool) -> AbstractAsyncContextManager[Journal]: ...
    def archive(self, container_id: str) -> AbstractContextManager[Iterator[bytes]]: ...


class RunStore(Protocol):
    """Where artifacts go."""

    async def collect(
        self,
        archive: Callable[[], AbstractContextManager[Iterator[bytes]]],
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        on_artifact: Callable[[Artifact], Awaitable[None]],
        on_warning: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str],
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class Host:
    """What all runs of this worker share."""

    queue: RunQueue
    engine: RunEngine
    store: RunStore
    policy: HostPolicy
    worker_id: str
    database_id: uuid.UUID
    stop_grace_seconds: float
    pull_seconds: float
    max_log_bytes: int
    secrets: SecretsFolder = field(default_factory=SecretsFolder)


def container_name(run_id: uuid.UUID, database_id: uuid.UUID) -> str:
    """The same for every attempt to create it, so that a run's container exists at most once.

    A copy of a database has the same runs, and perhaps the same engine. The name holds no id of the run, because every
    container on the bridge can look up the names of its neighbours (reverse DNS).
    """
    return f"ops-run-{uuid.uuid5(database_id, str(run_id))}"


class Run:
    """One attempt at a run. ``execute`` is its whole life; ``stop`` may be called at any moment of it."""

    def __init__(self, claim: Claim, host: Host) -> None:
        self.claim = claim
        self._host = host
        self._engine = host.engine
        self._why: Stop | None = None
        self._stopping = anyio.Event()
        self._canceled = anyio.Event()
        self.disk = RunDisk(self.stop)
        self._scope = anyio.CancelScope()
        self._redactor = Redactor()
        self.container_name = container_name(claim.run_id, host.database_id)
        self._heard: datetime | None = None
        self._engine_was_away = False
        self._engine_restarted = False
        self._log = structlog.get_logger().bind(**claim.named)

    def stop(self, why: Stop) -> None:
        """Asks the run to end. Only the first reason counts; a cancel shortens the collection of artifacts, too."""
        if why is Stop.CANCEL:
            self._canceled.set()
        if self._why is None:
            self._why = why
            self._stopping.set()

    def lose(self) -> None:
        """Ends the work on it at once and leaves its container as it is: the run is no longer ours."""
        self._scope.cancel()

    async def execute(self) -> str | None:
        """Runs it to the end and returns the final status; None when the run turned out not to be ours any more."""
        status = None
        with self._scope, suppress(LeaseLost):
            status = await self._work()
        if status is not None:
            # What cannot be removed now is found by the next look around.
            with anyio.move_on_after(CLEANUP_SECONDS), suppress(EngineError):
                await self._patiently(self._engine.remove, self.container_name)
        return status

    async def _work(self) -> str:
        if self.claim.status == "claimed":
            await self._host.queue.start(self.claim.run_id)
        started_at = self.claim.started_at or datetime.now(UTC)
        outcome = await self._attempt()
        message, details = self._redactor.value([outcome.message, outcome.details])
        outcome = replace(outcome, message=message, details=details)
        status = await self._host.queue.complete(self.claim.run_id, outcome)
        getattr(self._log, outcome.log_level)(
            "run finished",
            status=status,
            reason=outcome.reason,
            exit_code=outcome.exit_code,
            error_message=outcome.message,
            duration_seconds=round(max(0.0, (datetime.now(UTC) - started_at).total_seconds()), 1),
        )
        return status

    async def _attempt(self) -> Outcome:
        """Everything between start and complete. Raises ``LeaseLost`` only."""
        try:
            container = self.claim.container_id or self.container_name
            earlier = await self._earlier(container)
            if earlier is not None:
                terms = RunTerms.model_validate_json(earlier.labels[LABEL_TERMS])
                await self._learn_secrets(terms.secrets, adopted=True)
            elif self.claim.container_id is not None:  # made once in a run's life: one that is gone may have run
                return _gone()
            else:
                spec = resolve(self.claim, self._host.policy)
                terms = spec.terms
                secrets = await self._learn_secrets(terms.secrets, adopted=False)
                image = await self._image(spec.image)
                if image is None:
                    return Outcome(None, Reason.CANCELED, "canceled before its container was created")
                container = await self._create(spec, image, secrets)
            self.disk.limit = terms.disk_bytes
            if self._why is None:
                await self._patiently(self._engine.start, container)
            return await self._supervise(terms, container)
        except SpecError as error:
            return Outcome(None, Reason(error.reason), str(error), {"field": error.field})
        except ImageMissing as error:
            return Outcome(None, Reason.IMAGE_MISSING, str(error), {"image": error.image})
        except EngineError as error:
            return engine_failure(error)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - a run must end and say why, whatever the worker did wrong
            self._log.exception("the worker failed at this run")
            return Outcome(None, Reason.WORKER_ERROR, f"an error in the worker itself: {error!r}")

    async def _earlier(self, container: str) -> ContainerState | None:
        """The container of an earlier attempt at this run, if one was recorded or even started.

        It goes on as it was made: what configuration, host and image have become since is not asked for.
        """
        if self.claim.status == "claimed":
            return None
        state = await self._patiently(self._engine.inspect, container)
        made = self.claim.container_id is not None or (state is not None and state.started_at is not None)
        return state if made else None

    async def _learn_secrets(self, names: Sequence[str], *, adopted: bool) -> tuple[Secret, ...]:
        """The secrets for the container; whatever is said from now on is redacted.

        A container that was made by an earlier worker got what the host had then, and shows it in its own files.
        """
        if not names:
            return ()
        read = partial(self._host.secrets.read, self.claim.project.workspace_key, names, required=not adopted)
        secrets = await anyio.to_thread.run_sync(read)
        held = await self._patiently(self._engine.secrets, self.container_name, names) if adopted else ()
        values = [*(secret.value for secret in secrets), *changed_values(held, secrets)]
        self._redactor = await anyio.to_thread.run_sync(Redactor, values)
        return secrets

    async def _image(self, reference: str) -> Image | None:
        """The image, pulled if the engine does not have it; None when the run was stopped meanwhile."""
        image = await self._patiently(self._engine.image, reference)
        if image is not None:
            return image
        await self._event("info", f"pulling image {reference}", {"image": reference})

        async def pull() -> None:
            nonlocal image
            await self._patiently(self._engine.pull, reference)
            image = await self._patiently(self._engine.image, reference)
            if image is None:
                raise ImageMissing(reference, "the registry's answer did not contain it")

        with anyio.move_on_after(self._host.pull_seconds) as waiting:  # a registry may send a byte now and then
            await unless(self._stopping, pull)
        if waiting.cancelled_caught:
            limit = f"{self._host.pull_seconds:g} s, the host's setting pull_timeout"
            raise ImageMissing(reference, f"the registry took longer than {limit}")
        return image

    async def _create(self, spec: RunSpec, image: Image, secrets: Sequence[Secret]) -> str:
        labels = {
            LABEL_RUN: str(self.claim.run_id),
            LABEL_DATABASE: str(self._host.database_id),
            LABEL_WORKER: self._host.worker_id,
            LABEL_TERMS: spec.terms.model_dump_json(),
        }
        if self._host.policy.secrets_as_env:
            reserved = {name: value for name, value in spec.env.items() if name.startswith("OPS_")}
            spec = replace(spec, env={**spec.env, **dict(secret.variable for secret in secrets), **reserved})
        container = await self._patiently(self._engine.create, self.container_name, image, spec, labels, secrets)
        details = {"image": image.reference, "image_id": image.image_id, "digest": image.digest}
        limits = {
            "cpus": spec.cpus,
            "memory_bytes": spec.memory_bytes,
            "pids": spec.pids,
            "nofile": spec.nofile,
            "disk_bytes": spec.disk_bytes,
            "network": spec.network,
        }
        await self._event("info", "container created", {"container_id": container, **details, **limits})
        return container

    async def _supervise(self, terms: RunTerms, container: str) -> Outcome:
        """The container's life from its start on, with the log and the artifacts it leaves."""
        async with task_group() as tasks:
            tasks.start_soon(self._end_when_asked, container, terms.timeout_seconds)
            tasks.start_soon(self._end_when_flooding, container)
            state = await self._pump(container, terms.output_bytes)
            tasks.cancel_scope.cancel()
        if state is None:
            return _gone()
        if state.lasted >= terms.timeout_seconds:  # whoever stopped it, if anybody did
            self.stop(Stop.TIMEOUT)
        artifacts_error = None
        if terms.artifacts and state.started_at is not None:
            artifacts_error = await self._collect(container, terms)
        ending = Ending(
            exit_code=state.exit_code,
            oom_killed=state.oom_killed,
            engine_error=state.error,
            memory_bytes=terms.memory_bytes,
            timeout_seconds=terms.timeout_seconds,
            output_bytes=terms.output_bytes,
            disk_bytes=terms.disk_bytes,
            written_bytes=self.disk.written,
            left_bytes=self.disk.left,
            artifacts_error=artifacts_error,
            engine_restarted=self._engine_restarted,
        )
        return decide(ending, self._why)

    async def _end_when_asked(self, container: str, timeout_seconds: float) -> None:
        """Ends the container once the run is to stop, or has taken longer than it may (an adopted one included)."""
        state = await self._patiently(self._engine.inspect, container)
        left = timeout_seconds
        if state is not None and state.started_at is not None:
            left = max(0.0, left - (datetime.now(UTC) - state.started_at).total_seconds())
        with anyio.move_on_after(left) as waiting:
            await self._stopping.wait()
        if waiting.cancelled_caught:
            state = await self._patiently(self._engine.inspect, container)
            if state is None or not state.running:
                return  # it ended in time; what takes long is storing what it said
            self.stop(Stop.TIMEOUT)
        self._log.info("stopping the container", why=self._why)
        fills_the_disk = self._why is Stop.OUTPUT or self.disk.flooding.is_set()
        grace = 0 if fills_the_disk else self._host.stop_grace_seconds
        await self._patiently(self._engine.stop, container, grace)

    async def _end_when_flooding(self, container: str) -> None:
        """Kills the container that fills the disk, even while it has grace for another reason."""
        await self.disk.flooding.wait()
        await self._patiently(self._engine.stop, container, 0)

    async def _pump(self, container: str, output_bytes: int) -> ContainerState | None:
        """Stores the journal until the container has exited and its last line is stored; None when it is gone."""
        position = self.claim.log_position

        async def store(lines: Sequence[LogLine]) -> None:
            await self._host.queue.append_logs(self.claim.run_id, lines)

        async with LogWriter(store).running() as writer:
            attempt = refused = furthest = stalled = 0
            ended = False
            while True:
                lines = LineAssembler(position, self._host.max_log_bytes, self._redactor)
                complete = False
                try:
                    complete = await self._read(container, output_bytes, lines, writer, ended=ended)
                    stalled = stalled + 1 if ended and lines.bytes <= furthest else 0
                except (EngineUnavailable, EngineError) as error:
                    refused = refused + 1 if isinstance(error, EngineError) and not lines.position else 0
                    if refused > ENGINE_REFUSALS:
                        raise
                    self._engine_was_away = True
                    self._log.warning("log stream broken, reading again", error=str(error))
                state = await self._patiently(self._engine.inspect, container)
                await self._note_restart()
                if state is None or ((complete or stalled >= STALLED_READINGS) and not state.running):
                    await writer.put(lines.flush())
                    if lines.fault:
                        await self._log_is_damaged(f", the engine says: {lines.fault}")
                    elif state is not None and not complete:
                        await self._log_is_damaged(f": {stalled} readings of it ended at the same place before its end")
                    if lines.omitted:
                        await self._log_was_cut(lines)
                    return state
                ended, furthest, position = not state.running, max(furthest, lines.bytes), lines.delivered
                await anyio.sleep(backoff(attempt))
                attempt += 1

    async def _note_restart(self) -> None:
        """Says so when the engine was away because it started anew: then it may have lost what it had not yet written
        down, and the last words of a container that ended before it was back.
        """
        if not self._engine_was_away or self._heard is None:
            return
        if await self._patiently(self._engine.started_after, self._heard):
            self._engine_restarted = True
            await self._log_is_damaged(": the engine was restarted while the container ran")
        self._engine_was_away, self._heard = False, None

    async def _log_is_damaged(self, why: str) -> None:
        await self._event("warning", f"the log may be incomplete{why}", {"reason": "log_damaged"})

    async def _log_was_cut(self, lines: LineAssembler) -> None:
        message = f"the log is cut: {lines.omitted:,} of {lines.position:,} lines are left out in its middle"
        counts = {"omitted_lines": lines.omitted, "lines": lines.position, "bytes": lines.bytes}
        await self._event("warning", message, {"reason": "log_cut", **counts})

    async def _read(
        self, container: str, output_bytes: int, lines: LineAssembler, writer: LogWriter, *, ended: bool
    ) -> bool:
        """Reads the journal from its first byte; True when it was read to its end and the container has ended."""
        async with self._engine.follow(container, ended=ended) as journal:
            while True:
                chunk = None
                with anyio.move_on_after(QUIET_SECONDS):
                    chunk = await journal.receive()
                if chunk != b"":
                    self._heard = datetime.now(UTC)
                if chunk:
                    await writer.put(lines.feed(chunk))
                    self.disk.printed = lines.output
                    if lines.output > output_bytes:  # what it prints from here on is not read: it may be endless
                        self.stop(Stop.OUTPUT)
                        await self._until_ended(container)
                        return True
                elif chunk is None:  # quiet: is there anything left that could still speak?
                    state = await self._patiently(self._engine.inspect, container)
                    if state is None or not state.running:
                        return False
                else:
                    # The SDK and proxies can show a cut stream as a clean end, so the last entry is compared.
                    last = await self._patiently(self._engine.last_entry, container)
                    return last == lines.last_frame or bool(lines.fault)

    async def _until_ended(self, container: str) -> None:
        while True:
            state = await self._patiently(self._engine.inspect, container)
            if state is None or not state.running:
                return
            await anyio.sleep(ENDED_POLL_SECONDS)

    async def _collect(self, container: str, terms: RunTerms) -> str | None:
        """Uploads what the container left, unless it is a flood; returns what went wrong, if anything did."""
        problem: str | None = "not collected, since it was too much for the disk"
        seconds = max(COLLECT_SECONDS, terms.timeout_seconds)
        limit = TimeLimit(seconds)

        async def shorten() -> None:
            await self._canceled.wait()
            limit.shorten(CANCELED_COLLECT_SECONDS)

        async def collect() -> None:
            nonlocal problem
            try:
                problem = await self._upload(container, terms.artifacts, limit)
            except TimeoutError:
                canceled = f"the run was canceled, and it took {CANCELED_COLLECT_SECONDS:g} s more"
                took = canceled if self._canceled.is_set() else f"it took longer than {seconds:g} s"
                problem = f"the collection was given up: {took}"

        async with task_group() as tasks:
            tasks.start_soon(shorten)
            await unless(self.disk.flooding, collect)
            tasks.cancel_scope.cancel()
        return problem

    async def _upload(self, container: str, rules: Sequence[ArtifactRule], limit: TimeLimit) -> str | None:
        """Raises ``TimeoutError``. The time without a database or an engine does not count."""

        async def on_artifact(artifact: Artifact) -> None:
            with limit.waiting():
                await self._host.queue.add_artifact(self.claim.run_id, artifact)

        async def on_warning(message: str) -> None:
            with limit.waiting():
                await self._event("warning", message, {"reason": "artifact_refused"})

        prefix = f"{self.claim.project.workspace_key}/{self.claim.run_id}/"
        archive = partial(self._engine.archive, container)

        async def attempt() -> None:
            with limit.running():
                redact = self._redactor.text
                await self._host.store.collect(archive, rules, prefix, on_artifact, on_warning, redact)

        try:
            # Repeated as a whole when the engine goes away meanwhile: the same key is the same artifact.
            await self._patiently(attempt)
        except (ArtifactError, EngineError) as error:
            return str(error)
        return None

    async def _event(self, event_type: str, message: str, payload: dict[str, Any]) -> None:
        message, payload = self._redactor.value([message, payload])
        await self._host.queue.add_event(self.claim.run_id, event_type, message, payload)

    async def _patiently(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Makes a call of the engine, again and again while the engine is away, and a few times more if the engine
        says that it failed (5xx), which may pass. Every such call can be repeated.
        """
        attempt = 0
        while True:
            try:
                return await call(*args)
            except (EngineUnavailable, EngineError) as error:
                if isinstance(error, EngineError) and (error.status < SERVER_ERROR or attempt >= ENGINE_REFUSALS):
                    raise
                self._engine_was_away = True
                if attempt == 0:
                    self._log.warning("engine unavailable, retrying", error=str(error))
                await anyio.sleep(backoff(attempt))
                attempt += 1


def _gone() -> Outcome:
    return Outcome(None, Reason.ENGINE_LOST, "the container is gone from the engine")
