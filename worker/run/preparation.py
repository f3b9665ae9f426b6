"""What happens before a run's container is started: it is found, or made with its image and secrets."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import anyio.to_thread

from worker.concurrency import cancel_on
from worker.errors import RunFailure
from worker.model.claim import Claim
from worker.model.container import (
    LABEL_DATABASE,
    LABEL_RUN,
    LABEL_TERMS,
    LABEL_WORKER,
    ContainerState,
    Image,
    Secret,
)
from worker.model.outcome import Reason
from worker.model.pull import PullProgress
from worker.model.sizes import rounded_size
from worker.model.spec import RunSpec, RunTerms, resolve
from worker.run.engine_retry import EngineRetry
from worker.run.ports import RunContainer, RunContext
from worker.run.reporter import Reporter
from worker.run.secrets import changed_values
from worker.run.stopping import StopRequest


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
        self, claim: Claim, context: RunContext, reporter: Reporter, calls: EngineRetry, stop: StopRequest
    ) -> None:
        self._claim = claim
        self._context = context
        self._engine = context.engine
        self._reporter = reporter
        self._calls = calls
        self._stop = stop
        self._name = container_name(claim.run_id, context.database_id)

    async def run(self) -> tuple[RunContainer, RunTerms]:
        """The container of the run: the one of an earlier attempt, or a new one."""
        container = self._engine.container(self._claim.container_id or self._name)
        state = await self._earlier_state(container)
        if state is not None:  # goes on as it was made: a later change of configuration, host or image does not count
            terms = RunTerms.model_validate_json(state.labels[LABEL_TERMS])
            await self._mask_held_secrets(container, terms.secrets)
            return container, terms
        if self._claim.container_id is not None:  # made once in a run's life: one that is gone may have run
            raise container_gone()
        spec = resolve(self._claim, self._context.policy)
        secrets = await self._read_secrets(spec.secrets)
        image = await self._image(spec.image)
        return await self._create(spec, image, secrets), spec.terms

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

    async def _mask_held_secrets(self, container: RunContainer, names: Sequence[str]) -> None:
        """Masks what the host holds now, and what it held when the container was made: its files show that."""
        known = await self._read_secrets(names, required=False)
        if names:
            held = await self._calls(container.secrets, names)
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
            pulled = await self._context.pulls.pull(reference, report)
        if pulled is None:
            raise RunFailure(Reason.CANCELED, "canceled before its container was created")
        size, seconds = pulled.progress.received, round(pulled.seconds, 1)
        message = f"pulled image {reference}: {rounded_size(size)} in {seconds:g} s"
        await self._reporter.event("info", message, {"image": reference, "bytes": size, "seconds": seconds})
        return pulled.image

    async def _create(self, spec: RunSpec, image: Image, secrets: Sequence[Secret]) -> RunContainer:
        labels = {
            LABEL_RUN: str(self._claim.run_id),
            LABEL_DATABASE: str(self._context.database_id),
            LABEL_WORKER: self._context.worker_id,
            LABEL_TERMS: spec.terms.model_dump_json(),
        }
        if self._context.policy.secrets_as_env:
            reserved = {name: value for name, value in spec.env.items() if name.startswith("OPS_")}
            spec = replace(spec, env={**spec.env, **dict(secret.variable for secret in secrets), **reserved})
        container = await self._calls(self._engine.create, self._name, image, spec, labels, secrets)
        details = {"image": image.reference, "image_id": image.image_id, "digest": image.digest}
        limits = {
            "cpus": spec.cpus,
            "memory_bytes": spec.memory_bytes,
            "pids": spec.pids,
            "nofile": spec.nofile,
            "disk_bytes": spec.disk_bytes,
            "network": spec.network,
        }
        recorded = self._reporter.redactor.value({**details, **limits})
        await self._context.queue.record_container(self._claim.run_id, container.ref, recorded)
        return container
