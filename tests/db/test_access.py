"""Who reads and writes what, tried as the roles themselves."""

from __future__ import annotations

import asyncpg
import pytest

from tests.db.crowd import (
    ADMINS,
    CATALOGUES,
    COLUMNS,
    DEVELOPERS,
    HOST,
    NEW_RUN,
    ROLES,
    Crowd,
    Form,
    allowed,
    new_claims,
    old_claims,
)  # fmt: skip
from tests.db.world import OTHER_INSTANCE, World, blocked, call, new_project, new_workflow
from tests.support.schema import TABLES

# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [old_claims, new_claims])
async def test_who_reads_what(crowd: Crowd, form: Form) -> None:
    for queued, who in enumerate(COLUMNS):
        connection = await crowd.sign_in(who, form)
        reads = {table for table in TABLES if await allowed(connection, f"select from ops.{table}")}
        own = (
            ["project_memberships", "projects"] if who == "stranger" else TABLES
        )  # a stranger's own project has nothing more
        expected = {"anon": (), "ops_worker": CATALOGUES, HOST: CATALOGUES}.get(who, (*own, *CATALOGUES))
        assert (who, reads) == (who, set(expected))
        if who in ROLES:
            assert await connection.fetchval("select count(*) from ops.projects") == 1
            assert await connection.fetchval("select ops.current_user_role($1)", crowd.world.project) == who
            assert await connection.fetchval("select ops.current_user_id()") == crowd.users[who]
            assert await connection.fetchval("select count(*) from ops.list_queued_runs()") == queued
            assert [tuple(row) for row in await connection.fetch("select slug, role from ops.project_overview()")] == [
                ("acme", who)
            ]
        await crowd.world.queue()


async def test_without_claims_only_the_catalogues_are_read(crowd: Crowd) -> None:
    connection = await crowd.connect(role="authenticated")
    assert await connection.fetchval("select ops.current_user_id()") is None
    assert await connection.fetchval("select ops.current_user_role($1)", crowd.world.project) is None
    assert {table for table in TABLES if await allowed(connection, f"select from ops.{table}")} == set(CATALOGUES)


async def test_who_sees_the_workers_and_which_of_their_runs(crowd: Crowd) -> None:
    """A signed-in user without a project sees no worker; another member sees them without the runs."""
    await call(crowd.world.db, "register_worker", "host-b", OTHER_INSTANCE)
    await crowd.world.db.execute("delete from ops_private.workers where worker_id = 'host-a'")
    workers = "select worker_id, alive, db_role, jsonb_array_length(runs) from ops.worker_overview()"
    for who in (*ROLES, "stranger", "service_role"):
        connection = await crowd.sign_in(who)
        seen = [tuple(row) for row in await connection.fetch(workers)]
        mine = [] if who == "stranger" else [("host-a", False, None, 1)]  # it holds a lease and is not registered
        assert seen == [*mine, ("host-b", True, "postgres" if who == "service_role" else None, 0)]
    await crowd.world.db.execute("delete from ops.project_memberships where user_id = $1", crowd.users["viewer"])
    assert await (await crowd.sign_in("viewer")).fetch(workers) == []
    for who in ("anon", "ops_worker", HOST):
        assert not await allowed(await crowd.sign_in(who), workers)


# Writing ----------------------------------------------------------------------------------------------------


NEW = {
    "run": "insert into ops.runs (project_id, workflow_id, {more}) values ('{project}', '{workflow}', {value})",
    "member": (
        "insert into ops.project_memberships (project_id, user_id, role) "
        "values ('{project}', gen_random_uuid(), '{value}')"
    ),
    "workflow": "insert into ops.workflows (project_id, workflow_type, name) values ('{project}', 'test', 't')",
    "project": ("insert into ops.projects (workspace_key, slug, name, odoo_version) values ('x', 'x', 'x', '19.0')"),
    "event": "insert into ops.run_events (run_id, event_type, message) values ('{run}', 'info', 'x')",
    "line": "insert into ops.run_logs (run_id, log_level, message) values ('{run}', 'info', 'x')",
    "artifact": ("insert into ops.run_artifacts (run_id, artifact_key, artifact_url) values ('{run}', 'x', 'x')"),
    "tool": "insert into ops.tools (tool_name, version, docker_image) values ('x', '1', 'x')",
}


def new_run(column: str, value: str) -> str:
    """Queue a run, and give that column too."""
    return NEW["run"].replace("{more}", column).replace("{value}", value)


def new_member(role: str) -> str:
    """Make a new user a member."""
    return NEW["member"].replace("{value}", role)


COLUMNS_OF_THE_SYSTEM = {
    "id": "gen_random_uuid()", "run_number": "7", "idempotency_key": "'k'", "claimed_by": "'w'",
    "claimed_at": "now()", "started_at": "now()", "finished_at": "now()", "exit_code": "0", "error_message": "'x'",
    "created_at": "now()", "updated_at": "now()", "priority": "9", "labels": "'{{gpu}}'", "concurrency_key": "'k'",
    "scheduled_at": "now()", "cancel_requested_at": "now()", "claim_count": "0",
    "claimed_instance": "gen_random_uuid()", "created_by": "gen_random_uuid()", "retry_of": "null", "attempt": "2",
    "reason": "'x'", "warnings": "1", "errors": "1", "tests": "'{{}}'",
}  # fmt: skip
"""Of a run, with a value: no user gives them."""

WRITES: list[tuple[str, set[str]]] = [
    (NEW["workflow"], DEVELOPERS),
    ("update ops.workflows set git_ref = 'main', config = '{{}}', enabled = false", DEVELOPERS),
    (new_run("status", "'queued'"), DEVELOPERS),
    (new_run("metadata", "'{{}}'"), DEVELOPERS),
    ("update ops.projects set name = 'x', config = '{{}}' where id = '{project}'", {"owner"}),
    ("update ops.projects set status = 'archived' where id = '{project}'", {"owner"}),
    (new_member("viewer"), ADMINS),
    (new_member("developer"), ADMINS),
    (new_member("admin"), ADMINS),
    (new_member("owner"), {"owner"}),
    ("update ops.project_memberships set role = 'admin' where user_id = '{viewer}'", ADMINS),
    ("update ops.project_memberships set role = 'owner' where user_id = '{viewer}'", {"owner"}),
    ("update ops.project_memberships set role = 'owner' where user_id = '{admin}'", {"owner"}),
    ("delete from ops.project_memberships where user_id = '{developer}'", DEVELOPERS),
    ("delete from ops.project_memberships where user_id = '{viewer}'", ADMINS | {"viewer"}),
]
REFUSED = [  # to every role, the last owner included
    "update ops.project_memberships set role = 'admin' where user_id = '{owner}'",
    "delete from ops.project_memberships where user_id = '{owner}'",
    "update ops.project_memberships set user_id = gen_random_uuid()",
    "update ops.project_memberships set project_id = project_id", NEW["project"],
    "update ops.projects set slug = 'x' where id = '{project}'", "delete from ops.projects where id = '{project}'",
    "delete from ops.workflows", "update ops.workflows set project_id = project_id",
    "update ops.runs set status = 'canceled'", "update ops.runs set metadata = '{{}}'", "delete from ops.runs",
    *(new_run("status", f"'{state}'") for state in ("claimed", "running", "succeeded", "failed", "canceled")),
    *(new_run(column, value) for column, value in COLUMNS_OF_THE_SYSTEM.items()),
    *(f"update ops.runs set {column} = {column}" for column in ("status", "claimed_by", "project_id", "reason")),
    "update ops.projects set workspace_key = 'x' where id = '{project}'", "update ops.projects set id = id",
    "update ops.workflows set id = id",
    ("insert into ops.project_memberships (id, project_id, user_id, role)"
     " values (gen_random_uuid(), '{project}', gen_random_uuid(), 'viewer')"),
    "update ops.project_memberships set created_at = now()", "update ops.run_events set message = 'x'",
    "delete from ops.run_events", "truncate ops.run_events", "delete from ops.run_artifacts",
    "delete from ops.run_logs",
    "insert into ops.upgrade_advisories (from_version, to_version, severity, title) values ('1', '2', 'low', 'x')",
    NEW["event"], NEW["line"], NEW["artifact"], "update ops.run_artifacts set artifact_url = 'x'",
    "update ops.run_logs set message = 'x'", NEW["tool"], "update ops.tools set docker_image = 'x'",
    "delete from ops.upgrade_advisories", "select * from ops_private.leases",
    "select * from ops_private.my_projects('viewer')", "select ops_private.cancel_run('{run}', null)",
    "select ops_private.enqueue_run('{workflow}', '{{}}', null, null)", "select ops_private.queue_retry('{run}')",
    "select ops_private.create_worker('x', 'SCRAM-SHA-256$x')",
    "select ops_private.create_console('x', 'SCRAM-SHA-256$x')", "select ops_private.run_payload('{run}')",
]  # fmt: skip


@pytest.mark.parametrize("form", [old_claims, new_claims])
async def test_who_writes_what(crowd: Crowd, form: Form) -> None:
    everybody = {who: await crowd.sign_in(who, form) for who in COLUMNS if who != "service_role"}
    names = {name: str(user) for name, user in crowd.users.items()}
    for statement, who_may in [*WRITES, *((text, set[str]()) for text in REFUSED)]:
        text = statement.format(project=crowd.world.project, workflow=crowd.world.workflow, run=crowd.run, **names)
        may = {who for who, connection in everybody.items() if await allowed(connection, text)}
        assert (text, may) == (text, who_may)


async def test_service_role_writes_everything(crowd: Crowd) -> None:
    service = await crowd.sign_in("service_role")
    project = await new_project(service, "new")
    run = await World(service, project, await new_workflow(service, project)).running()
    await service.execute("insert into ops.run_events (run_id, event_type, message) values ($1, 'info', 'x')", run)
    await service.execute(
        "insert into ops.run_artifacts (run_id, artifact_key, artifact_url) values ($1, 'x', 'x')", run
    )
    assert (await call(service, "cancel_run", run))["success"]
    assert (await call(service, "complete_workflow_run", run, 1))["success"]
    assert await allowed(service, "delete from ops.projects where id = $1", project)


async def test_a_user_can_only_queue(crowd: Crowd) -> None:
    developer = await crowd.sign_in("developer")
    for status in ("claimed", "running", "succeeded", "failed", "canceled"):
        with pytest.raises(asyncpg.PostgresError, match="begins as queued"):
            await developer.execute(NEW_RUN.replace("queued", status), crowd.world.project, crowd.world.workflow)


async def test_a_run_knows_who_queued_it(crowd: Crowd) -> None:
    developer = await crowd.sign_in("developer")
    await developer.execute(NEW_RUN, crowd.world.project, crowd.world.workflow)
    row = await crowd.world.db.fetchrow("select id, created_by from ops.runs where status = 'queued'")
    assert row is not None
    assert row["created_by"] == crowd.users["developer"]
    assert await crowd.world.events(row["id"], "info") == [{"actor": str(crowd.users["developer"])}]


# The last owner ---------------------------------------------------------------------------------------------


async def test_a_project_keeps_an_owner(crowd: Crowd) -> None:
    service = await crowd.sign_in("service_role")
    for statement in (
        "delete from ops.project_memberships where role = 'owner'", "delete from ops.project_memberships",
        "update ops.project_memberships set role = 'admin' where role = 'owner'",
    ):  # fmt: skip
        with pytest.raises(asyncpg.PostgresError, match="at least one owner") as refused:
            await service.execute(statement)
        assert refused.value.sqlstate == "OPS03"


async def test_an_admin_cannot_touch_one_of_two_owners(crowd: Crowd) -> None:
    viewer = crowd.users["viewer"]
    await crowd.world.db.execute("update ops.project_memberships set role = 'owner' where user_id = $1", viewer)
    admin, owner = await crowd.sign_in("admin"), await crowd.sign_in("owner")
    for change in ("update ops.project_memberships set role = 'admin'", "delete from ops.project_memberships"):
        assert not await allowed(admin, f"{change} where user_id = $1", viewer)
        assert await allowed(owner, f"{change} where user_id = $1", viewer)


async def test_ownership_is_handed_over_in_one_statement(crowd: Crowd) -> None:
    owner = await crowd.sign_in("owner")
    await owner.execute(
        "update ops.project_memberships set role = case user_id when $1 then 'owner' else 'viewer' end "
        "where user_id in ($1, $2)", crowd.users["admin"], crowd.users["owner"],
    )  # fmt: skip
    assert await owner.fetchval("select ops.current_user_role($1)", crowd.world.project) == "viewer"


async def test_two_owners_cannot_remove_each_other_at_once(crowd: Crowd) -> None:
    await crowd.world.db.execute(
        "update ops.project_memberships set role = 'owner' where user_id = $1", crowd.users["admin"]
    )
    one, two = await crowd.sign_in("owner"), await crowd.sign_in("admin")
    remove = "delete from ops.project_memberships where user_id = $1"
    async with one.transaction():
        await one.execute(remove, crowd.users["admin"])
        waiting = await blocked(crowd.world.db, two, two.execute(remove, crowd.users["owner"]))
    with pytest.raises(asyncpg.PostgresError, match="at least one owner"):
        await waiting


async def test_ownership_that_another_user_gave_can_be_declined(crowd: Crowd) -> None:
    owner, stranger = await crowd.sign_in("owner"), await crowd.sign_in("stranger")
    leave = "delete from ops.project_memberships where project_id = $1 and user_id = $2"
    await owner.execute(
        "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, 'owner')",
        crowd.world.project, crowd.users["stranger"],
    )  # fmt: skip
    assert await owner.execute(leave, crowd.world.project, crowd.users["owner"]) == "DELETE 1"
    assert await stranger.execute(leave, crowd.world.project, crowd.users["stranger"]) == "DELETE 1"


async def test_an_account_that_owns_a_project_can_be_deleted(crowd: Crowd) -> None:
    db, project = crowd.world.db, crowd.world.project
    await db.execute(
        """create schema auth; create table auth.users (id uuid primary key);
           insert into auth.users select distinct user_id from ops.project_memberships;
           alter table ops.project_memberships add foreign key (user_id) references auth.users on delete cascade"""
    )
    await db.execute("delete from auth.users where id = $1", crowd.users["owner"])
    assert await db.fetchval("select count(*) from ops.projects where id = $1", project) == 1


async def test_a_project_goes_with_its_owner(crowd: Crowd) -> None:
    db, project = crowd.world.db, crowd.world.project
    await db.execute("delete from ops.projects where id = $1", project)
    assert await db.fetchval("select count(*) from ops.project_memberships where project_id = $1", project) == 0
