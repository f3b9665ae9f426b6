"""The ``db`` verbs: bring the schema to a database, and say how it stands."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import asyncpg

from worker.database import catalog, migrations, roles
from worker.database.connection import connected_for
from worker.errors import CommandError, UsageError


async def run(dsn: str, words: Sequence[str], *, yes: bool = False) -> int:
    """Carries out the verb in ``words``, as :func:`worker.cli.settings.load` let them pass; returns the exit code.

    No refusal quotes a word: one in the wrong place may be the database's URL, or a password.
    """
    name = " ".join(words[:2])
    verbs: dict[str, Callable[..., Awaitable[int]]] = {
        "db migrate": _migrate,
        "db status": _status,
        "db verify": _verify,
        "db rollback": partial(_rollback, yes=yes),
        "db create-worker": partial(_create_worker, dsn),
    }
    async with connected_for(name, dsn) as connection:
        return await verbs[name](connection, *words[2:])


async def _migrate(connection: asyncpg.Connection) -> int:
    done = await migrations.migrate(connection)
    for migration in done:
        print(f"applied  {migration.file}")
    print(f"{len(done)} applied" if done else "nothing to do: the schema is up to date")
    return 0


async def _status(connection: asyncpg.Connection) -> int:
    for row in await migrations.status(connection):
        print(f"{'applied' if row.applied else 'pending'}  {row.migration.file}")
    return 0


async def _verify(connection: asyncpg.Connection) -> int:
    findings = await catalog.verify(connection)
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"{len(findings)} problems" if findings else "the schema is complete")
    return 1 if findings else 0


async def _rollback(connection: asyncpg.Connection, version: str | None = None, *, yes: bool) -> int:
    plan = await migrations.to_take_back(connection, version)
    if not plan:
        print("nothing to do: no migration is applied")
        return 0
    if workers := await migrations.live_workers(connection):
        raise CommandError(
            f"db rollback: these workers live: {', '.join(workers)}. Stop them first; one that died counts as living"
            " until its registration runs out, after its lease"
        )
    lost = await migrations.lost_rows(connection, plan)
    if not yes and not _confirmed(lost):
        print("nothing is taken back")
        return 1
    for migration in await migrations.rollback(connection, version):
        print(f"taken back  {migration.file}")
    for table, rows in lost.items():
        print(f"lost  {table}, {rows:,} rows")
    return 0


def _confirmed(lost: Mapping[str, int]) -> bool:
    """Asks on a terminal. Raises ``UsageError`` where there is none to ask on."""
    tables = _shown(lost)
    if not sys.stdin.isatty():
        raise UsageError(f"--yes: required where there is no terminal to ask on; db rollback drops {tables}")
    try:
        return input(f"This drops {tables}. Type yes to go on: ").strip() == "yes"
    except EOFError:
        return False


def _shown(lost: Mapping[str, int]) -> str:
    """The tables that hold rows, those of ``ops`` first, and the number of the empty ones."""
    filled = sorted((each for each, rows in lost.items() if rows), key=lambda each: (each.startswith("ops_"), each))
    parts = [f"{table} ({lost[table]:,} row{'s' if lost[table] > 1 else ''})" for table in filled]
    if empty := len(lost) - len(filled):
        parts.append(f"{empty} empty table{'s' if empty > 1 else ''}")
    return ", ".join(parts) or "no table"


async def _create_worker(dsn: str, connection: asyncpg.Connection, name: str, source: str | None = None) -> int:
    if source not in (None, "-"):
        raise UsageError("after the name stands nothing, or - for a password on standard input")
    password = roles.new_password() if source is None else sys.stdin.readline().rstrip("\r\n")
    created = await roles.create_worker(connection, name, password)
    if source is None:  # one line of an env file, and nothing else, so that it can be passed on as it is
        user = await connection.fetchval("select session_user")
        print(f"OPS_WORKER_DATABASE_URL={roles.login_url(dsn, user, name, password)}")
    else:
        print(f"role {name} is created" if created else f"role {name} has a new password")
    return 0
