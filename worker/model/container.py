"""What the worker and the container engine tell each other of a run's container. Pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from worker.errors import SpecError

LABEL_RUN = "ops-worker.run-id"
LABEL_DATABASE = "ops-worker.database-id"
LABEL_WORKER = "ops-worker.worker-id"
LABEL_TERMS = "ops-worker.terms"
LABEL_PROJECT = "ops-worker.project-id"
LABEL_VOLUME = "ops-worker.volume"
"""The project of a volume, and its name there."""

LABEL_SERVICE = "ops-worker.service"
"""The name of a service; the container of a run does not have it."""

MAX_SECRET = 64 * 1024
"""Bytes of one secret; what is larger is no secret."""


def check_engine_address(address: str | None) -> str | None:
    """Returns the address of an engine; None stands for Docker's own default. Raises ``ValueError``."""
    if address is not None and not address.startswith(("unix://", "tcp://", "http://", "https://")):
        raise ValueError("expected unix:///path or tcp://host:port; for ssh, forward the socket (ssh -L)")
    return address


@dataclass(frozen=True, slots=True)
class Image:
    """A local image: its id, and the digest under which a registry knows it (None when it was built here)."""

    reference: str
    image_id: str
    digest: str | None
    user: str
    """Whose its processes are unless the run says otherwise: a name or a number, root if empty."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What ``inspect`` says. ``status``: created, running, paused, restarting, removing, exited or dead."""

    status: str
    exit_code: int
    oom_killed: bool
    error: str
    started_at: datetime | None
    finished_at: datetime | None
    labels: Mapping[str, str]
    artifacts: Path | None = None
    """Where its volume for artifacts is on the engine's host."""
    health: str | None = None
    """What its health check found: starting, healthy or unhealthy; None without a health check."""
    published: tuple[str, int] | None = None
    """The address and the port of the engine's host at which its port is published."""

    @property
    def running(self) -> bool:
        return self.status in ("running", "paused", "restarting")

    @property
    def lasted(self) -> float:
        """Seconds from its start to its end; 0 as long as it has not had both."""
        if self.started_at is None or self.finished_at is None:
            return 0.0
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class RunNetwork:
    """The network of one run with services. On an ``internal`` one containers reach each other and nothing else."""

    name: str
    internal: bool


@dataclass(frozen=True, slots=True)
class ProjectNetwork:
    """The network of the runs of one project."""

    database_id: uuid.UUID
    project_id: uuid.UUID

    @property
    def name(self) -> str:
        """Its name on the engine. No other project or database has the same."""
        return f"ops-project-{uuid.uuid5(self.database_id, str(self.project_id))}"

    @property
    def labels(self) -> dict[str, str]:
        """Those of the network, and of the containers that keep it from being removed."""
        return {LABEL_DATABASE: str(self.database_id), LABEL_PROJECT: str(self.project_id)}


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks of a container: its run's own, and that of its project with its names there."""

    own: RunNetwork | None = None
    project: ProjectNetwork | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What a run's containers hold on the engine's disk, in bytes, their logs not counted."""

    size: int
    running: bool
    kept: int = 0
    """What is in the volumes of its project that they may write to."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret; its value is shown nowhere."""

    name: str
    value: bytes = field(repr=False)

    @property
    def variable(self) -> tuple[str, str]:
        """Its name and value as an environment variable. Raises ``SpecError`` for what no variable can hold."""
        try:
            text = self.value.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            what = f"secret {self.name!r} cannot be an environment variable (the host's setting secrets_as_env)"
            raise SpecError("secret_missing", "secrets", f"{what}: it is no text")
        return re.sub(r"\W", "_", self.name, flags=re.ASCII).upper(), text
