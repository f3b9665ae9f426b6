"""The facts that ``ops-worker doctor`` looks at."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import anyio
import asyncpg

from worker.database import catalog, migrations
from worker.database.connection import OPERATOR, connected_for
from worker.database.control_plane import ControlPlane, Row

NOTIFICATION_SECONDS = 3.0
"""How long a notification may take."""


async def server_version(plane: ControlPlane) -> str:
    row = await plane.row("select current_setting('server_version') as version")
    return str((row or {})["version"])


async def clock_skew(plane: ControlPlane) -> tuple[float, float]:
    """The seconds by which this host is ahead of the database, and how long the question took."""
    before = datetime.now(UTC)
    row = await plane.row("select clock_timestamp() as now")
    after = datetime.now(UTC)
    trip = after - before
    return (before + trip / 2 - (row or {})["now"]).total_seconds(), trip.total_seconds()


async def schema_problems(plane: ControlPlane) -> Sequence[catalog.Finding]:
    """What ``db verify`` reports."""
    return await plane.use(catalog.verify)


def known_migrations() -> list[str]:
    """The versions of the migrations that this program brings, oldest first."""
    return [migration.version for migration in migrations.read_migrations()]


async def facts(plane: ControlPlane) -> Row:
    """What ``ops.health`` answers. Raises ``CommandError`` if the role may not ask."""
    return await plane.answer("select ops.health()", needs=OPERATOR)


async def notification_arrives(command: str, dsn: str) -> tuple[bool, bool]:
    """Whether the server itself answers on this URL, and whether a notification reaches another connection."""
    channel, arrived = f"ops_doctor_{secrets.token_hex(8)}", anyio.Event()

    def heard(*_: object) -> None:
        arrived.set()

    async with connected_for(command, dsn) as one, connected_for(command, dsn) as two:
        direct = one.get_server_pid() == await one.fetchval("select pg_backend_pid()")
        try:
            await one.add_listener(channel, heard)
        except asyncpg.PostgresError:
            return direct, False
        await two.execute("select pg_notify($1, '')", channel)
        with anyio.move_on_after(NOTIFICATION_SECONDS):
            await arrived.wait()
        await one.remove_listener(channel, heard)
    return direct, arrived.is_set()
