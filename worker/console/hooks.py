"""The webhooks of forges: each delivery goes to the database, which checks its signature and does what the rules say.

A sender needs no session: its proof is the signature, which covers the body. The call runs in the role ``ops_webhook``,
which may do nothing else.
"""

from __future__ import annotations

import uuid

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from worker.console.bounds import MOST_DELIVERY, body_of
from worker.console.visit import console_of, status_of
from worker.database import projects
from worker.database.control_plane import Row
from worker.errors import CommandError

NEEDS_GRANT = "This console serves no webhooks: an operator must grant ops_webhook to the login of the console."
_NO_ROLE = frozenset({"42501", "22023"})
"""The login may not ``set role ops_webhook``; there is no such role."""

log = structlog.get_logger()


async def receive(request: Request) -> Response:
    """Passes a delivery to the project whose id the path has, and answers what the database answers."""
    console = console_of(request)
    try:
        project_id = uuid.UUID(request.path_params["project"])
    except ValueError:
        raise HTTPException(404, "There is no such project: expected its id. Its page has the whole address.") from None
    with console.deliveries.holding() as more:
        body = await body_of(request, MOST_DELIVERY, "A delivery", more)
        async with console.deliveries.turn():
            answer = await _passed(request, project_id, body)
    return JSONResponse(answer, _status(answer))


async def _passed(request: Request, project_id: uuid.UUID, body: bytes) -> Row:
    try:
        async with console_of(request).sessions.receiving() as plane:
            return await projects.receive_push(plane, project_id, body, request.headers)
    except CommandError as error:
        if getattr(error.__cause__, "sqlstate", "") not in _NO_ROLE:
            raise
        log.warning("the console may not receive webhooks", error=str(error))
        raise HTTPException(503, NEEDS_GRANT) from error


def _status(answer: Row) -> int:
    """202 if the delivery queued or canceled a run, 200 if it changed nothing, else the status of the refusal."""
    if not answer["success"]:
        return status_of(answer["code"])
    return 202 if answer["canceled"] or any(run["created"] for run in answer["runs"]) else 200
