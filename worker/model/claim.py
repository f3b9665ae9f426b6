"""Frozen data that crosses module borders. No I/O, no behaviour beyond reading its own JSON."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Project:
    """``ops.projects``, as far as a run needs it."""

    slug: str
    name: str
    workspace_key: str
    odoo_version: str
    status: str


@dataclass(frozen=True, slots=True)
class Workflow:
    """``ops.workflows``, as far as a run needs it."""

    workflow_type: str
    name: str
    enabled: bool
    git_ref: str | None
    git_commit: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """The row of ``ops.tools`` that the workflow asks for; ``docker_image`` is None when there is none."""

    tool_name: str
    version: str
    docker_image: str | None
    config: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this worker owns, with all it takes to carry it out: what ``ops.claim_next_run`` returns."""

    run_id: uuid.UUID
    project_id: uuid.UUID
    workflow_id: uuid.UUID
    run_number: int
    status: str
    claimed_at: datetime | None
    started_at: datetime | None
    claim_count: int
    cancel_requested: bool
    log_position: int
    container_id: str | None
    """The container that was recorded for it, whether or not it is still there."""
    metadata: Mapping[str, Any]
    project: Project
    workflow: Workflow
    tool: Tool
    service_tools: tuple[Tool, ...]
    """The tools that its services name, those that ``ops.tools`` has."""
    queued_at: datetime | None = None
    """Since when it could be claimed; None for an adopted run."""
    parent_run_id: str = ""
    """The run whose success queued this one; empty for none."""
    ready_at: datetime | None = None
    """When a served run could be used for the first time."""
    log_began_at: datetime | None = None
    """The time of the first stored line of its container."""

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Reads what ``ops_private.run_payload`` makes; the keys of a newer schema are passed over."""
        plain = ("run_number", "status", "claim_count", "cancel_requested", "log_position", "container_id", "metadata")
        return cls(
            run_id=uuid.UUID(payload["run_id"]),
            project_id=uuid.UUID(payload["project_id"]),
            workflow_id=uuid.UUID(payload["workflow_id"]),
            claimed_at=_time(payload.get("claimed_at")),
            started_at=_time(payload.get("started_at")),
            project=_known(Project, payload["project"]),
            workflow=_known(Workflow, payload["workflow"]),
            tool=_known(Tool, payload["tool"]),
            parent_run_id=payload.get("parent_run_id") or "",
            service_tools=tuple(_known(Tool, tool) for tool in payload.get("services", ())),
            queued_at=_time(payload.get("queued_at")),
            ready_at=_time(payload.get("ready_at")),
            log_began_at=_time(payload.get("log_began_at")),
            **{key: payload[key] for key in plain},
        )

    @property
    def waited(self) -> float | None:
        """The seconds for which it waited in the queue until this claim; None for an adopted run."""
        if self.queued_at is None or self.claimed_at is None:
            return None
        return max(0.0, (self.claimed_at - self.queued_at).total_seconds())

    @property
    def served(self) -> bool:
        """Whether its configuration, as it is now, says that it is served."""
        return {**(self.tool.config or {}), **self.workflow.config}.get("serve") is not None

    @property
    def named(self) -> dict[str, str | int]:
        """The names of the run in each line of the worker's own log."""
        return {
            "run_id": str(self.run_id),
            "run_number": self.run_number,
            "project": self.project.slug,
            "workflow": self.workflow.name,
        }


@dataclass(frozen=True, slots=True)
class NextRun:
    """The answer to a request for the next run."""

    claim: Claim | None
    waiting: bool
    """Whether, without a claim, runs for this worker are queued that are not due yet or blocked by their key."""
    repeated: bool = False
    """Whether the answer to an earlier request was lost, with which a run may have been claimed."""
    draining: bool = False
    """Whether an operator drains this worker, so that it may claim nothing."""


class NotAdopted(StrEnum):
    """Why a run was not adopted: codes of ``ops.adopt_run``."""

    FINAL = "final"
    NOT_FOUND = "not_found"
    NOT_CLAIMED = "not_claimed"
    """The run is back in the queue."""
    NOT_OWNER = "not_owner"
    """Another worker holds the run."""
    WORKER_ID_TAKEN = "worker_id_taken"


@dataclass(frozen=True, slots=True)
class Adoption:
    """The answer to an adoption: the claim, or why not; neither after an error of the database."""

    claim: Claim | None = None
    why_not: NotAdopted | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run has ended or is not in the database, so that its container can go."""
        return self.why_not in (NotAdopted.FINAL, NotAdopted.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a renewal: whether this instance still holds its worker id, the runs that it still owns, those of
    them that are to be canceled, and whether an operator drains the worker.
    """

    registered: bool
    runs: frozenset[uuid.UUID]
    cancel_requested: frozenset[uuid.UUID]
    draining: bool = False

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Reads what ``ops.heartbeat`` returns."""
        runs = payload["runs"]
        return cls(
            payload["registered"],
            frozenset(uuid.UUID(run["run_id"]) for run in runs),
            frozenset(uuid.UUID(run["run_id"]) for run in runs if run["cancel_requested"]),
            bool(payload.get("draining")),
        )


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes of a disk: those that are free for an ordinary user, and all."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who this is: the worker id names a host's worker across restarts, the instance id this one process."""

    worker_id: str
    instance_id: uuid.UUID
    host_id: str
    engine_id: str
    version: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogLines:
    """Consecutive lines of a container's journal, from line ``first_seq`` on (the first of all is 1), as columns.

    An object for each line would cost more time than all that is done with its text.
    """

    first_seq: int
    messages: list[str]
    marks: str
    """A letter for each line: the first of its level, lower case for stdout and upper case for stderr."""
    timestamps: list[str]
    """As PostgreSQL reads them."""

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def last_seq(self) -> int:
        """The number of the last line."""
        return self.first_seq + len(self.messages) - 1

    def part(self, start: int, end: int | None = None) -> LogLines:
        """Some of the lines, by their places as in a slice."""
        where = slice(start, end)
        return LogLines(self.first_seq + start, self.messages[where], self.marks[where], self.timestamps[where])


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored file: ``path`` below /artifacts, ``key`` in the store, ``checksum`` as ``sha256:`` and hex."""

    path: str
    key: str
    url: str
    content_type: str
    size_bytes: int
    checksum: str
    expires_at: datetime | None


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _known(cls: type[T], data: Mapping[str, Any]) -> T:
    return cls(**{field.name: data[field.name] for field in fields(cls)})  # type: ignore[arg-type]
