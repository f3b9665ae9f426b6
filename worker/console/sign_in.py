"""Signing in with a token, and out again. The token is kept in a cookie that no script can read."""

from __future__ import annotations

import time
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from worker.console.auth import TokenRefused
from worker.console.guard import posted
from worker.console.visit import COOKIE, console_of, page


def leading_back(request: Request, why: str) -> Response:
    """Leads to the sign-in, and from there back.

    A link on another site sends no cookie, since it is ``SameSite=Strict``: then the page first leads to itself.
    """
    target = _local(f"{request.url.path}?{request.url.query}".removesuffix("?"))
    if request.headers.get("sec-fetch-site") == "cross-site":
        text = console_of(request).templates.get_template("again.html").render(target=target)
        return HTMLResponse(text)
    reason = "&expired=1" if "expired" in why else ""
    return RedirectResponse(f"/sign-in?next={quote(target)}{reason}", 303)


async def form(request: Request) -> Response:
    """The page to sign in."""
    return _form(request, _local(request.query_params.get("next", "/")), _why(request))


def _why(request: Request) -> str:
    return "Your token has expired. Sign in again." if request.query_params.get("expired") else ""


def _form(request: Request, target: str, why: str, status: int = 200) -> Response:
    takes_tokens = console_of(request).sign_in.keys is not None
    return page(request, "sign_in.html", None, status=status, target=target, why=why, takes_tokens=takes_tokens)


async def submit(request: Request) -> Response:
    """Checks the token and keeps it until it expires."""
    console = console_of(request)
    fields = await posted(request, console.address, proven=False)
    target = _local(fields.get("next", "/"))
    if console.sign_in.keys is None:
        raise HTTPException(404, "This console takes no tokens.")
    token = fields.get("token", "").strip()
    try:
        caller = await console.sign_in.by_token(token)
    except TokenRefused as error:
        return _form(request, target, f"{str(error)[:1].upper()}{str(error)[1:]}.", 401)
    response = RedirectResponse(target, 303)
    response.set_cookie(
        console.address.cookie(COOKIE), token, max_age=max(int((caller.expires or 0) - time.time()), 1), path="/",
        secure=console.address.secure, httponly=True, samesite="strict",
    )  # fmt: skip
    return response


async def sign_out(request: Request) -> Response:
    """Removes the cookie. The token itself stays valid until it expires."""
    console = console_of(request)
    await posted(request, console.address, proven=False)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(
        console.address.cookie(COOKIE), path="/", secure=console.address.secure, httponly=True, samesite="strict"
    )
    return response


def _local(target: str) -> str:
    """The path, if it is one of this console; another site must not be what a sign-in leads to."""
    local = target.startswith("/") and not target.startswith(("//", "/\\")) and "\\" not in target
    return target if local and target.isprintable() and not target.startswith("/sign-") else "/"
