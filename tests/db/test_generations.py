"""Databases with an older schema ``ops``: our migrations make room there, and their rollback restores what was there.

``generations/`` has one file for each schema that the users' database had, with rows, and ``odd.sql``, which has our
names in every other kind of object.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Connect
from tests.support import schema
from tests.support.postgres import Cluster
from tests.support.scripts import environ_of, script
from tests.support.supabase import OWNER, Cli, supabase_cluster, supabase_database
from worker.database import catalog, migrations

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("generations")]

FILES = Path(__file__).with_name("generations")
OLD = {
    "a0": ["a0"],
    "a0-renamed": ["a0", "a0_renamed"],
    "b": ["b"],
    "c": ["c"],
    "a0-renamed-and-c": ["a0", "a0_renamed", "c"],
    "u": ["u"],
    "guide": ["guide"],
    "odd": ["odd"],
}
NEW_NAMES = {
    "a0": {"runs": "agent_runs", "run_events": "agent_events", "artifacts": "agent_artifacts"},
    "b": {"projects": "old_projects"},
    "c": {"projects": "old_projects", "runs": "old_runs", "run_events": "old_run_events"},
    "a0-renamed-and-c": {"projects": "old_projects", "runs": "old_runs", "run_events": "old_run_events"},
    "u": {"runs": "old_runs", "run_events": "old_run_events"},
    "guide": {name: f"old_{name}" for name in schema.TABLES},
    "odd": {
        "projects": "old_projects_2", "workflows": "old_workflows", "runs": "old_runs", "tools": "old_tools",
        "run_logs": "old_run_logs", "project_memberships": "old_project_memberships", "runs_next": "old_runs_next",
    },
}  # fmt: skip
"""Tables, views and sequences; the user's own rename leaves nothing to do."""
CALLS = {
    "a0": {
        "select ops.start_run('me', 'odoo', 'main', 'pack')": "select count(*) = 41 from ops.agent_runs_v",
        "select ops.log_event(id, 'info', 'x') from ops.agent_runs limit 1":
            "select count(*) = 202 from ops.agent_events",
        "select ops.add_artifact(id, 'x', 'y') from ops.agent_runs limit 1":
            "select count(*) = 41 from ops.agent_artifacts",
        "select (ops.complete_run(id, '1')).id from ops.agent_runs where actor = 'me'":
            "select output = '1' from ops.agent_runs where actor = 'me'",
        "select public.give_up(id) from ops.agent_runs where actor = 'me'":
            "select status = 'cancelled' from ops.agent_runs where actor = 'me'",
        "update ops.agent_runs set status = 'queued' where actor = 'me'": "select count(*) = 1 from ops.claim_run('w')",
    },
    "a0-renamed": {
        "select ops.start_run('me', 'odoo', 'main', 'pack')": "select count(*) = 41 from ops.agent_runs",
        "select ops.start_agent_run('me', 'odoo')": "select count(*) = 42 from ops.agent_runs",
        "select ops.log_event(id, 'info', 'x') from ops.agent_runs limit 1":
            "select count(*) = 202 from ops.agent_events",
    },
    "b": {
        "update ops.old_projects set status = 'archived' where slug = 'shop-1'":
            "select count(*) = 19 from ops.list_projects()",
        "select 1": "select sum(branches) = 20 from ops.project_metrics",
        "select 2": "select count(*) = 1 from ops.project_branches((select id from ops.list_projects() limit 1))",
    },
    "c": {
        "select ops.queue_run('shop-1', 'dev', 'abc', 'main')": "select count = 1 from ops.queue_depth",
        "select ops.claim_next_run('w')": "select count(*) = 1 from ops.old_claim_next_run('w')",
        "select ops.append_event('run-shop-1-dev1', 'info', 'x')": "select count(*) = 51 from ops.old_run_events",
        "select ops.finish_run('run-shop-1-dev1', 'failed')": "select count(*) = 6 from public.list_runs('shop-1')",
        "select 1": "select count(*) = 10 from public.list_projects()",
    },
    "guide": {
        "select ops.claim_next_run('w')": "select ops.old_claim_next_run('w') ->> 'run_id' is not null",
        "select 1": "select count(*) = 3 from ops.old_list_queued_runs()",
        "select 2": "select count(*) = 1 from ops.old_run_events",
    },
    "u": {"insert into ops.old_runs default values": "select count(*) = 21 from ops.agent_runs"},
    "odd": {
        "call ops.old_reap()": "select count(*) = 3 from ops.old_projects_2",
        "insert into ops.others (runs) values (2)": "select max(number) = 2 from ops.others",
        "refresh materialized view ops.old_tools": "select count(*) = 3 from ops.old_tools",
        "select 1": "select count(*) = 2 from ops.old_list_queued_runs()",
    },
}  # fmt: skip
"""What still works, and what it must have done to the old tables."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Cluster]]:
    """A server with Supabase's roles for each way to migrate, of different versions."""
    with ExitStack() as stack:
        yield {
            way: stack.enter_context(supabase_cluster(major, listen="127.0.0.1"))
            for way, major in (("migrate", 18), ("psql", 15), ("cli", 17))
        }


async def fill(url: str, connect: Connect, generation: str) -> asyncpg.Connection:
    db = await connect(url, user=OWNER)
    for name in OLD[generation]:
        text = (FILES / f"{name}.sql").read_text()
        schema_is_there = await db.fetchval("select to_regnamespace('ops') is not null")
        await db.execute(text.replace("create schema ops;", "") if schema_is_there else text)
    return db


async def up(way: str, db: asyncpg.Connection, url: str, folder: Path) -> None:
    if way == "migrate":
        assert await migrations.migrate(db) == migrations.read_migrations()
    elif way == "psql":
        done = await asyncio.to_thread(script, "setup_ops_schema.sh", DATABASE_URL=url)
        assert done.returncode == 0, done.stderr
    else:
        cli = Cli.project(folder, url, schema.ROOT / "sql" / "migrations")
        done = await asyncio.to_thread(cli, "db", "push")
        assert done.returncode == 0, done.stderr


async def down(way: str, db: asyncpg.Connection, url: str) -> None:
    ours = migrations.read_migrations()[::-1]
    if way != "psql":
        assert await migrations.rollback(db, ours[-1].version) == ours
        return
    for migration in ours:
        done = await asyncio.to_thread(psql, url, schema.ROOT / "sql" / "rollback" / migration.file)
        assert done.returncode == 0, done.stderr


def psql(url: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = ["psql", url, "-qv", "ON_ERROR_STOP=1", "-1", "-f", str(file)]
    return subprocess.run(command, env=environ_of(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("generation", [name for name in OLD if name != "odd"])
@pytest.mark.parametrize("way", ["psql", "cli"])
async def test_every_way_up_makes_room_and_the_way_down_restores_all(
    servers: dict[str, Cluster], connect: Connect, tmp_path: Path, generation: str, way: str
) -> None:
    with supabase_database(servers[way]) as name:
        url = servers[way].url(name, user=OWNER, host="127.0.0.1")
        db = await fill(url, connect, generation)
        before = servers[way].dump(name, "--exclude-schema", "supabase_migrations", rows=True)

        await up(way, db, url, tmp_path)

        assert await catalog.verify(db) == []
        await down(way, db, url)
        assert servers[way].dump(name, "--exclude-schema", "supabase_migrations", rows=True) == before
        db.terminate()


@pytest.mark.parametrize("generation", OLD)
async def test_old_tables_and_functions_go_on_under_their_new_names(
    servers: dict[str, Cluster], connect: Connect, tmp_path: Path, generation: str
) -> None:
    server = servers["migrate"]
    with supabase_database(server) as name:
        url = server.url(name, user=OWNER, host="127.0.0.1")
        db = await fill(url, connect, generation)
        before = server.dump(name, "--exclude-schema", "supabase_migrations", rows=True)
        await up("migrate", db, url, tmp_path)
        await down("migrate", db, url)
        assert server.dump(name, "--exclude-schema", "supabase_migrations", rows=True) == before

        await up("migrate", db, url, tmp_path)

        assert await catalog.verify(db) == []
        renamed = await db.fetch(
            "select former, name from ops_private.renamed where kind in ('relation', 'sequence') and former !~ '_seq$'"
        )
        assert {row["former"]: row["name"] for row in renamed} == NEW_NAMES.get(generation, {})
        for call, check in CALLS.get(generation, {}).items():
            await db.execute(call)
            assert await db.fetchval(check), call
        assert await db.fetchval("select count(*) from ops.runs") == 0
        assert await db.fetchval("select ops.claim_next_run('w') ->> 'run_id'") is None
        db.terminate()


@pytest.mark.parametrize(
    ("options", "body", "names"),
    [
        ("language sql set search_path = ops, public", "select count(*) from Runs", "runs"),
        ("language plpgsql set search_path = ops", "declare r runs%rowtype; begin return 1; end", "runs"),
        ("language sql set search_path = ops", "select claim_next_run('w')", "claim_next_run"),
        ("language sql", "select max(runs.id) from ops.runs", "runs"),
        ("language plpgsql", "begin return (select count(*) from agents join runs using (id)); end", "runs"),
    ],
    ids=["table", "row type", "function", "short for a qualified name", "search path of the database"],
)
async def test_a_function_whose_names_are_not_clear_is_refused_by_name(
    empty_db_url: str, connect: Connect, options: str, body: str, names: str
) -> None:
    db = await connect(empty_db_url)
    await db.execute(
        "create schema ops; create table ops.runs (id int); create table public.agents (id int);"
        "create function ops.claim_next_run(text) returns bigint return 1;"
        "set check_function_bodies = off;"
        f"create function public.f() returns bigint {options} as $$ {body} $$;"
        "create function public.clear() returns bigint language sql set search_path = ops as"
        " $$ select count(runs.id) from ops.runs as runs $$;"
    )
    if "search_path" not in options and "ops" not in body:
        await db.execute(f"alter database {await db.fetchval('select current_database()')} set search_path = ops")

    with pytest.raises(
        migrations.MigrationError, match=rf"without its schema: public\.f\(\) names {names}\. Write ops\."
    ):
        await migrations.migrate(db)

    assert await db.fetchval("select to_regclass('ops.runs') is not null and to_regnamespace('ops_private') is null")
    await db.execute("drop function public.f()")
    assert await migrations.migrate(db) == migrations.read_migrations()


def test_the_first_migration_knows_all_names_of_ours() -> None:
    first = migrations.read_migrations()[0].up
    listed = re.findall(r"v_(?:tables|functions) constant text\[\] := ('.*?');", first, re.DOTALL)
    expected = catalog.parse(schema.CATALOG.read_text())
    functions = {key.name.partition("(")[0] for key in expected if key.kind == "function"}
    assert [set(re.findall(r"[a-z_]+", names)) for names in listed] == [
        set(schema.TABLES), {name.removeprefix("ops.") for name in functions if name.startswith("ops.")},
    ]  # fmt: skip
