"""Makes the containers of a run: isolated, bounded, and with their secrets in place. Blocking: for a thread."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import docker
import docker.errors
import requests
from docker.types import LogConfig, Mount, Ulimit

from worker.engine.client import get
from worker.engine.networks import NETWORK, NO_NAME_SERVER, ensure_network, ensure_project_network
from worker.engine.volumes import is_unused
from worker.errors import EngineError
from worker.model.container import Image, Networks, ProjectNetwork, Secret
from worker.model.fields import ARTIFACTS_DIR, SECRETS_DIR
from worker.model.outcome import ENGINE_STOP_SIGNAL
from worker.model.service import Health
from worker.model.spec import ContainerSpec, RunSpec, ServiceSpec
from worker.tar import DamagedError, first_file

OOM_SCORE_ADJ = 500
"""A host without memory kills the programs of runs before the worker, the engine and the database."""

_JOURNAL = {"mode": "blocking", "max-size": "1024g", "max-file": "1", "compress": "false"}
"""Each option is named, or the engine's own defaults (daemon.json) would apply and rotate lines away."""

_SERVICE_LOG = {"mode": "blocking", "max-size": "1m", "max-file": "2", "compress": "false"}
"""Of a service only the last lines are ever read, so its log may not grow."""

CHECK_SECONDS = 5.0
"""How long one health check may take, unless the interval between two is longer."""

CONNECT_ATTEMPTS = 5
"""How often a container is connected to its project's network while that network is gone."""

OPENED_TIME = 0
"""The modification time of /artifacts where the worker opened it, in seconds since 1970."""

MAX_PASSWD = 1 << 20
"""Bytes of an image's /etc/passwd."""


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """A container to make: its name, what it runs, and what it carries."""

    name: str
    image: Image
    spec: ContainerSpec
    labels: Mapping[str, str]
    secrets: Sequence[Secret] = ()
    networks: Networks = field(default_factory=Networks)

    @property
    def user(self) -> str:
        """The user of its processes, a name or a number; empty for root by default."""
        return (self.image.user if self.spec.user is None else self.spec.user).partition(":")[0]

    @property
    def is_root(self) -> bool:
        return self.user in ("", "root") or (self.user.isdecimal() and int(self.user) == 0)

    @property
    def opens_artifacts(self) -> bool:
        """Whether the worker opens /artifacts for that user: a volume that the image does not have belongs to root."""
        return isinstance(self.spec, RunSpec) and not self.is_root and not self.spec.read_only


def create(client: docker.APIClient, request: ContainerRequest) -> tuple[str, bool]:
    """Makes the container and does not start it. Raises what the SDK raises, and ``EngineError``.

    Returns its id, and whether it is new.

    A container of that name that never ran is replaced: how far its making went, and of which image it is, is not
    known. One that ran is returned as it is.
    """
    if _engine_network(request) == NETWORK:
        ensure_network(client)
    if request.networks.project is not None:
        ensure_project_network(client, request.networks.project)
    options = _options(client, request)
    try:
        container: str = client.create_container(**options)["Id"]
    except docker.errors.APIError as error:
        if error.status_code != requests.codes.conflict:
            raise
        there = client.inspect_container(request.name)
        if there["State"]["Status"] != "created":
            return str(there["Id"]), False
        client.remove_container(request.name, v=True)
        container = client.create_container(**options)["Id"]
    if request.networks.own is not None and request.networks.project is not None:
        _connect(client, container, request.networks.project, request.networks.names)
    _fill(client, container, request)
    return container, True


def _connect(client: docker.APIClient, container: str, network: ProjectNetwork, names: Sequence[str]) -> None:
    """Connects the container to its project's network, which the end of another run may remove at the same time."""
    for left in reversed(range(CONNECT_ATTEMPTS)):
        ensure_project_network(client, network)
        try:
            client.connect_container_to_network(container, network.name, aliases=list(names))
        except docker.errors.NotFound:
            if not left:
                raise
        else:
            return


def _options(client: docker.APIClient, request: ContainerRequest) -> dict[str, Any]:
    spec, network = request.spec, _engine_network(request)
    options: dict[str, Any] = {
        "image": request.image.image_id,
        "name": request.name,
        "command": None if spec.command is None else list(spec.command),
        "environment": dict(spec.env),
        "user": spec.user,
        "labels": dict(request.labels),
        "volumes": [SECRETS_DIR] if request.secrets else [],
        "host_config": _host_config(client, request),
    }
    if isinstance(spec, RunSpec):
        options["volumes"].append(ARTIFACTS_DIR)
        options["stop_signal"] = str(int(ENGINE_STOP_SIGNAL))
        options["ports"] = [] if spec.serve is None else [spec.serve.port]
    if aliases := _aliases(request):
        endpoint: Any = {network: client.create_endpoint_config(aliases=aliases)}  # the type hints are wrong
        options["networking_config"] = client.create_networking_config(endpoint)
    if isinstance(spec, ServiceSpec):
        options["healthcheck"] = None if spec.health is None else _health_check(spec.health)
    return options


def _aliases(request: ContainerRequest) -> list[str]:
    """The names of the container on its first network.

    A service has no host name of its own: the engine would make that a name on the project's network too, and a run
    that asks for its own service could reach that of another run.
    """
    if request.networks.own is None:
        return list(request.networks.names)
    return [request.spec.name] if isinstance(request.spec, ServiceSpec) else []


def _health_check(health: Health) -> dict[str, Any]:
    """A check that the engine makes, so it goes on while no worker is there."""
    return {
        "test": ["CMD", *health.command],
        "interval": round(health.interval_seconds * 1e9),
        "timeout": round(max(health.interval_seconds, CHECK_SECONDS) * 1e9),
        "retries": health.retries,
    }


def _engine_network(request: ContainerRequest) -> str:
    """The engine's network that the container is on; the first if there are two."""
    if (first := request.networks.own or request.networks.project) is not None:
        return first.name
    asked = request.spec.network if isinstance(request.spec, RunSpec) else "none"
    return NETWORK if asked == "bridge" else asked


def _host_config(client: docker.APIClient, request: ContainerRequest) -> dict[str, Any]:
    spec = request.spec
    own = request.networks.own
    host: dict[str, Any] = client.create_host_config(
        network_mode=_engine_network(request),
        dns=[NO_NAME_SERVER] if own is not None and own.internal else None,
        port_bindings=_published(spec),
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=spec.read_only,
        tmpfs=_tmpfs(spec),
        mounts=[Mount(each.path, each.name, type="volume", read_only=each.read_only) for each in spec.volumes] or None,
        nano_cpus=round(spec.cpus * 1e9),
        mem_limit=spec.memory_bytes,
        memswap_limit=spec.memory_bytes,
        pids_limit=spec.pids,
        ulimits=[
            Ulimit(name="nofile", soft=spec.nofile, hard=spec.nofile),  # engines from 29 on give 1,024
            Ulimit(name="core", soft=0, hard=0),  # a dump would hold the run's secrets, outside of its limits
        ],
        oom_score_adj=OOM_SCORE_ADJ,
        init=True,  # forwards SIGTERM to programs that would ignore it as process 1, and reaps zombies
        log_config=LogConfig(type="json-file", config=_log(spec)),
    )
    return host


def _published(spec: ContainerSpec) -> dict[int | str, Any] | None:
    """The port of a served run, at a port that the engine chooses. The type hints have no such address."""
    if not isinstance(spec, RunSpec) or spec.serve is None:
        return None
    return {spec.serve.port: (spec.serve_address,)}


def _log(spec: ContainerSpec) -> dict[str, str]:
    """The journal of a run: blocking and never rotated, or lines are lost (docs/odooops-sh/RUNNER.md).

    That of a served run may grow for days, so the engine drops its oldest half when it has so many bytes.
    """
    if isinstance(spec, ServiceSpec):
        return _SERVICE_LOG
    kept = spec.journal_bytes if isinstance(spec, RunSpec) else None
    return _JOURNAL if kept is None else {**_JOURNAL, "max-size": f"{-(-kept // 2)}", "max-file": "2"}


def _tmpfs(spec: ContainerSpec) -> dict[str, str] | None:
    """The folders in memory. They count as the container's memory: each may take half of it by default.

    So a full folder is an error, and not a killed process.
    """
    half = spec.memory_bytes // 2
    sizes = {"/tmp": half} if spec.read_only else {}  # noqa: S108
    if isinstance(spec, ServiceSpec):
        sizes |= {each.path: each.size or half for each in spec.tmpfs}
    mounted = {volume.path for volume in spec.volumes}
    return {path: f"mode=1777,size={size}" for path, size in sizes.items() if path not in mounted} or None


def _fill(client: docker.APIClient, container: str, request: ContainerRequest) -> None:
    """Opens /artifacts and new volumes for the image's own user, and puts the secrets in place."""
    if request.opens_artifacts:
        client.put_archive(container, "/", _directory(ARTIFACTS_DIR.lstrip("/"), mode=0o1777))
    if not request.is_root and not request.spec.read_only:
        for volume in request.spec.volumes:
            if not volume.read_only and is_unused(client, container, volume.path):
                client.put_archive(container, "/", _directory(volume.path.lstrip("/"), mode=0o1777))
    if request.secrets:
        # A volume of the container's own, since that works on every engine, with a read-only root too; what is in it
        # is neither in `docker inspect` nor in an image made from the container, and is removed with the container.
        uid = 0 if request.is_root else _uid(client, container, request.user)
        client.put_archive(container, SECRETS_DIR, _secret_files(request.secrets, uid))


def _directory(name: str, *, mode: int) -> bytes:
    """A tar archive with one directory."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, mode, OPENED_TIME
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(entry)
    return buffer.getvalue()


def _uid(client: docker.APIClient, container: str, user: str) -> int:
    """The number of a user, by the container's own /etc/passwd as the engine reads it. Raises ``EngineError``."""
    if user.isascii() and user.isdecimal():
        return int(user)
    try:
        with closing(get(client, container, "archive", {"path": "/etc/passwd"})) as response:
            data = first_file(response.iter_content(1 << 16), MAX_PASSWD)
    except DamagedError as error:
        raise EngineError(0, f"the engine's archive of the image's /etc/passwd cannot be read: {error}") from error
    if data is None:
        raise EngineError(0, f"the image's /etc/passwd is no plain file of at most {MAX_PASSWD // 2**20} MiB")
    lines = data.decode("utf-8", "replace").splitlines()
    for name, *fields in (line.split(":") for line in lines):
        if name == user and len(fields) > 1 and fields[1].isdecimal():
            return int(fields[1])
    raise EngineError(0, f"the image's /etc/passwd has no user {user!r}, to whom its secrets would belong")


def _secret_files(secrets: Sequence[Secret], uid: int) -> bytes:
    """A tar archive of files that only that user may read: without capabilities, root may not read others' either."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for secret in secrets:
            entry = tarfile.TarInfo(secret.name)
            entry.mode, entry.uid, entry.size = 0o400, uid, len(secret.value)
            tar.addfile(entry, io.BytesIO(secret.value))
    return buffer.getvalue()
