"""The Supabase CLI on a database with Supabase's roles: it pushes, shares our history, and reports no fault."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import schema_docs
from tests.support.debian import first_unpacked
from tests.support.npm import ROOT
from tests.support.postgres import MAJORS, Cluster
from tests.support.supabase import OWNER, Cli, supabase_cluster, supabase_database
from worker.database import migrations

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("supabase-cli")]  # one process starts the server

FILES = [migration.file for migration in migrations.read_migrations()]
Project = Callable[[list[str]], Cli]


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    major, extension = first_unpacked("postgresql-{}-plpgsql-check", MAJORS)
    with supabase_cluster(major, listen="127.0.0.1", extension=extension) as started:
        yield started


@pytest.fixture
def url(server: Cluster) -> Iterator[str]:
    """A Supabase project's database, as the owner that is no superuser reaches it."""
    with supabase_database(server) as name:
        # Supabase lets its owner create this one; a plain server leaves it to a superuser
        server.execute("create extension plpgsql_check with schema extensions", database=name)
        yield server.url(name, user=OWNER, host="127.0.0.1")


@pytest.fixture
def project(url: str, tmp_path: Path) -> Project:
    """Makes a project of the CLI that has the migrations of these names."""

    def make(files: list[str]) -> Cli:
        folder = tmp_path / f"project-{len(files)}"
        (folder / "sql").mkdir(parents=True)
        for file in files:
            (folder / "sql" / file).symlink_to(ROOT / "sql" / "migrations" / file)
        return Cli.project(folder, url, folder / "sql")

    return make


@pytest.fixture
def cli(project: Project) -> Cli:
    """A project with all migrations."""
    return project(FILES)


def ops_worker(*words: str, url: str) -> str:
    command = [sys.executable, "-m", "worker", "db", *words, "--database-url", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def pushed(cli: Cli) -> list[str]:
    """The files that ``db push`` applies."""
    done = cli("db", "push")
    assert done.returncode == 0, done.stderr
    return [file for file in FILES if f"Applying migration {file}" in done.stdout + done.stderr]


def findings(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[") :]) if "[" in done.stdout else []
    return found


def test_migrate_has_nothing_to_do_after_the_cli_pushed(cli: Cli) -> None:
    assert pushed(cli) == FILES
    assert "nothing to do" in ops_worker("migrate", url=cli.url)
    assert "complete" in ops_worker("verify", url=cli.url)


def test_the_cli_and_migrate_continue_each_other_s_history(project: Project, url: str) -> None:
    assert pushed(project(FILES[:2])) == FILES[:2]
    applied = ops_worker("migrate", url=url)
    assert [file for file in FILES if file in applied] == FILES[2:]
    ops_worker("rollback", "--yes", url=url)
    assert pushed(project(FILES)) == FILES[-1:]


def test_lint_and_advisors_have_no_warning(cli: Cli) -> None:
    pushed(cli)
    for command in (("lint", "--level=warning", "--fail-on=warning"), ("advisors", "--level=warn", "--fail-on=warn")):
        done = cli("db", *command)
        assert (done.returncode, findings(done)) == (0, []), done.stderr


def test_lint_and_advisors_report_a_fault_in_ops(server: Cluster, cli: Cli) -> None:
    pushed(cli)
    for fault in (
        "create table ops.bare (id int)",
        "grant select on ops.bare to anon",
        "create function ops.typo() returns int language plpgsql as $$ begin return no_such_thing; end $$",
    ):
        server.execute(fault, database=cli.url.rpartition("/")[2])

    lint = cli("db", "lint", "--level=warning", "--fail-on=warning")
    advisors = cli("db", "advisors", "--level=warn", "--fail-on=warn")

    assert [found["function"] for found in findings(lint)] == ["ops.typo"]
    named = {found["name"] for found in findings(advisors)}
    assert {"rls_disabled_in_public", "function_search_path_mutable"} <= named
    assert 0 not in (lint.returncode, advisors.returncode)


def test_the_types_in_the_repository_are_those_of_a_pushed_database(cli: Cli) -> None:
    pushed(cli)
    assert cli.types() == (ROOT / schema_docs.TYPES).read_text(encoding="utf-8")
