"""The history of three small migrations: written, continued, rolled back, and unchanged when one fails."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.support.postgres import Cluster
from worker.database import migrations
from worker.database.connection import connected
from worker.errors import ConfigurationError, DatabaseUnavailable


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


@pytest_asyncio.fixture
async def db(empty_db_url: str, connect: Connect) -> asyncpg.Connection:
    """The superuser's connection to an empty database."""
    return await connect(empty_db_url)


def names(applied: list[migrations.Migration]) -> list[str]:
    return [each.name for each in applied]


async def history(connection: asyncpg.Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(f"select * from {migrations.HISTORY} order by version")]


async def test_the_history_records_each_file_as_one_text(db: asyncpg.Connection, small: Path) -> None:
    await migrations.migrate(db, small)
    assert await history(db) == [
        (version, [f"-- first; of two\ncreate table {name} (id int);\n\ninsert into {name} values (1);"], name)
        for version, name in (("10", "one"), ("20", "two"), ("30", "three"))
    ]
    columns = await db.fetch(
        "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute"
        " where attrelid = 'supabase_migrations.schema_migrations'::regclass and attnum > 0 order by attnum"
    )
    assert [tuple(column) for column in columns] == [
        ("version", "text", True), ("statements", "text[]", False), ("name", "text", False),
    ]  # fmt: skip


async def test_status_writes_nothing(db: asyncpg.Connection, small: Path) -> None:
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
async def test_a_history_of_another_program_is_continued(db: asyncpg.Connection, small: Path, table: str) -> None:
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


async def test_a_version_that_another_migration_took_is_an_error(db: asyncpg.Connection, small: Path) -> None:
    await migrations.migrate(db, small)
    (small / "migrations" / "20_two.sql").rename(small / "migrations" / "20_other.sql")
    for call in (migrations.status, migrations.migrate):
        with pytest.raises(migrations.MigrationError, match="version 20 is taken by another migration, 'two'"):
            await call(db, small)


async def test_rollback_takes_the_newest_or_all_from_a_version_on(db: asyncpg.Connection, small: Path) -> None:
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


async def test_a_rollback_without_its_file_is_refused(db: asyncpg.Connection, small: Path) -> None:
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
    db: asyncpg.Connection, small: Path,
    statement: str, line: int | None, sqlstate: str, message: str,
) -> None:  # fmt: skip
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


async def test_a_rollback_that_fails_leaves_the_migration_applied(db: asyncpg.Connection, small: Path) -> None:
    await migrations.migrate(db, small)
    (small / "rollback" / "30_three.sql").write_text("drop table three;\ndrop table missing;\n")
    with pytest.raises(migrations.MigrationError, match=r"^30_three.sql: .* \(SQLSTATE 42P01\)$"):
        await migrations.rollback(db, directory=small)
    assert await db.fetchval("select count(*) from three") == 1
    assert [row.applied for row in await migrations.status(db, small)] == [True, True, True]


async def test_what_one_file_sets_does_not_reach_the_next(db: asyncpg.Connection, small: Path) -> None:
    (small / "migrations" / "10_one.sql").write_text("create schema other;\nset search_path = other;\n")
    await migrations.migrate(db, small)
    assert await db.fetchval("select to_regclass('public.two')") is not None


async def test_the_role_that_migrations_need_is_named(empty_db_url: str, connect: Connect, small: Path) -> None:
    await (await connect(empty_db_url)).execute("create role an_ordinary_user login")
    db = await connect(empty_db_url, user="an_ordinary_user")
    with pytest.raises(migrations.MigrationError, match=r"permission denied for database .* a superuser or .*42501"):
        await migrations.migrate(db, small)


async def test_no_way_to_the_database_is_one_error(cluster: Cluster, tmp_path: Path) -> None:
    for url, error in (
        (cluster.url("no_such_database"), ConfigurationError),
        (f"postgresql://postgres@/postgres?host={tmp_path}", DatabaseUnavailable),
    ):
        with pytest.raises(error):
            async with connected(url):
                pytest.fail("connected")
