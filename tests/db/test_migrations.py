"""Migrations up and down, their history, and the check of the result, on every supported PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Connect
from tests.support import schema
from tests.support.postgres import DEFAULT, MAJORS, NEWEST, TESTED, Cluster, Clusters, normalise_dump, versions
from tests.support.supabase import OWNER, supabase_cluster, supabase_database
from worker.database import catalog, migrations
from worker.database.connection import connected
from worker.errors import ConfigurationError, DatabaseUnavailable

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


@pytest.fixture
def migrated(server: Cluster) -> Iterator[str]:
    """A database there that holds the migrations, by name."""
    with server.database(server.template()) as name:
        yield name


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three small migrations."""
    for kind in ("migrations", "rollback"):
        (tmp_path / kind).mkdir()
    for version, name in (("10", "one"), ("20", "two"), ("30", "three")):
        (tmp_path / "migrations" / f"{version}_{name}.sql").write_text(
            f"-- first; of two\ncreate table {name} (id int);\n\ninsert into {name} values (1);\n"
        )
        (tmp_path / "rollback" / f"{version}_{name}.sql").write_text(f"drop table {name};\n")
    return tmp_path


def names(applied: list[migrations.Migration]) -> list[str]:
    return [each.name for each in applied]


async def history(connection: asyncpg.Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(f"select * from {migrations.HISTORY} order by version")]


# The switch -----------------------------------------------------------------------------------------------


async def test_the_switch_chooses_the_version_of_the_server(db: asyncpg.Connection) -> None:
    assert db.get_server_version().major == DEFAULT
    assert (versions(None), versions(""), versions("15")) == (MAJORS, MAJORS, (15,))
    with pytest.raises(ValueError, match=r"^OPS_TEST_POSTGRES=14: expected one of 15, 16, 17, 18$"):
        versions("14")


# The real migrations, on every version --------------------------------------------------------------------


async def test_migrating_from_nothing_makes_exactly_the_tables_of_the_contract(
    server: Cluster, empty: str, connect: Connect
) -> None:
    db = await connect(server.url(empty))

    applied = await migrations.migrate(db)

    assert applied == migrations.read_migrations()
    tables = await db.fetch("select tablename from pg_tables where schemaname = 'ops' order by 1")
    assert [row["tablename"] for row in tables] == sorted(schema.TABLES)
    assert await catalog.verify(db) == []
    assert await migrations.migrate(db) == []


async def test_down_and_up_again_changes_nothing(server: Cluster, empty: str, connect: Connect) -> None:
    db = await connect(server.url(empty))
    before = server.dump(empty)
    ours = await migrations.migrate(db)
    up = server.dump(empty)

    assert await migrations.rollback(db, ours[0].version) == ours[::-1]
    assert server.dump(empty, "--exclude-schema", "supabase_migrations") == before

    assert await migrations.migrate(db) == ours
    assert server.dump(empty) == up


async def test_each_rollback_takes_back_just_its_migration(
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


async def test_rows_do_not_keep_a_migration_from_being_taken_back(
    server: Cluster, migrated: str, connect: Connect
) -> None:
    db = await connect(server.url(migrated))
    await db.execute(
        """
        with p as (
            insert into ops.projects (workspace_key, slug, name, odoo_version)
            values ('a', 'a', 'A', '19.0') returning id
        ), w as (
            insert into ops.workflows (project_id, workflow_type, name)
            select id, 'build', 'nightly' from p returning id, project_id
        )
        insert into ops.runs (project_id, workflow_id, status) select project_id, id, 'queued' from w
        """
    )
    claimed = await db.fetchval("select ops.claim_next_run('w1') ->> 'run_id'")
    assert claimed is not None

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


async def test_who_waits_for_the_lock_says_for_whom(
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


async def test_a_database_that_looks_like_supabase(server: Cluster, connect: Connect) -> None:
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


AGENT_TABLES = """
create schema ops;
create type ops.agent_state as enum ('new', 'done');
create table ops.runs (
    id bigserial primary key,
    agent text not null unique,
    state ops.agent_state not null default 'new',
    status text,
    created_at timestamptz not null default now()
);
create index runs_status_idx on ops.runs (status);
create table ops.run_logs (
    id uuid primary key default gen_random_uuid(),
    run_id bigint not null references ops.runs (id) on delete cascade,
    line text not null check (line <> '')
);
create index run_logs_run_id_idx on ops.run_logs (run_id);
create view ops.latest as
    select r.agent, l.line from ops.runs as r join ops.run_logs as l on l.run_id = r.id;
create role agent_reader;
grant select on ops.runs, ops.run_logs to agent_reader;
insert into ops.runs (agent, status) select 'agent ' || i, 'ok' from generate_series(1, 50) as i;
insert into ops.run_logs (run_id, line) select 1 + i % 50, 'line ' || i from generate_series(1, 500) as i;
"""


async def test_populated_agent_tables_make_room_and_come_back(server: Cluster, empty: str, connect: Connect) -> None:
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


# History --------------------------------------------------------------------------------------------------


async def test_the_history_is_written_as_the_supabase_cli_writes_it(
    empty_db_url: str, connect: Connect, small: Path
) -> None:
    db = await connect(empty_db_url)

    await migrations.migrate(db, small)

    assert await history(db) == [
        (version, [f"-- first; of two\ncreate table {name} (id int)", f"insert into {name} values (1)"], name)
        for version, name in (("10", "one"), ("20", "two"), ("30", "three"))
    ]
    columns = await db.fetch(
        "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute"
        " where attrelid = 'supabase_migrations.schema_migrations'::regclass and attnum > 0 order by attnum"
    )
    assert [tuple(column) for column in columns] == [
        ("version", "text", True), ("statements", "text[]", False), ("name", "text", False),
    ]  # fmt: skip


async def test_status_writes_nothing(empty_db_url: str, connect: Connect, small: Path) -> None:
    db = await connect(empty_db_url)

    rows = await migrations.status(db, small)

    assert [(row.migration.file, row.applied) for row in rows] == [
        ("10_one.sql", False), ("20_two.sql", False), ("30_three.sql", False),
    ]  # fmt: skip
    assert await db.fetchval("select to_regnamespace('supabase_migrations')") is None


@pytest.mark.parametrize(
    "table",
    [
        "(version text not null primary key)",
        "(version text not null primary key, statements text[], name text)",
        "(version text not null primary key, statements text[], name text, created_by text, rollback text[])",
    ],
    ids=["early", "current", "hosted"],
)
async def test_a_history_begun_by_others_is_continued(
    empty_db_url: str, connect: Connect, small: Path, table: str
) -> None:
    db = await connect(empty_db_url)
    await db.execute(
        f"""
        create schema supabase_migrations;
        create table supabase_migrations.schema_migrations {table};
        insert into supabase_migrations.schema_migrations (version) values ('15'), ('20'), ('20990101000000');
        """
    )

    applied = await migrations.migrate(db, small)  # '20' is there, though without a name

    assert names(applied) == ["one", "three"]
    assert [row.applied for row in await migrations.status(db, small)] == [True, True, True]
    await db.execute("create table two ()")
    assert names(await migrations.rollback(db, "10", small)) == ["three", "two", "one"]
    rows = await db.fetch(f"select version from {migrations.HISTORY} order by 1")
    assert [row["version"] for row in rows] == ["15", "20990101000000"]


async def test_a_version_that_another_migration_took_is_an_error(
    empty_db_url: str, connect: Connect, small: Path
) -> None:
    db = await connect(empty_db_url)
    await migrations.migrate(db, small)
    (small / "migrations" / "20_two.sql").rename(small / "migrations" / "20_other.sql")

    for call in (migrations.status, migrations.migrate):
        with pytest.raises(migrations.MigrationError, match="version 20 is taken by another migration, 'two'"):
            await call(db, small)


async def test_rollback_takes_the_newest_or_all_from_a_version_on(
    empty_db_url: str, connect: Connect, small: Path
) -> None:
    db = await connect(empty_db_url)
    await migrations.migrate(db, small)

    assert names(await migrations.rollback(db, directory=small)) == ["three"]
    assert [row.applied for row in await migrations.status(db, small)] == [True, True, False]
    assert names(await migrations.migrate(db, small)) == ["three"]
    assert names(await migrations.rollback(db, "20", small)) == ["three", "two"]
    assert names(await migrations.rollback(db, "30", small)) == []
    assert names(await migrations.rollback(db, directory=small)) == ["one"]
    assert names(await migrations.rollback(db, directory=small)) == []
    with pytest.raises(migrations.MigrationError, match="VERSION: expected one of 10, 20, 30, got 25"):
        await migrations.rollback(db, "25", small)


async def test_a_rollback_without_its_file_is_refused(empty_db_url: str, connect: Connect, small: Path) -> None:
    db = await connect(empty_db_url)
    await migrations.migrate(db, small)
    (small / "rollback" / "20_two.sql").unlink()

    with pytest.raises(migrations.MigrationError, match=r"20_two\.sql: has no rollback"):
        await migrations.rollback(db, "10", small)

    assert [row.applied for row in await migrations.status(db, small)] == [True, True, False]


@pytest.mark.parametrize(
    ("statement", "line", "sqlstate", "message"),
    [
        ("select\n    1 frm nowhere;", 5, "42601", 'syntax error at or near "nowhere"'),
        ("-- why\n-- it fails\ninsert into missing values (1);", 6, "42P01",
         'relation "missing" does not exist'),
        ("-- why\n\nselect 1 / id from zero;", None, "22012", "division by zero"),
        ("do $$\nbegin\n  raise exception 'no' using hint = 'Try again.', errcode = 'OPS99';\nend $$;", None,
         "OPS99", "no. Try again. PL/pgSQL function inline_code_block line 3 at RAISE"),
        ("create function f() returns int language plpgsql as $$\nbegin\n  retrn 1;\nend $$;", 6, "42601",
         'syntax error at or near "retrn"'),
        ("create index concurrently on zero (id);", None, "25001", "cannot run inside a transaction block"),
    ],
    ids=["syntax", "missing", "runtime", "block", "function", "concurrently"],
)  # fmt: skip
async def test_a_migration_that_fails_leaves_nothing_and_says_where(
    empty_db_url: str, connect: Connect, small: Path,
    statement: str, line: int | None, sqlstate: str, message: str,
) -> None:  # fmt: skip
    db = await connect(empty_db_url)
    (small / "migrations" / "20_two.sql").write_text(
        f"create table zero (id int);\ninsert into zero values (0);\n\n{statement}\n\nselect 1;\n"
    )

    with pytest.raises(migrations.MigrationError) as caught:
        await migrations.migrate(db, small)

    assert (caught.value.file, caught.value.line, caught.value.sqlstate) == ("20_two.sql", line, sqlstate)
    assert str(caught.value).startswith(f"20_two.sql:{line}: " if line else "20_two.sql: ")
    assert message in str(caught.value)
    assert [row.applied for row in await migrations.status(db, small)] == [True, False, False]
    assert await db.fetchval("select to_regclass('zero')") is None
    assert not db.is_in_transaction()


async def test_a_rollback_that_fails_leaves_the_migration_applied(
    empty_db_url: str, connect: Connect, small: Path
) -> None:
    db = await connect(empty_db_url)
    await migrations.migrate(db, small)
    (small / "rollback" / "30_three.sql").write_text("drop table three;\ndrop table missing;\n")

    with pytest.raises(migrations.MigrationError, match=r"^30_three.sql: .* \(SQLSTATE 42P01\)$"):
        await migrations.rollback(db, directory=small)

    assert await db.fetchval("select count(*) from three") == 1
    assert [row.applied for row in await migrations.status(db, small)] == [True, True, True]


async def test_what_one_file_sets_does_not_reach_the_next(empty_db_url: str, connect: Connect, small: Path) -> None:
    db = await connect(empty_db_url)
    (small / "migrations" / "10_one.sql").write_text("create schema other;\nset search_path = other;\n")

    await migrations.migrate(db, small)

    assert await db.fetchval("select to_regclass('public.two')") is not None


async def test_a_role_that_may_not_migrate_is_told_so(empty_db_url: str, connect: Connect, small: Path) -> None:
    await (await connect(empty_db_url)).execute("create role nobody_special login")
    db = await connect(empty_db_url, user="nobody_special")

    with pytest.raises(migrations.MigrationError, match=r"permission denied for database .*42501"):
        await migrations.migrate(db, small)


async def test_no_way_to_the_database_is_one_error(cluster: Cluster, tmp_path: Path) -> None:
    for url, error in (
        (cluster.url("no_such_database"), ConfigurationError),
        (f"postgresql://postgres@/postgres?host={tmp_path}", DatabaseUnavailable),
    ):
        with pytest.raises(error):
            async with connected(url):
                pytest.fail("connected")


# Verify ---------------------------------------------------------------------------------------------------


RENAMED_ARGUMENT = """
drop function ops.heartbeat;
create function ops.heartbeat(p_id text, p_instance_id uuid, p_lease_seconds int default 300) returns jsonb
return null::jsonb;
"""


async def test_verify_on_an_empty_database_names_every_table(empty_db_url: str, connect: Connect) -> None:
    findings = [str(each) for each in await catalog.verify(await connect(empty_db_url))]

    assert {f"missing table ops.{name}" for name in schema.TABLES} <= set(findings)
    assert not [finding for finding in findings if finding.startswith("missing column")]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("drop function ops.heartbeat", "missing function ops.heartbeat(text, uuid, integer)"),
        ("drop policy {policy} on ops.workflows", "missing policy ops.workflows.{policy}"),
        ("drop index ops.{index}", "missing index ops.runs.{index}"),
        ("drop trigger enforce_run_status_transition on ops.runs",
         "missing trigger ops.runs.enforce_run_status_transition"),
        ("drop table ops.tools cascade", "missing table ops.tools"),
        ("alter table ops.projects drop column description", "missing column ops.projects.description"),
        ("alter table ops.projects drop constraint projects_slug_format",
         "missing constraint ops.projects.projects_slug_format"),
        ("alter table ops.projects alter column description type varchar(20)",
         "different column ops.projects.description"),
        ("alter table ops.runs disable trigger enforce_run_status_transition",
         "different trigger ops.runs.enforce_run_status_transition"),
        ("alter table ops.runs disable row level security", "different table ops.runs"),
        ("alter policy {policy} on ops.workflows using (true)", "different policy ops.workflows.{policy}"),
        ("grant execute on function ops.heartbeat to public",
         "different function ops.heartbeat(text, uuid, integer)"),
        ("revoke execute on function ops.heartbeat from ops_worker",
         "different function ops.heartbeat(text, uuid, integer)"),
        ("grant select on ops.runs to anon", "different table ops.runs"),
        (RENAMED_ARGUMENT,
         "different function ops.heartbeat(text, uuid, integer)"),
        ("create or replace function ops.current_user_id() returns uuid return null::uuid",
         "different function ops.current_user_id()"),
        ("drop schema ops cascade", "missing table ops.runs"),
        ("create function ops.claim_next_run(text) returns int return 1",
         "ambiguous function ops.claim_next_run(text)"),
    ],
)  # fmt: skip
async def test_verify_names_what_is_missing_or_different(db: asyncpg.Connection, change: str, finding: str) -> None:
    named = {
        "policy": await db.fetchval(
            "select polname from pg_policy where polrelid = 'ops.workflows'::regclass and polcmd = 'r'"
        ),
        "index": await db.fetchval(
            "select indexrelid::regclass::text from pg_index as i where indrelid = 'ops.runs'::regclass"
            " and not exists (select from pg_constraint as c where c.conindid = i.indexrelid) limit 1"
        ),
    }
    named["index"] = named["index"].removeprefix("ops.")
    await db.execute(change.format(**named))

    findings = await catalog.verify(db)

    assert finding.format(**named) in [str(each).splitlines()[0] for each in findings]


async def test_verify_leaves_what_others_added_alone(db: asyncpg.Connection) -> None:
    await db.execute(
        "create table ops.somebody_elses (id int); create index on ops.runs (exit_code);"
        " create role build_host; grant execute on function ops.heartbeat to build_host"
    )

    assert await catalog.verify(db) == []


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
