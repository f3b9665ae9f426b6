"""The configurations of a tool, a workflow and a run → one validated specification of a container. Pure.

The three merge: the run wins over the workflow, the workflow over the tool; ``env`` and ``resources`` merge name by
name. A run sets ``env``, ``args`` and its commit only, so starting a run never chooses an image, a user or
privileges. A request that the host does not allow is an error; the worker never reduces it silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from worker.errors import SpecError
from worker.model.claim import Claim
from worker.model.config import (
    MAX_SHOWN,
    ArtifactRule,
    Config,
    RunOptions,
    WorkflowColumns,
    WorkflowConfig,
    check_extent,
    read,
    shown,
)
from worker.model.fields import ARTIFACTS_DIR, ContainerResources
from worker.model.images import ImageName, allowed
from worker.model.serve import ServeTerms, route
from worker.model.service import Health, Service, Tmpfs
from worker.model.sizes import shown_size
from worker.model.volume import Mount, Volume, volume_allowed

N = TypeVar("N", int, float)
PROJECT_NETWORK = "project"
"""The network on which the runs of one project reach each other."""


@dataclass(frozen=True, slots=True)
class Bound(Generic[N]):
    """A limit of this host: what a run gets by default, and the most that it may ask for (None: no limit)."""

    default: N
    maximum: N | None = None

    def grant(self, field: str, asked: N | None, as_text: Callable[[float], str] = "{:.12g}".format) -> N:
        """Returns what a run gets. Raises ``SpecError`` if ``field`` asks for more than the maximum.

        A default above the maximum is lowered to it, so a host can set the maximum alone.
        """
        if asked is None:
            return self.default if self.maximum is None else min(self.default, self.maximum)
        if self.maximum is not None and asked > self.maximum:
            message = f"{field}: {as_text(asked)} is more than this host allows, {as_text(self.maximum)}"
            raise SpecError("invalid_config", field, message)
        return asked


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What this host allows, and what a run gets by default. The default network is the first of the allowed ones."""

    allowed_images: tuple[str, ...] = ("*",)
    allowed_networks: tuple[str, ...] = ("bridge", "none", PROJECT_NETWORK)
    allowed_volumes: tuple[str, ...] = ()
    read_only_root: bool = False
    secrets_as_env: bool = False
    max_services: int = 4
    max_cache: int = 10 * 2**30
    """Bytes of all kept caches of one database on this engine."""
    max_served: int = 4
    serve_address: str = "127.0.0.1"
    serve_url: str | None = None
    timeout: Bound[float] = Bound(3600.0)
    ttl: Bound[float] = Bound(86_400.0)
    cpus: Bound[float] = Bound(2.0)
    memory: Bound[int] = Bound(2 * 2**30)
    pids: Bound[int] = Bound(1024)
    nofile: Bound[int] = Bound(16_384)
    output: Bound[int] = Bound(2 * 2**30)
    disk: Bound[int] = Bound(20 * 2**30)

    @property
    def bounds(self) -> dict[str, Bound[int] | Bound[float]]:
        """All bounds by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Bound)}


class ServiceTerms(BaseModel):
    """The part of a service's specification that its run needs after the service is created."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_bytes: int
    secrets: tuple[str, ...]
    keeps: bool = False
    """Whether it may write to a volume that stays."""


class RunTerms(BaseModel):
    """The part of the specification that a run needs after its container is created.

    A label of the container carries it, so a worker that adopts the run keeps the terms of its start. Memory is in
    bytes, time in seconds. Keys that a newer worker added are ignored.
    """

    model_config = ConfigDict(frozen=True)

    timeout_seconds: float
    memory_bytes: int
    output_bytes: int
    disk_bytes: int
    artifacts: tuple[ArtifactRule, ...]
    secrets: tuple[str, ...]
    services: tuple[ServiceTerms, ...] = ()
    caches: tuple[str, ...] = ()
    """The names of its caches in the project."""
    serve: ServeTerms | None = None
    in_project: bool = False
    """Whether it is on the network of its project."""

    @property
    def limit_seconds(self) -> float:
        """How long its container may run."""
        return self.timeout_seconds if self.serve is None else self.serve.ttl_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A container: CPUs in cores, memory in bytes, the image by its full name; ``command`` None is the image's."""

    image: str
    command: tuple[str, ...] | None
    env: Mapping[str, str]
    cpus: float
    memory_bytes: int
    pids: int
    nofile: int
    user: str | None
    read_only: bool
    secrets: tuple[str, ...] = ()
    volumes: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec(ContainerSpec):
    """A container beside the run's, which reaches it by the service's name."""

    name: str
    tmpfs: tuple[Tmpfs, ...] = ()
    health: Health | None = None

    @property
    def terms(self) -> ServiceTerms:
        """The part that the run needs until its end."""
        keeps = any(not volume.read_only for volume in self.volumes)
        return ServiceTerms(name=self.name, memory_bytes=self.memory_bytes, secrets=self.secrets, keeps=keeps)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec(ContainerSpec):
    """The container of a run, and those beside it; time in seconds."""

    timeout_seconds: float
    output_bytes: int
    disk_bytes: int
    network: str
    artifacts: tuple[ArtifactRule, ...]
    services: tuple[ServiceSpec, ...] = ()
    caches: tuple[Mount, ...] = ()
    """By the names of the project."""
    serve: ServeTerms | None = None
    serve_address: str = ""
    journal_bytes: int | None = None  # that the engine keeps of its log; None: all

    @property
    def terms(self) -> RunTerms:
        """The part that the run needs until its end."""
        return RunTerms(
            timeout_seconds=self.timeout_seconds,
            memory_bytes=self.memory_bytes,
            output_bytes=self.output_bytes,
            disk_bytes=self.disk_bytes,
            artifacts=self.artifacts,
            secrets=self.secrets,
            services=tuple(service.terms for service in self.services),
            caches=tuple(cache.name for cache in self.caches),
            serve=self.serve,
            in_project=self.network == PROJECT_NETWORK,
        )


def resolve(claim: Claim, policy: HostPolicy) -> RunSpec:
    """Returns the container for a claimed run. Raises ``SpecError``."""
    _check_enabled(claim)
    image = _run_image(claim, policy)
    merged, options = _merged(claim)
    network = _network(merged, policy)
    command = merged.command if merged.command is not None else [claim.workflow.workflow_type]
    context = _context(claim, options)
    return RunSpec(
        image=image,
        command=(*command, *options.args),
        env={**merged.env, **options.env, **context},
        timeout_seconds=policy.timeout.grant("timeout_seconds", merged.timeout_seconds),
        **_limits("resources", merged.resources, policy),
        output_bytes=policy.output.grant("resources.output", merged.resources.output, shown_size),
        disk_bytes=policy.disk.grant("resources.disk", merged.resources.disk, shown_size),
        network=network,
        user=merged.user,
        read_only=merged.read_only or policy.read_only_root,
        artifacts=tuple(merged.artifacts),
        secrets=tuple(dict.fromkeys(merged.secrets)),
        services=_services(merged.services, claim, policy),
        volumes=_volumes("volumes", merged.volumes, claim, policy),
        caches=_caches(merged),
        serve=_serve(merged, network, claim, context["OPS_GIT_REF"], policy),
        serve_address=policy.serve_address if merged.serve is not None else "",
    )


def _services(services: Sequence[Service], claim: Claim, policy: HostPolicy) -> tuple[ServiceSpec, ...]:
    """The containers beside the run, within the same limits of the host as the run's own. Raises ``SpecError``."""
    if len(services) > policy.max_services:
        message = f"services: {len(services)} are more than this host allows, {policy.max_services}"
        raise SpecError("invalid_config", "services", message)
    return tuple(
        ServiceSpec(
            name=service.name,
            image=_service_image(f"services.{n}", service, claim, policy),
            command=None if service.command is None else tuple(service.command),
            env=service.env,
            **_limits(f"services.{n}.resources", service.resources, policy),
            user=service.user,
            read_only=service.read_only or policy.read_only_root,
            secrets=tuple(dict.fromkeys(service.secrets)),
            tmpfs=tuple(service.tmpfs),
            health=service.health,
            volumes=_volumes(f"services.{n}.volumes", service.volumes, claim, policy),
        )
        for n, service in enumerate(services)
    )


def _volumes(field: str, volumes: Sequence[Volume], claim: Claim, policy: HostPolicy) -> tuple[Mount, ...]:
    """The volumes of a container, by the names of the project. Raises ``SpecError``."""
    for n, volume in enumerate(volumes):
        if not volume_allowed(claim.project.workspace_key, volume.name, policy.allowed_volumes):
            name = f"{claim.project.workspace_key}/{volume.name}"
            message = f"{field}.{n}.name: volume {name} matches none of this host's allowed volumes"
            raise SpecError("invalid_config", f"{field}.{n}.name", message)
    return tuple(Mount(volume.name, volume.path, volume.read_only) for volume in volumes)


def _caches(merged: Config) -> tuple[Mount, ...]:
    """Raises ``SpecError``."""
    taken = {volume.path for volume in merged.volumes}
    for n, cache in enumerate(merged.cache):
        if cache.path in taken:
            message = f"cache.{n}.path: expected another path than those of the volumes, got {shown(cache.path)}"
            raise SpecError("invalid_config", f"cache.{n}.path", message)
    return tuple(Mount(cache.name, cache.path, read_only=False) for cache in merged.cache)


def _serve(merged: Config, network: str, claim: Claim, ref: str, policy: HostPolicy) -> ServeTerms | None:
    """Raises ``SpecError``."""
    asked = merged.serve
    if asked is None:
        return None
    if policy.max_served < 1:
        raise SpecError("invalid_config", "serve", "serve: this host serves no runs (max_served)")
    if network == "none":
        raise SpecError("invalid_config", "network", "network: expected another than none, since the run is served")
    ttl = policy.ttl.grant("serve.ttl_seconds", asked.ttl_seconds)
    form, slug = policy.serve_url, claim.project.slug
    return asked.terms(ttl, None if form is None else route(form, slug, ref, claim.run_number))


def _limits(field: str, asked: ContainerResources, policy: HostPolicy) -> dict[str, Any]:
    """What one container may use. Raises ``SpecError``."""
    return {
        "cpus": policy.cpus.grant(f"{field}.cpus", asked.cpus),
        "memory_bytes": policy.memory.grant(f"{field}.memory", asked.memory, shown_size),
        "pids": policy.pids.grant(f"{field}.pids", asked.pids),
        "nofile": policy.nofile.grant(f"{field}.nofile", asked.nofile),
    }


def _check_enabled(claim: Claim) -> None:
    """Refuses a run that has not started; a project or workflow that is disabled later does not end a run."""
    project, workflow = claim.project, claim.workflow
    if claim.status != "claimed":
        return
    if project.status != "active":
        raise SpecError("project_archived", "project.status", f"project {project.slug} is {project.status}")
    if not workflow.enabled:
        raise SpecError("workflow_disabled", "workflow.enabled", f"workflow {workflow.name!r} is disabled")


def _run_image(claim: Claim, policy: HostPolicy) -> str:
    tool = claim.tool
    if tool.docker_image is None:
        message = f"ops.tools has no {tool.tool_name} {tool.version}, which workflow {claim.workflow.name!r} asks for"
        raise SpecError("tool_missing", "tool", message)
    return _image("tool.docker_image", tool.docker_image, policy)


def _service_image(field: str, service: Service, claim: Claim, policy: HostPolicy) -> str:
    if service.image is not None:
        return _image(f"{field}.image", service.image, policy)
    version = service.version or claim.project.odoo_version
    for tool in claim.service_tools:
        if (tool.tool_name, tool.version) == (service.tool, version) and tool.docker_image is not None:
            return _image(f"{field}.tool", tool.docker_image, policy)
    message = f"ops.tools has no {service.tool} {version}, which service {service.name!r} asks for"
    raise SpecError("tool_missing", f"{field}.tool", message)


def _image(field: str, name: str, policy: HostPolicy) -> str:
    """The full name of an image that this host allows. Raises ``SpecError``."""
    try:
        image = ImageName.parse(name)
    except ValueError as error:
        raise SpecError("invalid_config", field, f"{field}: {error}, got {shown(name)}") from None
    if not allowed(image, policy.allowed_images):
        message = f"image {image} matches none of this host's allowed images"
        raise SpecError("image_not_allowed", field, message)
    return str(image)


def _merged(claim: Claim) -> tuple[WorkflowConfig, RunOptions]:
    """Reads the three configurations; merges those of the tool and the workflow."""
    check_extent("tool config", claim.tool.config or {})
    base = read(Config, "tool config", claim.tool.config or {})
    check_extent("workflow config", claim.workflow.config)
    own = read(WorkflowConfig, "workflow config", claim.workflow.config)
    read(WorkflowColumns, "workflow", {"git_ref": claim.workflow.git_ref})
    options = _run_options(claim.metadata, own.run_env)
    return read(WorkflowConfig, "merged config", _merge(base, own)), options


def _network(config: Config, policy: HostPolicy) -> str:
    network = config.network or next(iter(policy.allowed_networks), "none")
    if network not in policy.allowed_networks:
        networks = ", ".join(policy.allowed_networks)
        raise SpecError("invalid_config", "network", f"network {network!r} is not one of this host's: {networks}")
    if config.services and network not in ("bridge", "none", PROJECT_NETWORK):
        message = f"network: a run with services has its own; expected bridge, none or project, got {network!r}"
        raise SpecError("invalid_config", "network", message)
    return network


def _run_options(metadata: Mapping[str, Any], run_env: Sequence[str]) -> RunOptions:
    """Reads the metadata. The database checked it when the run was queued; the workflow may have changed since."""
    for key in metadata:
        if key in RunOptions.reserved:
            allowed = ", ".join(RunOptions.model_fields)
            message = f"run metadata, {key}: a run may set {allowed}; {key} belongs into the workflow's config"
            raise SpecError("invalid_config", key, message)
    ours = {key: value for key, value in metadata.items() if key in RunOptions.model_fields}
    check_extent("run metadata", ours)
    options = read(RunOptions, "run metadata", ours)
    for name in options.env:
        if name not in run_env:
            short = name[:MAX_SHOWN]
            message = f'the workflow does not list it; add "{short}" to run_env in the workflow\'s config'
            raise SpecError("invalid_config", f"env.{short}", f"run metadata, env.{short}: {message}")
    return options


def _merge(base: Config, own: Config) -> dict[str, Any]:
    lower, upper = base.model_dump(exclude_unset=True), own.model_dump(exclude_unset=True)
    nested: dict[str, Any] = {
        k: {**lower.get(k, {}), **upper.get(k, {})} for k in ("env", "resources") if k in lower or k in upper
    }
    return {**lower, **upper, **nested}


def _context(claim: Claim, options: RunOptions) -> dict[str, str]:
    ref, commit = options.git_ref or claim.workflow.git_ref, options.git_commit
    if options.git_ref is None and commit is None:  # the workflow's commit belongs to the workflow's ref
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
        "OPS_PARENT_RUN_ID": claim.parent_run_id,
        "OPS_ARTIFACTS_DIR": ARTIFACTS_DIR,
    }
