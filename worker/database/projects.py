"""Queries and actions of the commands about projects and their queue. Row policies decide what each role sees."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

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


async def workers(plane: ControlPlane) -> list[Row]:
    """The workers; ``runs`` is JSON text."""
    return await plane.rows("select * from ops.worker_overview() as w order by not w.alive, w.worker_id")


async def held_runs(plane: ControlPlane, worker_id: str) -> int:
    """How many runs a worker holds."""
    row = await plane.row(
        "select jsonb_array_length(w.runs) as runs from ops.worker_overview() as w where w.worker_id = $1", worker_id
    )
    return 0 if row is None else int(row["runs"])


async def drain_worker(plane: ControlPlane, worker_id: str, reason: str | None, *, drain: bool) -> Row:
    return await plane.answer("select ops.drain_worker($1, $2, $3)", worker_id, drain, reason, needs=OPERATOR)


async def listed(plane: ControlPlane) -> list[Row]:
    return await plane.rows("select * from ops.project_overview() as p order by p.slug")


async def workflows(plane: ControlPlane, project: str | None) -> list[Row]:
    """The workflows with the newest run of each."""
    return await plane.rows(
        """select w.id as workflow_id, p.slug as project, w.workflow_type, w.name as workflow, w.description, w.enabled,
               w.git_ref, w.git_commit, o.next_at, o.schedule_problem,
               r.run as newest_run, r.status as newest_status, r.created_at as newest_created_at
           from ops.projects as p
           join ops.workflows as w on w.project_id = p.id
           left join ops.workflow_overview() as o on o.workflow_id = w.id
           left join lateral (
               select p.slug || '#' || r.run_number as run, r.status, r.created_at from ops.runs as r
               where r.project_id = p.id and r.workflow_id = w.id order by r.run_number desc limit 1
           ) as r on true
           where $1::text is null or p.slug = $1
           order by p.slug, w.workflow_type, w.name""",
        project,
    )


async def tools(plane: ControlPlane) -> list[Row]:
    return await plane.rows(
        """select t.tool_name, t.version, t.docker_image, t.updated_at from ops.tools as t
           order by t.tool_name, t.version"""
    )


async def sync_tools(plane: ControlPlane, found: Sequence[Mapping[str, Any]], *, dry_run: bool) -> list[Row]:
    """Adds and changes these tools; what became of each."""
    answer = await plane.answer("select ops.sync_tools($1, $2)", json.dumps(found), dry_run, needs=OPERATOR)
    changes: list[Row] = answer["tools"]
    return changes


async def sync_project(plane: ControlPlane, project: Mapping[str, Any], *, dry_run: bool) -> Row:
    """Creates or changes a project and its workflows; what became of each."""
    return await plane.answer("select ops.sync_project($1, $2)", json.dumps(project), dry_run)


def changes(answer: Row) -> list[Row]:
    """What became of the project and of each workflow, with its name as ``what``."""
    project = answer["project"]
    workflows = [row | {"what": f"{row['workflow_type']}/{row['name']}"} for row in answer["workflows"]]
    return [project | {"what": project["slug"]}, *workflows]


def missing_tools(answer: Row) -> list[str]:
    """The tools that workflows of the project need and that are not registered, each once."""
    return list(dict.fromkeys(row["missing_tool"] for row in answer["workflows"] if row["missing_tool"]))


async def members(plane: ControlPlane, project: str | None) -> list[Row]:
    return await plane.rows(
        """select p.slug as project, m.user_id, m.role, m.given_by, m.created_at
           from ops.project_memberships as m join ops.projects as p on p.id = m.project_id
           where $1::text is null or p.slug = $1
           order by p.slug, array_position('{owner,admin,developer,viewer}', m.role), m.created_at, m.user_id""",
        project,
    )


# --- descriptions and members -----------------------------------------------------------------------------------------


async def described(plane: ControlPlane, slug: str) -> Row | None:
    """The description of a project and its enabled workflows, without its limits and without keys that are empty."""
    found = await plane.row(
        """select jsonb_strip_nulls(jsonb_build_object(
               'slug', p.slug, 'name', p.name, 'workspace_key', p.workspace_key, 'description', p.description,
               'odoo_version', p.odoo_version, 'status', nullif(p.status, 'active')))
               || jsonb_build_object('config', p.config) as project,
               coalesce((select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                   'workflow_type', w.workflow_type, 'name', w.name, 'description', w.description,
                   'git_ref', w.git_ref, 'git_commit', w.git_commit)) || jsonb_build_object('config', w.config)
                   order by w.workflow_type, w.name)
               from ops.workflows as w where w.project_id = p.id and w.enabled), '[]') as workflows
           from ops.projects as p where p.slug = $1""",
        slug,
    )
    if found is None:
        return None
    project: Row = json.loads(found["project"])
    order = ("slug", "name", "workspace_key", "description", "odoo_version", "status", "config")
    return {key: project[key] for key in order if key in project} | {"workflows": json.loads(found["workflows"])}


async def set_member(plane: ControlPlane, project_id: uuid.UUID, user_id: uuid.UUID, role: str) -> Row:
    return await plane.answer("select ops.set_member($1, $2, $3)", project_id, user_id, role)


async def remove_member(plane: ControlPlane, project_id: uuid.UUID, user_id: uuid.UUID) -> Row:
    return await plane.answer("select ops.remove_member($1, $2)", project_id, user_id)


async def find_user(plane: ControlPlane, email: str) -> uuid.UUID:
    """The id of the user with that email."""
    needs = f"the id of the user, or {OPERATOR}"
    return uuid.UUID((await plane.answer("select ops.find_user($1)", email, needs=needs))["user_id"])


# --- webhooks ---------------------------------------------------------------------------------------------------------


async def receive_push(plane: ControlPlane, project_id: uuid.UUID, body: bytes, headers: Mapping[str, str]) -> Row:
    """What the database does with the delivery of a forge; also its refusal, with ``code`` and ``error``."""
    sent = json.dumps(dict(headers))
    text = await plane.use(lambda it: it.fetchval("select ops.receive_push($1, $2, $3)", project_id, body, sent))
    answer: Row = json.loads(text)
    return answer


async def set_webhook_secret(plane: ControlPlane, project_id: uuid.UUID, secret: str | None) -> Row:
    """Sets the secret that the forge signs with; None removes it."""
    return await plane.answer("select ops.set_webhook_secret($1, $2)", project_id, secret)
