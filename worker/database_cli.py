"""The ``db`` verbs: bring the schema to a database, and say how it stands."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from worker import catalog, migrations
from worker.errors import ConfigurationError
from worker.settings import COMMANDS


async def run(dsn: str, words: Sequence[str]) -> int:
    """Carries out ``words`` and returns the exit code. Raises ``ConfigurationError`` for unknown words."""
    try:
        verb, arguments = _VERBS[" ".join(words[:2])], words[2:]
    except KeyError:
        raise ConfigurationError(f"unknown command {' '.join(words)!r}; there are: {COMMANDS}") from None
    if len(arguments) > (1 if verb is _rollback else 0):
        raise ConfigurationError(f"too many words: {' '.join(words)}")
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


_VERBS: dict[str, Callable[..., Awaitable[int]]] = {
    "db migrate": _migrate,
    "db status": _status,
    "db verify": _verify,
    "db rollback": _rollback,
}
