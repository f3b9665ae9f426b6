"""The caches of projects on the engine. Blocking: for a thread.

Each run works on a volume of its own, which begins as a copy of the newest kept one. A run that succeeded keeps its
volume: a second, empty volume marks it. Only what is marked is ever copied, so a run that failed, or whose worker died
at any moment, changes nothing for the next one. The engine copies: it streams an archive of one volume into the other.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import docker
import docker.errors
from docker.types import Mount

from worker.engine.client import disk_usage, get
from worker.errors import EngineError
from worker.model.container import LABEL_DATABASE, LABEL_PROJECT, LABEL_RUN, LABEL_SERVICE
from worker.model.volume import CacheVolume
from worker.tar import END_MARK

LABEL_CACHE = "ops-worker.cache"
"""The name of a cache in its project."""

LABEL_KEPT = "ops-worker.cache-kept"
LABEL_KEPT_AT = "ops-worker.cache-kept-at"
"""The volume that a mark is for, and when it was made, in seconds since 1970."""

_FROM, _TO, _FOLDER = "/from", "/to", "cache"


@dataclass(frozen=True, slots=True)
class Generation:
    """One volume of a cache; ``kept_at`` is None for one that no run has kept."""

    volume: str
    cache: tuple[str, str]
    """Its project and its name there."""
    run_id: str
    kept_at: float | None


def generations(client: docker.APIClient, database_id: uuid.UUID) -> list[Generation]:
    """The volumes of all caches of that database, the newest kept one first."""
    found = client.volumes(filters={"label": f"{LABEL_DATABASE}={database_id}"})["Volumes"] or ()
    labels = {volume["Name"]: volume["Labels"] for volume in found}
    kept = {each[LABEL_KEPT]: float(each[LABEL_KEPT_AT]) for each in labels.values() if LABEL_KEPT in each}
    made = [
        Generation(name, (each[LABEL_PROJECT], each[LABEL_CACHE]), each[LABEL_RUN], kept.get(name))
        for name, each in labels.items()
        if LABEL_CACHE in each
    ]
    return sorted(made, key=lambda each: each.kept_at or 0.0, reverse=True)


def fill(client: docker.APIClient, other: docker.APIClient, cache: CacheVolume, image_id: str, *, copies: bool) -> int:
    """Makes the volume of a run; returns the bytes copied. Needs two clients. Raises what the SDK raises.

    ``copies``: whether it begins as a copy of the newest kept one. What an earlier attempt at the run left of it is
    removed first: no container on it has been started yet.
    """
    source, target = f"{cache.container}_from", f"{cache.container}_to"  # no service has such a name
    for container in (source, target, cache.container):
        with suppress(docker.errors.NotFound):
            client.remove_container(container, v=True)
    with suppress(docker.errors.NotFound):
        client.remove_volume(cache.engine_name)
    labels = {
        LABEL_DATABASE: str(cache.database_id),
        LABEL_PROJECT: str(cache.project_id),
        LABEL_RUN: str(cache.run_id),
    }
    client.create_volume(cache.engine_name, labels={**labels, LABEL_CACHE: cache.name})
    owner = (str(cache.project_id), cache.name)
    kept = [each for each in generations(client, cache.database_id) if each.cache == owner and each.kept_at is not None]
    if not kept or not copies:
        return 0
    labels[LABEL_SERVICE] = "cache"  # so they are removed with the services, should the worker die here
    newest = kept[0].volume
    with (
        _mounted(client, source, image_id, Mount(f"{_FROM}/{_FOLDER}", newest, type="volume"), labels),
        _mounted(client, target, image_id, Mount(f"{_TO}/{_FOLDER}", cache.engine_name, type="volume"), labels),
    ):
        if LABEL_CACHE not in (client.inspect_volume(newest)["Labels"] or {}):
            return 0  # removed meanwhile, and made anew by the engine for the container
        with closing(get(client, source, "archive", {"path": f"{_FROM}/{_FOLDER}"})) as response:
            stream = _Counted(response.iter_content(1 << 20))
            data: Any = stream
            other.put_archive(target, _TO, data)
        if stream.end != bytes(len(END_MARK)):
            raise EngineError(0, f"the engine's archive of the cache {cache.name!r} is not whole")
        return stream.size


class _Counted:
    """An archive as it passes by: how large it is, and how it ends."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.size = 0
        self.end = b""
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            self.end = (self.end + chunk)[-len(END_MARK) :]
            yield chunk


def keep(client: docker.APIClient, cache: CacheVolume) -> None:
    """Marks the volume of a run that succeeded. It is the newest of its cache from now on."""
    labels = {
        LABEL_DATABASE: str(cache.database_id),
        LABEL_KEPT: cache.engine_name,
        LABEL_KEPT_AT: f"{time.time():.6f}",
    }
    client.create_volume(_mark(cache.engine_name), labels=labels)


def remove_unkept(client: docker.APIClient, database_id: uuid.UUID, run_id: uuid.UUID) -> None:
    """Removes the volumes of a run that it did not keep. Raises what the SDK raises while one is in use."""
    for each in generations(client, database_id):
        if each.run_id == str(run_id) and each.kept_at is None:
            with suppress(docker.errors.NotFound):
                client.remove_volume(each.volume)


def unkept_runs(client: docker.APIClient, database_id: uuid.UUID) -> set[uuid.UUID]:
    """The runs that have a volume of a cache which they have not kept, or not yet."""
    return {uuid.UUID(each.run_id) for each in generations(client, database_id) if each.kept_at is None}


def trim(client: docker.APIClient, database_id: uuid.UUID, limit: int) -> None:
    """Removes all but the newest volume of each cache, and the least recently kept ones beyond ``limit`` bytes in all.

    One in use stays: the engine refuses to remove it.
    """
    marks = client.volumes(filters={"label": [f"{LABEL_DATABASE}={database_id}", LABEL_KEPT]})["Volumes"] or ()
    made = generations(client, database_id)
    for mark in marks:
        if mark["Labels"][LABEL_KEPT] not in {each.volume for each in made}:  # a worker died between the two removals
            with suppress(docker.errors.NotFound):
                client.remove_volume(mark["Name"])
    kept = [each for each in made if each.kept_at is not None]
    newest: dict[tuple[str, str], Generation] = {}
    for each in kept:
        if newest.setdefault(each.cache, each) is not each:
            _remove(client, each.volume)
    if not newest:
        return
    sizes = {each["Name"]: max(0, (each.get("UsageData") or {}).get("Size", 0)) for each in disk_usage(client).volumes}
    total = 0
    for each in newest.values():
        total += sizes.get(each.volume, 0)
        if total > limit and _remove(client, each.volume):
            total -= sizes.get(each.volume, 0)


def _remove(client: docker.APIClient, volume: str) -> bool:
    """Removes a volume and then its mark; returns False if it is in use."""
    try:
        with suppress(docker.errors.NotFound):
            client.remove_volume(volume)
    except docker.errors.APIError:
        return False
    with suppress(docker.errors.NotFound):
        client.remove_volume(_mark(volume))
    return True


def _mark(volume: str) -> str:
    return f"{volume}-kept"


@contextmanager
def _mounted(
    client: docker.APIClient, name: str, image_id: str, mount: Mount, labels: Mapping[str, str]
) -> Iterator[str]:
    """A container that mounts a volume and is never started."""
    with suppress(docker.errors.NotFound):
        client.remove_container(name, v=True, force=True)
    host = client.create_host_config(mounts=[mount], network_mode="none")
    container = client.create_container(image_id, ["true"], name=name, host_config=host, labels=dict(labels))["Id"]
    try:
        yield container
    finally:
        with suppress(docker.errors.NotFound):
            client.remove_container(container, v=True, force=True)
