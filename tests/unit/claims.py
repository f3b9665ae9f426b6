"""A claim as the database gives it, for the tests of what is done with one."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from worker.errors import SpecError
from worker.model.claim import Claim
from worker.model.spec import HostPolicy, resolve

IMAGE = "tool:1"


def make_claim(run_id: uuid.UUID | None = None, **changed: Any) -> Claim:
    """A claim of a build; ``config`` is the workflow's, the rest are fields of the payload."""
    config = changed.pop("config", {})
    payload: dict[str, Any] = {
        "run_id": str(run_id or uuid.uuid4()),
        "project_id": str(uuid.UUID(int=1)),
        "workflow_id": str(uuid.UUID(int=2)),
        "run_number": 1,
        "status": "claimed",
        "claimed_at": "2026-01-01T00:00:00+00:00",
        "started_at": None,
        "claim_count": 1,
        "cancel_requested": False,
        "log_position": 0,
        "container_id": None,
        "metadata": {},
        "project": {
            "slug": "acme", "name": "Acme", "workspace_key": "acme", "odoo_version": "19.0", "status": "active",
        },
        "workflow": {
            "workflow_type": "build", "name": "nightly", "enabled": True, "git_ref": None, "git_commit": None,
            "config": config,
        },
        "tool": {"tool_name": "odoo", "version": "19.0", "docker_image": IMAGE, "config": {}},
    }  # fmt: skip
    return Claim.from_payload(payload | changed)


def configured(
    workflow: dict[str, Any] | None = None,
    *,
    tool: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Claim:
    """A claim with these configurations."""
    tools = {"tool_name": "odoo", "version": "19.0", "docker_image": IMAGE, "config": tool or {}}
    return make_claim(config=workflow or {}, tool=tools, metadata=metadata or {})


def refusal(claim: Claim, policy: HostPolicy | None = None) -> SpecError:
    """The error of a claim that has no specification."""
    with pytest.raises(SpecError) as caught:
        resolve(claim, policy or HostPolicy())
    return caught.value
