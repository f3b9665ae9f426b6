"""Queries and actions of the commands ``ops-worker runs …``. Row policies decide what each role sees."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.database.control_plane import ControlPlane, Row

APPENDED = 1 << 40
"""Lines that the container printed have numbers from 1, lines that a client appended from this one on."""

BATCH = 1000
"""Log lines of one query."""

_COLUMNS = """
    r.id as run_id, p.slug || '#' || r.run_number as run, p.slug as project, r.run_number, w.workflow_type,
    w.name as workflow, r.status, r.reason, r.exit_code, r.error_message, r.attempt, r.created_at, r.scheduled_at,
    r.started_at, r.finished_at, r.claimed_by, r.priority, r.labels, r.concurrency_key, r.created_by, r.retry_of,
    r.cancel_requested_at, r.warnings, r.errors, r.tests, r.parent_run_id, r.approval, r.wanted_until,
    r.ready_at, r.url
"""

# The newest runs of each project by the index on (project_id, run_number); then the newest of all.
_LIST = f"""
    select {_COLUMNS}
    from ops.projects as p
    cross join lateral (
        select r.* from ops.runs as r
        where r.project_id = p.id and ($2::text is null or r.status = $2)
            and ($3::text is null or r.workflow_id in (
                select k.id from ops.workflows as k
                where k.project_id = p.id and (k.name = $3 or k.workflow_type = $3)))
        order by r.run_number desc limit $4
    ) as r
    join ops.workflows as w on w.id = r.workflow_id
    where $1::text is null or p.slug = $1
    order by r.created_at desc, p.slug, r.run_number desc limit $4
"""  # noqa: S608 - the columns are ours

_ONE = f"""
    select {_COLUMNS}
    from ops.runs as r
    join ops.projects as p on p.id = r.project_id
    join ops.workflows as w on w.id = r.workflow_id
"""  # noqa: S608 - the columns are ours


async def listed(
    plane: ControlPlane, project: str | None, status: str | None, workflow: str | None, limit: int
) -> list[Row]:
    """The newest runs first."""
    return [_parsed(row) for row in await plane.rows(_LIST, project, status, workflow, limit)]


async def by_id(plane: ControlPlane, run_id: uuid.UUID) -> Row | None:
    return await _one(plane, "r.id = $1", run_id)


async def by_number(plane: ControlPlane, project: str, number: int) -> Row | None:
    return await _one(plane, "p.slug = $1 and r.run_number = $2", project, number)


async def newest_of(plane: ControlPlane, workflow_id: uuid.UUID) -> Row | None:
    return await _one(plane, "r.workflow_id = $1 order by r.run_number desc limit 1", workflow_id)


async def _one(plane: ControlPlane, condition: str, *args: object) -> Row | None:
    found = await plane.row(f"{_ONE} where {condition}", *args)
    return None if found is None else _parsed(found)


def _parsed(row: Row) -> Row:
    """The row with the counts of its tests as an object; None if it has none."""
    return row | {"tests": row["tests"] and json.loads(row["tests"])}


async def summary(plane: ControlPlane, run_id: uuid.UUID) -> str | None:
    """What is known of the errors, a line for each and an empty line, and the file summary.md of the artifacts."""
    found = await plane.row("select ops.run_summary($1) as text", run_id)
    text: str | None = None if found is None else found["text"]
    return text


async def fingerprints(plane: ControlPlane, run_id: uuid.UUID) -> list[Row]:
    """The errors of a failed run, and what is known of each in the projects that the caller may see."""
    return await plane.rows("select * from ops.run_fingerprints($1)", run_id)


async def workflows_named(plane: ControlPlane, project: str, workflow_type: str | None, name: str) -> list[Row]:
    """The workflows of that name, or without any of that type, if ``name`` is a type."""
    found = await plane.rows(
        """select w.id as workflow_id, p.slug as project, w.workflow_type, w.name
           from ops.workflows as w join ops.projects as p on p.id = w.project_id
           where p.slug = $1 and w.workflow_type = coalesce($2, w.workflow_type)
               and (w.name = $3 or ($2 is null and w.workflow_type = $3))
           order by w.workflow_type, w.name""",
        project, workflow_type, name,
    )  # fmt: skip
    return [row for row in found if row["name"] == name] or found


async def events(plane: ControlPlane, run_id: uuid.UUID) -> list[Row]:
    """The events of a run, oldest first; ``payload`` is JSON text."""
    return await plane.rows(
        "select created_at, event_type, message, payload from ops.run_events where run_id = $1 order by seq", run_id
    )


async def artifacts(plane: ControlPlane, run_id: uuid.UUID) -> list[Row]:
    return await plane.rows(
        """select artifact_key, artifact_url, content_type, size_bytes, checksum, expires_at
           from ops.run_artifacts where run_id = $1 order by artifact_key""",
        run_id,
    )


async def retries(plane: ControlPlane, run_id: uuid.UUID) -> list[Row]:
    """The runs that repeat this one."""
    return await plane.rows(
        """select p.slug || '#' || r.run_number as run, r.id as run_id, r.status, r.attempt
           from ops.runs as r join ops.projects as p on p.id = r.project_id
           where r.retry_of = $1 order by r.run_number""",
        run_id,
    )


async def status(plane: ControlPlane, run_id: uuid.UUID) -> Row | None:
    """What a run's end is decided by."""
    return await plane.row(
        "select status, reason, exit_code, error_message, cancel_requested_at from ops.runs where id = $1", run_id
    )


# --- actions ----------------------------------------------------------------------------------------------------------


async def enqueue(
    plane: ControlPlane, workflow_id: uuid.UUID, metadata: Mapping[str, Any], key: str | None, due: datetime | None
) -> Row:
    return await plane.answer("select ops.enqueue_run($1, $2, $3, $4)", workflow_id, json.dumps(metadata), key, due)


async def retry(plane: ControlPlane, run_id: uuid.UUID) -> Row:
    return await plane.answer("select ops.retry_run($1)", run_id)


async def cancel(plane: ControlPlane, run_id: uuid.UUID, reason: str | None) -> Row:
    return await plane.answer("select ops.cancel_run($1, $2)", run_id, reason)


async def approve(plane: ControlPlane, run_id: uuid.UUID) -> Row:
    return await plane.answer("select ops.approve_run($1)", run_id)


async def reject(plane: ControlPlane, run_id: uuid.UUID, reason: str | None) -> Row:
    return await plane.answer("select ops.reject_run($1, $2)", run_id, reason)


async def mark_known(
    plane: ControlPlane, run_id: uuid.UUID, fingerprint: str | None, note: str | None, *, forget: bool
) -> Row:
    return await plane.answer("select ops.mark_known($1, $2, $3, $4)", run_id, fingerprint, note, not forget)


# --- the log ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Position:
    """The last lines that were read: of those that the container printed, and of those that a client appended.

    Both kinds may grow at the same time. Within each, a line with a smaller number is never committed later, because
    the appends to one log take turns.
    """

    printed: int = 0
    appended: int = APPENDED - 1

    def after(self, lines: Sequence[Row]) -> Position:
        """The position behind these lines, which are in the order of their numbers."""
        numbers = [line["seq"] for line in lines]
        return Position(
            max((seq for seq in numbers if seq < APPENDED), default=self.printed),
            max((seq for seq in numbers if seq >= APPENDED), default=self.appended),
        )


async def lines_after(
    plane: ControlPlane,
    run_id: uuid.UUID,
    position: Position,
    levels: Sequence[str] | None = None,
    since: datetime | None = None,
) -> list[Row]:
    """The next lines, at most ``BATCH``, in the order of their numbers."""
    return await plane.rows(
        f"""select seq, "timestamp", log_level as level, stream, message from ops.run_logs
            where run_id = $1 and ((seq > $2 and seq < {APPENDED}) or seq > $3)
                and ($4::text[] is null or log_level = any ($4)) and ($5::timestamptz is null or "timestamp" >= $5)
            order by seq limit {BATCH}""",  # noqa: S608 - numbers of ours
        run_id, position.printed, position.appended, levels, since,
    )  # fmt: skip


async def last_lines(
    plane: ControlPlane,
    run_id: uuid.UUID,
    limit: int,
    levels: Sequence[str] | None = None,
    since: datetime | None = None,
) -> list[Row]:
    """The last lines, oldest first."""
    found = await plane.rows(
        """select seq, "timestamp", log_level as level, stream, message from ops.run_logs
           where run_id = $1 and ($3::text[] is null or log_level = any ($3))
               and ($4::timestamptz is null or "timestamp" >= $4)
           order by seq desc limit $2""",
        run_id, limit, levels, since,
    )  # fmt: skip
    return found[::-1]


async def position_before(plane: ControlPlane, run_id: uuid.UUID, since: datetime) -> Position:
    """The position behind all lines that are older than that."""
    found = await plane.row(
        f"""select max(seq) filter (where seq < {APPENDED}) as printed,
                max(seq) filter (where seq >= {APPENDED}) as appended
            from ops.run_logs where run_id = $1 and "timestamp" < $2""",  # noqa: S608 - numbers of ours
        run_id, since,
    )  # fmt: skip
    start = Position()
    return Position((found or {})["printed"] or start.printed, (found or {})["appended"] or start.appended)


async def search(plane: ControlPlane, run_id: uuid.UUID, words: str, limit: int) -> list[Row]:
    """The newest lines that full-text search finds, oldest first."""
    found = await plane.rows(
        """select seq, "timestamp", log_level as level, null as stream, message
           from ops.search_run_logs($1, p_run_id => $2, p_limit => $3)""",
        words, run_id, limit,
    )  # fmt: skip
    return found[::-1]
