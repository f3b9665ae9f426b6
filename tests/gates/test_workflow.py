"""The workflow that runs the gates: its four jobs are make targets, so that nothing is checked there only."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.support.docker import ROOT
from tests.support.markdown import targets

GATES = {
    "validate-spec-kit": "gate-spec",
    "validate-schema": "gate-schema",
    "validate-prisma": "gate-prisma",
    "validate-docs": "gate-docs",
}


def workflow() -> dict[Any, Any]:
    text = (ROOT / ".github" / "workflows" / "odooops-sh-spec-gates.yml").read_text()
    loaded: dict[Any, Any] = yaml.safe_load(text)
    return loaded


def test_each_job_runs_exactly_its_target() -> None:
    jobs = workflow()["jobs"]
    assert {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()} == {
        name: [f"make {target}"] for name, target in GATES.items()
    }


def test_each_target_is_in_the_makefile() -> None:
    assert set(GATES.values()) - targets() == set()


def test_it_runs_on_every_push_and_pull_request_with_read_rights_only() -> None:
    loaded = workflow()
    assert set(loaded[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML 1.1 reads the key "on" as true
    assert loaded["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 30 for job in loaded["jobs"].values())


def test_every_action_is_pinned_to_a_commit_and_checkout_keeps_no_credentials() -> None:
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
