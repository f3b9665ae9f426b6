"""Database roles for build hosts, made by the owner of the schema: one for each host.

A lease belongs to the role that claimed. So a host with a role of its own touches only what it claimed itself, and
dropping its role shuts out no other.
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
"""Characters that a password must have at least when a person chooses it."""

_ROUNDS = 4096  # what the server itself takes; a client repeats them at each login
_SALT_BYTES = 16


class RoleError(OpsError):
    """A role for a worker could not be made."""


async def create_worker(connection: asyncpg.Connection, name: str, password: str) -> bool:
    """Makes the role, or gives it that password when it is there; returns whether it is new.

    The password itself does not leave this process, so that no log of the server's can hold it.

    Raises:
        RoleError: the name or the password will not do, or this connection's role may not make it.
    """
    if len(password) < LEAST_PASSWORD or not password.isascii() or not password.isprintable():
        raise RoleError(f"a password has at least {LEAST_PASSWORD} characters, all of them printable ASCII")
    verifier = scram_verifier(password, secrets.token_bytes(_SALT_BYTES))
    try:
        text = await connection.fetchval("select ops_private.create_worker($1, $2)", name, verifier)
    except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
        raise RoleError("the schema is not up to date: run `ops-worker db migrate` first") from None
    except asyncpg.PostgresError as error:
        why = ": ".join(filter(None, (str(error.args[0]), error.detail)))
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            why += ". It takes the schema's owner, with CREATEROLE and, from PostgreSQL 16 on, ADMIN on ops_worker"
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
    """What the server stores of an ASCII password: SCRAM-SHA-256 as RFC 5803 writes it."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode("ascii") for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ROUNDS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def login_url(dsn: str, user: str, name: str, password: str) -> str:
    """The URL ``dsn``, which logs in as the role ``user``, for the role ``name``.

    Supabase's pooler wants the project's reference behind the role (``postgres.abcd``); the new role gets the same.
    """
    url = urlsplit(dsn)
    login, _, host = url.netloc.rpartition("@")
    given = unquote(login.partition(":")[0])
    suffix = given.removeprefix(user) if given.startswith(f"{user}.") else ""
    query = [(key, value) for key, value in parse_qsl(url.query) if key not in ("user", "password")]
    netloc = f"{quote(name + suffix, safe='')}:{quote(password, safe='')}@{host}"
    return urlunsplit(url._replace(netloc=netloc, query=urlencode(query, safe="/:")))
