"""What a user does with a run, a project, the queue or a worker: each is one call of a function; the database decides.

A new action on a run is a line of ``ON_RUN``: the page shows its button, and its path is ``/runs/PROJECT/NUMBER/NAME``.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.cli.options import ADMINS, FINAL
from worker.console.auth import Caller
from worker.console.visit import run_of, run_path, submission
from worker.database import projects, runs
from worker.database.control_plane import ControlPlane, Row

MOST_REASON = 500
Fields = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Action:
    """A button on the page of a run. ``offered`` is a courtesy: the function refuses what the user may not do."""

    name: str
    label: str
    offered: Callable[[Row], bool]
    call: Callable[[ControlPlane, Row, Fields], Awaitable[Row]]
    dangerous: bool = False
    """It asks for a reason first."""
    by_another: bool = False
    """It is for an admin who did not queue the run."""


async def _retry(plane: ControlPlane, run: Row, _: Fields) -> Row:
    answer = await runs.retry(plane, run["run_id"])
    return {"project": run["project"], "run_number": answer["run_number"]}


async def _cancel(plane: ControlPlane, run: Row, fields: Fields) -> Row:
    await runs.cancel(plane, run["run_id"], _reason(fields))
    return run


async def _approve(plane: ControlPlane, run: Row, _: Fields) -> Row:
    await runs.approve(plane, run["run_id"])
    return run


async def _reject(plane: ControlPlane, run: Row, fields: Fields) -> Row:
    await runs.reject(plane, run["run_id"], _reason(fields))
    return run


def _waits_for_approval(run: Row) -> bool:
    return bool(run["status"] == "queued" and run["approval"] == "pending")


ON_RUN = (
    Action("approve", "Approve", _waits_for_approval, _approve, by_another=True),
    Action("reject", "Reject", _waits_for_approval, _reject, dangerous=True, by_another=True),
    Action("retry", "Retry", lambda run: run["status"] in FINAL, _retry),
    Action(
        "cancel", "Cancel", lambda run: run["status"] not in FINAL and run["cancel_requested_at"] is None, _cancel,
        dangerous=True,
    ),
)  # fmt: skip


async def _known(plane: ControlPlane, run: Row, fields: Fields) -> None:
    await runs.mark_known(plane, run["run_id"], _fingerprint(fields), _reason(fields), forget=False)


async def _forget(plane: ControlPlane, run: Row, fields: Fields) -> None:
    await runs.mark_known(plane, run["run_id"], _fingerprint(fields), None, forget=True)


def _fingerprint(fields: Fields) -> str:
    """One error of the run: a form without it must not mark all of them."""
    if not fields.get("fingerprint"):
        raise HTTPException(400, "fingerprint: expected the fingerprint of an error of the run.")
    return fields["fingerprint"]


ON_ERROR: Mapping[str, Callable[[ControlPlane, Row, Fields], Awaitable[None]]] = {"known": _known, "forget": _forget}
"""What a user does with one error of a run. The page shows each button beside its error."""


def _reason(fields: Fields) -> str | None:
    return fields.get("reason", "").strip()[:MOST_REASON] or None


def offered(run: Row, caller: Caller, role: str | None, *, own: bool) -> list[Action]:
    """The actions that the state of the run permits to that caller, who has that role in the project."""
    admin = caller.is_one_of(ADMINS, role)
    if not admin and not (role == "developer" and own):
        return []
    decides = admin and not own
    return [action for action in ON_RUN if action.offered(run) and (decides or not action.by_another)]


async def on_run(request: Request) -> Response:
    """Does what a button on the page of a run says, and shows the run that it is about."""
    name = request.path_params["action"]
    call = {each.name: each.call for each in ON_RUN}.get(name) or ON_ERROR.get(name)
    if call is None:
        raise HTTPException(404, "There is no such action.")
    async with submission(request) as (plane, fields):
        run = await run_of(plane, request)
        shown = await call(plane, run, fields) or run
    return RedirectResponse(run_path(shown), 303)


async def _pause(plane: ControlPlane, project_id: uuid.UUID, fields: Fields) -> None:
    await projects.pause_project(plane, project_id, _reason(fields))


async def _resume(plane: ControlPlane, project_id: uuid.UUID, _: Fields) -> None:
    await projects.resume_project(plane, project_id)


async def _webhook(plane: ControlPlane, project_id: uuid.UUID, fields: Fields) -> None:
    await projects.set_webhook_secret(plane, project_id, fields.get("secret", ""))


async def _member(plane: ControlPlane, project_id: uuid.UUID, fields: Fields) -> None:
    """Gives a user a role; without a role the user is a member no more."""
    try:
        user_id = uuid.UUID(fields.get("user", "").strip())
    except ValueError:
        raise HTTPException(400, "user: expected the id of a user (a UUID).") from None
    if role := fields.get("role"):
        await projects.set_member(plane, project_id, user_id, role)
    else:
        await projects.remove_member(plane, project_id, user_id)


async def _run(plane: ControlPlane, project_id: uuid.UUID, fields: Fields) -> str | None:
    """Queues a run of a workflow; returns the path of the run."""
    try:
        workflow_id = uuid.UUID(fields.get("workflow", ""))
    except ValueError:
        raise HTTPException(400, "workflow: expected the id of a workflow.") from None
    del project_id  # the workflow has one
    answer = await runs.enqueue(plane, workflow_id, {}, fields.get("key") or None, None)
    run = await runs.by_id(plane, uuid.UUID(answer["run_id"]))
    return None if run is None else run_path(run)


ON_PROJECT: Mapping[str, Callable[[ControlPlane, uuid.UUID, Fields], Awaitable[str | None]]] = {
    "pause": _pause, "resume": _resume, "run": _run, "webhook": _webhook, "member": _member,
}  # fmt: skip


async def on_project(request: Request) -> Response:
    """Does what a button on the page of a project says."""
    call = ON_PROJECT.get(request.path_params["action"])
    if call is None:
        raise HTTPException(404, "There is no such action.")
    slug = request.path_params["project"]
    async with submission(request) as (plane, fields):
        project_id = await projects.by_slug(plane, slug)
        if project_id is None:
            raise HTTPException(404, "There is no such project, or you may not see it.")
        shown = await call(plane, project_id, fields)
    return RedirectResponse(shown or f"/projects/{quote(slug)}", 303)


async def on_queue(request: Request) -> Response:
    """Lets no worker claim runs of any project, or lets them claim again. It is for an operator, as draining is."""
    paused = {"pause": True, "resume": False}.get(request.path_params["action"])
    if paused is None:
        raise HTTPException(404, "There is no such action.")
    async with submission(request) as (plane, fields):
        await (projects.pause_queue(plane, _reason(fields)) if paused else projects.resume_queue(plane))
    return RedirectResponse("/queue", 303)


async def on_worker(request: Request) -> Response:
    """Drains a worker, or lets it claim again. It is for an operator: the database refuses a user."""
    drain = {"drain": True, "undo": False}.get(request.path_params["action"])
    if drain is None:
        raise HTTPException(404, "There is no such action.")
    async with submission(request) as (plane, fields):
        await projects.drain_worker(plane, fields.get("worker", ""), _reason(fields) if drain else None, drain=drain)
    return RedirectResponse("/workers", 303)
