"""One request of a signed-in user: who it is, its transaction, and the page that answers it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from worker.console.auth import Caller, SignIn, TokenRefused
from worker.console.bounds import Deliveries, Streams
from worker.console.guard import MOST_FORM, Address, form_key, keep_form_key, posted
from worker.database import runs
from worker.database.control_plane import ControlPlane, Row
from worker.database.sessions import Sessions

COOKIE = "ops_session"
MAX_NUMBER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Console:
    """What every page needs."""

    sessions: Sessions
    sign_in: SignIn
    address: Address
    streams: Streams
    deliveries: Deliveries
    templates: jinja2.Environment


class NotSignedIn(Exception):
    """The request has no user; ``why`` is for a person, and empty if it did not try to have one."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


def console_of(request: Request) -> Console:
    found: Console = request.app.state.console
    return found


def address_of(request: Request) -> str:
    """The address of the console as the browser has it, without a path."""
    return console_of(request).address.public or f"http://{request.headers['host']}"


async def caller_of(request: Request) -> Caller:
    """The user of a request: of its token, of the proxy's header, or of the cookie. Raises ``NotSignedIn``."""
    console = console_of(request)
    sign_in = console.sign_in
    if not sign_in.needed:
        return Caller()
    try:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return replace(await sign_in.by_token(token.strip()), by_token=True)
        address = request.client.host if request.client is not None else None
        if named := sign_in.by_proxy(address, request.headers.get(sign_in.header)):
            return named
        if kept := request.cookies.get(console.address.cookie(COOKIE)):
            return replace(await sign_in.by_token(kept), by_cookie=True)
    except TokenRefused as error:
        raise NotSignedIn(str(error)) from error
    raise NotSignedIn


@asynccontextmanager
async def visit(request: Request) -> AsyncIterator[tuple[ControlPlane, Caller]]:
    """The control plane with the rights of the user. Raises ``NotSignedIn`` and what the control plane raises."""
    caller = await caller_of(request)
    async with console_of(request).sessions.acting_for(caller.claims) as plane:
        yield plane, caller


@asynccontextmanager
async def submission(request: Request, most: int = MOST_FORM) -> AsyncIterator[tuple[ControlPlane, dict[str, str]]]:
    """The control plane for a change by the user who sent a form, of at most ``most`` bytes, and its fields.

    Raises as ``visit`` and ``posted``.
    """
    caller, console = await caller_of(request), console_of(request)
    fields = await posted(request, console.address, proven=caller.by_token, most=most)
    async with console.sessions.acting_for(caller.claims, write=True) as plane:
        yield plane, fields


async def run_of(plane: ControlPlane, request: Request) -> Row:
    """The run that the path names. Raises ``HTTPException`` if there is none, or the user may not see it."""
    number = request.path_params["number"]
    found = await runs.by_number(plane, request.path_params["project"], number) if number <= MAX_NUMBER else None
    if found is None:
        raise HTTPException(404, "There is no such run, or you may not see it.")
    return found


def run_path(run: Row) -> str:
    return f"/runs/{quote(run['project'])}/{run['run_number']}"


def status_of(code: str) -> int:
    """The status of a refusal by its code; 409 where the state does not permit it."""
    return {"not_found": 404, "not_allowed": 403, "bad_argument": 400, "queue_full": 429}.get(code, 409)


def page(request: Request, name: str, caller: Caller | None, *, status: int = 200, **values: object) -> Response:
    """The template with that name, for that user."""
    console = console_of(request)
    key = form_key(request, console.address)
    text = console.templates.get_template(name).render(
        caller=caller, form_key=key, path=request.url.path, signs_in=console.sign_in.needed, **values
    )
    response = HTMLResponse(text, status)
    if request.cookies.get(console.address.cookie("ops_form")) != key:
        keep_form_key(response, console.address, key)
    return response
