"""The command ``ops-worker tools sync``: the control plane knows the tools that a file describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from worker.cli.commands import Invocation
from worker.cli.render import Cell, safe
from worker.cli.screen import Screen
from worker.cli.session import control_plane
from worker.database import projects
from worker.errors import SpecError, UsageError
from worker.model.tools import tools_of

STYLES = {"added": "green", "changed": "yellow", "unchanged": "dim", "disabled": "red"}

T = TypeVar("T")


async def sync(call: Invocation) -> int:
    """Adds and changes the tools of a file, or prints what would be changed."""
    screen, dry_run = Screen(as_json=call.options["json"]), call.settings.dry_run
    tools = read(Path(call.arguments[0]), tools_of)
    async with control_plane(call, screen) as plane:
        rows = await projects.sync_tools(plane, tools, dry_run=dry_run)
    if screen.as_json:
        screen.json(rows)
        return 0
    screen.table(
        ("CHANGE", "TOOL", "VERSION", "IMAGE", "BEFORE"),
        [
            (
                Cell(row["change"], STYLES[row["change"]]), row["tool_name"], row["version"], row["docker_image"],
                before(row),
            )
            for row in rows
        ],
    )  # fmt: skip
    if dry_run:
        screen.remark("a dry run: nothing was changed")
    return 0


def read(path: Path, parse: Callable[[str], T]) -> T:
    """What ``parse`` finds in the file. Raises ``UsageError``."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except SpecError as error:
        raise UsageError(f"FILE {safe(path)}: {safe(error)}") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"FILE: cannot read {safe(path)}: {why}") from None


def before(row: Mapping[str, Any]) -> str:
    """What a tool had that is changed: its image, and the keys of its configuration."""
    if row["change"] != "changed":
        return ""
    image, config, previous = row["previous_image"], row["config"], row["previous_config"]
    keys = sorted(key for key in {*config, *previous} if config.get(key) != previous.get(key))
    parts = [
        *([image] if image != row["docker_image"] else []),
        *([f"other config: {', '.join(keys)}"] if keys else []),
    ]
    return "; ".join(parts)
