"""What roles may execute, and what every function and table is protected by."""

from __future__ import annotations

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.crowd import CATALOGUES
from tests.db.world import World, call
from tests.support.schema import TABLES
from worker.database import catalog

WORKER_FUNCTIONS = {
    "claim_next_run", "start_workflow_run", "complete_workflow_run", "release_run", "append_run_log",
    "append_run_logs", "add_run_artifact", "add_run_event", "record_container", "record_report", "mark_ready",
    "register_worker", "unregister_worker", "heartbeat", "adopt_run", "adoptable_runs", "unclaimable_runs", "reap",
    "register_destinations", "take_deliveries", "settle_delivery",
}  # fmt: skip


async def test_who_executes_what(world: World) -> None:
    rows = await world.db.fetch(
        """select p.proname as name, r.rolname as role
           from pg_proc as p cross join pg_roles as r
           where p.pronamespace = 'ops'::regnamespace
             and r.rolname in ('anon', 'authenticated', 'ops_worker', 'ops_webhook', 'service_role')
             and has_function_privilege(r.oid, p.oid, 'execute')"""
    )
    user = {
        "current_user_id", "current_user_role", "cancel_run", "list_queued_runs", "enqueue_run", "retry_run",
        "search_run_logs", "applicable_advisories", "runs", "run_logs", "pause_project", "resume_project",
        "approve_run", "reject_run", "run_summary", "worker_overview", "project_overview", "run_fingerprints",
        "mark_known", "workflow_overview", "set_webhook_secret", "sync_project", "set_member", "remove_member",
    }  # fmt: skip
    may: dict[str, set[str]] = {
        "anon": set(),
        "authenticated": set(),
        "ops_worker": set(),
        "ops_webhook": set(),
        "service_role": set(),
    }
    for row in rows:
        may[row["role"]].add(row["name"])
    worker = WORKER_FUNCTIONS
    everything = user | worker | {"health", "shut_out_worker", "pause_queue", "resume_queue"}
    webhook = {"receive_push", "receive_webhook"}
    everything |= {"limit_project", "drain_worker", "sync_tools", "find_user", *webhook}
    assert may == {
        "anon": set(), "authenticated": user, "ops_worker": worker, "ops_webhook": webhook,
        "service_role": everything,
    }  # fmt: skip


async def test_broad_grants_let_no_stranger_work(world: World, connect: Connect) -> None:
    """Supabase's recipe for a schema of one's own; `db verify` names each function that it opened."""
    await world.db.execute(
        """grant usage on schema ops to anon, authenticated, service_role;
           grant all on all routines in schema ops to anon, authenticated, service_role"""
    )
    await world.queue()
    calls = await world.db.fetch(
        """select p.proname as name, format('select ops.%I(%s)', p.proname, array_to_string(array(
               select 'null::' || t::regtype from unnest(p.proargtypes) as t), ', ')) as call
           from pg_proc as p where p.pronamespace = 'ops'::regnamespace"""
    )
    workers = [row for row in calls if row["name"] in WORKER_FUNCTIONS | {"shut_out_worker"}]
    for role in ("anon", "authenticated"):
        connection = await connect(role=role)
        for row in workers:
            if row["name"] in ("append_run_log", "add_run_event"):  # what is null is refused before
                assert '"code": "bad_' in await connection.fetchval(row["call"])
                continue
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                await connection.fetchval(row["call"])
    opened = {finding.name.partition("(")[0] for finding in await catalog.verify(world.db)}
    assert opened >= {f"ops.{row['name']}" for row in workers}


async def test_no_function_is_left_to_everybody(world: World) -> None:
    rows = await world.db.fetch(
        """select p.oid::regprocedure::text as name from pg_proc as p, aclexplode(
               coalesce(p.proacl, acldefault('f', p.proowner))) as a
           where p.pronamespace in ('ops'::regnamespace, 'ops_private'::regnamespace) and a.grantee = 0"""
    )
    assert [row["name"] for row in rows] == []


async def test_who_holds_what_on_whole_tables(world: World) -> None:
    """Beside policies, which admit only the roles that they name."""
    rows = await world.db.fetch(
        """select grantee, table_name, privilege_type from information_schema.role_table_grants
           where table_schema = 'ops' and grantee in ('PUBLIC', 'anon', 'authenticated', 'ops_worker')"""
    )
    held: dict[str, set[str]] = {}
    for row in rows:
        held.setdefault(row["grantee"], set()).add(f"{row['privilege_type'].lower()} {row['table_name']}")
    assert held == {
        "authenticated": {f"select {table}" for table in TABLES} | {"delete project_memberships"},
        "ops_worker": {f"select {table}" for table in CATALOGUES},
    }


async def test_which_columns_a_user_may_write(world: World) -> None:
    rows = await world.db.fetch(
        """select table_name, privilege_type, column_name from information_schema.column_privileges
           where table_schema = 'ops' and privilege_type <> 'SELECT'
             and grantee in ('PUBLIC', 'anon', 'authenticated', 'ops_worker')"""
    )
    may: dict[str, set[str]] = {}
    for row in rows:
        may.setdefault(f"{row['privilege_type'].lower()} {row['table_name']}", set()).add(row["column_name"])
    workflow = {"workflow_type", "name", "description", "enabled", "git_ref", "git_commit", "config"}
    assert may == {
        "update projects": {"name", "description", "odoo_version", "status", "config"},
        "insert workflows": {"project_id", *workflow},
        "update workflows": workflow,
        "insert runs": {"project_id", "workflow_id", "status", "metadata"},
        "insert project_memberships": {"project_id", "user_id", "role"},
        "update project_memberships": {"role"},
    }


async def test_who_uses_the_schemas(world: World) -> None:
    rows = await world.db.fetch(
        """select nspname, rolname from pg_namespace cross join pg_roles
           where nspname in ('ops', 'ops_private') and rolname in ('anon', 'authenticated', 'ops_worker')
             and has_schema_privilege(rolname, nspname, 'usage')"""
    )
    assert {tuple(row) for row in rows} == {("ops", "authenticated"), ("ops", "ops_worker")}


async def test_every_function_looks_in_pg_temp_last(world: World) -> None:
    rows = await world.db.fetch(
        """select p.oid::regprocedure::text as name from pg_proc as p
           where p.pronamespace in ('ops'::regnamespace, 'ops_private'::regnamespace)
             and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)"""
    )
    assert [row["name"] for row in rows] == []


async def test_a_planted_type_does_not_run_with_the_owners_rights(world: World, connect: Connect) -> None:
    """With an empty search_path PostgreSQL would look for types in pg_temp first."""
    await world.db.execute("create role ops_host login in role ops_worker")
    host = await connect(user="ops_host")
    await host.execute(
        """create function pg_temp.spy(p_value pg_catalog.text) returns boolean language plpgsql as $$
               begin raise exception 'runs as %', current_user; end $$;
           create domain pg_temp.text as pg_catalog.text check (pg_temp.spy(value))"""
    )
    await world.queue()
    assert (await call(host, "claim_next_run", "w"))["run_id"] is not None


async def test_one_permissive_policy_per_table_action_and_role(world: World) -> None:
    rows = await world.db.fetch(
        """select tablename, role, action, count(*)
           from pg_policies
           cross join unnest(roles) as role
           cross join unnest(
               case cmd when 'ALL' then '{SELECT,INSERT,UPDATE,DELETE}'::text[] else array[cmd] end) as action
           where schemaname = 'ops' group by 1, 2, 3 having count(*) > 1"""
    )
    assert rows == []
    unprotected = await world.db.fetch("select tablename from pg_tables where schemaname = 'ops' and not rowsecurity")
    assert unprotected == []
