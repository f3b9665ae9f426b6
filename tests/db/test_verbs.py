"""``ops-worker db …`` as a process: what the verbs do and say, and their exit codes."""

from __future__ import annotations

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


@pytest.fixture
def db_verb(empty_db_url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``ops-worker db ...`` on an empty database."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return ops_worker("db", *words, OPS_WORKER_DATABASE_URL=empty_db_url)

    return call


Verb = Callable[..., subprocess.CompletedProcess[str]]


def listed(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """The lines of the answer that name a migration: what is said of it, and its file."""
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rpartition("  ") for line in done.stdout.splitlines() if line.endswith(".sql")]
    return [(word.strip(), file) for word, _, file in lines]


def test_migrate_says_what_it_applied_and_the_second_time_that_there_is_nothing_to_do(db_verb: Verb) -> None:
    assert listed(db_verb("migrate")) == [("applied", file) for file in MIGRATIONS]
    again = db_verb("migrate")
    assert listed(again) == []
    assert "nothing to do" in again.stdout


def test_status_lists_what_is_pending_and_what_is_applied(db_verb: Verb) -> None:
    assert listed(db_verb("status")) == [("pending", file) for file in MIGRATIONS]
    db_verb("migrate")
    assert listed(db_verb("status")) == [("applied", file) for file in MIGRATIONS]


def test_rollback_takes_back_the_last_one_or_down_to_a_version(db_verb: Verb) -> None:
    db_verb("migrate")
    assert listed(db_verb("rollback", "--yes")) == [("rolled back", MIGRATIONS[-1])]
    second = MIGRATIONS[1].partition("_")[0]
    assert listed(db_verb("rollback", second, "--yes")) == [
        ("rolled back", file) for file in reversed(MIGRATIONS[1:-1])
    ]
    expected = [("applied", MIGRATIONS[0]), *(("pending", file) for file in MIGRATIONS[1:])]
    assert listed(db_verb("status")) == expected
    db_verb("rollback", "--yes")
    assert "nothing to do" in db_verb("rollback").stdout


@pytest.mark.parametrize(("version", "got"), [("20010101000000", ", got 20010101000000"), ("nonsense", "")])
def test_rollback_to_a_version_that_is_none_lists_those_that_there_are(db_verb: Verb, version: str, got: str) -> None:
    db_verb("migrate")
    done = db_verb("rollback", version, "--yes")
    assert done.returncode == 1
    versions = ", ".join(file.partition("_")[0] for file in MIGRATIONS)
    assert complaints(done) == [f"VERSION: expected one of {versions}{got}"]
    assert listed(db_verb("status")) == [("applied", file) for file in MIGRATIONS]


CORE = MIGRATIONS[1].partition("_")[0]


async def test_rollback_names_what_is_lost_and_takes_back_nothing_without_yes(world: World, db_url: str) -> None:
    for _ in range(3):
        await world.queue()
    await call(world.db, "register_worker", WORKER, INSTANCE)

    def rollback(*words: str) -> subprocess.CompletedProcess[str]:
        return ops_worker("db", "rollback", CORE, *words, OPS_WORKER_DATABASE_URL=db_url)

    done = rollback("--yes")
    assert done.returncode == 1
    assert complaints(done)[0].startswith(f"db rollback: these workers live: {WORKER}. Stop them first")
    await call(world.db, "unregister_worker", WORKER, INSTANCE)

    done = rollback()
    assert done.returncode == 2
    (line,) = complaints(done)
    assert line.startswith("--yes: required")
    assert "ops.runs (3 rows)" in line
    assert await world.db.fetchval("select count(*) from ops.runs") == 3

    done = rollback("--yes")
    assert done.returncode == 0
    lost = re.findall(r"^lost  (\S+), \d+ rows$", done.stdout, re.MULTILINE)
    assert {"ops.runs", "ops.run_logs", "ops_private.leases", "ops_private.run_requests"} < set(lost)
    assert await world.db.fetchval("select count(*) from pg_tables where schemaname ~ '^ops'") == 0
    assert "lost  ops.runs, 3 rows\n" in done.stdout


@pytest.mark.parametrize(("answer", "status"), [("no", 1), ("\x04", 1), ("yes", 0)])
def test_rollback_asks_on_a_terminal(db_verb: Verb, empty_db_url: str, answer: str, status: int) -> None:
    db_verb("migrate")
    ours, its = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "worker", "db", "rollback"], cwd=ROOT, stdin=its, capture_output=True, text=True,
        env=environ_of(OPS_WORKER_DATABASE_URL=empty_db_url), timeout=60, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(its)
    assert done.returncode == status, done.stderr
    assert "This drops 1 empty table. Type yes to go on: " in done.stdout
    assert ("rolled back  " in done.stdout) == (status == 0)


@pytest.mark.parametrize("argv", [("prune", "--dry-run"), ("prune",), ("db", "status"), ("db", "rollback", "--yes"),
                                  ("db", "verify"), ("db", "migrate")])  # fmt: skip
async def test_a_worker_s_role_is_told_in_one_sentence_that_it_may_not(
    db: asyncpg.Connection, db_url: str, argv: tuple[str, ...], tmp_path: Path
) -> None:
    await roles.create_worker(db, "build_host", "a-long-password")
    url = roles.login_url(db_url, "postgres", "build_host", "a-long-password")
    store = (tmp_path / "store").as_uri()
    done = ops_worker(*argv, OPS_WORKER_DATABASE_URL=url, OPS_WORKER_ARTIFACT_STORE=store)
    assert done.returncode == (0 if argv == ("db", "verify") else 1), done.stderr
    assert argv == ("db", "verify") or "permission denied" in complaints(done)[0]
    if argv[0] == "prune":
        assert "The role build_host may not do this: prune needs the URL of service_role" in complaints(done)[0]


def test_prune_without_the_schema_says_what_is_to_be_done(empty_db_url: str, tmp_path: Path) -> None:
    store = (tmp_path / "store").as_uri()
    done = ops_worker("prune", OPS_WORKER_DATABASE_URL=empty_db_url, OPS_WORKER_ARTIFACT_STORE=store)
    assert done.returncode == 1
    assert complaints(done)[0].endswith("Run `ops-worker db migrate` on this database first")


def test_verify_says_that_all_is_there(db_verb: Verb) -> None:
    db_verb("migrate")
    done = db_verb("verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete" in done.stdout


async def test_verify_names_what_is_missing(db_verb: Verb, empty_db_url: str) -> None:
    db_verb("migrate")
    connection = await asyncpg.connect(empty_db_url)
    try:
        await connection.execute("drop function ops.list_queued_runs()")
    finally:
        await connection.close()
    done = db_verb("verify")
    assert done.returncode == 1
    assert "missing function ops.list_queued_runs()" in done.stderr
    assert done.stdout == "1 problems\n"


def test_verify_of_an_empty_database_names_its_tables(db_verb: Verb) -> None:
    done = db_verb("verify")
    assert done.returncode == 1
    assert "missing table ops.runs\n" in done.stderr


async def test_a_migration_that_fails_is_one_line_that_says_where(db_verb: Verb, empty_db_url: str) -> None:
    connection = await asyncpg.connect(empty_db_url)
    try:
        await connection.execute("create schema ops_private; create table ops_private.leases (id int)")
    finally:
        await connection.close()
    done = db_verb("migrate")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.match(r"ops-worker: \d{14}_\w+\.sql:\d+: ", line), done.stderr
    assert "Traceback" not in done.stderr
