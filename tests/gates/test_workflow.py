"""The workflows: each job is one make target, so no check exists only there. And the editor's settings."""

from __future__ import annotations

import configparser
import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.docker import ROOT
from tests.support.markdown import targets

WORKFLOWS = {
    "odooops-sh-spec-gates.yml": {
        "validate-spec-kit": "gate-spec",
        "validate-schema": "gate-schema",
        "validate-prisma": "gate-prisma",
        "validate-docs": "gate-docs",
    },
    "ci.yml": {"test": "test"},
}
FOLDER = ROOT / ".github" / "workflows"
each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def workflow(name: str) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def test_every_workflow_is_tested_here() -> None:
    assert {path.name for path in FOLDER.iterdir()} == WORKFLOWS.keys()


@each_workflow
def test_each_job_runs_exactly_its_target(name: str) -> None:
    jobs = workflow(name)["jobs"]
    assert {job: [step["run"] for step in steps["steps"] if "run" in step] for job, steps in jobs.items()} == {
        job: [f"make {target}"] for job, target in WORKFLOWS[name].items()
    }
    assert set(WORKFLOWS[name].values()) - targets() == set()


@each_workflow
def test_it_runs_on_every_push_and_pull_request_with_read_rights_only(name: str) -> None:
    loaded = workflow(name)
    assert set(loaded[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML 1.1 reads the key "on" as true
    assert loaded["permissions"] == {"contents": "read"}
    limit = 60 if name == "ci.yml" else 30
    assert all("permissions" not in job and job["timeout-minutes"] <= limit for job in loaded["jobs"].values())


@each_workflow
def test_every_action_is_pinned_to_a_commit_and_checkout_keeps_no_credentials(name: str) -> None:
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_the_editor_and_ruff_agree_on_the_length_of_a_line() -> None:
    editor = configparser.ConfigParser()
    editor.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert editor.getint("*", "max_line_length") == ruff["line-length"]
