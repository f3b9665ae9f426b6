"""Webhooks of forges: bodies and headers in each one's form, their signatures, and what the rules of a project do."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.db.forges import COMMIT, FORGES, PUSH, RULES, WORDS, body, delivery, headers, opened_shop
from tests.db.world import WORKER, World, call, new_project, sign_in


@pytest_asyncio.fixture
async def shop(world: World) -> World:
    return await opened_shop(world)


async def receive(world: World, forge: str, content: bytes, event: str = "push", **changed: str) -> dict[str, Any]:
    sent = json.dumps(headers(forge, content, event) | {name.replace("_", "-"): it for name, it in changed.items()})
    return await call(world.db, "receive_push", world.project, content, sent)


async def queued(world: World) -> list[str]:
    """The workflows of the queued runs, in the order of their numbers."""
    rows = await world.db.fetch(
        "select w.name from ops.runs as r join ops.workflows as w on w.id = r.workflow_id "
        "where r.status = 'queued' order by r.run_number"
    )
    return [row["name"] for row in rows]


@pytest.mark.parametrize("forge", FORGES)
async def test_a_push_queues_the_workflows_of_its_branch_once(shop: World, forge: str) -> None:
    answer = await receive(shop, forge, body(f"{forge}_push"))
    assert [(run["workflow"], run["created"]) for run in answer["runs"]] == [("test", True), ("deploy/live", True)]
    name = "x-gitlab-event-uuid" if forge == "gitlab" else f"x-{forge}-delivery"
    again = await receive(shop, forge, body(f"{forge}_push"), **{name: "another"})  # the signature covers no header
    assert [run["created"] for run in again["runs"]] == [False, False]
    assert [run["run_id"] for run in again["runs"]] == [run["run_id"] for run in answer["runs"]]
    row = await shop.row(uuid.UUID(answer["runs"][0]["run_id"]))
    assert json.loads(row["metadata"]) == {
        "git_ref": "main", "git_commit": COMMIT, "push": {"forge": forge, "delivery": delivery(body(f"{forge}_push"))},
    }  # fmt: skip
    assert await queued(shop) == ["test", "live"]


@pytest.mark.parametrize(
    ("forge", "name", "event"),
    [
        ("github", "github_push_deleted", "push"), ("github", "github_delete", "delete"),
        ("gitlab", "gitlab_push_deleted", "push"), ("gitea", "gitea_delete", "delete"),
        ("forgejo", "forgejo_delete", "delete"),
    ],
)  # fmt: skip
async def test_a_deleted_branch_cancels_its_runs(shop: World, forge: str, name: str, event: str) -> None:
    await receive(shop, forge, body(f"{forge}_push"))
    runs = [run["run_id"] for run in (await receive(shop, forge, body(f"{forge}_branch")))["runs"]]
    assert await queued(shop) == ["test", "live", "build", "test", "preview"]
    await shop.db.execute("update ops.runs set priority = 1 where id = $1", uuid.UUID(runs[0]))
    assert (await shop.claim())["run_id"] == runs[0]
    await call(shop.db, "start_workflow_run", uuid.UUID(runs[0]), WORKER)
    answer = await receive(shop, forge, body(name), event)
    assert (sorted(answer["canceled"]), answer["runs"]) == (sorted(runs), [])
    assert answer["message"] == "the branch feature/cart is deleted"
    assert await queued(shop) == ["test", "live"]
    active = await shop.row(uuid.UUID(runs[0]))
    assert (active["status"], active["cancel_requested_at"] is not None) == ("running", True)
    assert (await receive(shop, forge, body(name), event))["canceled"] == runs[:1]


def edited(**changes: Any) -> bytes:
    return json.dumps(json.loads(body("github_push")) | changes).encode()


@pytest.mark.parametrize(
    ("content", "event", "says"),
    [
        (body("github_push"), "ping", "nothing: the event ping starts nothing"),
        (body("github_tag"), "push", "nothing: it is not about a branch"),
        (body("github_delete").replace(b'"branch"', b'"tag"'), "delete", "nothing: it is not about a branch"),
        (edited(ref="refs/heads/other"), "push", "nothing: no rule matches the branch other"),
        (edited(ref="refs/heads/feature/a/b"), "push", "nothing: no rule matches the branch feature/a/b"),
        (edited(ref="refs/heads/xmain"), "push", "nothing: no rule matches the branch xmain"),
        (edited(ref="refs/heads/--upload-pack=x"), "push", "nothing: its branch is no name of a git ref"),
        (edited(after="x"), "push", "nothing: its commit is not of 40 to 64 hexadecimal digits"),
        (edited(after=None), "push", "nothing: its commit is not of 40 to 64 hexadecimal digits"),
    ],
)
async def test_anything_else_starts_nothing_and_says_why(shop: World, content: bytes, event: str, says: str) -> None:
    assert await receive(shop, "github", content, event) == {
        "success": True, "runs": [], "canceled": [], "message": says,
    }  # fmt: skip
    assert await queued(shop) == []


async def test_what_one_workflow_refuses_does_not_stop_the_others(shop: World) -> None:
    await shop.db.execute("update ops.workflows set enabled = false where name = 'test'")
    answer = await receive(shop, "github", body("github_push"))
    assert answer["runs"][0] == {"workflow": "test", "created": False, "error": "the workflow is disabled"}
    assert await queued(shop) == ["live"]
    missing = await receive(shop, "github", edited(ref="refs/heads/release/1/2"))
    assert missing["runs"] == [{"workflow": "none", "created": False, "error": 'the project has no workflow "none"'}]
    await shop.db.execute("update ops_private.control set max_queued_runs = 1")
    [_, full] = (await receive(shop, "github", edited(compare="")))["runs"]
    assert full["error"].startswith("the queue of the project is full")


# Signatures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 63, 64, 65, 200])
async def test_the_signature_is_an_hmac_sha256(world: World, size: int) -> None:
    key, data = bytes(range(size)), b"\x00what is signed"
    made = await world.db.fetchval("select ops_private.hmac_sha256($1, $2)", key, data)
    assert made == hmac.new(key, data, hashlib.sha256).digest()


@pytest.mark.parametrize("forge", FORGES)
async def test_a_delivery_without_the_secret_is_refused(shop: World, forge: str) -> None:
    content = body(f"{forge}_push")
    names = {"github": "x_hub_signature_256", "gitlab": "x_gitlab_token"}
    name = names.get(forge, f"x_{forge}_signature")
    right = headers(forge, content)[name.replace("_", "-")]
    wrong = headers(forge, content, secret="wrong-horse-battery")[name.replace("_", "-")]
    refusals = [await receive(shop, forge, content, **{name: sent}) for sent in (wrong, "", right[:-1], right + "0")]
    if forge != "gitlab":
        refusals.append(await call(
            shop.db, "receive_push", shop.project, content + b" ", json.dumps(headers(forge, content))
        ))  # fmt: skip
    await call(shop.db, "set_webhook_secret", shop.project, None)
    refusals.append(await receive(shop, forge, content))
    refusals.append(await receive(World(shop.db, uuid.uuid4(), shop.workflow), forge, content))
    assert refusals == [refusals[0]] * len(refusals), "none tells what is there"
    assert refusals[0]["code"] == "not_allowed"
    assert await queued(shop) == []


async def test_a_body_or_headers_of_another_kind_are_refused(shop: World) -> None:
    for content, code in ((b"[]", "bad_argument"), (b"\xff", "bad_argument"), (b"{", "bad_argument")):
        assert (await receive(shop, "github", content))["code"] == code
    for sent in ("{}", "[]", '{"x-other-event": "push"}'):
        answer = await call(shop.db, "receive_push", shop.project, body("github_push"), sent)
        assert answer["error"] == "the headers name no event of GitHub, GitLab, Gitea or Forgejo"


async def test_no_user_reads_the_secret(shop: World, connect: Connect) -> None:
    for role in ("developer", "owner"):
        member = await sign_in(shop, connect, role)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await member.fetch("select * from ops_private.webhooks")
    for secret in ("x" * 15, "x" * 1001):
        answer = await call(shop.db, "set_webhook_secret", shop.project, secret)
        assert (answer["code"], answer["error"]) == ("bad_argument", "the secret must have 16 to 1000 bytes")


# Through an API ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forge", FORGES)
async def test_an_api_finds_the_project_by_the_repository_and_the_secret(
    shop: World, connect: Connect, forge: str
) -> None:
    """As PostgREST calls it: as a role without other rights, with the body as it was sent."""
    other = await new_project(shop.db, "another")
    await shop.db.execute("update ops.projects set config = $2 where id = $1", other, json.dumps({"push": PUSH}))
    await call(shop.db, "set_webhook_secret", other, "another-horse-battery")
    api, content = await connect(role="ops_webhook"), body(f"{forge}_push")
    answers = []
    for secret in (WORDS, "wrong-horse-battery"):
        async with api.transaction():
            sent = json.dumps(headers(forge, content, secret=secret))
            await api.execute("select set_config('request.headers', $1, true)", sent)
            answers.append(json.loads(await api.fetchval("select ops.receive_webhook($1)", content.decode())))
            answers[-1]["status"] = await api.fetchval("select current_setting('response.status', true)")
    assert [run["workflow"] for run in answers[0]["runs"]] == ["test", "deploy/live"]
    assert (answers[0]["status"] or None, answers[1]["code"], answers[1]["status"]) == (None, "not_allowed", "403")
    assert await shop.db.fetchval("select count(*) from ops.runs where project_id = $1", shop.project) == 2
    for statement in ("select * from ops.projects", "select ops.enqueue_run(gen_random_uuid())"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await api.execute(statement)


@pytest.mark.parametrize(
    ("push", "says"),
    [
        ([], "push: expected repository and branches"), (PUSH | {"x": 1}, "push: expected repository and branches"),
        ({"branches": []}, "push.repository: expected the full name of a repository, such as acme/shop"),
        ({"repository": "a/b"}, "push.branches: expected a list of at most 50 rules"),
        (PUSH | {"branches": [{"if": "x"}]}, "push.branches.0: expected match and run"),
        (PUSH | {"branches": [{"run": []}]}, "push.branches.0.match: expected a pattern such as feature/*"),
        (PUSH | {"branches": [RULES[0], {"match": "x", "run": [1]}]},
         "push.branches.1.run: expected a list of at most 10 names of workflows"),
    ],
)  # fmt: skip
async def test_wrong_rules_are_refused_where_the_project_is_written(world: World, push: object, says: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await world.db.execute("update ops.projects set config = $1", json.dumps({"push": push}))
    assert refused.value.message == f"project config, {says}"
