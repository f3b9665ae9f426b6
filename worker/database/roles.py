"""Creates database roles for build hosts, one for each host, and for consoles. The owner of the schema does that.

A lease belongs to the role that claimed the run. So a host with its own role can change only runs that it claimed, and
dropping its role affects no other host.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from base64 import b64encode
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from worker.errors import OpsError

LEAST_PASSWORD = 12
"""Fewest characters of a password that a person chooses."""

_GROUPS = {"create_worker": "ops_worker", "create_console": "authenticated and ops_webhook"}
_ROUNDS = 4096  # the server's own default; a client repeats them at each login
_SALT_BYTES = 16


class RoleError(OpsError):
    """A role for a worker or a console could not be created."""


async def create_worker(connection: asyncpg.Connection, name: str, password: str) -> bool:
    """Creates the role of a build host, as ``_create`` does."""
    return await _create(connection, "create_worker", name, password)


async def create_console(connection: asyncpg.Connection, name: str, password: str) -> bool:
    """Creates the role of a console, as ``_create`` does: it acts for users and receives webhooks, no more."""
    return await _create(connection, "create_console", name, password)


async def _create(connection: asyncpg.Connection, function: str, name: str, password: str) -> bool:
    """Creates the role, or sets the password of an existing one; returns whether it is new.

    The password itself does not leave this process, so no log of the server can contain it.

    Raises:
        RoleError: the name or the password is not allowed, or this connection's role may not create roles.
    """
    if len(password) < LEAST_PASSWORD or not password.isascii() or not password.isprintable():
        raise RoleError(f"a password has at least {LEAST_PASSWORD} characters, all of them printable ASCII")
    verifier = scram_verifier(password, secrets.token_bytes(_SALT_BYTES))
    try:
        text = await connection.fetchval(f"select ops_private.{function}($1, $2)", name, verifier)
    except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
        raise RoleError("the schema is not up to date: run `ops-worker db migrate` first") from None
    except asyncpg.PostgresError as error:
        why = ": ".join(filter(None, (str(error.args[0]), error.detail)))
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            admin = f"from PostgreSQL 16 on, ADMIN on {_GROUPS[function]}"
            why += f". It takes the schema's owner, with CREATEROLE and, {admin}"
        raise RoleError(why) from error
    answer = json.loads(text)
    if not answer["success"]:
        raise RoleError(answer["error"])
    created: bool = answer["created"]
    return created


def new_password() -> str:
    """A password of 192 random bits that needs no quoting in a URL."""
    return secrets.token_urlsafe(24)


def scram_verifier(password: str, salt: bytes) -> str:
    """What the server stores instead of an ASCII password: SCRAM-SHA-256 in the form of RFC 5803."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode("ascii") for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ROUNDS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def login_url(dsn: str, user: str, name: str, password: str) -> str:
    """Changes the login in the URL ``dsn`` from the role ``user`` to the role ``name``.

    Supabase's pooler expects the project's reference after the role (``postgres.abcd``). The new URL keeps it.
    """
    url = urlsplit(dsn)
    login, _, host = url.netloc.rpartition("@")
    given = unquote(login.partition(":")[0])
    suffix = given.removeprefix(user) if given.startswith(f"{user}.") else ""
    query = [(key, value) for key, value in parse_qsl(url.query) if key not in ("user", "password")]
    netloc = f"{quote(name + suffix, safe='')}:{quote(password, safe='')}@{host}"
    return urlunsplit(url._replace(netloc=netloc, query=urlencode(query, safe="/:")))
