"""What a tool, a workflow and a run may say: the models, and the reader that explains what is wrong. Pure.

The reader refuses unknown keys, wrong types and anything that would take long to validate. Its message is one
sentence: the place, what was expected and what was found. It never shows the value of an environment variable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from worker.errors import SpecError, expected
from worker.model.fields import ARTIFACTS_DIR, STRICT, ContainerResources, Env, Secrets, Text, Word, env_name, no_nul
from worker.model.serve import Serve, ServeHealth
from worker.model.service import Health, Service, Services, Tmpfs
from worker.model.sizes import Size
from worker.model.volume import MAX_CACHES, MAX_VOLUMES, Cache, Volume

DEFAULT_EXPIRY_DAYS = 30
MAX_RULES = 100
MAX_PATTERN = 1024
"""Characters of the path of an artifact rule."""

MAX_TEXT = 2**18
"""Characters in all names and texts of one configuration. The database stores no more."""

MAX_VALUES = 10_000
"""Names and values in one configuration, at any depth."""

MAX_DEPTH = 32
"""Levels of lists and objects in one configuration."""

MAX_LABELS, MAX_LABEL = 20, 100
"""Labels of a workflow, and characters of a label."""

MAX_KEY = 64
"""Characters of an unknown key that are compared with the known keys."""

MAX_SHOWN = 60
"""Characters of a name or a value that an error message shows."""

_GIT_REF = re.compile(r"(?![-/.])(?!.*(\.\.|//|@\{))[^\x00-\x20\x7f~^:?*\[\\]{1,255}(?<![/.])")
"""About what ``git check-ref-format`` allows; no name that a command would read as an option."""
_GIT_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_LOADS_CODE = re.compile(
    r"PATH|ENV|BASH_ENV|SHELLOPTS|BASHOPTS|PS4|IFS|EDITOR|VISUAL|PAGER|BROWSER|NODE_OPTIONS|NODE_PATH|JAVA_TOOL_OPTIONS"
    r"|RUBYOPT|RUBYLIB|GIT_(SSH|CONFIG|EXEC|EXTERNAL|PROXY|TEMPLATE).*|GIT_(ASKPASS|EDITOR|PAGER)|(LD_|PYTHON|PERL5).*"
)
"""Variables that make a loader, a shell or an interpreter run other code. Not complete: the list catches mistakes."""
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(; ?[\x20-\x7e]+)?", re.ASCII)


def _run_env_name(name: str) -> str:
    if _LOADS_CODE.fullmatch(env_name(name)):
        raise ValueError("expected no variable that makes programs run other code")
    return name


def _below_artifacts(path: str) -> str:
    """Returns the path relative to /artifacts. A folder with a trailing slash means every file in it."""
    absolute = path.startswith("/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path or ".." in parts or (absolute and parts[:1] != [ARTIFACTS_DIR.lstrip("/")]):
        raise ValueError(f"expected a path or pattern below {ARTIFACTS_DIR}")
    if absolute:
        del parts[0]
    if not parts or path.endswith("/"):
        parts.append("**")
    below = "/".join(parts)
    if len(below) > MAX_PATTERN:
        raise ValueError(f"expected at most {MAX_PATTERN} characters")
    return below


def _git_ref(name: str) -> str:
    if not _GIT_REF.fullmatch(name):
        raise ValueError("expected the name of a branch, a tag or a ref")
    return name


def _git_commit(name: str) -> str:
    if not _GIT_COMMIT.fullmatch(name):
        raise ValueError("expected 7 to 64 hexadecimal digits, in lower case")
    return name


M = TypeVar("M", bound=BaseModel)
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL), AfterValidator(no_nul)]
GitRef = Annotated[str, AfterValidator(_git_ref)] | None
"""The git ref of a workflow or a run. The database applies the same rule."""


class _Strict(BaseModel):
    model_config = STRICT


class Resources(ContainerResources):
    """``resources``: the limits of the run's container, of its output and of the disk."""

    output: Size | None = None
    disk: Size | None = None


class ArtifactRule(_Strict):
    """``artifacts``: which files below /artifacts are kept (a glob; ``**`` crosses folders), and for how long."""

    path: Annotated[Text, AfterValidator(_below_artifacts)] = "**"
    content_type: Annotated[str, Field(max_length=255)] | None = None
    expires_in_days: int | None = Field(DEFAULT_EXPIRY_DAYS, ge=1, le=36_500)


class Retry(_Strict):
    """``retry``: the failures after which the database retries the run, and how often.

    The database checks the same when the run is queued (``ops_private.bad_retry``).
    """

    max_attempts: int = Field(ge=2, le=100)
    on: list[Literal["worker_lost", "failed", "timeout", "oom"]] = Field(min_length=1)
    delay_seconds: float = Field(10, ge=0, le=3600)


class Schedule(_Strict):
    """``schedule``: when the database queues a run. It checks the line and the name of the time zone."""

    cron: Annotated[Text, Field(max_length=200)]
    timezone: Word = "UTC"
    catch_up: Literal["skip", "once"] = "skip"


def _content_type(rule: ArtifactRule) -> ArtifactRule:
    if rule.content_type is not None and not _CONTENT_TYPE.fullmatch(rule.content_type):
        raise ValueError("expected a content_type such as text/plain")
    return rule


def _different_paths(volumes: list[Volume]) -> list[Volume]:
    if len({volume.path for volume in volumes}) != len(volumes):
        raise ValueError("expected a different path for each volume")
    return volumes


def _different_caches(caches: list[Cache]) -> list[Cache]:
    if min(len({cache.path for cache in caches}), len({cache.name for cache in caches})) != len(caches):
        raise ValueError("expected a different name and path for each cache")
    return caches


class Config(_Strict):
    """The ``config`` of a tool, and the part of a workflow's ``config`` that overrides it."""

    command: list[Text] | None = None
    env: Env = {}
    timeout_seconds: float | None = Field(None, gt=0)
    resources: Resources = Resources()
    network: Word | None = None
    user: Word | None = None
    read_only: bool = False
    artifacts: Annotated[list[Annotated[ArtifactRule, AfterValidator(_content_type)]], Field(max_length=MAX_RULES)] = [
        ArtifactRule()
    ]
    secrets: Secrets = []
    services: Services = []
    volumes: Annotated[list[Volume], Field(max_length=MAX_VOLUMES), AfterValidator(_different_paths)] = []
    cache: Annotated[list[Cache], Field(max_length=MAX_CACHES), AfterValidator(_different_caches)] = []
    serve: Serve | None = None


class WorkflowConfig(Config):
    """The ``config`` of a workflow. The database reads the fields below; Python only checks them."""

    tool: Word | None = None
    version: Word | None = None
    labels: Annotated[list[Label], Field(max_length=MAX_LABELS)] = []
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    concurrency_key: Annotated[str, Field(max_length=200), AfterValidator(no_nul)] | None = None
    retry: Retry | None = None
    then: Annotated[list[Annotated[Word, Field(max_length=200)]], Field(max_length=10)] = []
    approval: bool = False
    on_newer: Literal["queue", "newest", "cancel_running"] = "queue"
    queue_timeout_seconds: int | None = Field(None, ge=1, le=31_536_000)
    schedule: Annotated[list[Schedule], Field(max_length=20)] = []
    run_env: Annotated[list[Annotated[str, AfterValidator(_run_env_name)]], Field(max_length=100)] = []


class WorkflowColumns(_Strict):
    """The columns of a workflow that the worker checks like its config."""

    git_ref: GitRef = None


class RunOptions(_Strict):
    """The ``metadata`` of a run. Other keys are notes for the caller and have no effect."""

    env: Env = {}
    args: list[Text] = []
    git_ref: GitRef = None
    git_commit: Annotated[str, AfterValidator(_git_commit)] | None = None

    reserved: ClassVar[frozenset[str]] = frozenset(WorkflowConfig.model_fields) - {"env"}


def check_extent(where: str, data: Mapping[str, Any]) -> None:
    """Refuses data that takes long to validate, because validation runs on the event loop. Raises ``SpecError``."""
    values = text = 0
    for field, whole in data.items():
        level: list[Any] = [field, whole]
        for _ in range(MAX_DEPTH):
            values += len(level)
            text += sum(len(item) for item in level if isinstance(item, str))
            if values > MAX_VALUES or text > MAX_TEXT:
                break
            level = [part for item in level for part in _parts(item)]
        if values > MAX_VALUES:
            most = f"{MAX_VALUES:,} values in all"
        elif text > MAX_TEXT:
            most = f"{MAX_TEXT:,} characters in all"
        elif level:
            most = f"{MAX_DEPTH} levels"
        else:
            continue
        name = _printable(field)
        raise SpecError("invalid_config", name, f"{where}, {name}: expected at most {most}")


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return chain(item, item.values())
    return item if isinstance(item, list) else ()


def read(model: type[M], where: str, data: Mapping[str, Any]) -> M:
    """Validates the data. Raises ``SpecError`` with the place, what was expected and what was found."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(_printable(str(part)) for part in problem["loc"] if part not in _STEPS_OF_PYDANTIC)
        raise SpecError("invalid_config", field, f"{where}, {field}: {_explain(problem, model)}") from None


_STEPS_OF_PYDANTIC = ("[key]", "list[any]", "dict[str,any]")
"""Steps in the location of an error that pydantic adds and the data does not have."""


def _explain(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    place = problem["loc"]
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(str(place[-1])[:MAX_KEY], _keys(model, place[:-1]), n=1)
        return "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    text = expected(problem)
    if not text.startswith("expected"):
        return text
    if place[-1] == "[key]":
        return text
    if "env" in place or (place[0] == "services" and isinstance(problem["input"], (dict, list))):
        return f"{text}, got {_kind(problem['input'])}"  # the value of a variable may be a secret; its type is not
    return f"{text}, got {shown(problem['input'])}"


def _keys(model: type[BaseModel], place: Iterable[object]) -> Iterable[str]:
    """The known keys at a place."""
    for step in place:
        model = _NESTED.get((model, step)) or _NESTED.get((None, step), model)
    return model.model_fields


_NESTED: dict[tuple[type[BaseModel] | None, object], type[BaseModel]] = {
    (None, "resources"): Resources,
    (None, "artifacts"): ArtifactRule,
    (None, "retry"): Retry,
    (None, "schedule"): Schedule,
    (None, "services"): Service,
    (Service, "resources"): ContainerResources,
    (None, "tmpfs"): Tmpfs,
    (None, "health"): Health,
    (None, "volumes"): Volume,
    (None, "cache"): Cache,
    (None, "serve"): Serve,
    (Serve, "health"): ServeHealth,
}
"""The models of the objects within a configuration, by the key that has them, and by the object around it."""


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "something else")


_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _printable(key: str) -> str:
    key = key[: MAX_SHOWN + 1]
    return (key if key.isprintable() else ascii(key)[1:-1])[:MAX_SHOWN] or "''"


def shown(value: object) -> str:
    """The value as JSON, or a text in quotes; shortened for an error message."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
