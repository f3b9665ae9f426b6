"""Workers with a real queue and a simulated engine, many in one process.

The engine is the scripted one of the unit tests: each container prints a few lines and ends at once. All else is the
worker's own code: claims, leases, log lines and completions.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio

from tests.bench.harness import queues
from tests.support.docker import Plane
from tests.unit.fakes import NAME, DaemonWorld, ScriptedContainer, ScriptedEngine
from worker.daemon import Daemon, Timings
from worker.database.queue import Queue
from worker.model.container import Image, Networks, Secret
from worker.model.spec import ContainerSpec
from worker.run.ports import RunTimings

POLL = 600.0
"""Seconds between two polls: longer than a case lasts, so a worker only hears of a new run."""


class SimulatedEngine(ScriptedEngine):
    """A scripted engine for each container."""

    def __init__(self) -> None:
        super().__init__([])
        self._each: defaultdict[str, ScriptedEngine] = defaultdict(lambda: ScriptedEngine([]))

    async def create(
        self,
        name: str,
        image: Image,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        secrets: Sequence[Secret],
        networks: Networks,
    ) -> ScriptedContainer:
        return await self._each[name].create(NAME, image, spec, labels, secrets, networks)

    def container(self, ref: str) -> ScriptedContainer:
        return self._each[ref].container(NAME)

    async def owned(self, database_id: uuid.UUID) -> set[uuid.UUID]:
        return set()

    async def trim_project_networks(self, database_id: uuid.UUID) -> None:
        pass


@asynccontextmanager
async def daemons(plane: Plane, count: int, **options: Any) -> AsyncIterator[list[Daemon]]:
    """That many registered workers, not yet at work."""
    async with queues(plane, count, subscribed=False) as own:
        yield [_daemon(queue, await queue.register(takeover=False), options) for queue in own]


def _daemon(queue: Queue, database_id: uuid.UUID, options: dict[str, Any]) -> Daemon:
    world = DaemonWorld()
    world.queue, world.engine = cast("Any", queue), SimulatedEngine()
    world._context = replace(
        world._context, queue=queue, engine=cast("Any", world.engine), database_id=database_id,
        max_log_bytes=1 << 26, timings=RunTimings(),
    )  # fmt: skip
    return world.daemon(**{"concurrency": 2, "lease": 300.0, "poll": POLL, "timings": Timings(), **options})


@asynccontextmanager
async def listening(plane: Plane, count: int) -> AsyncIterator[None]:
    """That many workers, which wait for runs until the block ends."""
    async with daemons(plane, count) as workers, anyio.create_task_group() as tasks:
        for worker in workers:
            tasks.start_soon(worker.run)
        while not all(worker._queue.listening for worker in workers):
            await anyio.sleep(0.1)
        await anyio.sleep(2)  # for the probes, and the claims after them
        yield
        tasks.cancel_scope.cancel()


async def empty_the_queue(plane: Plane, count: int) -> None:
    """That many workers carry out all runs of the queue."""
    async with daemons(plane, count, until_idle=True, poll=0.5) as workers, anyio.create_task_group() as tasks:
        for worker in workers:
            tasks.start_soon(worker.run)
