"""The commands ``ops-worker workers``, ``projects``, ``workflows``, ``tools list`` and ``members``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from worker.cli.commands import Invocation
from worker.cli.render import Cell, iso, status_cell
from worker.cli.screen import Screen
from worker.cli.session import control_plane, find_project
from worker.database import projects
from worker.database.control_plane import Row

DEFAULT_ROWS = 100
ROLE_STYLE = {"owner": "bold", "admin": "bold"}


async def workers(call: Invocation) -> int:
    """Prints the workers, and what each runs."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        found = await projects.workers(plane)
    for row in found:
        row["runs"] = json.loads(row["runs"])

    return _print(
        screen, call, found, ("WORKER", "STATE", "VERSION", "LABELS", "DISK FREE", "STARTED", "RUNS"),
        lambda row: (
            row["worker_id"], worker_state(row), row["version"] or "", ",".join(row["labels"] or ()), disk_free(row),
            screen.look.moment(row["started_at"], screen.now), ", ".join(run["run"] for run in row["runs"]),
        ),
    )  # fmt: skip


def worker_state(row: Row) -> Cell:
    """A worker that an operator drains is ``draining`` while it has runs, and then ``drained``, also if it stopped."""
    if row["drained_at"] is not None and not row["runs"]:
        return Cell("drained", "yellow")
    if not row["alive"]:
        return Cell("gone", "red")
    return Cell("draining", "yellow") if row["drained_at"] is not None else Cell("alive", "green")


def disk_free(row: Row) -> str:
    """What the engine's fullest disk had left with the last heartbeat."""
    if row["disk_free"] is None:
        return ""
    share = f" ({100 * row['disk_free'] // row['disk_total']}%)" if row["disk_total"] else ""
    return f"{row['disk_free'] / 2**30:,.1f}g{share}"


async def listed_projects(call: Invocation) -> int:
    """Prints the projects, what each has queued, and what holds its runs back."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        found = await projects.listed(plane)
    return _print(
        screen, call, found, ("PROJECT", "NAME", "ODOO", "STATUS", "ROLE", "QUEUED", "ACTIVE", "HELD BACK BY"),
        lambda row: (
            row["slug"], row["name"], row["odoo_version"], row["status"], row["role"] or "", str(row["queued_runs"]),
            str(row["active_runs"]), held_back(row),
        ),
    )  # fmt: skip


def held_back(row: Row) -> str:
    """Why no more runs of a project are claimed: a pause, or its limit of active runs."""
    if row["paused_at"] is not None:
        reason = f": {row['pause_reason']}" if row["pause_reason"] else ""
        return f"paused by {row['paused_by']}{reason}"
    most = row["max_active_runs"]
    return "" if most is None else f"at most {most} active {'run' if most == 1 else 'runs'}"


async def workflows(call: Invocation) -> int:
    """Prints the workflows of a project, or of all, with the newest run of each."""
    screen = Screen(as_json=call.options["json"])
    slug = call.arguments[0] if call.arguments else None
    async with control_plane(call, screen) as plane:
        if slug is not None:
            await find_project(plane, slug)
        found = await projects.workflows(plane, slug)
    return _print(
        screen, call, found, ("WORKFLOW", "TYPE", "ENABLED", "REF", "NEWEST RUN", "STATUS", "QUEUED", "NEXT AT"),
        lambda row: (
            f"{row['project']}/{row['workflow']}", row["workflow_type"],
            "yes" if row["enabled"] else Cell("no", "yellow"),
            row["git_ref"] or "", row["newest_run"] or "", status_cell(row["newest_status"] or ""),
            screen.look.moment(row["newest_created_at"], screen.now), _next_at(row),
        ),
    )  # fmt: skip


def _next_at(row: Row) -> Cell | str:
    """When the workflow is due next, or why its schedule queued no run when it was due last."""
    if row["schedule_problem"]:
        return Cell(row["schedule_problem"], "yellow")
    return iso(row["next_at"]) if row["next_at"] else ""


async def tools(call: Invocation) -> int:
    """Prints the tools, and the image of each version."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        found = await projects.tools(plane)
    return _print(
        screen, call, found, ("TOOL", "VERSION", "IMAGE"),
        lambda row: (row["tool_name"], row["version"], row["docker_image"]),
    )  # fmt: skip


async def members(call: Invocation) -> int:
    """Prints the members of a project, or of all, and the role of each."""
    screen = Screen(as_json=call.options["json"])
    slug = call.arguments[0] if call.arguments else None
    async with control_plane(call, screen) as plane:
        if slug is not None:
            await find_project(plane, slug)
        found = await projects.members(plane, slug)
    return _print(
        screen, call, found, ("PROJECT", "USER", "ROLE", "SINCE"),
        lambda row: (
            row["project"], str(row["user_id"]), Cell(row["role"], ROLE_STYLE.get(row["role"], "")),
            screen.look.moment(row["created_at"], screen.now),
        ),
    )  # fmt: skip


def _print(
    screen: Screen,
    call: Invocation,
    rows: Sequence[Row],
    titles: Sequence[str],
    cells: Callable[[Row], Sequence[Cell | str]],
) -> int:
    """Prints at most ``--limit`` rows."""
    limit = call.options["limit"] or DEFAULT_ROWS
    if screen.as_json:
        screen.json(rows[:limit])
    else:
        screen.table(titles, [cells(row) for row in rows[:limit]])
    screen.more(len(rows) > limit, limit)
    return 0
