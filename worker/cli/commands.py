"""The commands of ``ops-worker``: what each is called, which settings it reads, and what it does."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from worker.artifacts.store import ArtifactStore
from worker.cli.settings import FLAG_ONLY, Settings
from worker.cli.startup import work
from worker.database import catalog, migrations, retention, roles
from worker.database.connection import connected_for
from worker.errors import CommandError, UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its name, its arguments with their meaning, what it does, and the settings that it reads."""

    name: str
    arguments: Mapping[str, str]
    does: str
    reads: frozenset[str]
    run: Callable[[Settings, Sequence[str]], Awaitable[int]]
    """Runs the command with its arguments; returns the exit code.

    No error quotes an argument, because the database's URL or a password may stand in its place.
    """

    @property
    def words(self) -> tuple[str, ...]:
        """The name, word by word."""
        return tuple(self.name.split())

    @property
    def usage(self) -> str:
        """The name and the arguments; an optional argument stands in brackets."""
        return " ".join((self.name, *self.arguments))


async def _migrate(connection: asyncpg.Connection, _: Settings) -> int:
    done = await migrations.migrate(connection)
    for migration in done:
        print(f"applied  {migration.file}")
    print(f"{len(done)} applied" if done else "nothing to do: the schema is up to date")
    return 0


async def _status(connection: asyncpg.Connection, _: Settings) -> int:
    for row in await migrations.status(connection):
        print(f"{'applied' if row.applied else 'pending'}  {row.migration.file}")
    return 0


async def _verify(connection: asyncpg.Connection, _: Settings) -> int:
    findings = await catalog.verify(connection)
    for finding in findings:
        print(finding, file=sys.stderr)
    print(_counted(len(findings), "problem") if findings else "the schema is complete")
    return 1 if findings else 0


async def _rollback(connection: asyncpg.Connection, settings: Settings, version: str | None = None) -> int:
    plan = await migrations.to_take_back(connection, version)
    if not plan:
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
    for migration in await migrations.rollback(connection, version):
        print(f"rolled back  {migration.file}")
    for table, rows in lost.items():
        print(f"lost  {table}, {_counted(rows, 'row')}")
    return 0


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


async def _create_worker(
    connection: asyncpg.Connection, settings: Settings, name: str, source: str | None = None
) -> int:
    if source not in (None, "-"):
        raise UsageError("db create-worker: expected nothing after NAME, or - for a password on standard input")
    password = roles.new_password() if source is None else sys.stdin.readline().rstrip("\r\n")
    created = await roles.create_worker(connection, name, password)
    if source is None:  # prints one line of an env file and nothing else, so that a script can append it to a file
        user = await connection.fetchval("select session_user")
        print(f"OPS_WORKER_DATABASE_URL={roles.login_url(settings.dsn, user, name, password)}")
    else:
        print(f"role {name} is created" if created else f"role {name} has a new password")
    return 0


async def _prune(settings: Settings, _: Sequence[str]) -> int:
    dsn = settings.dsn
    store = ArtifactStore.from_url(settings.artifact_store)
    kept = retention.Retention(settings.keep_logs, settings.keep_events)
    return await retention.prune(dsn, store, settings.worker_id, kept, dry_run=settings.dry_run)


async def _work(settings: Settings, _: Sequence[str]) -> int:
    return await work(settings)


_DATABASE = frozenset({"env_file", "version", "database_url"})
_PRUNE = _DATABASE | {"worker_id", "artifact_store", "keep_logs", "keep_events", "dry_run", "log_level", "log_format"}
_WORK = frozenset(Settings.model_fields) - {"keep_logs", "keep_events", *FLAG_ONLY}


def _db(
    word: str,
    does: str,
    call: Callable[..., Awaitable[int]],
    arguments: Mapping[str, str] | None = None,
    reads: frozenset[str] = _DATABASE,
) -> Command:
    """A command that works on one connection to the database."""
    name = f"db {word}"

    async def run(settings: Settings, given: Sequence[str]) -> int:
        async with connected_for(name, settings.dsn) as connection:
            return await call(connection, settings, *given)

    return Command(name, arguments or {}, does, reads, run)


WORK = Command("", {}, str(Settings.__doc__), _WORK, _work)
"""Without a command ``ops-worker`` executes runs."""

COMMANDS = (
    _db("migrate", "apply the migrations that the database lacks", _migrate),
    _db("status", "list the migrations, applied or pending", _status),
    _db("verify", "report what is missing or different in the schema", _verify),
    _db(
        "rollback",
        "roll migrations back; the data in their tables is lost",
        _rollback,
        {"[VERSION]": "roll back this migration and all later ones (default: the newest only)"},
        _DATABASE | {"yes"},
    ),
    _db(
        "create-worker",
        "create a role for a build host, or set its password",
        _create_worker,
        {"NAME": "of the role", "[-]": "read the password from standard input (default: generate and print one)"},
    ),
    Command("prune", {}, "delete expired artifacts, and old logs and events", _PRUNE, _prune),
)
"""All other commands, in the order of the help."""
