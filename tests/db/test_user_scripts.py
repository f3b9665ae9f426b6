"""``sql/tests``: what users run against their own database, on every supported PostgreSQL."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import new_project, new_workflow
from tests.support.docker import PATIENCE, ROOT
from tests.support.postgres import TESTED, Cluster, Clusters
from tests.support.scripts import environ_of, script

CONCURRENCY = ROOT / "sql" / "tests" / "concurrency.sh"


@pytest.fixture(params=TESTED, ids="pg{}".format)
def url(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[str]:
    """A database with the migrations, on a server of each version."""
    server: Cluster = clusters.get(request.param)
    with server.database(server.template()) as name:
        yield server.url(name)


def lifecycle(url: str) -> subprocess.CompletedProcess[str]:
    command = ["psql", "--no-psqlrc", url, "-f", str(ROOT / "sql" / "tests" / "lifecycle.sql")]
    return subprocess.run(command, env=environ_of(), capture_output=True, text=True, timeout=PATIENCE, check=False)


async def rows(db: asyncpg.Connection) -> list[int]:
    """How many rows each table has."""
    tables = await db.fetch("select tablename from pg_tables where schemaname in ('ops', 'ops_private') order by 1")
    return [
        await db.fetchval(f"select count(*) from {schema}.{table['tablename']}")
        for table in tables
        for schema in ("ops", "ops_private")
        if await db.fetchval("select to_regclass($1)", f"{schema}.{table['tablename']}")
    ]


async def test_the_lifecycle_holds_and_leaves_nothing(url: str, connect: Connect) -> None:
    db = await connect(url)
    before = await rows(db)
    done = lifecycle(url)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 25
    assert all(line.startswith("ok      ") for line in lines)
    assert done.stderr == ""
    assert await rows(db) == before


async def test_the_lifecycle_script_is_red_where_a_rule_is_missing(db: asyncpg.Connection, db_url: str) -> None:
    await db.execute("alter table ops.run_events disable trigger keep_run_events")
    done = lifecycle(db_url)
    assert done.returncode == 3
    assert "not ok: an event cannot be changed: nothing refused it" in done.stderr


async def test_many_clients_at_once(url: str, connect: Connect) -> None:
    db = await connect(url)
    before = await rows(db)
    done = await asyncio.to_thread(script, CONCURRENCY, "--runs=30", "--clients=4", DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("ok      ") for line in lines)
    assert await rows(db) == before


NUMBERS_WITH_GAPS = """
create sequence gaps;
create or replace function ops_private.prepare_run() returns trigger language plpgsql as $$
begin
    new.run_number := 2 * nextval('gaps');
    return new;
end
$$
"""


async def test_the_concurrency_script_is_red_where_numbers_have_gaps(db: asyncpg.Connection, db_url: str) -> None:
    await db.execute(NUMBERS_WITH_GAPS)
    done = await asyncio.to_thread(script, CONCURRENCY, "--runs=8", "--clients=4", DATABASE_URL=db_url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "expected 8 from 1 to 8, found 8 from 2 to 16" in done.stderr
    assert await db.fetchval("select count(*) from ops.projects") == 0


async def test_the_concurrency_script_is_red_where_a_key_admits_two(db: asyncpg.Connection, db_url: str) -> None:
    await db.execute("drop index ops_private.leases_concurrency_idx")
    source = await db.fetchval("select pg_get_functiondef('ops_private.next_run'::regproc)")
    await db.execute(source.replace("where l.lane_id = q.lane_id", "where false"))
    done = await asyncio.to_thread(script, CONCURRENCY, "--runs=8", "--clients=4", DATABASE_URL=db_url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "expected 1, found 4" in done.stderr
    assert len(done.stdout.splitlines()) == 4


async def test_it_refuses_to_start_while_other_runs_are_queued(db: asyncpg.Connection, db_url: str) -> None:
    project = await new_project(db, "acme")
    workflow = await new_workflow(db, project)
    await db.execute(
        "insert into ops.runs (project_id, workflow_id, status) values ($1, $2, 'queued')", project, workflow
    )
    done = await asyncio.to_thread(script, CONCURRENCY, DATABASE_URL=db_url)
    assert (done.returncode, done.stdout) == (5, "")
    assert "other runs are queued (1)" in done.stderr
    assert await db.fetchval("select count(*) from ops.projects") == 1
