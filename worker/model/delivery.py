"""A message about a run for one destination, as the outbox of the control plane gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message for one destination, as ``ops.take_deliveries`` gives it."""

    delivery_id: str
    """The same in each attempt."""
    destination: str
    event: str
    created_at: datetime
    run_id: str
    project: str
    run_number: int
    workflow: str
    """Type and name."""
    git_ref: str | None
    git_commit: str | None
    attempt: int
    reason: str | None
    error_message: str | None
    tests: Mapping[str, Any]
    known: tuple[str, ...]
    errors: tuple[str, ...]

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """Reads what ``ops_private.delivery_payload`` makes; the keys of a newer schema are passed over."""
        run = payload["run"]
        named = {key: run[key] for key in ("run_id", "project", "run_number", "git_ref", "git_commit", "attempt")}
        return cls(
            delivery_id=payload["delivery_id"],
            destination=payload["destination"],
            event=payload["event"],
            created_at=datetime.fromisoformat(payload["created_at"]),
            workflow=f"{run['workflow_type']}/{run['workflow']}",
            reason=run["reason"],
            error_message=run["error_message"],
            tests=run["tests"] or {},
            known=tuple(payload["known"]),
            errors=tuple(payload["errors"]),
            **named,
        )

    @property
    def name(self) -> str:
        """The run, as commands name it."""
        return f"{self.project}#{self.run_number}"


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to a request for messages."""

    deliveries: tuple[Delivery, ...]
    registered: bool
    """Whether the control plane knows the destinations of this worker."""
