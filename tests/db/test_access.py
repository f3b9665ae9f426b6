"""Who may do what, tried as the roles themselves."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.db.world import World, call, new_project, new_workflow, until_blocked

TABLES = (
    "projects", "workflows", "runs", "run_events", "run_artifacts", "run_logs", "tools", "upgrade_advisories",
    "project_memberships",
)  # fmt: skip
CATALOGUES = ("tools", "upgrade_advisories")
ROLES = ("viewer", "developer", "admin", "owner")
Form = Callable[[asyncpg.Connection, uuid.UUID], Awaitable[None]]


async def old_claims(connection: asyncpg.Connection, user: uuid.UUID) -> None:
    await connection.execute(f"set request.jwt.claim.sub = '{user}'")


async def new_claims(connection: asyncpg.Connection, user: uuid.UUID) -> None:
    claims = json.dumps({"sub": str(user), "role": "authenticated"})
    await connection.execute(f"set request.jwt.claim.sub = ''; set request.jwt.claims = '{claims}'")


@dataclass(frozen=True)
class Crowd:
    """A world with something in every table, and one user for each role and one who is not a member."""

    world: World
    users: dict[str, uuid.UUID]
    run: uuid.UUID
    connect: Connect

    async def sign_in(self, who: str, form: Form = old_claims) -> asyncpg.Connection:
        """A connection as that user; ``anon``, ``service_role``, ``ops_worker`` are roles themselves."""
        if who in {"anon", "service_role", "ops_worker"}:
            return await self.connect(role=who)
        connection = await self.connect(role="authenticated")
        await form(connection, self.users[who])
        return connection


@pytest_asyncio.fixture
async def crowd(world: World, connect: Connect) -> Crowd:
    users = {role: uuid.uuid4() for role in (*ROLES, "stranger")}
    for role in ROLES:
        await world.db.execute(
            "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, $3)",
            world.project, users[role], role,
        )  # fmt: skip
    elsewhere = await new_project(world.db, "elsewhere")
    await world.db.execute(
        "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, 'owner')",
        elsewhere, users["stranger"],
    )  # fmt: skip
    run = await world.running()
    await call(world.db, "append_run_log", run, "info", "hello")
    await call(world.db, "add_run_artifact", run, "a", "file:///a")
    await world.db.execute(
        """insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', 'odoo:19');
           insert into ops.upgrade_advisories (from_version, to_version, severity, title)
           values ('18.0', '19.0', 'high', 'Mind this')"""
    )
    return Crowd(world, users, run, connect)


async def allowed(connection: asyncpg.Connection, statement: str, *args: object) -> bool:
    """Whether the statement passes and touches a row; it is taken back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        status = await connection.execute(statement, *args)
    except asyncpg.PostgresError as error:
        assert error.sqlstate in {"42501", "OPS03"}  # noqa: PT017 - insufficient privilege, the last owner
        return False
    finally:
        await transaction.rollback()
    return not status.endswith(" 0")


# Reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [old_claims, new_claims])
@pytest.mark.parametrize("who", [*ROLES, "stranger", "anon", "ops_worker", "service_role"])
async def test_who_reads_what(crowd: Crowd, who: str, form: Form) -> None:
    connection = await crowd.sign_in(who, form)
    reads = {table for table in TABLES if await allowed(connection, f"select from ops.{table}")}
    own = ["project_memberships", "projects"] if who == "stranger" else TABLES  # his own project has nothing more
    expected = {"anon": (), "ops_worker": CATALOGUES}.get(who, (*own, *CATALOGUES))
    assert reads == set(expected)
    if who in ROLES:
        assert await connection.fetchval("select count(*) from ops.projects") == 1
        assert await connection.fetchval("select ops.current_user_role($1)", crowd.world.project) == who
        assert await connection.fetchval("select ops.current_user_id()") == crowd.users[who]
        assert await connection.fetchval("select count(*) from ops.list_queued_runs()") == 0
        await crowd.world.queue()
        assert await connection.fetchval("select count(*) from ops.list_queued_runs()") == 1


async def test_nobody_is_signed_in_without_claims(crowd: Crowd) -> None:
    connection = await crowd.connect(role="authenticated")
    assert await connection.fetchval("select ops.current_user_id()") is None
    assert await connection.fetchval("select ops.current_user_role($1)", crowd.world.project) is None
    assert {table for table in TABLES if await allowed(connection, f"select from ops.{table}")} == set(CATALOGUES)


async def test_a_stranger_sees_nothing_of_the_queue(crowd: Crowd) -> None:
    await crowd.world.queue()
    stranger = await crowd.sign_in("stranger")
    assert await stranger.fetch("select * from ops.list_queued_runs()") == []
    assert await stranger.fetchval("select ops.current_user_role($1)", crowd.world.project) is None


# Writing ----------------------------------------------------------------------------------------------------

DEVELOPERS = {"developer", "admin", "owner"}
ADMINS = {"admin", "owner"}
NEW_RUN = "insert into ops.runs (project_id, workflow_id, status) values ($1, $2, 'queued')"


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
    """Make somebody new a member."""
    return NEW["member"].replace("{value}", role)


WRITES: list[tuple[str, set[str]]] = [
    (NEW["workflow"], DEVELOPERS),
    ("update ops.workflows set git_ref = 'main', config = '{{}}', enabled = false", DEVELOPERS),
    (new_run("status", "'queued'"), DEVELOPERS),
    (new_run("metadata", "'{{}}'"), DEVELOPERS),
    ("update ops.projects set name = 'x', config = '{{}}' where id = '{project}'", {"owner"}),
    ("update ops.projects set status = 'archived' where id = '{project}'", {"owner"}),
    (new_member("viewer"), ADMINS),
    (new_member("admin"), ADMINS),
    (new_member("owner"), {"owner"}),
    ("update ops.project_memberships set role = 'admin' where user_id = '{viewer}'", ADMINS),
    ("update ops.project_memberships set role = 'owner' where user_id = '{viewer}'", {"owner"}),
    ("update ops.project_memberships set role = 'owner' where user_id = '{admin}'", {"owner"}),
    ("delete from ops.project_memberships where user_id = '{developer}'", ADMINS),
    # nobody: either refused, or the owner is the last one
    ("update ops.project_memberships set role = 'admin' where user_id = '{owner}'", set()),
    ("delete from ops.project_memberships where user_id = '{owner}'", set()),
    ("update ops.project_memberships set user_id = gen_random_uuid()", set()),
    ("update ops.project_memberships set project_id = project_id", set()),
    (NEW["project"], set()),
    ("update ops.projects set slug = 'x' where id = '{project}'", set()),
    ("delete from ops.projects where id = '{project}'", set()),
    ("delete from ops.workflows", set()),
    ("update ops.workflows set project_id = project_id", set()),
    ("update ops.runs set status = 'canceled'", set()),
    ("update ops.runs set metadata = '{{}}'", set()),
    ("delete from ops.runs", set()),
    (new_run("priority", "9"), set()),
    (new_run("labels", "'{{gpu}}'"), set()),
    (new_run("created_by", "gen_random_uuid()"), set()),
    (NEW["event"], set()),
    (NEW["line"], set()),
    (NEW["artifact"], set()),
    ("update ops.run_artifacts set artifact_url = 'x'", set()),
    ("update ops.run_logs set message = 'x'", set()),
    (NEW["tool"], set()),
    ("update ops.tools set docker_image = 'x'", set()),
    ("delete from ops.upgrade_advisories", set()),
    ("select * from ops_private.leases", set()),
    ("select * from ops_private.my_projects('viewer')", set()),
    ("select ops_private.cancel_run('{run}', null)", set()),
    ("select ops_private.run_payload('{run}')", set()),
]


async def test_who_writes_what(crowd: Crowd) -> None:
    everybody = {who: await crowd.sign_in(who) for who in (*ROLES, "stranger", "anon", "ops_worker")}
    names = {name: str(user) for name, user in crowd.users.items()}
    for statement, who_may in WRITES:
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


async def test_a_project_that_is_not_ones_own_looks_like_none(crowd: Crowd) -> None:
    """Same error, and nothing counted or locked on the way to it."""
    stranger = await crowd.sign_in("stranger")
    errors = set()
    # the lock that queueing would wait for
    async with crowd.world.db.transaction():
        await crowd.world.db.execute("select from ops.projects for update")
        await crowd.world.db.execute("select from ops_private.run_counters for update")
        for project in (crowd.world.project, uuid.uuid4()):
            with pytest.raises(asyncpg.InsufficientPrivilegeError) as refused:
                await stranger.execute(NEW_RUN, project, crowd.world.workflow, timeout=10)
            errors.add(str(refused.value))
    assert errors == {'new row violates row-level security policy for table "runs"'}


async def test_a_workflow_of_another_project_looks_like_none(crowd: Crowd) -> None:
    elsewhere = await new_project(crowd.world.db, "third")
    foreign = await new_workflow(crowd.world.db, elsewhere)
    owner = await crowd.sign_in("owner")
    for workflow in (foreign, uuid.uuid4()):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="runs_workflow_of_project_fkey"):
            await owner.execute(NEW_RUN, crowd.world.project, workflow)


# Cancel -----------------------------------------------------------------------------------------------------


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


async def test_to_a_stranger_a_run_does_not_exist(crowd: Crowd) -> None:
    stranger = await crowd.sign_in("stranger")
    answers = [await call(stranger, "cancel_run", run) for run in (crowd.run, uuid.uuid4())]
    assert answers[0] == answers[1]


# The last owner ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    ["delete from ops.project_memberships where role = 'owner'", "delete from ops.project_memberships",
     "update ops.project_memberships set role = 'admin' where role = 'owner'"],
)  # fmt: skip
async def test_a_project_keeps_an_owner(crowd: Crowd, statement: str) -> None:
    service = await crowd.sign_in("service_role")
    with pytest.raises(asyncpg.PostgresError, match="at least one owner") as refused:
        await service.execute(statement)
    assert refused.value.sqlstate == "OPS03"


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
    transaction = one.transaction()
    await transaction.start()
    await one.execute(remove, crowd.users["admin"])
    waiting = asyncio.create_task(two.execute(remove, crowd.users["owner"]))
    await until_blocked(crowd.world.db, two)
    await transaction.commit()
    with pytest.raises(asyncpg.PostgresError, match="at least one owner"):
        await waiting


async def test_a_project_goes_with_its_owner(crowd: Crowd) -> None:
    await crowd.world.db.execute("delete from ops.projects where id = $1", crowd.world.project)
    assert (
        await crowd.world.db.fetchval(
            "select count(*) from ops.project_memberships where project_id = $1", crowd.world.project
        )
        == 0
    )
