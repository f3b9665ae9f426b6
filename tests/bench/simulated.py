"""Workers with a real queue and a simulated engine: many in one process, or in several.

The engine is the scripted one of the unit tests: each container prints a few lines and ends at once. All else is the
worker's own code: claims, leases, log lines and completions. As a program it takes the login from DATABASE_URL and the
number of workers as its argument, and logs when they wait for runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
import structlog

from tests.bench.harness import sessions
from tests.support.docker import Plane, worker_process
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


def _daemon(queue: Queue, database_id: uuid.UUID) -> Daemon:
    world = DaemonWorld()
    world.queue, world.engine = cast("Any", queue), SimulatedEngine()
    world._context = replace(
        world._context, queue=queue, engine=cast("Any", world.engine), database_id=database_id,
        max_log_bytes=1 << 26, timings=RunTimings(),
    )  # fmt: skip
    return world.daemon(concurrency=2, lease=300.0, poll=POLL, timings=Timings())


@asynccontextmanager
async def listening(login: str, count: int) -> AsyncIterator[None]:
    """That many workers in this process, which wait for runs until the block ends."""
    async with sessions(login, count) as own, anyio.create_task_group() as tasks:
        for queue in own:
            tasks.start_soon(_daemon(queue, await queue.register(takeover=False)).run)
        while not all(queue.listening for queue in own):
            await anyio.sleep(0.1)
        await anyio.sleep(2)  # for the probes, and the claims after them
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def crowd(plane: Plane, processes: int, each: int) -> AsyncIterator[None]:
    """That many processes with that many workers in each, which wait for runs until the block ends."""
    env = os.environ | {"DATABASE_URL": plane.login(plane.url)}
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(worker_process(plane.folder / f"{n}.log", __name__, str(each), env=env))
            for n in range(processes)
        ]
        for process in started:
            await process.until_said("listening")
        yield


async def _listen_until_killed(login: str, count: int) -> None:
    async with listening(login, count):
        structlog.get_logger().warning("listening")
        await anyio.sleep_forever()


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        processors=[structlog.processors.JSONRenderer()],
    )
    asyncio.run(_listen_until_killed(os.environ["DATABASE_URL"], int(sys.argv[1])))
