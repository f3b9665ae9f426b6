"""The commands ``ops-worker members add`` and ``members remove``."""

from __future__ import annotations

import uuid

from worker.cli.commands import Invocation
from worker.cli.names import user_name
from worker.cli.options import ROLES
from worker.cli.screen import Screen
from worker.cli.session import control_plane, find_project
from worker.database import projects
from worker.database.control_plane import ControlPlane, Row
from worker.errors import UsageError


async def add(call: Invocation) -> int:
    """Gives a user a role in a project; a member gets another one."""
    slug, user, role = call.arguments
    if role not in ROLES:
        raise UsageError(f"ROLE: expected one of {', '.join(ROLES)}")
    name, screen = user_name(user), Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        project_id = await find_project(plane, slug)
        user_id = await _found(plane, name)
        answer = await projects.set_member(plane, project_id, user_id, role)
    before = ", as before" if not answer["changed"] else f"; before: {answer['previous_role'] or 'no member'}"
    _print(screen, slug, user_id, answer, f"{user_id} is {role} of {slug}{before}")
    return 0


async def remove(call: Invocation) -> int:
    """Takes a user out of a project."""
    slug, user = call.arguments
    name, screen = user_name(user), Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        project_id = await find_project(plane, slug)
        user_id = await _found(plane, name)
        answer = await projects.remove_member(plane, project_id, user_id)
    before = f"; before: {answer['previous_role']}" if answer["changed"] else ", as before"
    _print(screen, slug, user_id, answer | {"role": None}, f"{user_id} is no member of {slug}{before}")
    return 0


async def _found(plane: ControlPlane, name: uuid.UUID | str) -> uuid.UUID:
    return name if isinstance(name, uuid.UUID) else await projects.find_user(plane, name)


def _print(screen: Screen, slug: str, user_id: uuid.UUID, answer: Row, line: str) -> None:
    if screen.as_json:
        named = {name: answer[name] for name in ("role", "previous_role", "changed")}
        screen.json({"project": slug, "user_id": user_id, **named})
    else:
        screen.lines([line])
