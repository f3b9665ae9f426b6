"""The container of a run, from its start to its removal.

A log stream has no read timeout. It is ended by closing its response.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import docker.errors
import requests

from worker.concurrency import task_group
from worker.engine.chunks import body
from worker.engine.client import BROKEN, Body, EngineApi, cut, get, logs, translated
from worker.engine.create import OPENED_TIME
from worker.engine.pipe import Pipe
from worker.engine.volumes import LONE_FOLDER, is_folder, stat
from worker.errors import EngineError
from worker.model.container import MAX_SECRET, ContainerState, Secret
from worker.model.fields import ARTIFACTS_DIR, SECRETS_DIR
from worker.tar import END_MARK, DamagedError, first_file

ENDED_POLL_SECONDS = 0.1
"""How often a container that was told to end is looked at."""

_HEADER_BYTES, _FIRST_BYTES = 8, 64
"""What the header of an entry of the log takes, and more than its header and timestamp take."""

STREAM_BUFFER = 1 << 18
"""Bytes of log that may wait between the reading thread and the event loop; beyond it the reader pauses."""


@dataclass(frozen=True, slots=True)
class Opened:
    """How a container's /artifacts began: opened by the worker for a user who can write there, and not set its time.

    ``bare`` are the images known to bring no file in that folder. Each container of an image begins with the same.
    """

    image_id: str
    bare: set[str]


class Container:
    """A handle of one container; ``ref`` is its id or its name. It need not exist.

    ``new_until``: the reading of the monotonic clock until which a container that this process has just made is known
    not to have run.
    """

    def __init__(
        self,
        api: EngineApi,
        streams: anyio.CapacityLimiter,
        ref: str,
        new_until: float = -math.inf,
        opened: Opened | None = None,
    ) -> None:
        self.ref = ref
        self._api = api
        self._streams = streams
        self._new_until = new_until
        self._opened = opened
        self._untouched = False

    async def start(self) -> bool:
        """Starts a container that never ran; does nothing otherwise, or the engine would run an ended one again.

        Returns whether this call has started it. A container that is gone is no error here: ``inspect`` tells.
        """

        def start(client: docker.APIClient) -> bool:
            try:
                if self._is_new() or client.inspect_container(self.ref)["State"]["Status"] == "created":
                    client.start(self.ref)
                    return True
            except docker.errors.NotFound as error:
                if "network" in (error.explanation or ""):  # that is gone, and not the container
                    raise
            return False

        return await self._api.call(start)

    def _is_new(self) -> bool:
        """Whether the container is known not to have run. Once only: a start may succeed and its answer be lost."""
        until, self._new_until = self._new_until, -math.inf
        return time.monotonic() < until

    async def inspect(self) -> ContainerState | None:
        """The container's state, None when it is gone."""
        try:
            facts = await self._api.call(lambda client: client.inspect_container(self.ref), abandon=True)
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
            _volume(facts.get("Mounts") or ()),
            (state.get("Health") or {}).get("Status"),
            _published((facts.get("NetworkSettings") or {}).get("Ports") or {}),
        )

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after the grace. A container that is not running is left alone.

        The engine's own stop would send ``ENGINE_STOP_SIGNAL``, which means that the worker did not stop it.
        """
        await self._kill(signal.SIGTERM)
        with anyio.move_on_after(grace_seconds):
            while True:
                state = await self.inspect()
                if state is None or not state.running:
                    return
                await anyio.sleep(ENDED_POLL_SECONDS)
        await self._kill(signal.SIGKILL)

    async def _kill(self, number: signal.Signals) -> None:
        def kill(client: docker.APIClient) -> None:
            try:
                client.kill(self.ref, signal=number.name)
            except docker.errors.APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise  # a conflict: it is not running

        await self._api.call(kill)

    async def remove(self) -> None:
        """Removes the container with its volumes, also while it runs. A container that is gone is no error."""

        def remove(client: docker.APIClient) -> None:
            try:
                client.remove_container(self.ref, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise  # a conflict: it is being removed already

        await self._api.call(remove)

    async def left_nothing(self) -> bool:
        """Whether it is certain that the ended container left nothing in /artifacts. Takes one call, and no archive.

        An entry that is added to a folder or removed changes the folder's time. Only its owner can set it back: the
        worker opened it, so the owner is root, and the container's user is not.
        """
        if self._opened is None:
            return False
        self._untouched = await self._api.call(lambda client: _is_untouched(client, self.ref), abandon=True)
        return self._untouched and self._opened.image_id in self._opened.bare

    async def last_entry(self) -> bytes:
        """The last entry of the journal as the log endpoint frames it, to check that a reader saw the end."""
        return await self.tail(1)

    async def log_began(self) -> datetime | None:
        """The time of the oldest entry of the log that the engine still has; None if there is none."""

        def first(client: docker.APIClient) -> bytes:
            head = b""
            with closing(logs(client, self.ref, {})) as response:
                for chunk in response.iter_content(_FIRST_BYTES):
                    head += chunk
                    if len(head) >= _FIRST_BYTES:
                        break
            return head

        stamp, space, _ = (await self._api.call(first, abandon=True))[_HEADER_BYTES:].partition(b" ")
        return _time(stamp.decode("ascii", "replace")) if space else None

    async def tail(self, entries: int) -> bytes:
        """So many of the last entries of the log, as the log endpoint frames them."""

        def tail(client: docker.APIClient) -> bytes:
            return b"".join(logs(client, self.ref, {"tail": entries}).iter_content(None))

        return await self._api.call(tail, abandon=True)

    @asynccontextmanager
    async def follow(self, *, ended: bool) -> AsyncIterator[Pipe]:
        """Reads the container's log from its first byte, then as it grows.

        The log of a container that has ``ended`` is read as it is: an engine may end a stream that follows such a log
        before the log ends (Podman does).
        """
        pipe = Pipe(STREAM_BUFFER)
        async with task_group() as tasks:
            tasks.start_soon(self._pump, pipe, {} if ended else {"follow": 1})
            try:
                yield pipe
            finally:
                pipe.close()
                tasks.cancel_scope.cancel()

    async def _pump(self, pipe: Pipe, params: dict[str, int]) -> None:
        def pump() -> None:
            try:
                with closing(self._api.new_client()) as client, closing(logs(client, self.ref, params)) as response:
                    pipe.opened(partial(cut, response))
                    for piece in body(response):
                        pipe.put(piece)
            except Exception as error:  # noqa: BLE001 - the thread's edge: the reader of the pipe gets it
                pipe.end(translated(error))
            else:
                pipe.end(None)

        with anyio.CancelScope(shield=True):  # closing the pipe ends the thread
            await anyio.to_thread.run_sync(pump, limiter=self._streams)

    async def secrets(self, names: Sequence[str]) -> tuple[Secret, ...]:
        """The values in the container's secret files, at most ``MAX_SECRET`` bytes each: its program may write them."""

        def read(client: docker.APIClient) -> tuple[Secret, ...]:
            held = []
            for name in names:
                with _archive(client, self.ref, f"{SECRETS_DIR}/{name}") as chunks:
                    value = _held_value(chunks)
                if value is not None:
                    held.append(Secret(name, value))
            return tuple(held)

        return await self._api.call(read)

    @contextmanager
    def archive(self, path: str = ARTIFACTS_DIR) -> Iterator[Iterator[bytes]]:
        """The tar stream of a path in the container; without members when it is not there. Blocking: for a thread.

        The iterator's ``close``, called from another thread, ends a read that waits. Raises ``EngineUnavailable`` or
        ``EngineError``.
        """
        with closing(self._api.new_client()) as client, _archive(client, self.ref, path) as chunks:
            yield chunks
            empty = isinstance(chunks, Body) and chunks.whole and chunks.size == LONE_FOLDER
        if empty and self._untouched and self._opened is not None:  # so it was empty from the beginning
            self._opened.bare.add(self._opened.image_id)


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


def _is_untouched(client: docker.APIClient, ref: str) -> bool:
    """Whether /artifacts is a folder in which nothing changed since the worker opened it."""
    facts = stat(client, ref, ARTIFACTS_DIR)
    if facts is None:
        return False
    return is_folder(facts) and _time(facts["mtime"]) == datetime.fromtimestamp(OPENED_TIME, UTC)


def _volume(mounts: Sequence[Mapping[str, Any]]) -> Path | None:
    """The folder of the volume for artifacts; None if the engine names none."""
    for mount in mounts:
        if (mount.get("Type"), mount.get("Destination")) == ("volume", ARTIFACTS_DIR) and mount.get("Source"):
            return Path(mount["Source"])
    return None


def _published(ports: Mapping[str, Sequence[Mapping[str, str]] | None]) -> tuple[str, int] | None:
    """Where the engine publishes the port of a container; None if it has none, or is not running."""
    for bindings in ports.values():
        for binding in bindings or ():
            return binding["HostIp"], int(binding["HostPort"])
    return None


def _time(text: str | None) -> datetime | None:
    """A time of the engine's, which says the year 1 for never."""
    return None if not text or text.startswith("0001-") else datetime.fromisoformat(text)


def _held_value(chunks: Iterator[bytes]) -> bytes | None:
    """The secret in an archive of its file; None if the archive is cut, or the file is too large or no plain file."""
    with contextlib.suppress(DamagedError):
        return first_file(chunks, MAX_SECRET)
    return None
