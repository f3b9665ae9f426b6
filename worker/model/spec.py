"""Tool, workflow and run configuration → one validated specification of a container. Pure.

The three merge, later wins, ``env`` name by name. Tool and workflow may say everything below; who may merely start a
run says ``env``, ``args`` and which commit, and no more, so that starting a run never means choosing an image, a user
or privileges.
What the host does not allow is an error that says so, never silently less.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from worker.errors import SpecError, expected
from worker.model.claim import Claim
from worker.model.images import ImageName, allowed
from worker.model.sizes import Size, shown_size

ARTIFACTS_DIR = "/artifacts"
SECRETS_DIR = "/run/secrets"
MAX_SECRETS = 20
DEFAULT_EXPIRY_DAYS = 30
MAX_RULES = 100
MAX_PATTERN = 1024
"""Characters of the path of an artifact rule."""

MAX_TEXT = 2**18
"""Characters in all names and texts of one configuration: what the database stores of it."""

MAX_VALUES = 10_000
"""Names and values in one configuration, at any depth."""

MAX_DEPTH = 32
MAX_LABELS, MAX_LABEL = 20, 100
"""How many labels a workflow may have, and the characters of one."""

MAX_KEY = 64
"""Characters of an unknown key that is compared with the known ones."""

_GIT_REF = re.compile(r"(?![-/.])(?!.*(\.\.|//|@\{))[^\x00-\x20\x7f~^:?*\[\\]{1,255}(?<![/.])")
"""What ``git check-ref-format`` allows, roughly, and never what a command would take for an option."""
_GIT_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_LOADS_CODE = re.compile(
    r"PATH|ENV|BASH_ENV|SHELLOPTS|BASHOPTS|PS4|IFS|EDITOR|VISUAL|PAGER|BROWSER|NODE_OPTIONS|NODE_PATH|JAVA_TOOL_OPTIONS"
    r"|RUBYOPT|RUBYLIB|GIT_(SSH|CONFIG|EXEC|EXTERNAL|PROXY|TEMPLATE).*|GIT_(ASKPASS|EDITOR|PAGER)|(LD_|PYTHON|PERL5).*"
)
"""Variables by which a loader, a shell or an interpreter runs other code. The list cannot be complete: it catches
mistakes."""
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(; ?[\x20-\x7e]+)?", re.ASCII)
MIN_MEMORY = 6 * 2**20
"""Below it the engine refuses to make a container."""


def _env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("expected a name of letters, digits and underscores")
    if name.startswith("OPS_"):
        raise ValueError("names that begin with OPS_ belong to the worker")
    return name


def _run_env_name(name: str) -> str:
    if _LOADS_CODE.fullmatch(_env_name(name)):
        raise ValueError("expected no variable that makes programs run other code")
    return name


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is not possible here")
    return text


def _below_artifacts(path: str) -> str:
    """The path relative to /artifacts; a folder with a trailing slash stands for all that is in it."""
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


def _secret_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]{0,63}", name, re.ASCII):
        raise ValueError("expected the name of a secret: letters, digits, underscores, dots and dashes")
    return name


def _enough_memory(size: int) -> int:
    if size < MIN_MEMORY:
        raise ValueError(f"expected at least {shown_size(MIN_MEMORY)}")
    return size


def _unsupported(value: object) -> object:
    if value:
        raise ValueError("not supported by this version")
    return value


M = TypeVar("M", bound=BaseModel)
N = TypeVar("N", int, float)
Text = Annotated[str, AfterValidator(_no_nul)]
Word = Annotated[str, Field(min_length=1), AfterValidator(_no_nul)]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL), AfterValidator(_no_nul)]
GitRef = Annotated[str, AfterValidator(_git_ref)] | None
"""Of a workflow or of a run; the database checks it by the same rule."""
Env = dict[Annotated[str, AfterValidator(_env_name)], Text]
Later = Annotated[list[Any] | dict[str, Any], BeforeValidator(_unsupported)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Resources(_Strict):
    """``resources``: the limits of the container. CPUs have the engine's own lower bound."""

    cpus: float | None = Field(None, ge=0.01, le=1024)
    memory: Annotated[Size, AfterValidator(_enough_memory)] | None = None
    pids: int | None = Field(None, ge=1, le=2**22)
    nofile: int | None = Field(None, ge=64, le=2**20)
    output: Size | None = None
    disk: Size | None = None


class ArtifactRule(_Strict):
    """``artifacts``: which files below /artifacts are kept (a glob; ``**`` crosses folders), how and how long."""

    path: Annotated[Text, AfterValidator(_below_artifacts)] = "**"
    content_type: Annotated[str, Field(max_length=255)] | None = None
    expires_in_days: int | None = Field(DEFAULT_EXPIRY_DAYS, ge=1, le=36_500)


class Retry(_Strict):
    """``retry``: after which failures the database queues the workflow again, and how often. Only checked here."""

    max_attempts: int = Field(ge=2, le=100)
    on: list[Literal["worker_lost", "failed", "timeout", "oom"]] = Field(min_length=1)
    delay_seconds: float = Field(10, ge=0, le=3600)


def _content_type(rule: ArtifactRule) -> ArtifactRule:
    if rule.content_type is not None and not _CONTENT_TYPE.fullmatch(rule.content_type):
        raise ValueError("expected a content_type such as text/plain")
    return rule


class Config(_Strict):
    """What the ``config`` of a tool may say, and that of a workflow over it."""

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
    secrets: Annotated[list[Annotated[str, AfterValidator(_secret_name)]], Field(max_length=MAX_SECRETS)] = []
    services: Later = []


class WorkflowConfig(Config):
    """What the ``config`` of a workflow may say beyond that. The database reads these; here they are only checked."""

    tool: Word | None = None
    version: Word | None = None
    labels: Annotated[list[Label], Field(max_length=MAX_LABELS)] = []
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    concurrency_key: Annotated[str, Field(max_length=200), AfterValidator(_no_nul)] | None = None
    retry: Retry | None = None
    run_env: Annotated[list[Annotated[str, AfterValidator(_run_env_name)]], Field(max_length=100)] = []


class WorkflowColumns(_Strict):
    """The columns of a workflow that are checked like its config."""

    git_ref: GitRef = None


class RunOptions(_Strict):
    """What the ``metadata`` of a run may say; its other keys are notes of whoever queued it."""

    env: Env = {}
    args: list[Text] = []
    git_ref: GitRef = None
    git_commit: Annotated[str, AfterValidator(_git_commit)] | None = None

    reserved: ClassVar[frozenset[str]] = frozenset(WorkflowConfig.model_fields) - {"env"}


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What this host allows, and what it gives to runs that do not say: of the networks, the first."""

    allowed_images: tuple[str, ...] = ("*",)
    allowed_networks: tuple[str, ...] = ("bridge", "none")
    read_only_root: bool = False
    secrets_as_env: bool = False
    default_cpus: float = 2.0
    max_cpus: float | None = None
    default_memory: int = 2 * 2**30
    max_memory: int | None = None
    default_pids: int = 1024
    max_pids: int | None = None
    default_nofile: int = 16_384
    max_nofile: int | None = None
    default_timeout: float = 3600.0
    max_timeout: float | None = None
    default_output: int = 2 * 2**30
    max_output: int | None = None
    default_disk: int = 20 * 2**30
    max_disk: int | None = None


class RunTerms(BaseModel):
    """What is left to know of a run once its container is made; goes with the container, for whoever adopts it.

    Memory in bytes, time in seconds. Keys that a newer worker added are passed over.
    """

    model_config = ConfigDict(frozen=True)

    timeout_seconds: float
    memory_bytes: int
    output_bytes: int
    disk_bytes: int
    artifacts: tuple[ArtifactRule, ...]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A container to run: CPUs in cores, memory in bytes, times in seconds; the image by its full name."""

    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    timeout_seconds: float
    cpus: float
    memory_bytes: int
    pids: int
    nofile: int
    output_bytes: int
    disk_bytes: int
    network: str
    user: str | None
    read_only: bool
    artifacts: tuple[ArtifactRule, ...]
    secrets: tuple[str, ...] = ()

    @property
    def terms(self) -> RunTerms:
        """The part that is needed until the end of the run."""
        return RunTerms(
            timeout_seconds=self.timeout_seconds,
            memory_bytes=self.memory_bytes,
            output_bytes=self.output_bytes,
            disk_bytes=self.disk_bytes,
            artifacts=self.artifacts,
            secrets=self.secrets,
        )


def resolve(claim: Claim, policy: HostPolicy) -> RunSpec:
    """The container for a claimed run. Raises ``SpecError``."""
    project, workflow, tool = claim.project, claim.workflow, claim.tool
    fresh = claim.status == "claimed"  # what is switched off later does not end a run that has begun
    if fresh and project.status != "active":
        raise SpecError("project_archived", "project.status", f"project {project.slug} is {project.status}")
    if fresh and not workflow.enabled:
        raise SpecError("workflow_disabled", "workflow.enabled", f"workflow {workflow.name!r} is disabled")
    if tool.docker_image is None:
        name = f"{tool.tool_name} {tool.version}"
        raise SpecError("tool_missing", "tool", f"ops.tools has no {name}, which workflow {workflow.name!r} asks for")
    image = _image(tool.docker_image, policy)
    _bounded("tool config", tool.config or {})
    base = _read(Config, "tool config", tool.config or {})
    _bounded("workflow config", workflow.config)
    own = _read(WorkflowConfig, "workflow config", workflow.config)
    _read(WorkflowColumns, "workflow", {"git_ref": workflow.git_ref})
    options = _run_options(claim.metadata, own.run_env)
    merged = _read(WorkflowConfig, "merged config", _merge(base, own))
    command = merged.command if merged.command is not None else [workflow.workflow_type]
    network = merged.network or next(iter(policy.allowed_networks), "none")
    if network not in policy.allowed_networks:
        allowed = ", ".join(policy.allowed_networks)
        raise SpecError("invalid_config", "network", f"network {network!r} is not one of this host's: {allowed}")
    limits = merged.resources
    return RunSpec(
        image=str(image),
        command=(*command, *options.args),
        env={**merged.env, **options.env, **_context(claim, options)},
        timeout_seconds=_limit("timeout_seconds", merged.timeout_seconds, policy.default_timeout, policy.max_timeout),
        cpus=_limit("resources.cpus", limits.cpus, policy.default_cpus, policy.max_cpus),
        memory_bytes=_limit("resources.memory", limits.memory, policy.default_memory, policy.max_memory),
        pids=_limit("resources.pids", limits.pids, policy.default_pids, policy.max_pids),
        nofile=_limit("resources.nofile", limits.nofile, policy.default_nofile, policy.max_nofile),
        output_bytes=_limit("resources.output", limits.output, policy.default_output, policy.max_output),
        disk_bytes=_limit("resources.disk", limits.disk, policy.default_disk, policy.max_disk),
        network=network,
        user=merged.user,
        read_only=merged.read_only or policy.read_only_root,
        artifacts=tuple(merged.artifacts),
        secrets=tuple(dict.fromkeys(merged.secrets)),
    )


def _image(name: str, policy: HostPolicy) -> ImageName:
    try:
        image = ImageName.parse(name)
    except ValueError as error:
        message = f"tool.docker_image: {error}, got {_shown(name)}"
        raise SpecError("invalid_config", "tool.docker_image", message) from None
    if not allowed(image, policy.allowed_images):
        message = f"image {image} matches none of this host's allowed images"
        raise SpecError("image_not_allowed", "tool.docker_image", message)
    return image


def _run_options(metadata: Mapping[str, Any], run_env: Sequence[str]) -> RunOptions:
    """The database checks the same when a run is queued, but the workflow may have changed since."""
    for key in metadata:
        if key in RunOptions.reserved:
            allowed = ", ".join(RunOptions.model_fields)
            message = f"run metadata, {key}: a run may set {allowed}; {key} belongs into the workflow's config"
            raise SpecError("invalid_config", key, message)
    ours = {key: value for key, value in metadata.items() if key in RunOptions.model_fields}
    _bounded("run metadata", ours)
    options = _read(RunOptions, "run metadata", ours)
    for name in options.env:
        if name not in run_env:
            shown = name[:_SHOWN]
            message = f'the workflow does not list it; add "{shown}" to run_env in the workflow\'s config'
            raise SpecError("invalid_config", f"env.{shown}", f"run metadata, env.{shown}: {message}")
    return options


def _merge(base: Config, own: Config) -> dict[str, Any]:
    lower, upper = base.model_dump(exclude_unset=True), own.model_dump(exclude_unset=True)
    nested: dict[str, Any] = {
        k: {**lower.get(k, {}), **upper.get(k, {})} for k in ("env", "resources") if k in lower or k in upper
    }
    return {**lower, **upper, **nested}


def _context(claim: Claim, options: RunOptions) -> dict[str, str]:
    ref, commit = options.git_ref or claim.workflow.git_ref, options.git_commit
    if options.git_ref is None and commit is None:  # the workflow's commit is one of the workflow's ref
        commit = claim.workflow.git_commit
    return {
        "OPS_RUN_ID": str(claim.run_id),
        "OPS_RUN_NUMBER": str(claim.run_number),
        "OPS_PROJECT": claim.project.slug,
        "OPS_WORKSPACE_KEY": claim.project.workspace_key,
        "OPS_WORKFLOW_TYPE": claim.workflow.workflow_type,
        "OPS_WORKFLOW_NAME": claim.workflow.name,
        "OPS_ODOO_VERSION": claim.project.odoo_version,
        "OPS_GIT_REF": ref or "",
        "OPS_GIT_COMMIT": commit or "",
        "OPS_ARTIFACTS_DIR": ARTIFACTS_DIR,
    }


_SIZES = ("resources.memory", "resources.output", "resources.disk")


def _limit(field: str, asked: N | None, default: N, maximum: N | None) -> N:
    """What was asked for, else the host's default; a maximum is never met in silence."""
    if asked is None:
        return default if maximum is None else min(default, maximum)
    if maximum is not None and asked > maximum:
        size = shown_size if field in _SIZES else "{:.12g}".format
        message = f"{field}: {size(asked)} is more than this host allows, {size(maximum)}"
        raise SpecError("invalid_config", field, message)
    return asked


def _bounded(where: str, data: Mapping[str, Any]) -> None:
    """Refuses what would take long to validate, since that is done on the event loop."""
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


def _read(model: type[M], where: str, data: Mapping[str, Any]) -> M:
    """Validates; the error names the place, what was expected and what was found."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(_printable(str(part)) for part in problem["loc"] if part not in _PYDANTIC_S_OWN)
        raise SpecError("invalid_config", field, f"{where}, {field}: {_explain(problem, model)}") from None


_PYDANTIC_S_OWN = ("[key]", "list[any]", "dict[str,any]")
"""Steps of an error's location that are no step in the data."""


def _explain(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    place = problem["loc"]
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(str(place[-1])[:MAX_KEY], _keys(model, place[:-1]), n=1)
        return "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    said = expected(problem)
    if not said.startswith("expected"):
        return said
    if place[0] == "env":  # the value of a variable may be a secret; its type is not
        return f"{said}, got {_kind(problem['input'])}" if place[-1] != "[key]" else said
    return f"{said}, got {_shown(problem['input'])}"


def _keys(model: type[BaseModel], place: Iterable[object]) -> Iterable[str]:
    """The keys that are known at a place."""
    nested: dict[object, type[BaseModel]] = {"resources": Resources, "artifacts": ArtifactRule, "retry": Retry}
    return next((nested[step] for step in place if step in nested), model).model_fields


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
    key = key[: _SHOWN + 1]
    return (key if key.isprintable() else ascii(key)[1:-1])[:_SHOWN] or "''"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


_SHOWN = 60
