"""Apply, list and roll back the schema's migrations, in turns with ``supabase db push``.

The history is the Supabase CLI's own table: version, name, and the file as one text. Both tools compare versions, so
each sees what the other did. One migration and its row are one transaction under a lock, so each step happens once
if several processes migrate at the same time.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import asyncpg

from worker.errors import OpsError

HISTORY = "supabase_migrations.schema_migrations"

_LOCK = "pg_catalog.hashtextextended('ops-worker migrations', 0)"
_PATIENCE = 15
"""Tenths of a second after which a wait for the lock is reported."""
_HOLDERS = f"""
    select pg_catalog.format('%s, process %s', a.usename, a.pid) as holder
    from pg_catalog.pg_locks as l
    join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and a.datname = pg_catalog.current_database()
        and (l.classid::bigint << 32) | l.objid::bigint = {_LOCK}
"""  # noqa: S608 - a constant

_NEEDED_ROLE = (
    "It needs the role that owns the schema ops. The first `db migrate` needs a superuser or a role that may create"
    " roles and schemas; on Supabase, that is postgres"
)

_FILE_NAME = re.compile(r"([0-9]+)_(.*)\.sql")  # as the Supabase CLI takes them
_DROP_TABLE = re.compile(r"^drop\s+table\s+(?:if\s+exists\s+)?([\w\s.,]+);", re.IGNORECASE | re.MULTILINE)


class MigrationError(OpsError):
    """A migration or a rollback failed and was undone.

    ``file`` is its name, ``line`` where in it (None: not in one place), ``sqlstate`` the server's code (None:
    not the server's finding).
    """

    def __init__(self, file: str, message: str, *, line: int | None = None, sqlstate: str | None = None) -> None:
        place = file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {message}" + (f" (SQLSTATE {sqlstate})" if sqlstate else ""))
        self.file = file
        self.line = line
        self.sqlstate = sqlstate


@dataclass(frozen=True)
class Migration:
    """One file of ``sql/migrations`` and its counterpart in ``sql/rollback``."""

    version: str
    name: str
    directory: Traversable

    @property
    def file(self) -> str:
        """The file's name, the same in both directories."""
        return f"{self.version}_{self.name}.sql"

    @property
    def statements(self) -> list[str]:
        """What the history records: the whole file as one text, as ``setup_ops_schema.sh`` records it."""
        return [self.up.rstrip("\n")]

    @cached_property
    def up(self) -> str:
        """The SQL that applies it."""
        return (self.directory / "migrations" / self.file).read_text(encoding="utf-8")

    @cached_property
    def down(self) -> str:
        """The SQL that takes it back.

        Raises:
            MigrationError: there is none.
        """
        try:
            return (self.directory / "rollback" / self.file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MigrationError(self.file, "has no rollback") from None


@dataclass(frozen=True)
class MigrationStatus:
    """Whether a migration of ours is recorded as applied."""

    migration: Migration
    applied: bool


def sql_directory() -> Traversable:
    """The SQL that belongs to this package: inside the wheel, or beside the package in a checkout."""
    bundled = resources.files("worker") / "sql"
    return bundled if bundled.is_dir() else Path(__file__).resolve().parents[2] / "sql"


def read_migrations(directory: Traversable | None = None) -> list[Migration]:
    """The migrations under ``directory`` (default: ours), oldest first.

    Raises:
        MigrationError: two have one version.
    """
    root = directory or sql_directory()
    found: dict[str, Migration] = {}
    for entry in sorted((root / "migrations").iterdir(), key=lambda entry: entry.name):
        if match := _FILE_NAME.fullmatch(entry.name):
            version, name = match.groups()
            if version in found:
                raise MigrationError(entry.name, f"has the same version as {found[version].file}")
            found[version] = Migration(version, name, root)
    return list(found.values())


async def migrate(connection: asyncpg.Connection, directory: Traversable | None = None) -> list[Migration]:
    """Apply what is not applied yet; returns what this call applied.

    Raises:
        MigrationError: one failed; those before it stay applied.
    """
    pending = [row.migration for row in await status(connection, directory) if not row.applied]
    return [migration for migration in pending if await _apply(connection, migration)]


async def status(connection: asyncpg.Connection, directory: Traversable | None = None) -> list[MigrationStatus]:
    """Our migrations, oldest first. Other versions in the history are ignored.

    Raises:
        MigrationError: the history says that another migration has the version of one of ours.
    """
    history = await _history(connection)
    return [MigrationStatus(each, _is_applied(each, history)) for each in read_migrations(directory)]


async def rollback(
    connection: asyncpg.Connection, version: str | None = None, directory: Traversable | None = None
) -> list[Migration]:
    """Take back what :func:`to_take_back` lists; returns what this call took back, newest first.

    Raises:
        MigrationError: no migration of ours has that version, or one failed; those before it stay taken back.
    """
    plan = await to_take_back(connection, version, directory)
    return [migration for migration in plan if await _take_back(connection, migration)]


async def to_take_back(
    connection: asyncpg.Connection, version: str | None = None, directory: Traversable | None = None
) -> list[Migration]:
    """The newest applied migration of ours, or ``version`` and all newer ones; the newest first.

    Raises:
        MigrationError: no migration of ours has that version.
    """
    rows = await status(connection, directory)
    versions = [row.migration.version for row in rows]
    if version is not None and version not in versions:
        got = f", got {version}" if version.isdecimal() else ""  # anything else may be a password
        raise MigrationError("VERSION", f"expected one of {', '.join(versions)}{got}")
    applied = [row.migration for row in reversed(rows) if row.applied]
    return applied[:1] if version is None else [each for each in applied if each.version >= version]


async def lost_rows(connection: asyncpg.Connection, plan: Sequence[Migration]) -> dict[str, int]:
    """The tables that taking back those migrations drops, and how many rows each has."""
    dropped = [
        name.strip() for migration in plan for names in _DROP_TABLE.findall(migration.down) for name in names.split(",")
    ]
    tables = [name for name in dropped if await connection.fetchval("select pg_catalog.to_regclass($1)", name)]
    return {name: await connection.fetchval(f"select count(*) from {name}") for name in tables}  # noqa: S608 - ours


async def live_workers(connection: asyncpg.Connection) -> list[str]:
    """The ids of the workers that are registered and whose registration has not run out."""
    if await connection.fetchval("select pg_catalog.to_regclass('ops_private.workers')") is None:
        return []
    rows = await connection.fetch("select worker_id from ops_private.workers where expires_at > now() order by 1")
    return [row["worker_id"] for row in rows]


async def _apply(connection: asyncpg.Connection, migration: Migration) -> bool:
    """Apply one migration; False when another process did meanwhile."""
    async with _step(connection):
        with _located(HISTORY):
            await _ensure_history(connection)
        if _is_applied(migration, await _history(connection)):
            return False
        await _run(connection, migration, migration.up)
        with _located(migration.file):
            await connection.execute(
                "insert into supabase_migrations.schema_migrations (version, name, statements)"
                " values ($1, $2, $3)",
                migration.version, migration.name, migration.statements,
            )  # fmt: skip
    return True


async def _take_back(connection: asyncpg.Connection, migration: Migration) -> bool:
    """Roll one migration back; False when another process did meanwhile."""
    async with _step(connection):
        if not _is_applied(migration, await _history(connection)):
            return False
        await _run(connection, migration, migration.down)
        with _located(migration.file):
            await connection.execute(
                "delete from supabase_migrations.schema_migrations where version = $1", migration.version
            )
    return True


@asynccontextmanager
async def _step(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """One transaction, alone among all that migrate this database with this program."""
    async with connection.transaction(isolation="read_committed"):
        await connection.execute("reset all")  # what the file before this one may have set
        for _ in range(_PATIENCE):
            if await connection.fetchval(f"select pg_catalog.pg_try_advisory_xact_lock({_LOCK})"):
                break
            await connection.execute("select pg_catalog.pg_sleep(0.1)")
        else:
            holders = ", ".join([str(row["holder"]) for row in await connection.fetch(_HOLDERS)])
            sys.stderr.write(f"waiting for the lock on the migrations of this database, held by {holders}\n")
            await connection.execute(f"select pg_catalog.pg_advisory_xact_lock({_LOCK})")
        yield


async def _run(connection: asyncpg.Connection, migration: Migration, text: str) -> None:
    with _located(migration.file, text):
        await connection.execute(text)


@contextmanager
def _located(file: str, text: str = "") -> Iterator[None]:
    """Turns the server's refusal into a :class:`MigrationError` with the line of the file, if the server names it."""
    try:
        yield
    except asyncpg.PostgresError as error:
        line = text.count("\n", 0, int(error.position) - 1) + 1 if error.position else None
        parts = [str(error.args[0]) if error.args else type(error).__name__, error.detail, error.hint, error.context]
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            parts.append(_NEEDED_ROLE)
        message = ". ".join(part.rstrip(".") for part in parts if part)
        raise MigrationError(file, message, line=line, sqlstate=error.sqlstate) from error


async def _history(connection: asyncpg.Connection) -> dict[str, str | None]:
    """Applied versions and their names; an old or foreign writer may have left out the name."""
    with _located(HISTORY):
        if await connection.fetchval("select pg_catalog.to_regclass($1)", HISTORY) is None:
            return {}
        rows = await connection.fetch(
            "select version, pg_catalog.to_jsonb(m) ->> 'name' as name from supabase_migrations.schema_migrations as m"
        )
    return {row["version"]: row["name"] for row in rows}


def _is_applied(migration: Migration, history: dict[str, str | None]) -> bool:
    if (name := history.get(migration.version)) not in (None, "", migration.name):
        raise MigrationError(migration.file, f"version {migration.version} is taken by another migration, {name!r}")
    return migration.version in history


async def _ensure_history(connection: asyncpg.Connection) -> None:
    """Create the CLI's table, or complete one from its early days.

    ``if not exists`` needs the right to create even if the object exists, so existence is checked first.
    """
    rows = await connection.fetch(
        "select attname from pg_catalog.pg_attribute"
        " where attrelid = pg_catalog.to_regclass($1) and attnum > 0 and not attisdropped",
        HISTORY,
    )
    columns = {row["attname"] for row in rows}
    if not columns:
        if not await connection.fetchval("select pg_catalog.to_regnamespace('supabase_migrations') is not null"):
            await connection.execute("create schema supabase_migrations")
        await connection.execute(f"create table {HISTORY} (version text not null primary key)")
    for column, kind in (("statements", "text[]"), ("name", "text")):
        if column not in columns:
            await connection.execute(f"alter table {HISTORY} add column {column} {kind}")
