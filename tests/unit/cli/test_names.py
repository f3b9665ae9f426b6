"""How a person names a run or a workflow, and the options of the commands."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.cli.lines import problems
from worker.cli.names import RunNumber, WorkflowName, project_name, run_name, workflow_name
from worker.cli.parser import parse
from worker.errors import UsageError

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
TIME = "expected a duration such as 90s, 10m, 2h or 3d, or a time such as 2026-02-13T12:00:00Z"
URL = "postgresql://worker:hunter22@db.example/ops"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ID, uuid.UUID(ID)), ("acme#12", RunNumber("acme", 12)), ("acme-2#1", RunNumber("acme-2", 1)),
        ("acme/nightly", WorkflowName("acme", None, "nightly")), ("acme/test", WorkflowName("acme", None, "test")),
        ("acme/test/nightly", WorkflowName("acme", "test", "nightly")),
        ("acme/a/b", WorkflowName("acme", None, "a/b")), ("acme/my flow #2", WorkflowName("acme", None, "my flow #2")),
    ],
)  # fmt: skip
def test_name_of_a_run(text: str, name: object) -> None:
    assert run_name(text) == name
    assert str(run_name(text)) == text


@pytest.mark.parametrize(
    "text", ["", "acme", "acme#", "acme#0", "acme#x", "acme#2147483648", "Acme#1", "acme/", "/x", "a/b\0", URL, ID[:-1]]
)
def test_what_names_no_run_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        run_name(text)
    [problem] = refused.value.problems
    assert problem.startswith("RUN: expected a run id, PROJECT#NUMBER or PROJECT/WORKFLOW")
    assert "hunter22" not in problem


def test_names_of_workflows_and_projects() -> None:
    assert workflow_name("acme/deploy/live") == WorkflowName("acme", "deploy", "live")
    assert (workflow_name(ID), project_name("acme-2")) == (uuid.UUID(ID), "acme-2")
    for read, field in ((workflow_name, "WORKFLOW"), (project_name, "PROJECT")):
        with pytest.raises(UsageError, match=rf"^{field}: expected "):
            read(URL)


@pytest.mark.parametrize(
    ("argv", "option", "value"),
    [
        ("runs list", "limit", None), ("runs list", "json", False), ("runs list --json", "json", True),
        ("runs list --limit 7", "limit", 7), ("runs list --status failed", "status", "failed"),
        ("--limit 7 runs list", "limit", 7), ("runs logs a#1 -f", "follow", True),
        ("runs logs a#1 --since 2026-02-13T12:00:00Z", "since", datetime(2026, 2, 13, 12, tzinfo=UTC)),
        ("runs logs a#1 --since 2026-02-13", "since", datetime(2026, 2, 13, tzinfo=UTC)),
        ("runs wait a#1 --timeout 1.5", "timeout", 1.5),
    ],
)  # fmt: skip
def test_options(argv: str, option: str, value: object) -> None:
    assert parse(argv.split(), {}).options[option] == value


def test_a_duration_counts_from_now() -> None:
    since = parse(["runs", "logs", "a#1", "--since", "2h"], {}).options["since"]
    assert timedelta(hours=2) <= datetime.now(UTC) - since < timedelta(hours=2, minutes=5)


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("runs list --limit 0", "--limit: expected a whole number from 1 to 100000, got '0'"),
        ("runs list --limit many", "--limit: expected a whole number from 1 to 100000, got 'many'"),
        ("runs list --status done",
         "--status: expected one of queued, claimed, running, succeeded, failed, canceled, got 'done'"),
        ("runs list --project=", "--project: expected a text, got ''"),
        ("runs logs a#1 --level loud", "--level: expected one of debug, info, warn, error, got 'loud'"),
        ("runs logs a#1 --since soon", f"--since: {TIME}, got 'soon'"),
        ("runs wait a#1 --timeout 0", "--timeout: expected a number of seconds above 0, got '0'"),
        (f"runs list --limit {URL}", "--limit: expected a whole number from 1 to 100000"),
        ("runs list --json=yes", "--json: ignored explicit argument 'yes'"),
    ],
)  # fmt: skip
def test_bad_option_is_one_line_with_what_was_expected(argv: str, problem: str) -> None:
    assert problems(*argv.split()) == (problem,)
