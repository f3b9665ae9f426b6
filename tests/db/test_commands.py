"""``ops-worker db …`` as a process: what the commands do and print, and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.db.world import INSTANCE, WORKER, World, call
from tests.support.command import complaints, ops_worker
from tests.support.docker import ROOT
from tests.support.scripts import environ_of
from worker.database import roles

MIGRATIONS = [path.name for path in sorted((ROOT / "sql" / "migrations").glob("*.sql"))]
NEWEST_TABLES = ("ops_private.known_errors", "ops_private.run_fingerprints")
"""Those that the newest migration has made."""

Command = Callable[..., subprocess.CompletedProcess[str]]


def command_on(url: str) -> Command:
    """``ops-worker db ...`` on that database."""
    return lambda *words: ops_worker("db", *words, OPS_WORKER_DATABASE_URL=url)


@pytest.fixture
def on_empty(empty_db_url: str) -> Command:
    """``ops-worker db ...`` on an empty database."""
    return command_on(empty_db_url)


@pytest.fixture
def on_migrated(db_url: str) -> Command:
    """``ops-worker db ...`` on a database that holds all migrations."""
    return command_on(db_url)


def listed(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """The lines that name a migration: the word before it, and its file."""
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rpartition("  ") for line in done.stdout.splitlines() if line.endswith(".sql")]
    return [(word.strip(), file) for word, _, file in lines]


def test_migrate_and_status_list_what_is_pending_and_what_is_applied(on_empty: Command) -> None:
    assert listed(on_empty("status")) == [("pending", file) for file in MIGRATIONS]
    assert listed(on_empty("migrate")) == [("applied", file) for file in MIGRATIONS]
    again = on_empty("migrate")
    assert (listed(again), "nothing to do" in again.stdout) == ([], True)
    assert listed(on_empty("status")) == [("applied", file) for file in MIGRATIONS]


def test_rollback_lists_what_is_rolled_back(on_migrated: Command) -> None:
    versions = [file.partition("_")[0] for file in MIGRATIONS]
    done = on_migrated("rollback", "nonsense", "--yes")
    assert done.returncode == 1
    assert complaints(done) == [f"VERSION: expected one of {', '.join(versions)}"]
    assert listed(on_migrated("rollback", "--yes")) == [("rolled back", MIGRATIONS[-1])]
    down = listed(on_migrated("rollback", versions[1], "--yes"))
    assert down == [("rolled back", file) for file in reversed(MIGRATIONS[1:-1])]
    expected = [("applied", MIGRATIONS[0]), *(("pending", file) for file in MIGRATIONS[1:])]
    assert listed(on_migrated("status")) == expected
    on_migrated("rollback", "--yes")
    assert "nothing to do" in on_migrated("rollback").stdout


async def test_rollback_counts_the_lost_rows_and_needs_yes(world: World, on_migrated: Command) -> None:
    rollback = ("rollback", MIGRATIONS[1].partition("_")[0])
    await world.queue()
    await call(world.db, "register_worker", WORKER, INSTANCE)
    done = on_migrated(*rollback, "--yes")
    assert done.returncode == 1
    assert complaints(done)[0].startswith(f"db rollback: these workers live: {WORKER}. Stop them first")
    await call(world.db, "unregister_worker", WORKER, INSTANCE)

    done = on_migrated(*rollback)
    assert done.returncode == 2
    (line,) = complaints(done)
    assert line.startswith("--yes: required")
    assert "ops.runs (1 row)" in line
    assert await world.db.fetchval("select count(*) from ops.runs") == 1

    for _ in range(2):
        await world.queue()

    done = on_migrated(*rollback, "--yes")
    assert done.returncode == 0
    lost = re.findall(r"^lost  (\S+), \d+ rows?$", done.stdout, re.MULTILINE)
    assert {"ops.runs", "ops.run_logs", "ops_private.leases", "ops_private.run_requests"} < set(lost)
    assert await world.db.fetchval("select count(*) from pg_tables where schemaname ~ '^ops'") == 0
    assert {"lost  ops.runs, 3 rows", "lost  ops.workflows, 1 row"} < set(done.stdout.splitlines())


@pytest.mark.parametrize(("answer", "status"), [("y", 1), ("\x04", 1), ("yes", 0)])
def test_rollback_asks_on_a_terminal(db_url: str, answer: str, status: int) -> None:
    ours, its = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "worker", "db", "rollback"], cwd=ROOT, stdin=its, capture_output=True, text=True,
        env=environ_of(OPS_WORKER_DATABASE_URL=db_url), timeout=60, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(its)
    assert done.returncode == status, done.stderr
    assert "This drops 2 empty tables. Type yes to go on: " in done.stdout
    assert ("rolled back  " in done.stdout) == (status == 0)


async def test_the_role_of_a_worker_is_refused_and_the_role_that_is_needed_is_named(
    db: asyncpg.Connection, db_url: str, tmp_path: Path
) -> None:
    await roles.create_worker(db, "build_host", "a-long-password")
    url = roles.login_url(db_url, "postgres", "build_host", "a-long-password")
    environ = {"OPS_WORKER_DATABASE_URL": url, "OPS_WORKER_ARTIFACT_STORE": (tmp_path / "store").as_uri()}
    for argv in ("prune --dry-run", "prune", "db status", "db rollback --yes", "db migrate"):
        done = ops_worker(*argv.split(), **environ)
        assert (argv, done.returncode) == (argv, 1), done.stderr
        (line,) = complaints(done)
        assert "permission denied" in line
        prune = "The role build_host may not do this: prune needs the URL of service_role"
        assert (prune if argv.startswith("prune") else "It needs the role that owns the schema ops") in line
    assert ops_worker("db", "verify", **environ).returncode == 0


def test_prune_without_the_schema_names_db_migrate(empty_db_url: str, tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    done = ops_worker("prune", OPS_WORKER_DATABASE_URL=empty_db_url, OPS_WORKER_ARTIFACT_STORE=store)
    assert done.returncode == 1
    assert complaints(done)[0].endswith("Run `ops-worker db migrate` on this database first")


async def test_json_of_the_schema_s_commands(on_empty: Command, on_migrated: Command) -> None:
    named = [
        dict(zip(("version", "name"), file.removesuffix(".sql").split("_", 1), strict=True)) for file in MIGRATIONS
    ]
    assert json.loads(on_empty("status", "--json").stdout) == [{**it, "applied": False} for it in named]
    assert json.loads(on_empty("migrate", "--json").stdout) == named
    done = on_migrated("verify", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    done = on_migrated("rollback", "--json")
    assert (done.returncode, complaints(done)) == (2, ["--yes: required with --json"])
    done = on_migrated("rollback", "--json", "--yes")
    assert json.loads(done.stdout) == {"rolled_back": named[-1:], "lost": dict.fromkeys(NEWEST_TABLES, 0)}
    done = on_migrated("create-worker", "build1", "--json")
    assert json.loads(done.stdout)["database_url"].startswith("postgresql://build1:")


async def test_verify_names_what_is_missing(db: asyncpg.Connection, on_migrated: Command, on_empty: Command) -> None:
    done = on_migrated("verify")
    assert (done.returncode, done.stderr, "complete" in done.stdout) == (0, "", True)
    await db.execute("drop function ops.list_queued_runs")
    done = on_migrated("verify")
    assert (done.returncode, done.stdout) == (1, "1 problem\n")
    assert "missing function ops.list_queued_runs(bigint)" in done.stderr
    done = on_empty("verify")
    assert (done.returncode, "missing table ops.runs\n" in done.stderr) == (1, True)
