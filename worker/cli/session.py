"""What the commands for a person share: the connection, the names of runs, and the exit codes."""

from __future__ import annotations

import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.cli.commands import Invocation
from worker.cli.names import RunNumber, WorkflowName, project_name, run_name, workflow_name
from worker.cli.render import safe
from worker.cli.screen import Screen
from worker.database import projects, runs
from worker.database.control_plane import ControlPlane, Row
from worker.errors import CommandError, DatabaseUnavailable, Failed, Refused, UsageError

FAILED, CANCELED, TIMED_OUT, NOT_FOUND, REFUSED, UNREACHABLE = 1, 3, 4, 5, 6, 7
OUTCOMES = {"succeeded": 0, "failed": FAILED, "canceled": CANCELED}
"""The exit code for the status of a run that has ended."""


@asynccontextmanager
async def control_plane(call: Invocation, screen: Screen, *, patient: bool = False) -> AsyncIterator[ControlPlane]:
    """The connection of a command; errors become ``Failed`` with the command's exit code and a safe text."""
    told = False

    def on_lost(_: Exception) -> None:
        nonlocal told
        if not told:
            screen.remark("the database cannot be reached; trying again")
        told = True

    name = call.command.name
    try:
        async with ControlPlane.opened(name, call.settings.dsn, patient=patient, on_lost=on_lost) as plane:
            yield plane
    except Refused as error:
        raise Failed(NOT_FOUND if error.code == "not_found" else REFUSED, f"{name}: {safe(error)}") from error
    except CommandError as error:
        raise Failed(REFUSED, safe(error)) from error
    except DatabaseUnavailable as error:
        raise Failed(UNREACHABLE, safe(error)) from error


def given_secret(call: Invocation, what: str) -> str | None:
    """The first line of standard input if the second argument is ``-``; None if there is no such argument.

    Raises ``UsageError``.
    """
    source = (*call.arguments, None)[1]
    if source is None:
        return None
    if source != "-":
        first = next(iter(call.command.arguments))
        problem = f"expected nothing after {first}, or - for a {what} on standard input"
        raise UsageError(f"{call.command.name}: {problem}")
    return sys.stdin.readline().rstrip("\r\n")


async def find_run(plane: ControlPlane, text: str) -> Row:
    """The run of that name. Raises ``UsageError`` and ``Failed``."""
    name = run_name(text)
    if isinstance(name, RunNumber):
        found = await runs.by_number(plane, name.project, name.number)
    elif isinstance(name, uuid.UUID):
        found = await runs.by_id(plane, name)
    else:
        workflow = await _one_workflow(plane, name, "RUN")
        found = await runs.newest_of(plane, workflow["workflow_id"])
        if found is None:
            raise Failed(NOT_FOUND, f"RUN: {safe(name)} has no run yet")
    if found is None:
        raise Failed(NOT_FOUND, f"RUN: there is no run {name}, or this role may not see it")
    return found


async def find_workflow(plane: ControlPlane, text: str) -> uuid.UUID:
    """The id of the workflow of that name. Raises ``UsageError`` and ``Failed``."""
    name = workflow_name(text)
    if isinstance(name, uuid.UUID):
        return name
    workflow_id: uuid.UUID = (await _one_workflow(plane, name, "WORKFLOW"))["workflow_id"]
    return workflow_id


async def find_project(plane: ControlPlane, text: str, field: str = "PROJECT") -> uuid.UUID:
    """The id of the project with that slug. Raises ``UsageError`` and ``Failed``."""
    slug = project_name(text, field)
    found = await projects.by_slug(plane, slug)
    if found is None:
        raise Failed(NOT_FOUND, f"{field}: there is no project {slug}, or this role may not see it")
    return found


async def _one_workflow(plane: ControlPlane, name: WorkflowName, field: str) -> Row:
    found = await runs.workflows_named(plane, name.project, name.workflow_type, name.name)
    if not found:
        raise Failed(NOT_FOUND, f"{field}: there is no workflow {safe(name)}, or this role may not see it")
    if len(found) > 1:
        names = (f"{row['project']}/{row['workflow_type']}/{row['name']}" for row in found)
        raise UsageError(f"{field}: {safe(name)} may mean several workflows; expected one of {safe(', '.join(names))}")
    return found[0]
