"""The console as a client sees it: with a token, a cookie, or the header of a proxy; no browser yet."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt

from worker.cli.parser import parse
from worker.console.app import opened

SECRET = "a secret of the tests that is long enough for HS256 and HS512 alike"  # noqa: S105 - it is the tests' own
SIGNS_IN = ("--jwt-secret", SECRET)
HERE = "http://127.0.0.1:8090"
AS_BROWSER = {"Accept": "text/html"}
FROM_HERE = AS_BROWSER | {"Origin": HERE}


def claims(user: uuid.UUID | str, **changes: Any) -> dict[str, Any]:
    """The claims of a token as Supabase issues it."""
    now = datetime.now(UTC)
    common = {"role": "authenticated", "aud": "authenticated", "iat": now, "exp": now + timedelta(hours=1)}
    return {name: value for name, value in (common | {"sub": str(user)} | changes).items() if value is not None}


def token(user: uuid.UUID | str, key: Any = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(user, **changes), key, algorithm)


def bearer(user: uuid.UUID | str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


@asynccontextmanager
async def served(url: str, *words: str, peer: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    """A client of the console with these settings, at that address."""
    settings = parse(["console", *words], {"OPS_WORKER_DATABASE_URL": url}).settings
    async with opened(settings) as app:
        transport = httpx.ASGITransport(app, client=(peer, 40000))
        async with httpx.AsyncClient(transport=transport, base_url=settings.public_url or HERE) as client:
            yield client


async def form_key(client: httpx.AsyncClient) -> str:
    """The key of this client's forms, which any page brings."""
    page = await client.get("/sign-in", headers=AS_BROWSER)
    (found, *_) = re.findall(r'name="form_key" value="([^"]+)"', page.text) or [client.cookies["ops_form"]]
    return str(found)
