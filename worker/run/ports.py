"""What a run needs of the rest of the worker."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from worker.model.claim import Adoption, Artifact, LogLines
from worker.model.config import ArtifactRule
from worker.model.container import ContainerState, Image, Networks, ProjectNetwork, RunNetwork, Secret
from worker.model.outcome import Outcome
from worker.model.report import CaseCounts, Report
from worker.model.spec import ContainerSpec, HostPolicy
from worker.model.volume import CacheVolume, ProjectVolume
from worker.run.probe import Probe, answers
from worker.run.pulls import Pulls
from worker.run.secrets import SecretsFolder
from worker.run.traces import Traces


class RunQueue(Protocol):
    """The control plane. Every method is repeated over passing faults and raises ``LeaseLost``."""

    async def adopt(self, run_id: uuid.UUID) -> Adoption: ...
    async def start(self, run_id: uuid.UUID) -> None: ...
    async def record_container(self, run_id: uuid.UUID, container_id: str, details: dict[str, Any]) -> None: ...
    async def mark_ready(self, run_id: uuid.UUID, url: str) -> None: ...
    async def complete(self, run_id: uuid.UUID, outcome: Outcome) -> str: ...
    async def append_logs(self, run_id: uuid.UUID, lines: LogLines) -> None: ...
    async def add_artifact(self, run_id: uuid.UUID, artifact: Artifact) -> None: ...
    async def record_report(self, run_id: uuid.UUID, tests: CaseCounts | None, summary: str | None) -> None: ...
    async def add_event(self, run_id: uuid.UUID, event_type: str, message: str, payload: dict[str, Any]) -> None: ...


class Journal(Protocol):
    """A container's log: Docker's multiplexed frames with timestamps, in arbitrary pieces."""

    async def receive(self) -> bytes:
        """Waits for the next piece; empty at the end of the log. May be cancelled without losing a byte.

        Raises ``EngineUnavailable`` when the stream breaks (the SDK's own stream shows that as a clean end).
        """
        ...


class RunContainer(Protocol):
    """The handle of one container, whether it exists or not."""

    @property
    def ref(self) -> str:
        """Its id, or its name."""
        ...

    async def start(self) -> bool: ...
    async def inspect(self) -> ContainerState | None: ...
    async def stop(self, grace_seconds: float) -> None: ...
    async def remove(self) -> None: ...
    async def secrets(self, names: Sequence[str]) -> tuple[Secret, ...]: ...
    async def left_nothing(self) -> bool: ...
    async def last_entry(self) -> bytes: ...
    async def log_began(self) -> datetime | None: ...
    async def tail(self, entries: int) -> bytes: ...
    def follow(self, *, ended: bool) -> AbstractAsyncContextManager[Journal]: ...
    def archive(self) -> AbstractContextManager[Iterator[bytes]]: ...


class RunEngine(Protocol):
    """The container engine."""

    async def image(self, reference: str) -> Image | None: ...
    async def create(
        self,
        name: str,
        image: Image,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        secrets: Sequence[Secret],
        networks: Networks,
    ) -> RunContainer: ...
    async def create_volume(self, volume: ProjectVolume) -> None: ...
    async def fill_cache(self, cache: CacheVolume, image: Image, *, copies: bool = True) -> int: ...
    async def keep_cache(self, cache: CacheVolume) -> None: ...
    async def trim_caches(self, database_id: uuid.UUID, limit: int) -> None: ...
    async def create_network(self, network: RunNetwork, labels: Mapping[str, str]) -> None: ...
    async def create_project_network(self, network: ProjectNetwork) -> None: ...
    async def trim_project_networks(self, database_id: uuid.UUID) -> None: ...
    async def remove_beside(self, database_id: uuid.UUID, run_id: uuid.UUID) -> None: ...
    def container(self, ref: str) -> RunContainer: ...
    async def started_after(self, moment: datetime) -> bool: ...


class RunStore(Protocol):
    """The store of artifacts."""

    async def collect(
        self,
        archive: Callable[[], AbstractContextManager[Iterator[bytes]]],
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        on_artifact: Callable[[Artifact], Awaitable[None]],
        on_warning: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str],
        report: Report,
    ) -> int: ...


@dataclass(frozen=True, slots=True)
class RunTimings:
    """Times of a run, in seconds."""

    quiet: float = 5.0
    """After this long without a byte of log the container is inspected: a half-open stream never ends by itself."""
    ended_poll: float = 0.2
    """How often a container that is being killed is inspected."""
    service_start_poll: float = 0.2
    """How often a service that is not healthy yet is inspected."""
    service_poll: float = 1.0
    """How often a service is inspected while the run's container is running."""
    collect: float = 600.0
    """How long the upload of artifacts may take; at least as long as the run itself may."""
    canceled_collect: float = 60.0
    """How long the upload may still take once a cancel was requested."""
    cleanup: float = 30.0
    """How long the removal of a finished run's containers may take; the next sweep removes what is left over."""


TIMINGS = RunTimings()


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs of this worker share; times in seconds."""

    queue: RunQueue
    engine: RunEngine
    store: RunStore
    policy: HostPolicy
    worker_id: str
    database_id: uuid.UUID
    stop_grace_seconds: float
    pulls: Pulls
    max_log_bytes: int
    secrets: SecretsFolder = field(default_factory=SecretsFolder)
    traces: Traces = field(default_factory=Traces)
    probe: Probe = answers
    timings: RunTimings = field(default_factory=lambda: TIMINGS)
