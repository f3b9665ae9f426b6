"""Migrations up and down, their history, and the check of the result, on every supported PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import AGENT_TABLES, new_project, new_workflow
from tests.support import schema
from tests.support.postgres import DEFAULT, MAJORS, NEWEST, TESTED, Cluster, Clusters, normalise_dump, versions
from tests.support.supabase import OWNER, supabase_cluster, supabase_database
from worker.database import catalog, migrations
from worker.database.connection import connected

pytestmark = pytest.mark.xdist_group("migrations")  # one process starts the servers


@pytest.fixture(params=TESTED, ids="pg{}".format)
def server(request: pytest.FixtureRequest, clusters: Clusters) -> Cluster:
    """A server of each supported version."""
    return clusters.get(request.param)


@pytest.fixture
def empty(server: Cluster) -> Iterator[str]:
    """An empty database there, by name."""
    with server.database() as name:
        yield name


# The switch -----------------------------------------------------------------------------------------------


async def test_the_switch_chooses_the_version_of_the_server(db: asyncpg.Connection) -> None:
    assert db.get_server_version().major == DEFAULT
    assert (versions(None), versions(""), versions("15")) == (MAJORS, MAJORS, (15,))
    with pytest.raises(ValueError, match=r"^OPS_TEST_POSTGRES=14: expected one of 15, 16, 17, 18$"):
        versions("14")


# The real migrations, on every version --------------------------------------------------------------------


async def test_up_makes_the_tables_of_the_contract_and_down_and_up_again_changes_nothing(
    server: Cluster, empty: str, connect: Connect
) -> None:
    db = await connect(server.url(empty))
    before = server.dump(empty)
    ours = await migrations.migrate(db)
    assert ours == migrations.read_migrations()
    tables = await db.fetch("select tablename from pg_tables where schemaname = 'ops' order by 1")
    assert [row["tablename"] for row in tables] == sorted(schema.TABLES)
    assert await catalog.verify(db) == []
    assert await migrations.migrate(db) == []
    up = server.dump(empty)

    assert await migrations.rollback(db, ours[0].version) == ours[::-1]
    assert server.dump(empty, "--exclude-schema", "supabase_migrations") == before
    assert await migrations.migrate(db) == ours
    assert server.dump(empty) == up


async def test_each_rollback_undoes_exactly_its_migration(
    server: Cluster, empty: str, connect: Connect, tmp_path: Path
) -> None:
    db = await connect(server.url(empty))
    (tmp_path / "migrations").mkdir()
    dumps = []
    for migration in migrations.read_migrations():
        dumps.append(server.dump(empty, "--exclude-schema", "supabase_migrations"))
        (tmp_path / "migrations" / migration.file).write_text(migration.up)
        assert await migrations.migrate(db, tmp_path) == [
            migrations.Migration(migration.version, migration.name, tmp_path)
        ]

    for migration in reversed(migrations.read_migrations()):
        assert await migrations.rollback(db) == [migration]
        assert server.dump(empty, "--exclude-schema", "supabase_migrations") == dumps.pop(), migration.file


async def test_migrations_with_rows_are_rolled_back(server: Cluster, connect: Connect) -> None:
    with server.database(server.template()) as name:
        db = await connect(server.url(name))
        await new_workflow(db, await new_project(db, "acme"))
        await db.execute("insert into ops.runs (project_id, workflow_id) select project_id, id from ops.workflows")
        assert await db.fetchval("select ops.claim_next_run('w1') ->> 'run_id'") is not None
        for migration in reversed(migrations.read_migrations()):
            assert await migrations.rollback(db) == [migration]
        assert await migrations.migrate(db) == migrations.read_migrations()
        assert await catalog.verify(db) == []


async def test_twenty_at_once_do_each_step_once(server: Cluster, empty: str) -> None:
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(server.url(empty))) for _ in range(20)]
        results = await asyncio.gather(*(migrations.migrate(connection) for connection in connections))
        applied = [migration.version for result in results for migration in result]
        assert sorted(applied) == [each.version for each in migrations.read_migrations()]
        assert await catalog.verify(connections[0]) == []

        results = await asyncio.gather(*(migrations.rollback(connection) for connection in connections))
        assert sum(map(len, results)) == len({each.version for result in results for each in result})


async def test_a_wait_for_the_lock_names_its_holder(
    server: Cluster, empty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connected(server.url(empty)) as holder, connected(server.url(empty)) as waiting:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("select pg_advisory_xact_lock(hashtextextended('ops-worker migrations', 0))")
        migrating = asyncio.create_task(migrations.migrate(waiting))
        said = ""
        async with asyncio.timeout(30):
            while "waiting" not in said:
                await asyncio.sleep(0.05)
                said += capsys.readouterr().err
        assert said == (
            "waiting for the lock on the migrations of this database, "
            f"held by postgres, process {holder.get_server_pid()}\n"
        )
        await transaction.rollback()
        assert await migrating == migrations.read_migrations()


async def test_supabase_s_owner_migrates_and_rolls_back(server: Cluster, connect: Connect) -> None:
    with supabase_cluster(server.major) as supabase, supabase_database(supabase) as name:
        before = supabase.dump(name)
        db = await connect(supabase.url(name, user=OWNER))
        assert not await db.fetchval("select usesuper from pg_user where usename = current_user")

        ours = await migrations.migrate(db)

        assert ours == migrations.read_migrations()
        assert await catalog.verify(db) == []
        key = await db.fetchval(
            "select pg_get_constraintdef(oid) from pg_constraint"
            " where conrelid = 'ops.project_memberships'::regclass and confrelid = 'auth.users'::regclass"
        )
        assert key == "FOREIGN KEY (user_id) REFERENCES auth.users(id) ON DELETE CASCADE"
        published = await db.fetch(
            "select tablename from pg_publication_tables where pubname = 'supabase_realtime' order by 1"
        )
        assert [row["tablename"] for row in published] == ["run_events", "runs"]

        assert await migrations.rollback(db, ours[0].version) == ours[::-1]
        assert supabase.dump(name, "--exclude-schema", "supabase_migrations") == before
        assert await migrations.migrate(db) == ours
        db.terminate()


async def test_populated_agent_tables_are_renamed_and_renamed_back(
    server: Cluster, empty: str, connect: Connect
) -> None:
    db = await connect(server.url(empty))
    await db.execute(AGENT_TABLES)
    runs, logs = await db.fetch("table ops.runs"), await db.fetch("table ops.run_logs")
    before = server.dump(empty)

    ours = await migrations.migrate(db)

    for view in ("ops.agent_runs", "ops.agent_runs_v"):
        assert await db.fetch(f"table {view}") == runs
    for view in ("ops.agent_run_logs", "ops.agent_run_logs_v"):
        assert await db.fetch(f"table {view}") == logs
    assert await db.fetchval("select count(*) from ops.latest") == 500
    assert await db.fetchval("insert into ops.agent_runs (agent) values ('late') returning id") == 51
    assert await db.fetchval("select count(*) from ops.runs") == 0
    tables = await db.fetch("select tablename from pg_tables where schemaname = 'ops'")
    assert {row["tablename"] for row in tables} == {*schema.TABLES, "agent_runs", "agent_run_logs"}
    assert await catalog.verify(db) == []

    dump = server.dump(empty)
    await db.execute(ours[0].up)
    assert server.dump(empty) == dump
    assert await db.fetchval("select count(*) from ops.agent_runs") == 51

    await migrations.rollback(db, ours[0].version)
    assert server.dump(empty, "--exclude-schema", "supabase_migrations") == before
    assert await db.fetch("select * from ops.runs where agent <> 'late'") == runs
    assert await db.fetch("table ops.run_logs") == logs


# Expected results -----------------------------------------------------------------------------------------


def test_the_expected_catalogue_is_what_the_migrations_make(cluster: Cluster) -> None:
    assert schema.CATALOG.read_text() == schema.current_catalog(cluster), "run `make schema` and review the diff"


def test_the_schema_dump_is_what_the_migrations_make(clusters: Clusters) -> None:
    assert schema.DUMP.read_text() == schema.current_dump(clusters.get(NEWEST)), "run `make schema` and review the diff"


def test_a_dump_is_free_of_what_changes_from_call_to_call() -> None:
    dump = (
        "--\n-- Dumped by\n--\n\n\\restrict Ab1\n\nSET a = b;\n\n\n"
        "create table t (\n    id int\n);\n\n\n\\unrestrict Ab1\n"
    )

    assert normalise_dump(dump) == "create table t (\n    id int\n);\n"
