"""The console's application: its paths, and what an error of each kind answers.

request → guard (host, headers) → path → visit (user, transaction) → page
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from worker.cli.settings import Settings
from worker.console import actions, editor, hooks, live, pages, sign_in
from worker.console.auth import SignIn
from worker.console.bounds import Deliveries, Streams
from worker.console.guard import Address, Guard
from worker.console.shown import environment
from worker.console.visit import Console, NotSignedIn, page, status_of
from worker.database.sessions import Sessions
from worker.errors import CommandError, DatabaseUnavailable, Refused

STATIC = Path(__file__).with_name("static")
_RUN = "/runs/{project}/{number:int}"
_SQLSTATES = {"42501": 403, "22023": 400, "57014": 503}
"""No privilege, a wrong argument of a search, the time limit of a statement."""

log = structlog.get_logger()


def routes() -> list[BaseRoute]:
    """Every path of the console."""
    return [
        Route("/", pages.builds),
        Route("/queue", pages.queue),
        Route("/queue/{action:str}", actions.on_queue, methods=["POST"]),
        Route("/workers", pages.workers),
        Route("/workers/{action:str}", actions.on_worker, methods=["POST"]),
        Route("/projects", pages.projects_page),
        Route("/add-project", editor.add),
        Route("/add-project", editor.submit, methods=["POST"]),
        Route("/projects/{project}", pages.project),
        Route("/projects/{project}/edit", editor.edit),
        Route("/projects/{project}/edit", editor.submit, methods=["POST"]),
        Route("/projects/{project}/{action:str}", actions.on_project, methods=["POST"]),
        Route("/runs/{run_id:uuid}", pages.run_by_id),
        Route(_RUN, pages.run),
        Route(f"{_RUN}/log", live.lines),
        Route(f"{_RUN}/log.txt", live.whole_log),
        Route(f"{_RUN}/found", live.found),
        Route(f"{_RUN}/groups", live.groups),
        Route(f"{_RUN}/live", live.live),
        Route(f"{_RUN}/{{action:str}}", actions.on_run, methods=["POST"]),
        Route("/hooks/{project}", hooks.receive, methods=["POST"]),
        Route("/sign-in", sign_in.form),
        Route("/sign-in", sign_in.submit, methods=["POST"]),
        Route("/sign-out", sign_in.sign_out, methods=["POST"]),
        Route("/healthz", healthy),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Starlette]:
    """The application with its connections; raises as ``Sessions.opened`` and ``Sessions.check_login``."""
    users = SignIn.configured(settings)
    if users.keys is not None:
        await users.keys.read()
    async with Sessions.opened(settings.dsn) as sessions:
        await sessions.check_login(for_users=users.needed)
        address = Address(settings.public_url)
        app = Starlette(
            routes=routes(),
            middleware=[Middleware(Guard, address=address)],
            exception_handlers={
                NotSignedIn: _not_signed_in, HTTPException: _refused, Refused: _refused, CommandError: _refused,
                DatabaseUnavailable: _refused, Exception: _broken,
            },
        )  # fmt: skip
        app.state.console = Console(sessions, users, address, Streams(), Deliveries(), environment())
        yield app


async def healthy(_: Request) -> Response:
    """For a proxy: the console answers. It does not ask the database, so a proxy does not end it with the database."""
    return PlainTextResponse("ok\n")


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


async def _not_signed_in(request: Request, error: Exception) -> Response:
    why = error.why if isinstance(error, NotSignedIn) else ""
    if request.method == "GET" and _wants_page(request):
        return sign_in.leading_back(request, why)
    return JSONResponse({"error": why or "sign in first"}, 401, {"WWW-Authenticate": "Bearer"})


async def _refused(request: Request, error: Exception) -> Response:
    """The page, or for a script the JSON, of an error that is expected."""
    status, headers, text = _answer(error)
    if not _wants_page(request):
        return JSONResponse({"error": text}, status, headers)
    response = page(request, "error.html", None, status=status, title=HTTPStatus(status).phrase, text=text)
    response.headers.update(headers or {})
    return response


def _answer(error: Exception) -> tuple[int, dict[str, str] | None, str]:
    if isinstance(error, HTTPException):
        return error.status_code, dict(error.headers or {}), error.detail
    if isinstance(error, Refused):
        return status_of(error.code), None, str(error)
    if isinstance(error, CommandError):
        status = _SQLSTATES.get(getattr(error.__cause__, "sqlstate", ""), 500)
        log.warning("the database refused", status=status, error=str(error))
        return status, None, _REFUSALS.get(status, "The database refused; the console's log has the reason.")
    log.warning("no answer of the database", error=str(error))
    return 503, {"Retry-After": "5"}, "The database cannot be reached at the moment. Each page tries again."


_REFUSALS = {
    400: "The database cannot search for that.",
    403: "Your role does not permit that.",
    503: "The database took too long for that.",
}


async def _broken(request: Request, error: Exception) -> Response:
    log.error("page failed", path=request.url.path, exc_info=error)
    return PlainTextResponse("The console has a defect here; its log has the reason.\n", 500)
