"""The command ``ops-worker projects sync``: a project becomes what a file describes."""

from __future__ import annotations

from pathlib import Path

from worker.cli.commands import Invocation
from worker.cli.render import Cell
from worker.cli.screen import Screen
from worker.cli.session import control_plane
from worker.cli.tools import STYLES, read
from worker.database import projects
from worker.model.project import project_of


async def sync(call: Invocation) -> int:
    """Creates or changes a project and its workflows, or prints what would be changed."""
    screen, dry_run = Screen(as_json=call.options["json"]), call.settings.dry_run
    description = read(Path(call.arguments[0]), project_of)
    async with control_plane(call, screen) as plane:
        answer = await projects.sync_project(plane, description, dry_run=dry_run)
    if screen.as_json:
        screen.json({**answer["project"], "dry_run": dry_run, "workflows": answer["workflows"]})
        return 0
    screen.table(
        ("CHANGE", "WHAT", "KEYS"),
        [
            (Cell(row["change"], STYLES[row["change"]]), row["what"], ", ".join(row["fields"]))
            for row in projects.changes(answer)
        ],
    )
    for tool in projects.missing_tools(answer):
        screen.remark(f"the tool {tool} is not registered yet; runs need it: ops-worker tools sync FILE")
    if dry_run:
        screen.remark("a dry run: nothing was changed")
    return 0
