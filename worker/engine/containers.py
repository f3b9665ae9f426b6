"""The Docker engine as the worker uses it: its images, and the container of a run from its making to its removal.

A log stream has no read timeout; what ends it is closing its response from here.
"""

from __future__ import annotations

import contextlib
import io
import signal
import tarfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import docker.errors
import docker.utils
import requests
from docker.types import LogConfig, Ulimit
from docker.utils import version_gte

from worker.concurrency import task_group
from worker.engine.client import BROKEN, Body, EngineApi, cut, disk_usage, get, logs, translated
from worker.engine.pipe import Pipe
from worker.errors import EngineError, ImageMissing
from worker.model.container import LABEL_DATABASE, LABEL_RUN, MAX_SECRET, ContainerState, Image, Secret, Written
from worker.model.images import ImageName, digest_of
from worker.model.outcome import ENGINE_STOP_SIGNAL
from worker.model.spec import ARTIFACTS_DIR, SECRETS_DIR, RunSpec
from worker.tar import END_MARK, DamagedError, first_file

NETWORK = "ops-worker"
BRIDGE = "ops-worker0"
"""A network on which containers reach the outside but not each other, and its interface on the engine's host."""

_ISOLATED = {"com.docker.network.bridge.enable_icc": "false"}
_CONTAINERD_STORE = ["driver-type", "io.containerd.snapshotter.v1"]

NETWORK_ATTEMPTS = 30
"""How often, a tenth of a second apart, the network is looked for that another worker may be making."""

OPEN_NETWORK = (
    f"containers on the network {NETWORK} reach each other, since the worker did not make it: "
    f"remove it (docker network rm {NETWORK}), and the worker makes its own"
)

ENDED_POLL_SECONDS = 0.1
"""How often a container that was told to end is looked at."""

OOM_SCORE_ADJ = 500
"""A host without memory kills the programs of runs before the worker, the engine and the database."""

_JOURNAL = {"mode": "blocking", "max-size": "1024g", "max-file": "1", "compress": "false"}
"""Each option is named, or the engine's own defaults (daemon.json) would apply and rotate lines away."""

MAX_PASSWD = 1 << 20
"""Bytes of an image's /etc/passwd."""

STREAM_BUFFER = 1 << 18
"""Bytes of log that may wait between the reading thread and the event loop; beyond it the reader pauses."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who and what the engine is. ``engine_id`` outlives its restarts."""

    engine_id: str
    version: str
    folder: str
    """Where the engine keeps its data: logs and volumes, and all else unless containerd keeps it."""
    in_containerd: bool
    """Whether containerd keeps images and containers, in a folder of its own. Engines from 29 on do it by default."""
    filters_bridges: bool
    """False if the engine says that nothing filters between the containers of one bridge."""


class Engine:
    """One Docker engine, for as many runs at once as ``streams`` says."""

    def __init__(self, docker_host: str | None, *, streams: int) -> None:
        self._api = EngineApi(docker_host, calls=streams + 4)
        self._streams = anyio.CapacityLimiter(2 * streams + 2)

    def close(self) -> None:
        """Closes the idle clients; those in use close themselves."""
        self._api.close()

    # --- the engine and its images ----------------------------------------------------------------------------------

    async def info(self) -> EngineInfo:
        """Raises ``EngineUnavailable``."""
        facts, version = await self._api.call(lambda client: (client.info(), client.api_version), abandon=True)
        return EngineInfo(
            engine_id=facts["ID"],
            version=facts["ServerVersion"],
            folder=facts["DockerRootDir"],
            in_containerd=_CONTAINERD_STORE in (facts.get("DriverStatus") or ()),
            filters_bridges=filters_bridges(version, facts),
        )

    async def started_after(self, moment: datetime) -> bool:
        """Whether the engine has been started since then: it remembers none of its events before its start.

        Else it remembers the last 256, so the moment must not be long ago.
        """

        def remembers_nothing(client: docker.APIClient) -> bool:
            until = f"{moment.timestamp():.6f}"  # a fraction, of which the type hints know nothing
            return not list(client.events(since=0, until=until))  # type: ignore[call-overload]

        return await self._api.call(remembers_nothing, abandon=True)

    def local_folders(self, facts: EngineInfo, containerd_root: Path) -> tuple[Path, ...]:
        """Where the engine keeps its data, if that is on this host.

        The engine does not tell containerd's folder: it is ``containerd_root``, unless the engine started a containerd
        of its own, which then is below the engine's folder.
        """
        if not (self._api.host or "unix://").startswith("unix://"):
            return ()
        return (Path(facts.folder), containerd_root) if facts.in_containerd else (Path(facts.folder),)

    async def image(self, reference: str) -> Image | None:
        """The local image of that name, None when the engine does not have it."""

        def inspect(client: docker.APIClient) -> Any:
            return client.inspect_image(reference)  # type: ignore[no-untyped-call]

        try:
            facts = await self._api.call(inspect, abandon=True)
        except ImageMissing:
            return None
        config = facts.get("Config") or {}  # engines from 29 on leave out what is empty
        digest = digest_of(ImageName.parse(reference), facts.get("RepoDigests") or ())
        return Image(reference, facts["Id"], digest, config.get("User") or "")

    async def pull(self, reference: str) -> None:
        """Fetches an image with the credentials of the engine client's own configuration file.

        Raises ``ImageMissing`` with the registry's words. Cancelled, it cuts its connection, and the engine stops too.
        """
        name, tag = docker.utils.parse_repository_tag(reference)
        answers: list[requests.Response] = []
        cancelled = threading.Event()

        def answered(response: requests.Response, *_: object, **__: object) -> None:
            answers.append(response)
            if cancelled.is_set():
                cut(response)

        def pull(_: docker.APIClient) -> None:
            try:
                with closing(self._api.new_client()) as client:  # its own, since its connection may be cut
                    client.hooks["response"].append(answered)
                    for step in client.pull(name, tag=tag, stream=True, decode=True):
                        # The field "error" is deprecated since API 1.48.
                        if error := step.get("error") or (step.get("errorDetail") or {}).get("message"):
                            raise ImageMissing(reference, error)
            except docker.errors.APIError as error:
                raise ImageMissing(reference, error.explanation or str(error)) from error

        try:
            await self._api.call(pull, abandon=True)
        finally:
            cancelled.set()
            for response in answers:
                cut(response)

    # --- a run's container ------------------------------------------------------------------------------------------

    async def create(
        self, name: str, image: Image, spec: RunSpec, labels: Mapping[str, str], secrets: Sequence[Secret] = ()
    ) -> str:
        """Creates the container, not yet started, with its secrets in place, and returns its id.

        One of that name that never ran is replaced: nobody knows how far its making went, nor of which image it is.
        One that did is returned as it is.
        """
        user = (image.user if spec.user is None else spec.user).partition(":")[0]
        root = user in ("", "0", "root")

        def create(client: docker.APIClient) -> str:
            if spec.network == "bridge":
                ensure_network(client)
            host = client.create_host_config(
                network_mode=NETWORK if spec.network == "bridge" else spec.network,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                read_only=spec.read_only,
                # It counts as the container's memory: half of that, so that a full /tmp is an error and kills nobody.
                tmpfs={"/tmp": f"mode=1777,size={spec.memory_bytes // 2}"} if spec.read_only else None,  # noqa: S108
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
                # The journal of the run: blocking and never rotated, or lines are lost (docs/run-lifecycle.md).
                log_config=LogConfig(type="json-file", config=_JOURNAL),
            )
            make = partial(
                client.create_container,
                image.image_id,
                name=name,
                command=list(spec.command),
                environment=dict(spec.env),
                user=spec.user,
                labels=dict(labels),
                stop_signal=str(int(ENGINE_STOP_SIGNAL)),
                volumes=[ARTIFACTS_DIR, *([SECRETS_DIR] if secrets else [])],
                host_config=host,
            )
            try:
                container: str = make()["Id"]
            except docker.errors.APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                there = client.inspect_container(name)
                if there["State"]["Status"] != "created":
                    return str(there["Id"])
                client.remove_container(name, v=True)
                container = make()["Id"]
            if not root and not spec.read_only:
                # A volume that the image does not have belongs to root: opened for the image's own user.
                client.put_archive(container, "/", _directory(ARTIFACTS_DIR.lstrip("/"), mode=0o1777))
            if secrets:
                # A volume of the container's own, since that works on every engine, with a read-only root too; what is
                # in it is neither in `docker inspect` nor in an image made from the container, and goes with it.
                uid = 0 if root else _uid(client, container, user)
                client.put_archive(container, SECRETS_DIR, _secret_files(secrets, uid))
            return container

        return await self._api.call(create)

    async def secrets(self, container_id: str, names: Sequence[str]) -> tuple[Secret, ...]:
        """What a container holds now as those secrets. Its program may have changed them, so each is bounded."""

        def read(client: docker.APIClient) -> tuple[Secret, ...]:
            held = []
            for name in names:
                with _archive(client, container_id, f"{SECRETS_DIR}/{name}") as chunks:
                    value = _held_value(chunks)
                if value is not None:
                    held.append(Secret(name, value))
            return tuple(held)

        return await self._api.call(read)

    async def start(self, container_id: str) -> None:
        """Starts a container that never ran. The engine would run one that has ended a second time. One that is gone
        is left for ``inspect`` to tell.
        """

        def start(client: docker.APIClient) -> None:
            with contextlib.suppress(docker.errors.NotFound):
                if client.inspect_container(container_id)["State"]["Status"] == "created":
                    client.start(container_id)

        await self._api.call(start)

    async def inspect(self, container_id: str) -> ContainerState | None:
        """The container's state, None when it is gone."""
        try:
            facts = await self._api.call(lambda client: client.inspect_container(container_id), abandon=True)
        except EngineError as error:
            if error.status == requests.codes.not_found:
                return None
            raise
        state = facts["State"]
        return ContainerState(
            state["Status"],
            state["ExitCode"],
            state["OOMKilled"],
            state.get("Error", ""),
            _time(state.get("StartedAt")),
            _time(state.get("FinishedAt")),
            facts["Config"].get("Labels") or {},
        )

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the grace. A container that is not running is left alone.

        The engine's own stop would send what says that it was not the worker (``ENGINE_STOP_SIGNAL``).
        """
        await self._kill(container_id, signal.SIGTERM)
        with anyio.move_on_after(grace_seconds):
            while True:
                state = await self.inspect(container_id)
                if state is None or not state.running:
                    return
                await anyio.sleep(ENDED_POLL_SECONDS)
        await self._kill(container_id, signal.SIGKILL)

    async def _kill(self, container_id: str, number: signal.Signals) -> None:
        def kill(client: docker.APIClient) -> None:
            try:
                client.kill(container_id, signal=number.name)
            except docker.errors.APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise  # a conflict: it is not running

        await self._api.call(kill)

    async def remove(self, container_id: str) -> None:
        """Removes the container with its volume, stopping it if need be; one that is gone is fine."""

        def remove(client: docker.APIClient) -> None:
            try:
                client.remove_container(container_id, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise  # a conflict: it is being removed already

        await self._api.call(remove)

    async def owned(self, database_id: uuid.UUID) -> set[uuid.UUID]:
        """The runs of that database that have a container on this engine, running or not."""
        filters = {"label": [f"{LABEL_DATABASE}={database_id}", LABEL_RUN]}
        found = await self._api.call(lambda client: client.containers(all=True, filters=filters), abandon=True)
        return {uuid.UUID(item["Labels"][LABEL_RUN]) for item in found}

    async def written(self) -> dict[str, Written]:
        """What the containers of runs hold on the engine's disk, by run id: of all workers and databases."""
        usage = await self._api.call(disk_usage, abandon=True)
        volumes = {volume["Name"]: (volume.get("UsageData") or {}).get("Size", 0) for volume in usage.volumes}
        return {
            container["Labels"][LABEL_RUN]: Written(
                container.get("SizeRw", 0)
                + sum(max(0, volumes.get(mount.get("Name"), 0)) for mount in container.get("Mounts") or ()),
                running=container["State"] == "running",
            )
            for container in usage.containers
            if LABEL_RUN in (container.get("Labels") or {})
        }

    async def last_entry(self, container_id: str) -> bytes:
        """The last entry of the journal as the log endpoint frames it, to check that a reader saw the end."""

        def last_entry(client: docker.APIClient) -> bytes:
            return b"".join(logs(client, container_id, {"tail": 1}).iter_content(None))

        return await self._api.call(last_entry, abandon=True)

    @asynccontextmanager
    async def follow(self, container_id: str, *, ended: bool) -> AsyncIterator[Pipe]:
        """Reads the container's log from its first byte, then as it grows.

        The log of a container that has ``ended`` is read as it is: an engine may end a stream that follows such a log
        before the log ends (Podman does).
        """
        pipe = Pipe(STREAM_BUFFER)
        async with task_group() as tasks:
            tasks.start_soon(self._pump, container_id, pipe, {} if ended else {"follow": 1})
            try:
                yield pipe
            finally:
                pipe.close()
                tasks.cancel_scope.cancel()

    async def _pump(self, container_id: str, pipe: Pipe, params: dict[str, int]) -> None:
        def pump() -> None:
            try:
                with closing(self._api.new_client()) as client:
                    response = logs(client, container_id, params)
                    pipe.opened(partial(cut, response))
                    for chunk in response.raw.stream(65536, decode_content=False):
                        pipe.put(chunk)
            except Exception as error:  # noqa: BLE001 - the thread's edge: the reader of the pipe gets it
                pipe.end(translated(error))
            else:
                pipe.end(None)

        with anyio.CancelScope(shield=True):  # closing the pipe ends the thread
            await anyio.to_thread.run_sync(pump, limiter=self._streams)

    @contextmanager
    def archive(self, container_id: str, path: str = ARTIFACTS_DIR) -> Iterator[Iterator[bytes]]:
        """The tar stream of a path in the container; without members when it is not there. Blocking: for a thread.

        The iterator's ``close``, called from another thread, ends a read that waits. Raises ``EngineUnavailable`` or
        ``EngineError``.
        """
        with closing(self._api.new_client()) as client, _archive(client, container_id, path) as chunks:
            yield chunks


def filters_bridges(api_version: str, facts: Mapping[str, Any]) -> bool:
    """False if those facts say that nothing filters between the containers of one bridge.

    An engine before API 1.48 needs a setting of the kernel, and reports it. A later one loads the kernel's module
    itself. From API 1.49 on an engine names its firewall, and names none with ``iptables`` switched off. An older
    engine does not report that switch.
    """
    if version_gte(api_version, "1.49"):
        return bool(facts.get("FirewallBackend"))
    return version_gte(api_version, "1.48") or bool(facts.get("BridgeNfIptables", True))


def ensure_network(client: docker.APIClient) -> None:
    """Makes the network of the runs if it is not there. Raises what the SDK raises.

    One of that name on which containers reach each other is an ``EngineError``: the worker did not make it.

    The engine makes any number of networks of one name when asked at once, ``check_duplicate`` or not, and starts no
    container in any of them then. Of one bridge it makes one.
    """
    options = {**_ISOLATED, "com.docker.network.bridge.name": BRIDGE}
    for left in reversed(range(NETWORK_ATTEMPTS)):
        if there := client.networks(names=[f"^{NETWORK}$"]):
            if any(not _ISOLATED.items() <= (network["Options"] or {}).items() for network in there):
                raise EngineError(0, OPEN_NETWORK)
            return
        try:
            client.create_network(NETWORK, driver="bridge", options=options)
        except docker.errors.APIError:  # another worker may be making it just now
            if not left:
                raise
            time.sleep(0.1)


@contextmanager
def _archive(client: docker.APIClient, container_id: str, path: str) -> Iterator[Iterator[bytes]]:
    """See ``Engine.archive``. (The SDK's own ``get_archive`` has neither a time limit nor a way to be closed.)"""
    try:
        response = get(client, container_id, "archive", {"path": path})
    except EngineError as error:
        if error.status != requests.codes.not_found:
            raise
        yield iter((END_MARK,))
    except BROKEN as error:
        raise translated(error) from error
    else:
        with closing(response):
            yield Body(response)


def _time(text: str | None) -> datetime | None:
    """A time of the engine's, which says the year 1 for never."""
    return None if not text or text.startswith("0001-") else datetime.fromisoformat(text)


def _directory(name: str, *, mode: int) -> bytes:
    """A tar archive with one directory."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
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


def _held_value(chunks: Iterator[bytes]) -> bytes | None:
    """The secret in an archive of its file; None if the archive is cut, or the file is too large or no plain file."""
    with contextlib.suppress(DamagedError):
        return first_file(chunks, MAX_SECRET)
    return None
