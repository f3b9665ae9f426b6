"""What happens before a run's container is started: it is found, or made with its image and secrets."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread

from worker.concurrency import cancel_on
from worker.errors import EngineError, RunFailure
from worker.model.claim import Claim
from worker.model.container import (
    LABEL_DATABASE,
    LABEL_RUN,
    LABEL_SERVICE,
    LABEL_TERMS,
    LABEL_WORKER,
    ContainerState,
    Image,
    Networks,
    ProjectNetwork,
    Secret,
)
from worker.model.outcome import Reason
from worker.model.pull import PullProgress
from worker.model.serve import project_name, proxy_labels
from worker.model.sizes import rounded_size
from worker.model.spec import PROJECT_NETWORK, ContainerSpec, RunSpec, RunTerms, resolve
from worker.model.volume import ProjectVolume, engine_name
from worker.run.caches import Caches
from worker.run.engine_retry import EngineRetry
from worker.run.ports import RunContainer, RunContext
from worker.run.reporter import Reporter
from worker.run.secrets import changed_values
from worker.run.services import run_network, service_container
from worker.run.serving import journal_bytes
from worker.run.stopping import StopRequest
from worker.run.traces import RunTrace

S = TypeVar("S", bound=ContainerSpec)

_NAME_OF_A_RUN = re.compile(r"run-\d+")
"""A workflow with such a name has no name of its own on the network of its project."""

NO_NETWORK, START_ATTEMPTS = 404, 5
"""What the engine answers to the start of a container whose network is gone, and how often that is tried."""


def container_name(run_id: uuid.UUID, database_id: uuid.UUID) -> str:
    """The name of a run's container, the same for every attempt to create it, so that it exists at most once.

    A copy of a database has the same runs, and perhaps the same engine. The name does not contain the run's id,
    because every container on the bridge can look up the names of its neighbours (reverse DNS).
    """
    return f"ops-run-{uuid.uuid5(database_id, str(run_id))}"


def container_gone() -> RunFailure:
    """The failure of a run whose container was removed by another program than the worker."""
    return RunFailure(Reason.ENGINE_LOST, "the container is gone from the engine")


class Preparation:
    """The container of one run, and the terms that it was made with."""

    def __init__(
        self,
        claim: Claim,
        context: RunContext,
        reporter: Reporter,
        calls: EngineRetry,
        stop: StopRequest,
        trace: RunTrace,
    ) -> None:
        self._trace = trace
        self._claim = claim
        self._context = context
        self._engine = context.engine
        self._reporter = reporter
        self._calls = calls
        self._stop = stop
        self.has_more = False
        """Whether the run has, or may have, services or caches beside its own container."""
        self.in_project = False
        """Whether it is on the network of its project."""
        self._project = ProjectNetwork(context.database_id, claim.project_id)
        self._labels = {
            LABEL_RUN: str(claim.run_id),
            LABEL_DATABASE: str(context.database_id),
            LABEL_WORKER: context.worker_id,
        }
        self._name = container_name(claim.run_id, context.database_id)
        self.caches = Caches(claim, context, self._name, reporter, calls)

    async def run(self) -> tuple[RunContainer, RunTerms]:
        """The container of the run: the one of an earlier attempt, or a new one."""
        container = self._engine.container(self._claim.container_id or self._name)
        state = await self._earlier_state(container)
        if state is not None:  # goes on as it was made: a later change of configuration, host or image does not count
            terms = RunTerms.model_validate_json(state.labels[LABEL_TERMS])
            self.has_more = bool(terms.services or terms.caches)
            self.in_project = terms.in_project
            self.caches.names = terms.caches
            await self._mask_held_secrets(container, terms)
            return container, terms
        if self._claim.container_id is not None:  # made once in a run's life: one that is gone may have run
            raise container_gone()
        spec = resolve(self._claim, self._context.policy)
        spec = replace(spec, env={**spec.env, **self._trace.environment})
        self.in_project = spec.terms.in_project
        if self.in_project:
            self._labels |= self._project.labels
        if spec.serve is not None:
            spec = replace(spec, journal_bytes=journal_bytes(spec.terms, self._context.max_log_bytes))
        secrets = {secret.name: secret for secret in await self._read_secrets(_secrets_of(spec.terms))}
        image = await self._image(spec.image)
        spec = await self._with_volumes(spec)
        if spec.caches:
            self.has_more = True
            spec = await self.caches.filled(spec, image)
        beside = await self._create_services(spec, secrets)
        return await self._create(spec, image, secrets, beside), spec.terms

    async def start(self, container: RunContainer, terms: RunTerms) -> bool:
        """Starts a container of the run; returns whether this call has started it. Raises ``EngineError``.

        The last other run of the project may have ended just now and removed their network: then it is made again.
        """
        for left in reversed(range(START_ATTEMPTS)):
            if terms.in_project:
                await self._calls(self._engine.create_project_network, self._project)
            try:
                return await self._calls(container.start)
            except EngineError as error:
                if not terms.in_project or error.status != NO_NETWORK or not left:
                    raise
        return False

    async def _earlier_state(self, container: RunContainer) -> ContainerState | None:
        """The state of the container that an earlier attempt recorded or started; None if none did, or it is gone."""
        if self._claim.status == "claimed":
            return None
        state = await self._calls(container.inspect)
        made = self._claim.container_id is not None or (state is not None and state.started_at is not None)
        return state if made else None

    async def _read_secrets(self, names: Sequence[str], *, required: bool = True) -> tuple[Secret, ...]:
        """The host's secrets of those names, which are masked from now on. Raises ``SpecError``."""
        if not names:
            return ()
        read = partial(self._context.secrets.read, self._claim.project.workspace_key, names, required=required)
        secrets = await anyio.to_thread.run_sync(read)
        await self._reporter.mask([secret.value for secret in secrets])
        return secrets

    async def _mask_held_secrets(self, container: RunContainer, terms: RunTerms) -> None:
        """Masks what the host holds now, and what it held when the containers were made: their files show that."""
        if not (names := _secrets_of(terms)):
            return
        known = await self._read_secrets(names, required=False)
        held = list(await self._calls(container.secrets, terms.secrets)) if terms.secrets else []
        for service in terms.services:
            beside = self._engine.container(service_container(self._name, service.name))
            held += await self._calls(beside.secrets, service.secrets) if service.secrets else ()
        await self._reporter.mask([*(secret.value for secret in known), *changed_values(held, known)])

    async def _image(self, reference: str) -> Image:
        """The image, pulled if the engine does not have it. Raises ``ImageMissing``, or ``RunFailure`` on a cancel."""
        image = await self._calls(self._engine.image, reference)
        if image is not None:
            return image
        await self._reporter.event("info", f"pulling image {reference}", {"image": reference})

        async def report(progress: PullProgress) -> None:
            facts = {"layers": progress.layers, "layers_done": progress.layers_done, "bytes": progress.received}
            message = f"pulling image {reference}: {progress.text}"
            await self._reporter.event("info", message, {"image": reference, **facts})

        pulled = None
        async with cancel_on(self._stop.requested):
            with self._trace.measured("pull", **{"ops.image": reference}):
                pulled = await self._context.pulls.pull(reference, report)
        if pulled is None:
            raise RunFailure(Reason.CANCELED, "canceled before its container was created")
        size, seconds = pulled.progress.received, round(pulled.seconds, 1)
        message = f"pulled image {reference}: {rounded_size(size)} in {seconds:g} s"
        await self._reporter.event("info", message, {"image": reference, "bytes": size, "seconds": seconds})
        return pulled.image

    async def _with_volumes(self, spec: RunSpec) -> RunSpec:
        """Makes the project's volumes, and returns the specification with the engine's names of them."""
        database_id, project_id = self._context.database_id, self._claim.project_id
        made = {}
        for mount in (*spec.volumes, *(mount for service in spec.services for mount in service.volumes)):
            name = engine_name(database_id, project_id, mount.name)
            made[mount.name] = ProjectVolume(name, database_id, project_id, mount.name)
        for volume in made.values():
            await self._calls(self._engine.create_volume, volume)

        def placed(container: S) -> S:
            mounts = (replace(mount, name=made[mount.name].engine_name) for mount in container.volumes)
            return replace(container, volumes=tuple(mounts))

        return replace(placed(spec), services=tuple(placed(service) for service in spec.services))

    async def _create_services(self, spec: RunSpec, secrets: Mapping[str, Secret]) -> dict[str, Any]:
        """Makes the services and their network, and returns what is recorded of them. Starts none."""
        network = run_network(self._name, spec)
        if network is None:
            return {}
        images = [await self._image(service.image) for service in spec.services]
        self.has_more = True
        await self._calls(self._engine.create_network, network, self._labels)
        recorded = {}
        for service, image in zip(spec.services, images, strict=True):
            its = [secrets[name] for name in service.secrets]
            name, labels = service_container(self._name, service.name), {**self._labels, LABEL_SERVICE: service.name}
            networks = self._networks(spec, f"{service.name}.")
            await self._calls(self._engine.create, name, image, self._exposed(service, its), labels, its, networks)
            recorded[service.name] = _facts(image, service)
        return {"services": recorded}

    async def _create(
        self, spec: RunSpec, image: Image, secrets: Mapping[str, Secret], beside: Mapping[str, Any]
    ) -> RunContainer:
        its = [secrets[name] for name in spec.secrets]
        labels = {**self._labels, LABEL_TERMS: spec.terms.model_dump_json()}
        if spec.serve is not None and spec.serve.url is not None:
            labels |= proxy_labels(self._name, spec.serve.url, spec.serve.port)
        container = await self._calls(
            self._engine.create, self._name, image, self._exposed(spec, its), labels, its, self._networks(spec)
        )
        limits = {"disk_bytes": spec.disk_bytes, "network": spec.network}
        recorded = self._reporter.redactor.value({**_facts(image, spec), **limits, **beside})
        await self._context.queue.record_container(self._claim.run_id, container.ref, recorded)
        return container

    def _networks(self, spec: RunSpec, prefix: str = "") -> Networks:
        """The networks of the run's container, or of a service of it.

        A service has its own name on the network of the run only, so the names of two runs never meet.
        """
        if not self.in_project:
            return Networks(run_network(self._name, spec))
        runs = [f"run-{self._claim.run_number}"]
        if not _NAME_OF_A_RUN.fullmatch(workflow := project_name(self._claim.workflow.name)):
            runs.append(workflow)
        names = tuple(f"{prefix}{run}.{PROJECT_NETWORK}" for run in runs)
        return Networks(run_network(self._name, spec), self._project, names)

    def _exposed(self, spec: S, secrets: Sequence[Secret]) -> S:
        """The specification with its secrets as variables too, if the host wants that."""
        if not self._context.policy.secrets_as_env:
            return spec
        reserved = {name: value for name, value in spec.env.items() if name.startswith("OPS_")}
        return replace(spec, env={**spec.env, **dict(secret.variable for secret in secrets), **reserved})


def _secrets_of(terms: RunTerms) -> tuple[str, ...]:
    """The names of all secrets, of the run and of its services."""
    names = (*terms.secrets, *(name for service in terms.services for name in service.secrets))
    return tuple(dict.fromkeys(names))


def _facts(image: Image, spec: ContainerSpec) -> dict[str, Any]:
    """What is recorded of a container: which image it is of, and its limits."""
    return {
        "image": image.reference,
        "image_id": image.image_id,
        "digest": image.digest,
        "cpus": spec.cpus,
        "memory_bytes": spec.memory_bytes,
        "pids": spec.pids,
        "nofile": spec.nofile,
    }
