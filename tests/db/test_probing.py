"""A user learns nothing of another project: not by an answer, an error, a count, nor by a wait."""

from __future__ import annotations

import re
import uuid

import asyncpg
import pytest

from tests.db.crowd import NEW_RUN, Crowd, allowed
from tests.db.world import call, new_project, new_workflow

PROBES = [
    "insert into ops.runs (project_id, workflow_id, status) values ('{project}', '{workflow}', 'queued')",
    "insert into ops.runs (project_id, workflow_id, status) values ('{own}', '{workflow}', 'queued')",
    "insert into ops.workflows (project_id, workflow_type, name) values ('{project}', 'build', '{name}')",
    (
        "insert into ops.workflows (project_id, workflow_type, name) values ('{project}', 'build', '{name}')"
        " on conflict do nothing"
    ),
    "insert into ops.project_memberships (project_id, user_id, role) values ('{project}', '{user}', 'viewer')",
    (
        "insert into ops.project_memberships (project_id, user_id, role) values ('{project}', '{user}', 'viewer')"
        " on conflict do nothing"
    ),
    "insert into ops.projects (workspace_key, slug, name, odoo_version) values ('{name}', '{name}', 'x', '19.0')",
    "update ops.projects set slug = '{name}' where id = '{own}'",
    "update ops.projects set name = 'x' where id = '{project}'",
    "update ops.workflows set name = 'x' where id = '{workflow}'",
    "update ops.workflows set project_id = '{project}'",
    "update ops.project_memberships set project_id = '{project}'",
    "update ops.project_memberships set role = 'viewer' where user_id = '{user}'",
    "delete from ops.project_memberships where user_id = '{user}'",
    "delete from ops.project_memberships where project_id = '{project}'",
    "insert into ops.run_events (run_id, event_type, message) values ('{run}', 'info', 'x')",
    "insert into ops.run_logs (run_id, log_level, message) values ('{run}', 'info', 'x')",
    "insert into ops.run_artifacts (run_id, artifact_key, artifact_url) values ('{run}', 'a', 'x')",
    "insert into ops.runs (project_id, workflow_id, retry_of) values ('{own}', '{workflow}', '{run}')",
    "insert into ops.runs (project_id, workflow_id, idempotency_key) values ('{own}', '{workflow}', '{key}')",
    "select * from ops.projects where slug = '{name}' for update",
    "select count(*) from ops.runs where id = '{run}' or idempotency_key = '{key}'",
    "select count(*) from ops.run_logs where run_id = '{run}'",
    "select ops.current_user_role('{project}')",
    "select ops.enqueue_run('{workflow}')",
    "select ops.enqueue_run('{workflow}', '[]')",
    "select ops.enqueue_run('{workflow}', '{{}}', 'nightly')",
    "select ops.cancel_run('{run}')",
    "select ops.retry_run('{run}')",
    "select ops.mark_known('{run}')",
    "select count(*) from ops.run_fingerprints('{run}')",
    "select ops.run_summary('{run}')",
    "select ops.pause_project('{project}')",
    "select ops.approve_run('{run}')",
    "select ops.set_webhook_secret('{project}', 'correct-horse-battery')",
    "select ops.reject_run('{run}')",
    "select * from ops.search_run_logs('hello', p_project_id => '{project}')",
    "select * from ops.search_run_logs('hello', p_run_id => '{run}')",
    "select count(*) from ops.list_queued_runs() where project_id = '{project}'",
    "select count(*) from ops.project_overview() where project_id = '{project}' or slug = '{name}'",
    "select count(*) from ops.worker_overview() where runs @> jsonb_build_array(jsonb_build_object('run_id', '{run}'))",
    "select sum(jsonb_array_length(runs)) from ops.worker_overview()",
    "select count(*) from ops.workflow_overview() where workflow_id = '{workflow}'",
]


async def outcome(connection: asyncpg.Connection, statement: str) -> tuple[object, ...]:
    """All that the client learns: the rows, or every field of the error; taken back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        rows = await connection.fetch(statement, timeout=10)
        return ("rows", *map(tuple, rows))
    except asyncpg.PostgresError as error:
        fields = (error.sqlstate, str(error), error.detail, error.hint, error.constraint_name, error.table_name)
        return tuple(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "an id", str(field)) for field in fields)
    finally:
        await transaction.rollback()


async def test_what_is_there_looks_like_what_is_not(crowd: Crowd) -> None:
    """The prober is owner of another project. Meanwhile all that is there is locked, and no probe waits for it."""
    db, project = crowd.world.db, crowd.world.project
    run = await crowd.world.queue(idempotency_key=f"{project}:nightly")
    prober = await crowd.sign_in("stranger")
    own = await prober.fetchval("select id from ops.projects")
    there = {"project": project, "workflow": crowd.world.workflow, "run": run, "name": "build",
             "user": crowd.users["owner"], "key": f"{project}:nightly"}  # fmt: skip
    nowhere = {"project": uuid.uuid4(), "workflow": uuid.uuid4(), "run": uuid.uuid4(), "name": "nothing",
               "user": uuid.uuid4(), "key": f"{uuid.uuid4()}:nightly"}  # fmt: skip
    for probe in PROBES:
        taken = there | ({"name": "acme"} if "slug" in probe else {})
        async with db.transaction():
            for table in ("ops.workflows", "ops_private.run_counters", "ops.runs", "ops.project_memberships"):
                await db.execute(f"select from {table} where project_id = $1 for update", project)
            await db.execute("select from ops.projects where id = $1 for update", project)
            seen = await outcome(prober, probe.format(own=own, **taken))
        assert (probe, seen) == (probe, await outcome(prober, probe.format(own=own, **nowhere)))


async def test_a_name_is_taken_only_within_ones_own_project(crowd: Crowd) -> None:
    stranger = await crowd.sign_in("stranger")
    own = await stranger.fetchval("select id from ops.projects")
    add = "insert into ops.workflows (project_id, workflow_type, name) values ($1, 'build', 'build')"
    assert await allowed(stranger, add, own)


async def test_a_workflow_of_another_project_looks_like_none_to_its_own_member(crowd: Crowd) -> None:
    """Whether the caller is a member of both projects or of one: a run has a workflow of its own project."""
    elsewhere = await new_project(crowd.world.db, "third")
    foreign = await new_workflow(crowd.world.db, elsewhere)
    owner = await crowd.sign_in("owner")
    for workflow in (foreign, uuid.uuid4()):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="runs_workflow_of_project_fkey"):
            await owner.execute(NEW_RUN, crowd.world.project, workflow)


async def test_a_member_sees_nothing_of_a_project_without_membership(crowd: Crowd) -> None:
    """A member of one project passes the policies, and reads only rows of that project."""
    for who in ("viewer", "developer", "admin", "owner"):
        member = await crowd.sign_in(who)
        for table in ("workflows", "runs", "run_events", "run_artifacts", "run_logs", "project_memberships"):
            projects = await member.fetch(f"select distinct project_id from ops.{table}")
            assert {row["project_id"] for row in projects} == {crowd.world.project}
        assert [row["id"] for row in await member.fetch("select id from ops.projects")] == [crowd.world.project]
        assert await member.fetchval("select count(*) from ops.project_memberships") == 4


async def test_a_member_who_was_removed_sees_nothing_any_more(crowd: Crowd) -> None:
    developer = await crowd.sign_in("developer")
    assert await developer.fetchval("select count(*) from ops.runs") > 0
    await crowd.world.db.execute("delete from ops.project_memberships where user_id = $1", crowd.users["developer"])
    assert await developer.fetchval("select count(*) from ops.runs") == 0
    assert (await call(developer, "cancel_run", crowd.run))["code"] == "not_found"
