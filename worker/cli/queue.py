"""The commands ``ops-worker queue``, ``pause`` and ``resume``."""

from __future__ import annotations

from worker.cli.commands import Invocation
from worker.cli.render import status_cell
from worker.cli.screen import Screen
from worker.cli.session import control_plane, find_project
from worker.database import projects

DEFAULT_ROWS = 50


async def queue(call: Invocation) -> int:
    """Prints the runs that wait, in the order of their claims, and why each waits."""
    screen = Screen(as_json=call.options["json"])
    limit, project = call.options["limit"] or DEFAULT_ROWS, call.options["project"]
    async with control_plane(call, screen) as plane:
        if project:
            await find_project(plane, project, "--project")
        found = await projects.queue(plane, project, limit + 1)
    rows = found[:limit]
    if screen.as_json:
        screen.json(rows)
    else:
        screen.table(
            ("RUN", "WORKFLOW", "STATUS", "PRIORITY", "QUEUED", "WAITS FOR"),
            [
                (
                    row["run"], f"{row['workflow_type']}/{row['workflow']}", status_cell(row["status"]),
                    str(row["priority"]), screen.look.moment(row["created_at"], screen.now),
                    row["waits_for"] or f"its start by {row['claimed_by']}",
                )
                for row in rows
            ],
        )  # fmt: skip
    screen.more(len(found) > limit, limit)
    return 0


async def pause(call: Invocation) -> int:
    """Pauses a project, or the queue of all projects: no worker claims their runs."""
    return await _set_paused(call, paused=True)


async def resume(call: Invocation) -> int:
    """Resumes a project, or the queue of all projects."""
    return await _set_paused(call, paused=False)


async def _set_paused(call: Invocation, *, paused: bool) -> int:
    screen = Screen(as_json=call.options["json"])
    slug = call.arguments[0] if call.arguments else None
    reason = call.options.get("reason")
    async with control_plane(call, screen) as plane:
        if slug is None:
            answer = await projects.pause_queue(plane, reason) if paused else await projects.resume_queue(plane)
        else:
            project_id = await find_project(plane, slug)
            answer = await (
                projects.pause_project(plane, project_id, reason)
                if paused
                else projects.resume_project(plane, project_id)
            )
    if screen.as_json:
        screen.json({"project": slug, "paused": answer["paused"], "changed": answer["changed"]})
    else:
        state = "paused" if paused else "not paused"
        before = "" if answer["changed"] else ", as before"
        screen.lines([f"{slug or 'the queue of all projects'} is {state}{before}"])
    return 0
