"""The destinations of this host: a TOML file, whose errors name the key and what was expected."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from worker.errors import ConfigurationError, expected
from worker.model.container import MAX_SECRET
from worker.model.fields import STRICT

SECRETS = "ops-notify"
"""The folder below ``--secrets-dir``. No workflow can name a file in it: the dash is in no workspace key."""

MAX_DESTINATIONS = 20
FORGE_EVENTS = ("queued", "started", "every")

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9a-fA-F:.]{2,45}")


def _pattern(text: str, words: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(text, value, re.ASCII):
            raise ValueError(f"expected {words}")
        return value

    return AfterValidator(check)


def _url(value: str) -> str:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        raise ValueError("expected a URL such as https://forge.example") from None
    if url.scheme not in ("https", "http") or not _HOST.fullmatch(url.hostname or "") or port == 0:
        raise ValueError("expected a URL such as https://forge.example")
    if url.username is not None or url.password is not None:
        raise ValueError("expected a URL without user and password")
    if re.search(r"[^\x21-\x7e]", value) or url.fragment:
        raise ValueError("expected a URL of ASCII characters, without a fragment")
    return value


def _base_url(value: str) -> str:
    if urlsplit(_url(value)).query:
        raise ValueError("expected a URL without a query")
    return value.rstrip("/")


def _file(value: str) -> str:
    if not Path(value).is_file():
        raise ValueError("there is no such file")
    return value


SecretName = Annotated[str, _pattern(r"\w[\w.-]{0,63}", f"the name of a file in SECRETS_DIR/{SECRETS}")]
MailAddress = Annotated[str, _pattern(r"[\w.+=-]{1,64}@[\w.-]{1,190}", "a mail address such as ops@example.com")]
Name = Annotated[str, _pattern(r"[a-z0-9-]{1,60}", "lower case letters, digits and -")]
Host = Annotated[str, _pattern(_HOST.pattern, "the name or the address of a host")]
Repository = Annotated[
    str, _pattern(r"(?!\.{1,2}(/|$))[\w.{}-]{1,100}(/(?!\.{1,2}(/|$))[\w.{}-]{1,100})+", "OWNER/REPOSITORY")
]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Patterns = Annotated[list[Annotated[str, Field(min_length=1, max_length=255)]], Field(min_length=1, max_length=100)]
Events = Annotated[list[Literal["red", "green_again", "every"]], Field(min_length=1)]


class _Destination(BaseModel):
    """What every destination has. Patterns: ``*`` stands for any characters."""

    model_config = STRICT

    name: Name
    """Hosts that use the same name share its messages."""
    projects: Patterns = ["*"]
    """Slugs."""
    workflows: Patterns = ["*"]
    """Names or types."""
    branches: Patterns = ["*"]
    allow_private: bool = False
    """Whether it may be at a private, loopback or link-local address, and without TLS."""
    ca_file: Annotated[str, AfterValidator(_file)] | None = None
    """Certificates to trust instead of the system's."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that it needs."""
        return ()

    @property
    def wanted(self) -> dict[str, Any]:
        """What ``ops.register_destinations`` takes."""
        lists = {"projects": self.projects, "workflows": self.workflows, "branches": self.branches}
        return {"name": self.name, "events": self._events, "commits_only": self._commits_only, **lists}

    @property
    def _events(self) -> list[str]:
        return list(FORGE_EVENTS)

    @property
    def _commits_only(self) -> bool:
        return False


class Forge(_Destination):
    """The status of a run's commit. Sent when the run is queued, when it starts, and when it ends."""

    kind: Literal["github", "gitlab", "gitea"]
    repository: Repository
    """``{project}`` stands for the project's slug."""
    token: SecretName
    url: BaseUrl = ""

    @model_validator(mode="after")
    def _has_url(self) -> Self:
        if not self.base:
            raise ValueError("url: expected the URL of the forge, such as https://forge.example")
        _check_tls(self.base, allow_private=self.allow_private)
        return self

    @property
    def base(self) -> str:
        """The URL, or that of the public forge of its kind."""
        return self.url or {"github": "https://api.github.com", "gitlab": "https://gitlab.com"}.get(self.kind, "")

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.token,)

    @property
    def _commits_only(self) -> bool:
        return True


class Webhook(_Destination):
    """A chat: Slack, Mattermost, Rocket.Chat, or another program that takes the same JSON."""

    kind: Literal["webhook"]
    url_secret: SecretName
    """The URL is a secret: it is all that a sender needs."""
    events: Events = ["red", "green_again"]

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.url_secret,)

    @property
    def _events(self) -> list[str]:
        return list(self.events)


class Mail(_Destination):
    """A mail in plain text."""

    kind: Literal["mail"]
    host: Host
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    username: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    password: SecretName | None = None
    sender: MailAddress = Field(alias="from")
    to: Annotated[list[MailAddress], Field(min_length=1, max_length=20)]
    events: Events = ["red", "green_again"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("password: expected with username, and only with it")
        if self.tls == "none" and (not self.allow_private or self.password is not None):
            raise ValueError('tls: expected "starttls" or "implicit"; "none" needs allow_private and no password')
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        return () if self.password is None else (self.password,)

    @property
    def _events(self) -> list[str]:
        return list(self.events)


Destination = Forge | Webhook | Mail


class Notifications(BaseModel):
    """The whole file."""

    model_config = STRICT

    run_url: Annotated[str, AfterValidator(_url)] | None = None
    """A page of a run, for links: ``{run_id}``, ``{project}`` and ``{number}`` are replaced."""
    destinations: Annotated[
        list[Annotated[Destination, Field(discriminator="kind")]], Field(min_length=1, max_length=MAX_DESTINATIONS)
    ]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError("destinations: expected a different name for each")
        return self


class Secrets:
    """The files in ``SECRETS_DIR/ops-notify``; read at each use, so that a changed one applies at once."""

    def __init__(self, root: Path | None) -> None:
        self._folder = None if root is None else root / SECRETS

    def read(self, name: str) -> str:
        """The first line. Raises ``ValueError`` with what is wrong. Blocking, but only for a small file."""
        if self._folder is None:
            raise ValueError(f"secret {name!r}: the host's setting secrets_dir is not set")
        try:
            with (self._folder / name).open("rb") as file:
                value = file.read(MAX_SECRET + 1).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(f"secret {name!r}: cannot read SECRETS_DIR/{SECRETS}/{name}: {why}") from None
        if not value or len(value) > 4096 or not value.isprintable():  # noqa: PLR2004 - no token is longer
            raise ValueError(f"secret {name!r}: expected one line of at most 4096 characters")
        return value


def load(path: Path, secrets: Secrets) -> Notifications:
    """Reads and checks the file, and that each secret can be read. Raises ``ConfigurationError``."""
    try:
        with path.open("rb") as file:
            found = Notifications.model_validate(tomllib.load(file))
    except OSError as error:
        raise ConfigurationError("notify_file", f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError("notify_file", f"{path}: not a TOML file: {error}") from None
    except ValidationError as error:
        lines = "; ".join(_problem(each) for each in error.errors(include_url=False)[:5])
        raise ConfigurationError("notify_file", f"{path}: {lines}") from None
    for destination in found.destinations:
        try:
            for name in destination.secrets:
                value = secrets.read(name)
                if isinstance(destination, Webhook):
                    check_webhook_url(value, destination)
        except ValueError as error:
            raise ConfigurationError("notify_file", f"{path}: destination {destination.name}: {error}") from None
    return found


def check_webhook_url(value: str, destination: Webhook) -> str:
    """The URL in the secret. Raises ``ValueError``, which quotes nothing of it."""
    try:
        _check_tls(_url(value), allow_private=destination.allow_private)
    except ValueError as error:
        raise ValueError(f"secret {destination.url_secret!r}: {error}") from None
    return value


def _check_tls(url: str, *, allow_private: bool) -> None:
    if not allow_private and urlsplit(url).scheme != "https":
        raise ValueError("url: expected https://; http:// needs allow_private")


def _problem(problem: Mapping[str, Any]) -> str:
    """One line about one value: its place in the file, and what was expected. Quotes no value."""
    place = ""
    for n, part in enumerate(problem["loc"]):
        if isinstance(part, int):
            place += f"[{part}]"
        elif n != 2 or problem["loc"][0] != "destinations":  # noqa: PLR2004 - behind the number stands the kind
            place += f".{part}" if place else str(part)
    if problem["type"].startswith("union_tag"):
        return f"{place}.kind: expected one of github, gitlab, gitea, mail, webhook"
    words = {"missing": "required", "extra_forbidden": "there is no such key"}.get(problem["type"]) or expected(problem)
    return f"{place}: {words}" if place else words
