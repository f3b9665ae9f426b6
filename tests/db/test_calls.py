"""Who calls which function, tried as the roles themselves."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from tests.db.crowd import ADMINS, COLUMNS, DEVELOPERS, HOST, ROLES, Crowd, Form, new_claims, old_claims
from tests.db.world import INSTANCE, OTHER_INSTANCE, World, call
from tests.support.schema import TABLES

WORKERS = {"ops_worker", HOST, "service_role"}
SERVICE = {"service_role"}

CALLS: list[tuple[str, set[str]]] = [
    ("enqueue_run('{workflow}')", DEVELOPERS | SERVICE),
    ("enqueue_run('{workflow}', '{{}}', 'a key', now() + interval '1 day')", DEVELOPERS | SERVICE),
    ("cancel_run('{run}')", ADMINS | SERVICE),
    ("cancel_run('{developers}')", DEVELOPERS | SERVICE),
    ("cancel_run('{viewers}')", ADMINS | SERVICE),
    ("retry_run('{ended}')", ADMINS | SERVICE),
    ("retry_run('{developers_ended}')", DEVELOPERS | SERVICE),
    ("approve_run('{pending}')", ADMINS | SERVICE),
    ("approve_run('{admins_pending}')", {"owner"} | SERVICE),
    ("reject_run('{pending}', 'no')", ADMINS | SERVICE),
    ("reject_run('{admins_pending}')", {"owner"} | SERVICE),
    ("mark_known('{failed}', null, 'a note')", DEVELOPERS | SERVICE),
    ("pause_project('{project}')", ADMINS | SERVICE),
    ("resume_project('{project}')", ADMINS | SERVICE),
    ("limit_project('{project}', 1)", SERVICE),
    ("set_webhook_secret('{project}', 'correct-horse-battery')", {"owner"} | SERVICE),
    ("receive_push('{project}', '{{}}', '{token}')", SERVICE),
    ("receive_webhook('{body}') from set_config('request.headers', '{token}', true)", SERVICE),
    ("pause_queue()", SERVICE),
    ("resume_queue()", SERVICE),
    ("health()", SERVICE),
    ("sync_tools('[{{\"tool_name\": \"t\", \"version\": \"1\", \"docker_image\": \"x\"}}]')", SERVICE),
    ("sync_project('{described}')", DEVELOPERS | SERVICE),
    ("sync_project('{renamed}')", {"owner"} | SERVICE),
    ("sync_project('{limited}', true)", SERVICE),
    ("sync_project('{new}')", SERVICE),
    ("set_member('{project}', gen_random_uuid(), 'admin')", ADMINS | SERVICE),
    ("set_member('{project}', gen_random_uuid(), 'owner')", {"owner"} | SERVICE),
    ("set_member('{project}', '{viewer}', 'developer')", ADMINS | SERVICE),
    ("set_member('{project}', '{first}', 'admin')", {"owner"} | SERVICE),
    ("remove_member('{project}', '{viewer}')", {"viewer"} | ADMINS | SERVICE),
    ("remove_member('{project}', '{first}')", {"owner"} | SERVICE),
    ("find_user('a@b.example')", SERVICE),
    ("register_worker('w', gen_random_uuid())", WORKERS),
    ("unregister_worker('w', gen_random_uuid())", WORKERS),
    ("heartbeat('w', gen_random_uuid())", WORKERS),
    ("claim_next_run('w')", WORKERS),
    ("adoptable_runs('w', gen_random_uuid(), 'engine-1')", WORKERS),
    ("unclaimable_runs()", WORKERS),
    ("reap()", WORKERS),
    # hosts that an operator permits to: test_outbox
    ("register_destinations('w', '[]')", SERVICE),
    ("take_deliveries('w', gen_random_uuid(), '{{}}')", SERVICE),
    ("settle_delivery(gen_random_uuid(), gen_random_uuid())", set()),
    ("shut_out_worker('nowhere')", SERVICE),
    ("drain_worker('host-d')", SERVICE),
    # a run that the superuser's worker holds
    ("start_workflow_run('{claimed}', 'host-a')", SERVICE),
    ("release_run('{claimed}', 'host-a', '{instance}')", SERVICE),
    ("append_run_log('{run}', 'info', 'x')", SERVICE),
    ("append_run_logs('{run}', 'host-a', '{instance}', 1, 'x', 'i', array[now()])", SERVICE),
    ("record_container('{run}', 'host-a', '{instance}', 'x')", SERVICE),
    ("record_report('{run}', 'host-a', '{instance}')", SERVICE),
    ("mark_ready('{run}', 'host-a', '{instance}', 'http://x')", SERVICE),
    ("add_run_event('{run}', 'info', 'x')", SERVICE),
    ("add_run_artifact('{run}', 'x', 'x')", SERVICE),
    ("adopt_run('{run}', 'host-a', '{instance}', 'engine-1')", SERVICE),
    ("complete_workflow_run('{run}', 0)", SERVICE),
]  # fmt: skip


@pytest.mark.parametrize("form", [old_claims, new_claims])
async def test_who_calls_what(crowd: Crowd, form: Form) -> None:
    everybody = {who: await crowd.sign_in(who, form) for who in COLUMNS}
    ended, claimed = await crowd.world.run_in("failed"), await crowd.world.claimed()
    red = await crowd.world.run_in("running")
    fail = "update ops.runs set status = 'failed', tests = $2 where id = $1"
    await crowd.world.db.execute(fail, red, '{"failing": ["t"]}')
    first = await crowd.world.db.fetchval(
        "insert into ops.project_memberships (project_id, user_id, role) values ($1, gen_random_uuid(), 'owner')"
        " returning user_id", crowd.world.project,
    )  # fmt: skip
    await crowd.world.db.execute(
        "create schema auth; create table auth.users (id uuid, email text);"
        "insert into auth.users values (gen_random_uuid(), 'a@b.example')"
    )
    rules = {"push": {"repository": "acme/shop", "branches": []}}
    acme = {"slug": "acme", "name": "Acme", "odoo_version": "19.0", "config": rules}
    ids: dict[str, Any] = {
        "viewer": crowd.users["viewer"], "first": first, "described": json.dumps(acme),
        "renamed": json.dumps(acme | {"name": "x"}), "limited": json.dumps(acme | {"limits": {"max_active_runs": 1}}),
        "new": json.dumps(acme | {"slug": "new"}),
        "project": crowd.world.project, "workflow": crowd.world.workflow,
        "run": crowd.run, "instance": INSTANCE, "ended": ended, "claimed": claimed, "failed": red,
        "developers": await crowd.world.queue(created_by=crowd.users["developer"]),
        "viewers": await crowd.world.queue(created_by=crowd.users["viewer"]),
        "token": '{"x-gitlab-event": "Push Hook", "x-gitlab-token": "correct-horse-battery"}',
        "body": '{"project": {"path_with_namespace": "acme/shop"}}',
        "pending": await crowd.world.queue(approval="pending", created_by=crowd.users["developer"]),
        "admins_pending": await crowd.world.queue(approval="pending", created_by=crowd.users["admin"]),
        "developers_ended": await crowd.world.queue(created_by=crowd.users["developer"]),
    }  # fmt: skip
    await crowd.world.set_status(ids["developers_ended"], "canceled")
    await call(crowd.world.db, "register_worker", "host-d", OTHER_INSTANCE)
    await crowd.world.db.execute("update ops.projects set config = $1 where slug = 'acme'", json.dumps(rules))
    await call(crowd.world.db, "set_webhook_secret", crowd.world.project, "correct-horse-battery")
    before = await snapshot(crowd.world)
    for text, who_may in CALLS:
        called = text.format(**ids)
        may = {who for who, connection in everybody.items() if await answered(connection, called)}
        assert (called, may) == (called, who_may)
    assert await snapshot(crowd.world) == before
    every = {text.partition("(")[0] for text, _ in CALLS}
    functions = await crowd.world.db.fetch(
        "select proname from pg_proc where pronamespace = 'ops'::regnamespace and prorettype = 'jsonb'::regtype"
    )
    assert {row["proname"] for row in functions} == every


async def answered(connection: asyncpg.Connection, called: str) -> bool:
    """Whether that call of a function succeeds; what it did is taken back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        answer = json.loads(await connection.fetchval(f"select ops.{called}"))
    except asyncpg.InsufficientPrivilegeError as error:
        assert str(error).startswith("permission denied for")  # noqa: PT017
        return False
    finally:
        await transaction.rollback()
    if "code" not in answer:
        return True
    assert answer["code"] in ("not_allowed", "not_found", "not_owner")
    return False


async def snapshot(world: World) -> list[object]:
    """What is in every table."""
    tables = [f"ops.{table}" for table in TABLES] + ["ops_private.leases", "ops_private.workers"]
    return [[tuple(row) for row in await world.db.fetch(f"select * from {table} order by 1, 2")] for table in tables]


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("who", [*ROLES, "stranger"])
async def test_who_cancels_a_run(crowd: Crowd, who: str, *, mine: bool) -> None:
    run = await crowd.world.queue(created_by=crowd.users[who] if mine else None)
    answer = await call(await crowd.sign_in(who), "cancel_run", run)
    may = who in ADMINS or (who == "developer" and mine)
    assert answer["success"] == may
    assert answer.get("code") == (None if may else "not_found" if who == "stranger" else "not_allowed")
    assert await crowd.world.status(run) == ("canceled" if may else "queued")
    if may:
        (event,) = await crowd.world.events(run, "state_change")
        assert event["actor"] == str(crowd.users[who])
