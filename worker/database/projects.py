"""Queries and actions of the commands about projects and their queue. Row policies decide what each role sees."""

from __future__ import annotations

import uuid

from worker.database.connection import OPERATOR
from worker.database.control_plane import ControlPlane, Row

_QUEUED = "run_id, project_id, workflow_id, run_number, status, created_at, claimed_by, claimed_at, waits_for, place"


async def by_slug(plane: ControlPlane, slug: str) -> uuid.UUID | None:
    """The id of a project."""
    found = await plane.row("select p.id from ops.projects as p where p.slug = $1", slug)
    return None if found is None else found["id"]


async def queue(plane: ControlPlane, project: str | None, limit: int) -> list[Row]:
    """The runs that wait, in the order of their claims; before them the claimed ones that have not started."""
    return await plane.rows(
        f"""select q.run_id, p.slug || '#' || q.run_number as run, p.slug as project, q.run_number, w.workflow_type,
               w.name as workflow, q.status, q.waits_for, q.created_at, r.scheduled_at, q.claimed_by, q.claimed_at,
               r.priority, r.labels, r.concurrency_key
           from ops.list_queued_runs(case when $1::text is null then $2::bigint end) with ordinality as q ({_QUEUED})
           join ops.projects as p on p.id = q.project_id
           join ops.workflows as w on w.id = q.workflow_id
           join ops.runs as r on r.id = q.run_id
           where $1 is null or p.slug = $1
           order by q.place limit $2""",  # noqa: S608 - the columns are ours
        project, limit,
    )  # fmt: skip


async def pause_project(plane: ControlPlane, project_id: uuid.UUID, reason: str | None) -> Row:
    return await plane.answer("select ops.pause_project($1, $2)", project_id, reason)


async def resume_project(plane: ControlPlane, project_id: uuid.UUID) -> Row:
    return await plane.answer("select ops.resume_project($1)", project_id)


async def pause_queue(plane: ControlPlane, reason: str | None) -> Row:
    return await plane.answer("select ops.pause_queue($1)", reason, needs=f"a PROJECT, or {OPERATOR}")


async def resume_queue(plane: ControlPlane) -> Row:
    return await plane.answer("select ops.resume_queue()", needs=f"a PROJECT, or {OPERATOR}")
