"""Access to the Docker engine: clients, the threads that wait for them, raw endpoints, errors of our own.

The SDK blocks and a client may serve one thread at a time (docker-py#3229). So each call runs in a thread, with a
client from a small pool that no other thread uses meanwhile.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import docker
import docker.errors
import docker.utils
import requests
import urllib3
from docker.types import CancellableStream

from worker.errors import SERVER_ERROR, ConfigurationError, EngineError, EngineUnavailable, ImageMissing
from worker.model.container import check_engine_address
from worker.telemetry import Metrics

T = TypeVar("T")

API_TIMEOUT = 120
"""Seconds without an answer after which a call fails. A create may wait long for a busy disk."""

BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""The errors of a connection that breaks."""


class EngineApi:
    """Clients of one engine; at most ``calls`` of them wait for an answer at once."""

    def __init__(self, docker_host: str | None, *, calls: int, metrics: Metrics | None = None) -> None:
        """Raises ``ConfigurationError`` for an address of another kind, such as ssh."""
        self.host = docker_host or os.environ.get("DOCKER_HOST") or None
        try:
            check_engine_address(self.host)
        except ValueError as error:
            raise ConfigurationError("docker_host" if docker_host else "DOCKER_HOST", str(error)) from None
        self._clients: list[docker.APIClient] = []
        self._version: str | None = None
        self._calls = anyio.CapacityLimiter(calls)
        self._metrics = metrics or Metrics()

    def close(self) -> None:
        """Closes the idle clients; those in use close themselves."""
        while self._clients:
            self._clients.pop().close()

    async def call(self, function: Callable[[docker.APIClient], T], *, abandon: bool = False) -> T:
        """Makes one call in a thread and returns its result.

        With ``abandon=True`` (read-only calls) cancellation returns at once; the thread finishes alone. Otherwise it
        waits for the thread. Raises ``EngineUnavailable``, ``EngineError`` and ``ImageMissing``.
        """

        def call() -> T:
            try:
                with self.client() as client:
                    return function(client)
            except (docker.errors.DockerException, *BROKEN) as error:
                raise translated(error) from error

        began, failed = time.monotonic(), None
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._calls, abandon_on_cancel=abandon)
        except EngineUnavailable:
            failed = "unavailable"
            raise
        except EngineError as error:
            failed = "server" if error.status >= SERVER_ERROR else "request"
            raise
        finally:
            self._metrics.engine_call(_name_of(function.__qualname__), time.monotonic() - began, failed)

    @contextmanager
    def client(self) -> Iterator[docker.APIClient]:
        """A client for one thread; it goes back to the pool only if its connection is known to be sound."""
        client = self._clients.pop() if self._clients else self.new_client()
        try:
            yield client
        except (docker.errors.APIError, ImageMissing, EngineError):  # an answer: the connection works
            self._clients.append(client)
            raise
        except BaseException:
            client.close()
            raise
        self._clients.append(client)

    def new_client(self) -> docker.APIClient:
        """A client outside of the pool, which the caller closes: for a stream whose socket may be closed from outside.

        What has arrived by then is still read to its clean end, and no error shows that the connection is dead.
        """
        host = self.host
        options = docker.utils.kwargs_from_env({**os.environ, "DOCKER_HOST": host} if host else None)
        try:
            client = docker.APIClient(
                **options,
                version=self._version or "auto",
                timeout=API_TIMEOUT,
                num_pools=1,  # for Unix sockets the SDK keeps a pool, and so a socket, for each URL
            )
        except docker.errors.DockerException as error:
            raise EngineUnavailable(
                f"the container engine at {host or 'its default address'} does not answer: {error}"
            ) from error
        self._version = client.api_version
        # A Unix socket has no proxy and no password, and to look for them in the environment takes a quarter of a call.
        client.trust_env = not client.base_url.startswith("http+docker:")
        return client


@cache
def _name_of(qualname: str) -> str:
    """The name of a call: the method that makes it, ``start`` for ``Container.start.<locals>.<lambda>``."""
    return qualname.partition(".<locals>")[0].rpartition(".")[2]


class Body:
    """The body of an answer as it comes in."""

    def __init__(self, response: requests.Response) -> None:
        self.size = 0
        """Bytes so far."""
        self.whole = False
        """Whether its end was reached."""
        self._response = response
        self._chunks = response.iter_content(1 << 20)

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        try:
            chunk: bytes = next(self._chunks)
        except StopIteration:
            self.whole = True
            raise
        except BROKEN as error:
            raise translated(error) from error
        self.size += len(chunk)
        return chunk

    def close(self) -> None:
        """Ends a read that waits, from another thread."""
        cut(self._response)


def cut(response: requests.Response) -> None:
    """Ends a read of that answer which waits in another thread; does nothing if the read is over."""
    with suppress(OSError, AttributeError):  # it has ended between the SDK's look at it and its close
        CancellableStream(iter(()), response).close()


class Severable:
    """The connections of one client, which another thread may end, also while the engine has not answered yet."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._severed = False

    def watch(self, client: docker.APIClient) -> None:
        """From now on, connects before each request of this client, so that the socket is known."""
        adapter: Any = client.get_adapter(client.base_url)
        pool_for = adapter.get_connection_with_tls_context

        def connected(*args: Any, **options: Any) -> Any:
            pool = pool_for(*args, **options)
            connection = pool._get_conn()  # noqa: SLF001 - urllib3 has no public way to its sockets
            if connection.sock is None:
                connection.connect()
            self._sockets.append(connection.sock)
            pool._put_conn(connection)  # noqa: SLF001 - the request takes it from there
            if self._severed:
                self.sever()
            return pool

        adapter.get_connection_with_tls_context = connected

    def sever(self) -> None:
        """Ends every request under way and to come; the engine then stops what it does for it."""
        self._severed = True
        for each in self._sockets:
            with suppress(OSError):  # closed already
                each.shutdown(socket.SHUT_RDWR)


def logs(client: docker.APIClient, container_id: str, params: dict[str, int]) -> requests.Response:
    """The raw response of the log endpoint: ``APIClient.logs`` throws the stream of each frame away."""
    words = {"stdout": 1, "stderr": 1, "timestamps": 1, **params}
    return get(client, container_id, "logs", words, endless="follow" in params)


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the engine answers about each container and each volume."""

    containers: Sequence[Mapping[str, Any]]
    volumes: Sequence[Mapping[str, Any]]


def disk_usage(client: docker.APIClient) -> DiskUsage:
    """What containers and volumes hold on the engine's disk; it walks through all of their files.

    Raises ``EngineError``, also on engines before 23.0 while another client asks the same.
    """
    # ``type`` means nothing before API 1.42, ``verbose`` nothing before 1.52; from then on it asks for the items.
    words: dict[str, list[str] | int] = {"type": ["container", "volume"], "verbose": 1}
    url = f"{client.base_url}/v{client.api_version}/system/df"
    response: requests.Response = client.get(url, params=words, timeout=API_TIMEOUT)
    if not response.ok:
        raise EngineError(response.status_code, response.text)
    usage = response.json()
    if "ContainerUsage" in usage or "VolumeUsage" in usage:
        found = ((usage.get(name) or {}).get("Items") for name in ("ContainerUsage", "VolumeUsage"))
    else:
        found = (usage.get(name) for name in ("Containers", "Volumes"))
    containers, volumes = (items or () for items in found)
    return DiskUsage(containers, volumes)


def get(
    client: docker.APIClient, container_id: str, what: str, params: Mapping[str, str | int], *, endless: bool = False
) -> requests.Response:
    """The streaming answer of a container's endpoint. An ``endless`` one has no time limit once it has begun.

    Raises ``EngineError``.
    """
    url = f"{client.base_url}/v{client.api_version}/containers/{container_id}/{what}"
    response: requests.Response = client.get(url, params=dict(params), stream=True, timeout=API_TIMEOUT)
    if not response.ok:
        raise EngineError(response.status_code, response.text)
    if response.headers.keys().isdisjoint(("Transfer-Encoding", "Content-Length")):
        # http.client takes an answer that is cut within its headers for a whole one without a body.
        response.close()
        raise requests.ConnectionError("the headers of the answer are cut off")
    if endless:  # as the SDK does it for its own streams
        raw = client._get_raw_response_socket(response)  # type: ignore[attr-defined]  # noqa: SLF001
        client._disable_socket_timeout(raw)  # type: ignore[attr-defined]  # noqa: SLF001
    return response


def translated(error: Exception) -> Exception:
    """The SDK's and the transport's errors as ours; any other as it is."""
    if isinstance(error, docker.errors.ImageNotFound):
        return ImageMissing("", error.explanation or str(error))
    if isinstance(error, docker.errors.APIError):
        return EngineError(error.status_code or 0, error.explanation or str(error))
    if isinstance(error, docker.errors.DockerException):  # such as a broken credential helper
        return EngineError(0, str(error))
    if isinstance(error, BROKEN):
        return EngineUnavailable(str(error) or type(error).__name__)
    return error
