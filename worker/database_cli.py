"""The ``db`` verbs: bring the schema to a database, and say how it stands."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import asyncpg

from worker import catalog, migrations, roles
from worker.errors import ConfigurationError
from worker.settings import COMMANDS


async def run(dsn: str, words: Sequence[str]) -> int:
    """Carries out ``words`` and returns the exit code. Raises ``ConfigurationError`` for unknown words.

    No refusal quotes a word: one in the wrong place may be the database's URL, or a password.
    """
    verbs: dict[str, Callable[..., Awaitable[int]]] = {**_VERBS, "db create-worker": partial(_create_worker, dsn)}
    name, arguments = " ".join(words[:2]), words[2:]
    try:
        verb = verbs[name]
    except KeyError:
        raise ConfigurationError(f"unknown command; there are: {COMMANDS}") from None
    least, most = _ARGUMENTS.get(name, (0, 0))
    if not least <= len(arguments) <= most:
        few_or_many = "few" if len(arguments) < least else "many"
        raise ConfigurationError(f"too {few_or_many} words after {name}; there are: {COMMANDS}")
    async with migrations.connect(dsn) as connection:
        return await verb(connection, *arguments)


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


async def _rollback(connection: asyncpg.Connection, version: str | None = None) -> int:
    done = await migrations.rollback(connection, version)
    for migration in done:
        print(f"taken back  {migration.file}")
    if not done:
        print("nothing to do: no migration is applied")
    return 0


async def _create_worker(dsn: str, connection: asyncpg.Connection, name: str, source: str | None = None) -> int:
    if source not in (None, "-"):
        raise ConfigurationError("after the name stands nothing, or - for a password on standard input")
    password = roles.new_password() if source is None else sys.stdin.readline().rstrip("\r\n")
    created = await roles.create_worker(connection, name, password)
    if source is None:  # one line of an env file, and nothing else, so that it can be passed on as it is
        user = await connection.fetchval("select session_user")
        print(f"OPS_WORKER_DATABASE_URL={roles.login_url(dsn, user, name, password)}")
    else:
        print(f"role {name} is created" if created else f"role {name} has a new password")
    return 0


_ARGUMENTS = {"db rollback": (0, 1), "db create-worker": (1, 2)}
"""The least and the most words that follow a command; none where it is not named."""

_VERBS: dict[str, Callable[..., Awaitable[int]]] = {
    "db migrate": _migrate,
    "db status": _status,
    "db verify": _verify,
    "db rollback": _rollback,
}
