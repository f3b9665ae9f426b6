"""What holds for every request, whatever page it asks for: hosts, headers and forms.

A POST needs two proofs that a page of this console sent it: the ``Origin`` that browsers add, and the value of a cookie
that only such a page can repeat in its form.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.console.bounds import body_of

MOST_FORM = 16_384
"""Bytes of a form."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types ops-page"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the console as browsers write it; ``public`` is None on the loopback address only."""

    public: str | None

    @property
    def secure(self) -> bool:
        return self.public is not None and self.public.startswith("https:")

    def knows(self, host: str) -> bool:
        """Whether a request may name this host. Another name may be a foreign page's, which it lets lead here."""
        if self.public is not None and host.lower() == urlsplit(self.public).netloc:
            return True
        name, _, port = host.lower().rpartition(":")
        return (name if port.isdecimal() and name else host.lower()) in LOOPBACK

    def sent(self, headers: Mapping[str, str]) -> bool:
        """Whether a page of this console sent the request, as far as the browser says."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") == "same-origin"
        return origin == self.public or (origin == f"http://{headers.get('host', '').lower()}" and not self.secure)

    def cookie(self, name: str) -> str:
        """The name of a cookie; with TLS one that no other host can set."""
        return f"__Host-{name}" if self.secure else name


class Guard:
    """Refuses unknown hosts, and adds the headers to every response."""

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self._app = app
        self._address = address
        self._headers = dict(HEADERS)
        if address.secure:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        if not self._address.knows(Headers(scope=scope).get("host", "")):
            refusal = PlainTextResponse("this host name is not the console's: expected that of --public-url\n", 421)
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def form_key(request: Request, address: Address) -> str:
    """The value that the forms of this browser carry: that of its cookie, or a new one."""
    given = request.cookies.get(address.cookie("ops_form"), "")
    return given if len(given) == 43 and given.isascii() else secrets.token_urlsafe(32)  # noqa: PLR2004 - 32 bytes


def keep_form_key(response: Response, address: Address, key: str) -> None:
    response.set_cookie(
        address.cookie("ops_form"), key, path="/", secure=address.secure, httponly=True, samesite="strict"
    )


async def posted(request: Request, address: Address, *, proven: bool, most: int = MOST_FORM) -> dict[str, str]:
    """The fields of a form. ``proven``: the request itself carries the user's token, which no browser adds.

    Raises ``HTTPException`` if no page of this console sent it, or if it is too large.
    """
    text = (await body_of(request, most, "A form")).decode("utf-8", "replace")
    try:
        fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise HTTPException(400, "A form has at most 20 fields.") from None
    if not proven:
        expected = request.cookies.get(address.cookie("ops_form"), "")
        if not address.sent(request.headers):
            raise HTTPException(403, "This request does not come from a page of this console.")
        if not expected or not secrets.compare_digest(expected.encode(), fields.get("form_key", "").encode()):
            raise HTTPException(403, "This form is too old, or does not come from this console. Reload the page.")
    return fields
