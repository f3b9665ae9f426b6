"""The Docker engine: the only module that imports ``docker``, and the owner of the threads that wait for it.

The SDK blocks and a client may serve one thread at a time (docker-py#3229), so each call runs in a thread with a
client of its own from a small stock. A log stream has no read timeout; what ends it is closing its response from here.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import docker
import docker.errors
import docker.utils
import requests
import urllib3
from docker.types import CancellableStream, LogConfig

from worker.errors import EngineError, EngineUnavailable, ImageMissing
from worker.images import ImageName, digest_of
from worker.pipe import Pipe
from worker.secrets import MAX_BYTES, Secret
from worker.spec import ARTIFACTS_DIR, MAX_SECRETS, SECRETS_DIR, RunSpec
from worker.tasks import task_group

T = TypeVar("T")

LABEL_RUN = "ops-worker.run-id"
LABEL_DATABASE = "ops-worker.database-id"
LABEL_WORKER = "ops-worker.worker-id"
NETWORK = "ops-worker"
"""A bridge on which containers reach the outside but not each other."""

API_TIMEOUT = 120
"""Seconds without an answer after which an engine's call is given up (a create may wait long for a busy disk)."""

_JOURNAL = {"mode": "blocking", "max-size": "1024g", "max-file": "1", "compress": "false"}
"""Each option is named, or the engine's own defaults (daemon.json) would apply and rotate lines away."""

STREAM_BUFFER = 1 << 20
"""Bytes of log that may wait between the reading thread and the event loop; beyond it the reader pauses."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who and what the engine is; ``engine_id`` outlives its restarts, ``folder`` is where it keeps its data."""

    engine_id: str
    version: str
    folder: str


@dataclass(frozen=True, slots=True)
class Image:
    """A local image: its id, and the digest under which a registry knows it (None when it was built here)."""

    reference: str
    image_id: str
    digest: str | None
    user: str
    """Whose its processes are unless the run says otherwise: a name or a number, root if empty."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What ``inspect`` says. ``status``: created, running, paused, restarting, removing, exited or dead."""

    status: str
    exit_code: int
    oom_killed: bool
    error: str
    started_at: datetime | None

    @property
    def running(self) -> bool:
        return self.status in ("running", "paused", "restarting")


class Journal(Protocol):
    """A container's log: Docker's multiplexed frames with timestamps, in arbitrary pieces."""

    async def receive(self) -> bytes:
        """Waits for the next piece; empty at the end of the log. May be cancelled without losing a byte.

        Raises ``EngineUnavailable`` when the stream breaks (the SDK's own stream shows that as a clean end).
        """
        ...


class Engine:
    """One Docker engine, for as many runs at once as ``streams`` says."""

    def __init__(self, docker_host: str | None, *, streams: int) -> None:
        self._host = docker_host
        self._clients: list[docker.APIClient] = []
        self._version: str | None = None
        self._calls = anyio.CapacityLimiter(streams + 4)
        self._streams = anyio.CapacityLimiter(2 * streams + 2)

    def close(self) -> None:
        """Closes the idle clients; those in use close themselves."""
        while self._clients:
            self._clients.pop().close()

    # --- the engine and its images ----------------------------------------------------------------------------------

    async def info(self) -> EngineInfo:
        """Raises ``EngineUnavailable``."""
        facts = await self._call(lambda client: client.info(), abandon=True)
        return EngineInfo(facts["ID"], facts["ServerVersion"], facts["DockerRootDir"])

    def local_folder(self, facts: EngineInfo) -> Path | None:
        """Where the engine keeps its data, if that is on this host."""
        host = self._host or os.environ.get("DOCKER_HOST") or "unix://"
        return Path(facts.folder) if host.startswith("unix://") else None

    async def image(self, reference: str) -> Image | None:
        """The local image of that name, None when the engine does not have it."""

        def inspect(client: docker.APIClient) -> Any:
            return client.inspect_image(reference)  # type: ignore[no-untyped-call]

        try:
            facts = await self._call(inspect, abandon=True)
        except ImageMissing:
            return None
        digest = digest_of(ImageName.parse(reference), facts.get("RepoDigests") or ())
        return Image(reference, facts["Id"], digest, facts["Config"].get("User") or "")

    async def pull(self, reference: str) -> None:
        """Fetches an image with the credentials of the engine client's own configuration file.

        Raises ``ImageMissing`` with the registry's words.
        """
        name, tag = docker.utils.parse_repository_tag(reference)

        def pull(client: docker.APIClient) -> None:
            try:
                for step in client.pull(name, tag=tag, stream=True, decode=True):
                    if "error" in step:
                        raise ImageMissing(reference, step["error"])
            except docker.errors.APIError as error:
                raise ImageMissing(reference, error.explanation or str(error)) from error

        await self._call(pull, abandon=True)

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

        return await self._call(create)

    async def secrets(self, container_id: str) -> tuple[Secret, ...]:
        """What a container holds as its secrets now. Its program may have changed them, so they are bounded."""

        def read() -> tuple[Secret, ...]:
            with self.archive(container_id, SECRETS_DIR) as chunks:
                return _held_secrets(chunks)

        return await anyio.to_thread.run_sync(read, limiter=self._calls)

    async def start(self, container_id: str) -> None:
        """Starts a container that never ran. The engine would run one that has ended a second time. One that is gone
        is left for ``inspect`` to tell.
        """

        def start(client: docker.APIClient) -> None:
            with contextlib.suppress(docker.errors.NotFound):
                if client.inspect_container(container_id)["State"]["Status"] == "created":
                    client.start(container_id)

        await self._call(start)

    async def inspect(self, container_id: str) -> ContainerState | None:
        """The container's state, None when it is gone."""
        try:
            facts = await self._call(lambda client: client.inspect_container(container_id), abandon=True)
        except EngineError as error:
            if error.status == requests.codes.not_found:
                return None
            raise
        state = facts["State"]
        started = state.get("StartedAt", "")
        return ContainerState(
            state["Status"],
            state["ExitCode"],
            state["OOMKilled"],
            state.get("Error", ""),
            None if started.startswith("0001-") or not started else datetime.fromisoformat(started),
        )

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the grace. A container that is not running is left alone."""

        def stop(client: docker.APIClient) -> None:
            with contextlib.suppress(docker.errors.NotFound):
                client.stop(container_id, timeout=round(grace_seconds))

        await self._call(stop)

    async def remove(self, container_id: str) -> None:
        """Removes the container with its volume, stopping it if need be; one that is gone is fine."""

        def remove(client: docker.APIClient) -> None:
            try:
                client.remove_container(container_id, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise  # a conflict: it is being removed already

        await self._call(remove)

    async def owned(self, database_id: uuid.UUID) -> set[uuid.UUID]:
        """The runs of that database that have a container on this engine, running or not."""
        filters = {"label": [f"{LABEL_DATABASE}={database_id}", LABEL_RUN]}
        found = await self._call(lambda client: client.containers(all=True, filters=filters), abandon=True)
        return {uuid.UUID(item["Labels"][LABEL_RUN]) for item in found}

    async def last_entry(self, container_id: str) -> bytes:
        """The last entry of the journal as the log endpoint frames it, to check that a reader saw the end."""

        def last_entry(client: docker.APIClient) -> bytes:
            return b"".join(_logs(client, container_id, {"tail": 1}, timeout=API_TIMEOUT).iter_content(None))

        return await self._call(last_entry, abandon=True)

    @asynccontextmanager
    async def follow(self, container_id: str) -> AsyncIterator[Journal]:
        """Reads the container's log from its first byte, then as it grows."""
        pipe = Pipe(STREAM_BUFFER)
        async with task_group() as tasks:
            tasks.start_soon(self._pump, container_id, pipe)
            try:
                yield pipe
            finally:
                pipe.close()
                tasks.cancel_scope.cancel()

    async def _pump(self, container_id: str, pipe: Pipe) -> None:
        def pump() -> None:
            try:
                with self._client() as client:
                    response = _logs(client, container_id, {"follow": 1})
                    # Closing it as the SDK closes its own streams frees a thread that waits for the next byte.
                    pipe.opened(CancellableStream(iter(()), response).close)
                    for chunk in response.raw.stream(65536, decode_content=False):
                        pipe.put(chunk)
            except Exception as error:  # noqa: BLE001 - the thread's edge: the reader of the pipe gets it
                pipe.end(_translated(error))
            else:
                pipe.end(None)

        with anyio.CancelScope(shield=True):  # closing the pipe ends the thread
            await anyio.to_thread.run_sync(pump, limiter=self._streams)

    @contextmanager
    def archive(self, container_id: str, path: str = ARTIFACTS_DIR) -> Iterator[Iterator[bytes]]:
        """The tar stream of a path in the container; empty when it is not there. Blocking: for a thread.

        The iterator's ``close``, called from another thread, ends a read that waits. Raises ``EngineUnavailable`` or
        ``EngineError``. (The SDK's own ``get_archive`` has neither a time limit nor a way to be closed.)
        """
        with self._client() as client:
            try:
                response = _get(client, container_id, "archive", {"path": path}, timeout=API_TIMEOUT)
            except EngineError as error:
                if error.status != requests.codes.not_found:
                    raise
                yield iter(())
            except _BROKEN as error:
                raise _translated(error) from error
            else:
                yield _Body(response)

    # --- threads and clients ----------------------------------------------------------------------------------------

    async def _call(self, function: Callable[[docker.APIClient], T], *, abandon: bool = False) -> T:
        """One call in a thread. Cancelled, it is abandoned where that is said, which it is of what changes nothing."""

        def call() -> T:
            try:
                with self._client() as client:
                    return function(client)
            except (docker.errors.DockerException, *_BROKEN) as error:
                raise _translated(error) from error

        return await anyio.to_thread.run_sync(call, limiter=self._calls, abandon_on_cancel=abandon)

    @contextmanager
    def _client(self) -> Iterator[docker.APIClient]:
        """A client that nobody else uses; it goes back only if its connection is known to be sound."""
        client = self._clients.pop() if self._clients else self._new_client()
        try:
            yield client
        except (docker.errors.APIError, ImageMissing, EngineError):  # an answer: the connection works
            self._clients.append(client)
            raise
        except BaseException:
            client.close()
            raise
        self._clients.append(client)

    def _new_client(self) -> docker.APIClient:
        host = self._host or os.environ.get("DOCKER_HOST")
        options = docker.utils.kwargs_from_env({**os.environ, "DOCKER_HOST": host} if host else None)
        try:
            client = docker.APIClient(
                **options,
                version=self._version or "auto",
                timeout=API_TIMEOUT,
                num_pools=1,  # for Unix sockets the SDK keeps a pool, and so a socket, for each URL
                use_ssh_client=bool(host and host.startswith("ssh://")),
            )
        except docker.errors.DockerException as error:
            raise EngineUnavailable(
                f"the container engine at {host or 'its default address'} does not answer: {error}"
            ) from error
        self._version = client.api_version
        return client


def ensure_network(client: docker.APIClient) -> None:
    """Makes the network of the runs if it is not there. Raises ``EngineError``."""
    if client.networks(names=[f"^{NETWORK}$"]):
        return
    with contextlib.suppress(docker.errors.APIError):  # another worker may be making it just now
        options = {"com.docker.network.bridge.enable_icc": "false"}
        client.create_network(NETWORK, driver="bridge", options=options, check_duplicate=True)
    if not client.networks(names=[f"^{NETWORK}$"]):
        raise EngineError(0, f"the network {NETWORK!r} could not be created")


class _Body:
    """The body of an answer as it comes in."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._chunks = response.iter_content(1 << 20)

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            chunk: bytes = next(self._chunks)
        except _BROKEN as error:
            raise _translated(error) from error
        return chunk

    def close(self) -> None:
        """Ends a read that waits, from another thread."""
        CancellableStream(iter(()), self._response).close()


def _logs(
    client: docker.APIClient, container_id: str, params: dict[str, int], *, timeout: float | None = None
) -> requests.Response:
    """The raw response of the log endpoint: ``APIClient.logs`` throws the stream of each frame away."""
    return _get(client, container_id, "logs", {"stdout": 1, "stderr": 1, "timestamps": 1, **params}, timeout=timeout)


def _get(
    client: docker.APIClient, container_id: str, what: str, params: Mapping[str, str | int], *, timeout: float | None
) -> requests.Response:
    """An endpoint of a container, streaming; ``timeout`` is the seconds between two pieces. Raises ``EngineError``."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/{what}"
    response: requests.Response = client.get(url, params=dict(params), stream=True, timeout=(API_TIMEOUT, timeout))
    if not response.ok:
        raise EngineError(response.status_code, response.text)
    if response.headers.keys().isdisjoint(("Transfer-Encoding", "Content-Length")):
        # http.client takes an answer that is cut within its headers for a whole one without a body.
        response.close()
        raise requests.ConnectionError("the headers of the answer are cut off")
    return response


def _translated(error: Exception) -> Exception:
    """The SDK's and the transport's errors as ours; any other as it is."""
    if isinstance(error, docker.errors.ImageNotFound):
        return ImageMissing("", error.explanation or str(error))
    if isinstance(error, docker.errors.APIError):
        return EngineError(error.status_code or 0, error.explanation or str(error))
    if isinstance(error, docker.errors.DockerException):  # such as a broken credential helper
        return EngineError(0, str(error))
    if isinstance(error, _BROKEN):
        return EngineUnavailable(str(error) or type(error).__name__)
    return error


def _directory(name: str, *, mode: int) -> bytes:
    """A tar archive with one directory."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(entry)
    return buffer.getvalue()


def _secret_files(secrets: Sequence[Secret], uid: int) -> bytes:
    """A tar archive of files that only that user may read: without capabilities, root may not read others' either."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for secret in secrets:
            entry = tarfile.TarInfo(secret.name)
            entry.mode, entry.uid, entry.size = 0o400, uid, len(secret.value)
            tar.addfile(entry, io.BytesIO(secret.value))
    return buffer.getvalue()


_HELD_BYTES = MAX_SECRETS * (MAX_BYTES + 3 * tarfile.BLOCKSIZE)


def _held_secrets(chunks: Iterator[bytes]) -> tuple[Secret, ...]:
    """The plain files of an archive, as far as they could be ours."""
    data = b""
    while len(data) < _HELD_BYTES and (chunk := next(chunks, b"")):
        data += chunk
    held: list[Secret] = []
    # Cut or damaged: what was read until then.
    with contextlib.suppress(tarfile.TarError, ValueError), tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        for entry in tar:
            content = tar.extractfile(entry) if entry.isreg() and entry.size <= MAX_BYTES else None
            if content is not None:
                held.append(Secret(entry.name.rpartition("/")[2], content.read()))
    return tuple(held[:MAX_SECRETS])


def _uid(client: docker.APIClient, container: str, user: str) -> int:
    """The number of a user, by the container's own /etc/passwd as the engine reads it. Raises ``EngineError``."""
    if user.isascii() and user.isdecimal():
        return int(user)
    chunks, _ = client.get_archive(container, "/etc/passwd")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        file = tar.extractfile("passwd")
        lines = file.read().decode("utf-8", "replace").splitlines() if file else []
    for name, *fields in (line.split(":") for line in lines):
        if name == user and len(fields) > 1 and fields[1].isdecimal():
            return int(fields[1])
    raise EngineError(0, f"the image's /etc/passwd has no user {user!r}, to whom its secrets would belong")


_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
