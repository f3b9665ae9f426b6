"""``ops-worker db …`` as a process: what the verbs do and say, and their exit codes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import asyncpg
import pytest

from tests.support.command import complaints, ops_worker
from tests.support.docker import ROOT

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
    assert listed(db_verb("rollback")) == [("taken back", MIGRATIONS[-1])]
    second = MIGRATIONS[1].partition("_")[0]
    assert listed(db_verb("rollback", second)) == [("taken back", file) for file in reversed(MIGRATIONS[1:-1])]
    expected = [("applied", MIGRATIONS[0]), *(("pending", file) for file in MIGRATIONS[1:])]
    assert listed(db_verb("status")) == expected
    db_verb("rollback")
    assert "nothing to do" in db_verb("rollback").stdout


def test_rollback_to_a_version_that_is_none_is_refused(db_verb: Verb) -> None:
    db_verb("migrate")
    done = db_verb("rollback", "20010101000000")
    assert done.returncode == 1
    (line,) = complaints(done)
    assert "20010101000000" in line
    assert listed(db_verb("status")) == [("applied", file) for file in MIGRATIONS]


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
        await connection.execute("create schema ops; create table ops.projects (id int)")
    finally:
        await connection.close()
    done = db_verb("migrate")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.match(r"ops-worker: \d{14}_\w+\.sql:\d+: ", line), done.stderr
    assert "Traceback" not in done.stderr
