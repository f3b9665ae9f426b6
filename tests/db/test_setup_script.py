"""``setup_ops_schema.sh``: it applies the migrations, shares their history with ``db migrate``, verifies the schema."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import asyncpg

from tests.conftest import Connect
from tests.support import npm
from tests.support.docker import ROOT
from tests.support.postgres import Cluster, client_binaries
from tests.support.scripts import SCRIPTS, error, script
from tests.support.supabase import OWNER, supabase_cluster, supabase_database
from worker.database import catalog, migrations

FILES = [path.name for path in sorted((ROOT / "sql" / "migrations").glob("*.sql"))]
SETUP = SCRIPTS / "setup_ops_schema.sh"


async def test_psql_alone_makes_the_schema_of_migrate(
    cluster: Cluster, db_url: str, empty_db_url: str, connect: Connect
) -> None:
    done = script(SETUP, DATABASE_URL=empty_db_url)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^applied +(\S+)$", done.stdout, re.MULTILINE) == FILES
    assert "verified" in done.stdout

    db = await connect(empty_db_url)
    database = await db.fetchval("select current_database()")
    assert cluster.dump(database) == cluster.dump(cluster.template())
    assert await catalog.verify(db) == []
    assert await migrations.migrate(db) == []
    rows = await db.fetch(f"select version || '_' || name || '.sql' as file, statements from {migrations.HISTORY}")
    assert {row["file"]: row["statements"] for row in rows} == {
        name: [(ROOT / "sql" / "migrations" / name).read_text().rstrip("\n")] for name in FILES
    }

    again = script(SETUP, DATABASE_URL=empty_db_url)
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "0 applied")


async def test_it_and_migrate_each_continue_where_the_other_stopped(empty_db_url: str, connect: Connect) -> None:
    db = await connect(empty_db_url)
    ours = await migrations.migrate(db)
    await migrations.rollback(db, ours[2].version)
    done = script(SETUP, DATABASE_URL=empty_db_url)
    assert (done.returncode, done.stdout.splitlines()[:-1]) == (
        0, [*(f"applied  {name}" for name in FILES[2:]), f"{len(FILES) - 2} applied"],
    )  # fmt: skip
    assert await migrations.rollback(db, ours[0].version) == ours[::-1]
    assert await migrations.migrate(db) == ours


async def test_supabase_s_owner_sets_it_up_though_it_is_no_superuser(connect: Connect) -> None:
    with supabase_cluster(15) as supabase, supabase_database(supabase) as name:
        url = supabase.url(name, user=OWNER)
        done = script(SETUP, SUPABASE_URL=url)
        assert done.returncode == 0, done.stderr
        db = await connect(url)
        assert await catalog.verify(db) == []
        db.terminate()


async def test_four_at_once_apply_each_migration_once(empty_db_url: str, connect: Connect) -> None:
    done = await asyncio.gather(*(asyncio.to_thread(script, SETUP, DATABASE_URL=empty_db_url) for _ in range(4)))
    assert [each.returncode for each in done] == [0] * 4, [each.stderr for each in done]
    assert await catalog.verify(await connect(empty_db_url)) == []


async def test_a_migration_that_fails_leaves_nothing_and_is_named(empty_db_url: str, connect: Connect) -> None:
    db = await connect(empty_db_url)
    await db.execute("create schema ops_private; create table ops_private.leases (id int)")
    done = script(SETUP, DATABASE_URL=empty_db_url)
    assert done.returncode == 6
    assert done.stdout.splitlines() == [f"applied  {FILES[0]}"]
    assert done.stderr.splitlines() == [
        'setup_ops_schema.sh: database: relation "leases" already exists',
        f"setup_ops_schema.sh: {FILES[1]} was not applied; those before it stay",
    ]
    assert await db.fetchval("select to_regclass('ops.projects')") is None
    assert await db.fetchval(f"select count(*) from {migrations.HISTORY}") == 1


async def test_a_version_of_another_program_is_refused(empty_db_url: str, connect: Connect) -> None:
    db = await connect(empty_db_url)
    await db.execute(
        f"""
        create schema supabase_migrations;
        create table {migrations.HISTORY} (version text not null primary key, name text);
        insert into {migrations.HISTORY} values ('{FILES[0].partition("_")[0]}', 'other');
        """
    )
    done = script(SETUP, DATABASE_URL=empty_db_url)
    assert done.returncode == 5
    assert "the history has another migration" in error(done)


async def test_verify_only_changes_nothing_and_names_what_is_missing_different_or_ambiguous(
    db: asyncpg.Connection, db_url: str, empty_db_url: str, cluster: Cluster
) -> None:
    done = script(SETUP, "--verify-only", DATABASE_URL=empty_db_url)
    assert done.returncode == 1
    assert "schema ops" in done.stderr.splitlines()
    assert len(done.stderr.splitlines()) <= 25
    empty = cluster.dump(empty_db_url.partition("@/")[2].partition("?")[0])
    assert "ops" not in empty

    await db.execute("create function ops.cancel_run(uuid) returns int return 1")
    done = script(SETUP, "--verify-only", DATABASE_URL=db_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:-1] == ["function ops.cancel_run(uuid)"]

    await db.execute("drop function ops.cancel_run(uuid)")
    await db.execute("drop function ops.reap; grant delete on ops.runs to authenticated")
    done = script(SETUP, "--verify-only", DATABASE_URL=db_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:-1] == ["function ops.reap()", "table ops.runs"]
    assert await db.fetchval("select to_regproc('ops.reap')") is None


async def test_the_checkout_s_folder_may_have_a_space_in_its_name(empty_db_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "a check out"
    shutil.copytree(SCRIPTS, copy / "scripts" / "odooops")
    shutil.copytree(ROOT / "sql", copy / "sql")
    done = script(copy / "scripts" / "odooops" / "setup_ops_schema.sh", cwd=tmp_path, DATABASE_URL=empty_db_url)
    assert done.returncode == 0, done.stderr


async def test_the_supabase_cli_pushes_the_migrations_beside_the_project_s_own(
    tcp_cluster: Cluster, connect: Connect, tmp_path: Path
) -> None:
    supabase_path = f"{npm.install(npm.TOOLS)}/.bin:{client_binaries()}:{npm.environment()['PATH']}"
    own = tmp_path / "supabase" / "migrations"
    own.mkdir(parents=True)
    (tmp_path / "supabase" / "config.toml").touch()
    (own / "20260101000000_own.sql").write_text("create table public.own (id int);\n")
    with tcp_cluster.database() as name:
        url = tcp_cluster.url(name, host="127.0.0.1")
        done = script(SETUP, "--cli", "--workdir", str(tmp_path), DATABASE_URL=url, PATH=supabase_path)
        assert done.returncode == 0, done.stderr
        assert re.search(r"^verified \d+ objects$", done.stdout, re.MULTILINE)
        assert tcp_cluster.password not in done.stdout + done.stderr
        db = await connect(url)
        assert await db.fetchval("select to_regclass('public.own')") == "own"
        assert await migrations.migrate(db) == []
        again = script(SETUP, DATABASE_URL=url)
        assert (again.returncode, again.stdout.splitlines()[0]) == (0, "0 applied")
        db.terminate()
    with tcp_cluster.database() as name:
        url = tcp_cluster.url(name, host="127.0.0.1")
        done = script(SETUP, "--cli", DATABASE_URL=url, PATH=supabase_path)
        assert done.returncode == 0, done.stderr


def test_a_missing_cli_is_one_line(empty_db_url: str) -> None:
    path = f"{client_binaries()}:/usr/bin:/bin"
    done = script(SETUP, "--cli", DATABASE_URL=empty_db_url, PATH=path)
    assert done.returncode == 2
    assert "supabase is not installed" in error(done)
