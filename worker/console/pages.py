"""The pages that are read: builds, queue, workers, projects, and a run. Each is one transaction of its user."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.cli.options import ADMINS, BAD, DEVELOPERS, FINAL
from worker.cli.overview import worker_state
from worker.cli.render import program_summary
from worker.console import actions
from worker.console.shown import log_lines
from worker.console.visit import address_of, page, run_of, run_path, visit
from worker.database import builds as queries
from worker.database import health, projects, runs
from worker.database.control_plane import ControlPlane, Row
from worker.model.reasons import EXPLANATIONS

MOST_PROJECTS = 20
RUNS_OF_MANY, RUNS_OF_ONE = 60, 500
"""The newest runs that the grid looks at: of each project of several, and of one."""

TILES = 12
MOST_QUEUED = 200
LAST_LINES = 12
FIRST_PAGE = 200
"""Lines of the log that the page itself has; its scripts fetch the others."""


async def builds(request: Request) -> Response:
    """The grid of all projects: a row for each branch, its newest runs from left to right."""
    async with visit(request) as (plane, caller):
        found = [row for row in await projects.listed(plane) if row["status"] == "active"]
        shown = found[:MOST_PROJECTS]
        newest = await queries.newest(plane, [row["slug"] for row in shown], RUNS_OF_MANY)
    grids = [{"project": row, "branches": _branches(newest, row["slug"])} for row in shown]
    return page(request, "builds.html", caller, grids=grids, more=len(found) - len(shown))


def _branches(newest: Sequence[Row], slug: str) -> list[dict[str, Any]]:
    """The runs of a project by branch; the branch with the newest run first."""
    found: dict[str, list[Row]] = {}
    for run in newest:
        if run["project"] == slug:
            found.setdefault(run["ref"], []).append(run)
    return [{"ref": ref, "runs": of_ref[:TILES]} for ref, of_ref in found.items()]


async def queue(request: Request) -> Response:
    """The runs that wait, in the order of their claims, and why each waits."""
    async with visit(request) as (plane, caller):
        found = await projects.queue(plane, None, MOST_QUEUED + 1)
        paused = (await health.facts(plane))["paused"] if caller.operates else None
    return page(request, "queue.html", caller, rows=found[:MOST_QUEUED], more=len(found) > MOST_QUEUED, paused=paused)


async def workers(request: Request) -> Response:
    """The workers, and what each runs."""
    async with visit(request) as (plane, caller):
        found = [row | {"runs": json.loads(row["runs"])} for row in await projects.workers(plane)]
    rows = [row | {"state": worker_state(row)} for row in found]
    return page(request, "workers.html", caller, rows=rows)


async def projects_page(request: Request) -> Response:
    """The projects, what each has queued, and what holds its runs back."""
    async with visit(request) as (plane, caller):
        found = await projects.listed(plane)
    return page(request, "projects.html", caller, rows=found)


async def project(request: Request) -> Response:
    """One project: its branches, its workflows and its members."""
    slug = request.path_params["project"]
    async with visit(request) as (plane, caller):
        found = next((row for row in await projects.listed(plane) if row["slug"] == slug), None)
        if found is None:
            raise HTTPException(404, "There is no such project, or you may not see it.")
        newest = await queries.newest(plane, [slug], RUNS_OF_ONE)
        workflows = await projects.workflows(plane, slug)
        members = await projects.members(plane, slug)
    role = found["role"]
    return page(
        request, "project.html", caller, project=found, branches=_branches(newest, slug), workflows=workflows,
        members=members, may_pause=caller.is_one_of(ADMINS, role),
        may_own=caller.is_one_of(("owner",), role), hook=f"{address_of(request)}/hooks/{found['project_id']}",
        may_run=caller.is_one_of(DEVELOPERS, role), key=secrets.token_urlsafe(16),
    )  # fmt: skip


async def run_by_id(request: Request) -> Response:
    """Leads from the id of a run to its page."""
    async with visit(request) as (plane, _):
        found = await runs.by_id(plane, request.path_params["run_id"])
    if found is None:
        raise HTTPException(404, "There is no such run, or you may not see it.")
    return RedirectResponse(run_path(found), 307)


async def run(request: Request) -> Response:
    """One run: why it is red, its log, its tests, its summary, its events and its artifacts."""
    async with visit(request) as (plane, caller):
        found = await run_of(plane, request)
        run_id = found["run_id"]
        source = await queries.source(plane, run_id)
        progress = await queries.progress(plane, run_id) or {"printed": 0, "appended": 0}
        first = _first_line(request, found, progress)
        known = await runs.fingerprints(plane, run_id) if found["status"] in BAD else []
        values: dict[str, Any] = {
            "source": source,
            "progress": progress,
            "errors": log_lines(await _last_errors(plane, found)),
            "events": [_event(row) for row in await runs.events(plane, run_id)],
            "artifacts": [_named(row, found) for row in await runs.artifacts(plane, run_id)],
            "retries": await runs.retries(plane, run_id),
            "earlier": await runs.by_id(plane, found["retry_of"]) if found["retry_of"] else None,
            "fingerprints": known,
            "summary": program_summary(await runs.summary(plane, run_id), known),
            "lines": log_lines(await queries.lines_from(plane, run_id, first, FIRST_PAGE)),
        }
    own = found["created_by"] is not None and found["created_by"] == source["user_id"]
    return page(
        request, "run.html", caller, run=found, base=run_path(found), **values,
        ended=found["status"] in FINAL, bad=found["status"] in BAD,
        explanation=EXPLANATIONS.get(found["reason"] or "") if found["status"] in BAD else None,
        offered=actions.offered(found, caller, source["role"], own=own),
        may_mark=caller.is_one_of(DEVELOPERS, source["role"]),
        branch_path=f"/projects/{quote(found['project'])}",
    )  # fmt: skip


def _first_line(request: Request, run: Row, progress: Row) -> int:
    """The first line of the page: the one that ``?from=`` names, else the beginning of a run that ended well, else
    so that the last line is on it.
    """
    asked = request.query_params.get("from", "")
    if asked.isascii() and asked.isdecimal() and len(asked) < 14:  # noqa: PLR2004 - below 2 ** 63
        return max(int(asked), 1)
    return 1 if run["status"] == "succeeded" else max(progress["printed"] - FIRST_PAGE + 1, 1)


def _named(row: Row, run: Row) -> Row:
    """The artifact with its name in the run: what is behind the id of the run in its key."""
    return row | {"name": row["artifact_key"].partition(f"/{run['run_id']}/")[2] or row["artifact_key"]}


def _event(row: Row) -> Row:
    payload = json.loads(row["payload"])
    return row | {"payload": payload, "detail": json.dumps(payload, indent=2, ensure_ascii=False) if payload else ""}


async def _last_errors(plane: ControlPlane, found: Row) -> list[Row]:
    """The last errors of a run that failed; without any its last warnings."""
    if found["status"] not in BAD:
        return []
    errors = await runs.last_lines(plane, found["run_id"], LAST_LINES, ["error"])
    return errors or await runs.last_lines(plane, found["run_id"], LAST_LINES, ["warn"])
