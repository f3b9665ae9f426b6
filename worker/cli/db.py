"""The commands ``ops-worker db …``: the migrations of the schema, and the roles of build hosts and consoles."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import asyncpg

from worker.cli.commands import Invocation
from worker.cli.screen import Screen
from worker.cli.session import given_secret
from worker.database import catalog, migrations, roles
from worker.database.connection import connected_for
from worker.errors import CommandError, UsageError


def _on_database(call: Callable[..., Awaitable[int]]) -> Callable[[Invocation], Awaitable[int]]:
    """The command that does ``call`` on a connection to the database, with its arguments."""

    async def run(given: Invocation) -> int:
        async with connected_for(given.command.name, given.settings.dsn) as connection:
            return await call(connection, given, *given.arguments)

    return run


async def _migrate(connection: asyncpg.Connection, given: Invocation) -> int:
    done = await migrations.migrate(connection)
    if given.options["json"]:
        return _json([_named(migration) for migration in done])
    for migration in done:
        print(f"applied  {migration.file}")
    print(f"{len(done)} applied" if done else "nothing to do: the schema is up to date")
    return 0


async def _status(connection: asyncpg.Connection, given: Invocation) -> int:
    rows = await migrations.status(connection)
    if given.options["json"]:
        return _json([{**_named(row.migration), "applied": row.applied} for row in rows])
    for row in rows:
        print(f"{'applied' if row.applied else 'pending'}  {row.migration.file}")
    return 0


async def _verify(connection: asyncpg.Connection, given: Invocation) -> int:
    findings = await catalog.verify(connection)
    if given.options["json"]:
        _json([{"problem": finding.problem, **asdict(finding)} for finding in findings])
        return 1 if findings else 0
    for finding in findings:
        print(finding, file=sys.stderr)
    print(_counted(len(findings), "problem") if findings else "the schema is complete")
    return 1 if findings else 0


async def _rollback(connection: asyncpg.Connection, given: Invocation, version: str | None = None) -> int:
    settings, as_json = given.settings, given.options["json"]
    plan = await migrations.to_take_back(connection, version)
    if as_json and not settings.yes:
        raise UsageError("--yes: required with --json")
    if not plan and not as_json:
        print("nothing to do: no migration is applied")
        return 0
    if workers := await migrations.live_workers(connection):
        raise CommandError(
            f"db rollback: these workers live: {', '.join(workers)}. Stop them first; a worker that died counts as live"
            " until its registration expires, after its lease"
        )
    lost = await migrations.lost_rows(connection, plan)
    if not settings.yes and not _confirmed(lost):
        print("nothing is rolled back")
        return 1
    done = await migrations.rollback(connection, version)
    if as_json:
        return _json({"rolled_back": [_named(migration) for migration in done], "lost": lost})
    for migration in done:
        print(f"rolled back  {migration.file}")
    for table, rows in lost.items():
        print(f"lost  {table}, {_counted(rows, 'row')}")
    return 0


def _json(value: Any) -> int:
    Screen(as_json=True).json(value)
    return 0


def _named(migration: migrations.Migration) -> dict[str, str]:
    return {"version": migration.version, "name": migration.name}


def _confirmed(lost: Mapping[str, int]) -> bool:
    """Asks on a terminal. Raises ``UsageError`` if standard input is not a terminal."""
    tables = _described(lost)
    if not sys.stdin.isatty():
        raise UsageError(f"--yes: required where there is no terminal to ask on; db rollback drops {tables}")
    try:
        return input(f"This drops {tables}. Type yes to go on: ").strip() == "yes"
    except EOFError:
        return False


def _described(lost: Mapping[str, int]) -> str:
    """Names the tables that hold rows, those of ``ops`` first, and counts the empty ones."""
    filled = sorted((each for each, rows in lost.items() if rows), key=lambda each: (each.startswith("ops_"), each))
    parts = [f"{table} ({_counted(lost[table], 'row')})" for table in filled]
    if empty := len(lost) - len(filled):
        parts.append(_counted(empty, "empty table"))
    return ", ".join(parts) or "no table"


def _counted(count: int, noun: str) -> str:
    """A number and its noun: ``1 row``, ``2 rows``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


async def _create_role(
    create: Callable[[asyncpg.Connection, str, str], Awaitable[bool]],
    connection: asyncpg.Connection, given: Invocation, name: str, *_: str,
) -> int:  # fmt: skip
    secret = given_secret(given, "password")
    password = roles.new_password() if secret is None else secret
    created = await create(connection, name, password)
    url = None
    if secret is None:
        user = await connection.fetchval("select session_user")
        url = roles.login_url(given.settings.dsn, user, name, password)
    if given.options["json"]:
        return _json({"role": name, "created": created, "database_url": url})
    if url is not None:  # prints one line of an env file and nothing else, so that a script can append it to a file
        print(f"OPS_WORKER_DATABASE_URL={url}")
    else:
        print(f"role {name} is created" if created else f"role {name} has a new password")
    return 0


migrate = _on_database(_migrate)
status = _on_database(_status)
verify = _on_database(_verify)
rollback = _on_database(_rollback)
create_worker = _on_database(partial(_create_role, roles.create_worker))
create_console = _on_database(partial(_create_role, roles.create_console))
