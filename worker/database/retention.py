"""The command ``prune``: deletes expired artifacts, and the logs and events of runs that ended long ago.

An artifact's record moves to a separate list first, then its object is deleted, then the entry of that list. So a prune
that is killed leaves no record without its object, and the next prune continues where it stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import anyio
import asyncpg

from worker.concurrency import task_group
from worker.database.connection import connected_for

DELETIONS_AT_ONCE = 8


class ObjectStore(Protocol):
    """The store of the artifacts; ``folder`` is None unless it is a folder of this host."""

    @property
    def url(self) -> str: ...
    @property
    def folder(self) -> Path | None: ...
    async def delete(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days logs and events are kept after their run has ended; None: without limit."""

    logs: int | None
    events: int | None


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much was deleted, or would be."""

    artifacts: int
    bytes: int
    lines: int
    events: int


async def prune(dsn: str, store: ObjectStore, worker_id: str, retention: Retention, *, dry_run: bool) -> Pruned:
    """Deletes, and returns how much. In a folder it deletes only what this host's worker stored.

    Raises ``ArtifactError``, ``CommandError`` and ``DatabaseUnavailable``.
    """
    owner = worker_id if store.folder is not None else None
    logs_before, events_before = _before(retention.logs), _before(retention.events)
    async with connected_for("prune", dsn) as connection:
        if dry_run:
            sql = "select * from ops_private.prunable($1, $2, $3, $4)"
            row = await connection.fetchrow(sql, store.url, owner, logs_before, events_before)
            return Pruned(row["artifacts"], int(row["bytes"]), row["lines"], row["events"])
        await connection.execute("select ops_private.prune_outbox()")
        artifacts, size = await _prune_artifacts(connection, store, owner)
        lines = events = 0
        if logs_before is not None:
            lines = await _prune_logs(connection, logs_before)
        if events_before is not None:
            events = await _prune_runs(connection, "select * from ops_private.prune_run_events($1, $2)", events_before)
        return Pruned(artifacts, size, lines, events)


async def archived_projects(
    dsn: str, projects: Collection[tuple[uuid.UUID, uuid.UUID]]
) -> dict[tuple[uuid.UUID, uuid.UUID], str | None]:
    """Of these projects (each with the identity of its database) those that are archived here or do not exist.

    The values are their workspace keys, None for a project that does not exist.
    """
    archived: dict[tuple[uuid.UUID, uuid.UUID], str | None] = {}
    if not projects:
        return archived
    async with connected_for("prune", dsn) as connection:
        for database_id in {database_id for database_id, _ in projects}:
            asked = [project_id for other, project_id in projects if other == database_id]
            sql = "select * from ops_private.archived_projects($1, $2)"
            for row in await connection.fetch(sql, database_id, asked):
                archived[database_id, row["project_id"]] = row["workspace_key"]
    return archived


async def _prune_artifacts(connection: asyncpg.Connection, store: ObjectStore, owner: str | None) -> tuple[int, int]:
    count = size = 0
    limiter = anyio.CapacityLimiter(DELETIONS_AT_ONCE)

    async def delete(key: str) -> None:
        async with limiter:
            await store.delete(key)

    while batch := await connection.fetch("select * from ops_private.retire_artifacts($1, $2)", store.url, owner):
        async with task_group() as tasks:
            for row in batch:
                tasks.start_soon(delete, row["artifact_key"])
        await connection.execute("select ops_private.forget_artifacts($1)", [row["artifact_id"] for row in batch])
        count += len(batch)
        size += sum(row["size_bytes"] or 0 for row in batch)
    return count, size


async def _prune_logs(connection: asyncpg.Connection, before: datetime) -> int:
    lines: int = await connection.fetchval("select ops_private.drop_log_partitions($1)", before)
    return lines + await _prune_runs(connection, "select * from ops_private.prune_run_logs($1, $2)", before)


async def _prune_runs(connection: asyncpg.Connection, sql: str, before: datetime) -> int:
    """Deletes what runs left, some runs at a time in the order of their ids; returns how many rows."""
    count, last = 0, None
    while (row := await connection.fetchrow(sql, before, last))[1] is not None:
        deleted, last = row
        count += deleted
    return count


def _before(days: int | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) - timedelta(days=days)
