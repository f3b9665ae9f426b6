"""The Docker engine as the worker uses it: what it is, its images, its containers of runs, and what those wrote."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import docker
import docker.errors
import docker.utils
from docker.utils import version_gte

from worker.engine import caches
from worker.engine.client import EngineApi, Severable, disk_usage
from worker.engine.containers import Container, Opened
from worker.engine.create import ContainerRequest, create
from worker.engine.networks import (
    ensure_project_network,
    ensure_run_network,
    remove_beside,
    remove_project_network,
    run_networks,
    unused_project_networks,
)
from worker.engine.volumes import ensure_volume, project_volumes, remove_volume
from worker.errors import ImageMissing
from worker.model.container import (
    LABEL_DATABASE,
    LABEL_RUN,
    Image,
    Networks,
    ProjectNetwork,
    RunNetwork,
    Secret,
    Written,
)
from worker.model.images import ImageName, digest_of
from worker.model.spec import ContainerSpec
from worker.model.volume import CACHE_PREFIX, VOLUME_PREFIX, CacheVolume, ProjectVolume
from worker.telemetry import Metrics

NEW_SECONDS = 0.25
"""How long a new container is known not to have run: no other worker can adopt, start and end it in that time."""

_CONTAINERD_STORE = ["driver-type", "io.containerd.snapshotter.v1"]


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

    def __init__(self, docker_host: str | None, *, streams: int, metrics: Metrics | None = None) -> None:
        self._api = EngineApi(docker_host, calls=streams + 4, metrics=metrics)
        self._streams = anyio.CapacityLimiter(2 * streams + 2)
        self._bare_images: set[str] = set()

    def close(self) -> None:
        """Closes the idle clients; those in use close themselves."""
        self._api.close()

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

    async def pull(self, reference: str, on_report: Callable[[Mapping[str, Any]], object]) -> None:
        """Fetches an image with the credentials of the engine client's own configuration file.

        ``on_report`` gets each of the engine's reports, in another thread.

        Raises ``ImageMissing`` with the registry's words. Cancelled, it cuts its connection, and the engine stops too.
        """
        name, tag = docker.utils.parse_repository_tag(reference)
        connection = Severable()

        def pull(_: docker.APIClient) -> None:
            try:
                with closing(self._api.new_client()) as client:  # its own, since its connection may be cut
                    connection.watch(client)
                    for step in client.pull(name, tag=tag, stream=True, decode=True):
                        # The field "error" is deprecated since API 1.48.
                        if error := step.get("error") or (step.get("errorDetail") or {}).get("message"):
                            raise ImageMissing(reference, error)
                        on_report(step)
            except docker.errors.APIError as error:
                raise ImageMissing(reference, error.explanation or str(error)) from error

        try:
            await self._api.call(pull, abandon=True)
        finally:
            connection.sever()

    async def create_network(self, network: RunNetwork, labels: Mapping[str, str]) -> None:
        """Makes the network of a run with services if it is not there."""
        await self._api.call(lambda client: ensure_run_network(client, network, labels))

    async def create_project_network(self, network: ProjectNetwork) -> None:
        """Makes the network of a project if it is not there."""
        await self._api.call(lambda client: ensure_project_network(client, network))

    async def trim_project_networks(self, database_id: uuid.UUID) -> None:
        """Removes the networks of that database's projects which have no containers on them."""

        def trim(client: docker.APIClient) -> None:
            for network in unused_project_networks(client, database_id):
                remove_project_network(client, network)

        await self._api.call(trim)

    async def unused_project_networks(self) -> list[ProjectNetwork]:
        """The networks of projects without containers on this engine, also those of other databases."""
        return await self._api.call(unused_project_networks, abandon=True)

    async def remove_project_network(self, network: ProjectNetwork) -> bool:
        """Removes the network of a project; returns whether this call did."""
        return await self._api.call(lambda client: remove_project_network(client, network))

    async def create(
        self,
        name: str,
        image: Image,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        secrets: Sequence[Secret] = (),
        networks: Networks = Networks(),  # noqa: B008 - frozen
    ) -> Container:
        """Makes a container of a run and does not start it; its handle has its id. See :func:`create`."""
        request = ContainerRequest(name, image, spec, labels, secrets, networks)
        ref, is_new = await self._api.call(lambda client: create(client, request))
        if not is_new:
            return self.container(ref)
        opened = Opened(image.image_id, self._bare_images) if request.opens_artifacts else None
        return Container(self._api, self._streams, ref, time.monotonic() + NEW_SECONDS, opened)

    async def remove_beside(self, database_id: uuid.UUID, run_id: uuid.UUID) -> None:
        """Removes the services and the network of a run, and its volumes of caches unless it has kept them."""

        def remove(client: docker.APIClient) -> None:
            remove_beside(client, database_id, run_id)
            caches.remove_unkept(client, database_id, run_id)

        await self._api.call(remove)

    async def fill_cache(self, cache: CacheVolume, image: Image, *, copies: bool = True) -> int:
        """Makes the volume of a run for a cache, a copy of the newest that is kept; returns the bytes copied."""

        def fill(client: docker.APIClient) -> int:
            with closing(self._api.new_client()) as other:
                return caches.fill(client, other, cache, image.image_id, copies=copies)

        return await self._api.call(fill)

    async def keep_cache(self, cache: CacheVolume) -> None:
        """Makes the volume of a run the newest of its cache."""
        await self._api.call(lambda client: caches.keep(client, cache))

    async def trim_caches(self, database_id: uuid.UUID, limit: int) -> None:
        """Removes old volumes of caches, and the least recently kept caches beyond that many bytes in all."""
        await self._api.call(lambda client: caches.trim(client, database_id, limit))

    async def create_volume(self, volume: ProjectVolume) -> None:
        """Makes the volume of a project if it is not there."""
        await self._api.call(lambda client: ensure_volume(client, volume))

    async def volumes(self) -> list[ProjectVolume]:
        """The volumes of all projects on this engine, also those of other databases."""
        return await self._api.call(project_volumes, abandon=True)

    async def remove_volume(self, name: str) -> None:
        """Removes a volume with all that is in it. Raises ``EngineError`` while a container uses it."""
        await self._api.call(lambda client: remove_volume(client, name))

    def container(self, ref: str) -> Container:
        """The handle of a container by its id or its name, whether it exists or not."""
        return Container(self._api, self._streams, ref)

    async def owned(self, database_id: uuid.UUID) -> set[uuid.UUID]:
        """The runs of that database with a container, running or not, a network or an unkept cache on this engine."""

        def owned(client: docker.APIClient) -> set[uuid.UUID]:
            filters = {"label": [f"{LABEL_DATABASE}={database_id}", LABEL_RUN]}
            found = [*client.containers(all=True, filters=filters), *run_networks(client, database_id)]
            return {uuid.UUID(item["Labels"][LABEL_RUN]) for item in found} | caches.unkept_runs(client, database_id)

        return await self._api.call(owned, abandon=True)

    async def written(self) -> dict[str, Written]:
        """What the containers of runs hold on the engine's disk, by run id: of all workers and databases."""
        usage = await self._api.call(disk_usage, abandon=True)
        sizes = {volume["Name"]: max(0, (volume.get("UsageData") or {}).get("Size", 0)) for volume in usage.volumes}
        written: dict[str, Written] = {}
        for container in usage.containers:
            if (run_id := (container.get("Labels") or {}).get(LABEL_RUN)) is None:
                continue
            size, kept = container.get("SizeRw", 0), 0
            for mount in container.get("Mounts") or ():
                name = mount.get("Name") or ""
                if not name.startswith((VOLUME_PREFIX, CACHE_PREFIX)):
                    size += sizes.get(name, 0)
                elif mount.get("RW"):
                    kept += sizes.get(name, 0)
            others = written.get(run_id, Written(0, running=False))
            running = others.running or container["State"] == "running"
            written[run_id] = Written(others.size + size, running, others.kept + kept)
        return written


def filters_bridges(api_version: str, facts: Mapping[str, Any]) -> bool:
    """False if those facts say that nothing filters between the containers of one bridge.

    An engine before API 1.48 needs a setting of the kernel, and reports it. A later one loads the kernel's module
    itself. From API 1.49 on an engine names its firewall, and names none with ``iptables`` switched off. An older
    engine does not report that switch.
    """
    if version_gte(api_version, "1.49"):
        return bool(facts.get("FirewallBackend"))
    return version_gte(api_version, "1.48") or bool(facts.get("BridgeNfIptables", True))
