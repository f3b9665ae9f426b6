"""The commands ``ops-worker hooks set`` and ``hooks remove``: the webhook by which a forge reports pushes."""

from __future__ import annotations

import secrets

from worker.cli.commands import Invocation
from worker.cli.screen import Screen
from worker.cli.session import control_plane, find_project, given_secret
from worker.database import projects

FORGES = (
    ("GitHub", "Settings, Webhooks", "Payload URL", "Secret", "Pushes; Branch or tag deletion"),
    ("GitLab", "Settings, Webhooks", "URL", "Secret token", "Push events"),
    ("Gitea, Forgejo", "Settings, Webhooks", "Target URL", "Secret", "Push; Delete"),
)
"""Where each forge asks for the address, the secret and the events."""

JSON = "application/json"


async def set_secret(call: Invocation) -> int:
    """Sets a secret that it makes or reads, and prints what the forge needs."""
    screen, slug, given = Screen(as_json=call.options["json"]), call.arguments[0], given_secret(call, "secret")
    made = secrets.token_urlsafe(32) if given is None else None
    async with control_plane(call, screen) as plane:
        project_id = await find_project(plane, slug)
        await projects.set_webhook_secret(plane, project_id, made or given)
    path, site = f"/hooks/{project_id}", call.settings.public_url
    if screen.as_json:
        url = site and f"{site}{path}"
        screen.json({"project": slug, "project_id": project_id, "set": True, "secret": made, "path": path, "url": url})
        return 0
    screen.lines(
        screen.look.fields(
            [
                ("address", f"{site or 'https://CONSOLE'}{path}"),
                ("content type", JSON),
                ("secret", made or "as given"),
            ]
        )
    )
    screen.lines([""])
    screen.table(("AT", "PAGE", "ADDRESS", "SECRET", "EVENTS"), FORGES)
    if site is None:
        screen.remark("https://CONSOLE stands for the address of your console: --public-url")
    if made:
        screen.remark("store the secret at the forge now: no command shows it again")
    return 0


async def remove(call: Invocation) -> int:
    """Removes the secret, so that no delivery is accepted any more."""
    screen, slug = Screen(as_json=call.options["json"]), call.arguments[0]
    async with control_plane(call, screen) as plane:
        project_id = await find_project(plane, slug)
        await projects.set_webhook_secret(plane, project_id, None)
    if screen.as_json:
        screen.json({"project": slug, "project_id": project_id, "set": False})
    else:
        screen.lines([f"{slug} accepts no webhook any more"])
    return 0
