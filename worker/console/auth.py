"""Who a request comes from: a token of the user, or the header of a trusted proxy.

The console decides no right. It finds out the user's id, and the database decides what that user sees and does.
"""

from __future__ import annotations

import ipaddress
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

import anyio
import jwt
import structlog
from anyio.to_thread import run_sync
from jwt import PyJWK, PyJWKSet
from jwt.exceptions import PyJWKSetError, PyJWTError

from worker.cli.settings import Settings
from worker.errors import ConfigurationError, OpsError

ROLE = "authenticated"
"""The database role of every user; a token that names another role is refused."""

LEEWAY_SECONDS = 10
MOST_TOKEN = 3800
"""Bytes of a token: what a browser keeps in a cookie."""

FETCH_SECONDS = 5
MOST_KEYS_BYTES = 1 << 18
KEYS_SECONDS, UNKNOWN_KEY_SECONDS = 600, 30
"""After how long the keys are read again, and after how long because a token names an unknown one."""

_PUBLIC = {"RSA": ("RS256", "RS384", "RS512", "PS256"), "EC": ("ES256", "ES384"), "OKP": ("EdDSA",)}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
log = structlog.get_logger()


class TokenRefused(OpsError):
    """The token of a request is not valid; the text says why and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request acts for. ``claims``: None without a sign-in, where the login of the database acts."""

    claims: Mapping[str, Any] | None = None
    name: str = ""
    expires: float | None = None
    by_token: bool = False
    """Whether the request itself carries the token. A browser adds a cookie or a proxy a header, on its own."""
    by_cookie: bool = False

    @property
    def operates(self) -> bool:
        """Whether it has the rights of the login, an operator's, since there is no sign-in."""
        return self.claims is None

    def is_one_of(self, roles: Sequence[str], role: str | None) -> bool:
        """Whether it may do what these roles may; ``role`` is its own in the project."""
        return self.operates or role in roles


class Keys:
    """The keys that verify tokens: one secret, or a set of public keys from a file or a URL."""

    def __init__(self, secret: str | None, source: str | None) -> None:
        self._secret = secret
        self._source = source
        self._keys: dict[str | None, PyJWK] = {}
        self._read_at = -float("inf")
        self._lock = anyio.Lock()

    async def find(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        """The key of a token and its algorithm, which the key decides. Raises ``TokenRefused``."""
        algorithm = header.get("alg")
        if self._secret is not None and algorithm == "HS256":
            return self._secret, "HS256"
        if self._source is not None:
            key = await self._public(header.get("kid"))
            if key is not None and algorithm in _PUBLIC.get(key.key_type or "", ()) and algorithm == key.algorithm_name:
                return key.key, key.algorithm_name
        raise TokenRefused("no key here verifies this token: its algorithm or its key is not one of this console")

    async def read(self) -> None:
        """Reads the public keys. Raises ``ConfigurationError``."""
        if self._source is None:
            return
        try:
            document = json.loads(await run_sync(_bytes_of, self._source))
            keys = [key for key in PyJWKSet.from_dict(document).keys if key.key_type in _PUBLIC]
        except (OSError, ValueError, AttributeError, PyJWKSetError) as error:
            raise ConfigurationError("jwks", f"cannot be read as a set of keys: {error}") from error
        if not keys:
            raise ConfigurationError("jwks", "expected at least one public key (RSA, EC or OKP)")
        self._keys = {key.key_id: key for key in keys}
        self._read_at = time.monotonic()

    async def _public(self, name: str | None) -> PyJWK | None:
        async with self._lock:
            age = time.monotonic() - self._read_at
            if age > KEYS_SECONDS or (name not in self._keys and age > UNKNOWN_KEY_SECONDS):
                self._read_at = time.monotonic()  # also after a failure, so that a wrong token causes no flood
                try:
                    await self.read()
                except ConfigurationError as error:
                    log.warning("the keys of tokens cannot be read; those of before stay", error=str(error))
        if name is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(name)


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: the address behind one has not been checked, and may be without TLS."""

    def redirect_request(self, *_: object) -> None:
        """Without a new request, the answer is an ``HTTPError`` with the status of the redirect."""


def _bytes_of(source: str) -> bytes:
    """The document behind a path or a URL."""
    if "://" not in source:
        return Path(source).read_bytes()
    with build_opener(_NoRedirect).open(source, timeout=FETCH_SECONDS) as answer:
        found: bytes = answer.read(MOST_KEYS_BYTES)
        return found


def check_source(source: str | None) -> None:
    """Raises ``ConfigurationError`` if the keys would come over a network without TLS."""
    if source is None or "://" not in source:
        return
    url = urlsplit(source)
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
        raise ConfigurationError("jwks", "expected a file, or a URL with https")


@dataclass(frozen=True, slots=True)
class SignIn:
    """The ways to sign in that are configured."""

    keys: Keys | None
    audience: str
    proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    header: str
    users: Mapping[str, uuid.UUID] = field(default_factory=dict)

    @classmethod
    def configured(cls, settings: Settings) -> SignIn:
        """Reads the settings, and the file of users. Raises ``ConfigurationError``."""
        secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret is not None else None
        check_source(settings.jwks)
        return cls(
            Keys(secret, settings.jwks) if secret or settings.jwks else None,
            settings.jwt_audience,
            tuple(map(ipaddress.ip_network, settings.trusted_proxies)),
            settings.user_header,
            read_users(settings.users_file),
        )

    @property
    def needed(self) -> bool:
        """Whether a caller must sign in; otherwise the console acts with the rights of its login."""
        return self.keys is not None or bool(self.proxies)

    async def by_token(self, token: str) -> Caller:
        """The user of a token. Raises ``TokenRefused``."""
        if self.keys is None:
            raise TokenRefused("this console takes no tokens")
        if len(token) > MOST_TOKEN:
            raise TokenRefused(f"expected a token of at most {MOST_TOKEN} bytes")
        try:
            key, algorithm = await self.keys.find(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token, key, algorithms=[algorithm], audience=self.audience, leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "aud"]},
            )  # fmt: skip
        except PyJWTError as error:
            raise TokenRefused(_why(error)) from error
        if claims.get("role", ROLE) != ROLE:
            raise TokenRefused(f"expected a token of a user, with the role {ROLE}")
        user = _user_id(claims["sub"])
        if user is None:
            raise TokenRefused("expected a token whose sub is a user id")
        return Caller(
            {**claims, "sub": str(user), "role": ROLE}, str(claims.get("email") or user), float(claims["exp"])
        )

    def by_proxy(self, address: str | None, name: str | None) -> Caller | None:
        """The user whom a trusted proxy names; None if the request does not come from one, or names no known user."""
        if not (name and address and self.proxies):
            return None
        peer = ipaddress.ip_address(address)
        peer = getattr(peer, "ipv4_mapped", None) or peer
        if not any(peer in network for network in self.proxies):
            return None
        user = self.users.get(name) or _user_id(name)
        return None if user is None else Caller({"sub": str(user), "role": ROLE}, name)


def _user_id(text: object) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None


_REASONS = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.InvalidAudienceError: "the token is not for this console (--jwt-audience)",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidSignatureError: "the signature of the token is wrong",
}


def _why(error: PyJWTError) -> str:
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token has no claim {error.claim}"
    return "this is not a token"


def read_users(path: Path | None) -> Mapping[str, uuid.UUID]:
    """The users by the names that the proxy gives them. Raises ``ConfigurationError`` with the number of a bad line."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigurationError("users_file", f"cannot read {path}: {error}") from error
    users: dict[str, uuid.UUID] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, text = line.strip().rpartition(" ")
        user = _user_id(text)
        if not name.strip() or user is None or name.strip() in users:
            raise ConfigurationError("users_file", f"line {number} of {path}: expected NAME UUID, each name once")
        users[name.strip()] = user
    return users
