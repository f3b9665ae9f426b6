"""What the forges send to a webhook: recorded bodies, and the headers of each, signed; a project that takes them."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from pathlib import Path

from tests.db.world import World, call

BODIES = Path(__file__).with_name("webhooks")
WORDS = "correct-horse-battery"
COMMIT = "59b20b8d5c6ff8d09518454d4dd8b7b30f095ab5"
FORGES = ("github", "gitlab", "gitea", "forgejo")
RULES = [
    {"match": "main", "run": ["test", "deploy/live"]},
    {"match": "feature/*", "run": ["build", "test", "preview"]},
    {"match": "release/**", "run": ["none"]},
]
PUSH = {"repository": "acme/shop", "branches": RULES}


def body(name: str) -> bytes:
    return (BODIES / f"{name}.json").read_bytes()


def delivery(content: bytes) -> str:
    """An id of its own for each body."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, content.hex()))


def headers(forge: str, content: bytes, event: str = "push", secret: str = WORDS) -> dict[str, str]:
    """The headers with lower-case names, as PostgREST passes them; Gitea and Forgejo send those of GitHub too."""
    if forge == "gitlab":
        return {"x-gitlab-event": "Push Hook", "x-gitlab-token": secret, "x-gitlab-event-uuid": delivery(content)}
    digest = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
    names = {"github": ["github"], "gitea": ["gitea", "github"], "forgejo": ["forgejo", "gitea", "github"]}[forge]
    found = {"user-agent": "x", "x-hub-signature-256": f"sha256={digest}"}
    for name in names:
        found |= {f"x-{name}-event": event, f"x-{name}-delivery": delivery(content)}
        found |= {} if name == "github" else {f"x-{name}-signature": digest}
    return found


async def opened_shop(world: World) -> World:
    """The project with rules, their workflows and a secret."""
    for kind, name in (("test", "test"), ("deploy", "live"), ("deploy", "preview")):
        await world.db.execute(
            "insert into ops.workflows (project_id, workflow_type, name) values ($1, $2, $3)", world.project, kind, name
        )
    await world.db.execute("update ops.projects set config = $1", json.dumps({"push": PUSH}))
    assert (await call(world.db, "set_webhook_secret", world.project, WORDS))["set"]
    return world
