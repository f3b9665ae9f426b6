"""Many workers on one queue: real claims, leases and logs in a real PostgreSQL, with a simulated engine.

    python -m tests.db.fleet [--workers 10 100] [--runs 10000] [--seconds 0.2]

Prints for each number of workers how many runs a second end (from the first 30 % to 90 % of them, when all workers have
connected and none is idle), and whether each run was started exactly once and has
each of its lines exactly once. The workers share as many processes as the machine has cores. Exits with 1 if a run was
started twice, or if a line is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import anyio
import asyncpg
import structlog
from rich.console import Console

from tests.db.world import new_project, new_workflow
from tests.support.postgres import Cluster
from tests.unit.journal import frame
from worker.artifacts.store import ArtifactStore
from worker.daemon import Daemon, DaemonOptions
from worker.database.queue import Queue
from worker.model.claim import WorkerIdentity
from worker.model.container import ContainerState, Image, Secret, Written
from worker.model.spec import HostPolicy, RunSpec
from worker.run.disk import Disk
from worker.run.ports import RunContext
from worker.tar import END_MARK
from worker.telemetry import Metrics

console = Console(highlight=False, soft_wrap=True)
PROJECTS = 20
LINES = 20
CONCURRENCY = 2
JOURNAL = [frame(1, f"line {n}\n".encode()) for n in range(1, LINES + 1)]
SETTINGS = {"max_connections": "500", "fsync": "on", "synchronous_commit": "on", "autovacuum": "on"}


class SimulatedEngine:
    """One engine, whose containers print ``LINES`` lines and end after some seconds. Counts the starts of each."""

    def __init__(self, seconds: float) -> None:
        self.starts = Counter[str]()
        self._seconds = seconds
        self._containers: dict[str, SimulatedContainer] = {}

    async def image(self, reference: str) -> Image:
        return Image(reference, "sha256:1", None, "")

    async def create(
        self, name: str, _image: Image, _spec: RunSpec, labels: Mapping[str, str], _secrets: Sequence[Secret]
    ) -> SimulatedContainer:
        return self._containers.setdefault(name, SimulatedContainer(self, name, labels, self._seconds))

    def container(self, ref: str) -> SimulatedContainer:
        return self._containers.get(ref) or SimulatedContainer(self, ref, {}, self._seconds)

    def forget(self, name: str) -> None:
        self._containers.pop(name, None)

    def knows(self, name: str) -> bool:
        return name in self._containers

    async def owned(self, _database_id: uuid.UUID) -> set[uuid.UUID]:
        return set()

    async def written(self) -> dict[str, Written]:
        return {}


class SimulatedContainer:
    """One container."""

    def __init__(self, engine: SimulatedEngine, name: str, labels: Mapping[str, str], seconds: float) -> None:
        self.ref = name
        self._engine = engine
        self._labels = labels
        self._seconds = seconds
        self._started_at: datetime | None = None
        self._ended = False

    async def start(self) -> bool:
        self._engine.starts[self.ref] += 1
        self._started_at = datetime.now(UTC)
        return True

    async def inspect(self) -> ContainerState | None:
        if not self._engine.knows(self.ref):
            return None
        status = "created" if self._started_at is None else "exited" if self._ended else "running"
        return ContainerState(status, 0, False, "", self._started_at, None, self._labels)

    async def stop(self, _grace_seconds: float) -> None:
        self._ended = True

    async def remove(self) -> None:
        self._engine.forget(self.ref)

    async def secrets(self, _names: Sequence[str]) -> tuple[Secret, ...]:
        return ()

    async def left_nothing(self) -> bool:
        return True

    async def last_entry(self) -> bytes:
        return JOURNAL[-1]

    @asynccontextmanager
    async def follow(self, *, ended: bool) -> AsyncIterator[SimulatedContainer]:
        self._left = [b"".join(JOURNAL), b""]
        yield self

    async def receive(self) -> bytes:
        piece = self._left.pop(0)
        if not piece:
            await anyio.sleep(self._seconds)
            self._ended = True
        return piece

    @contextmanager
    def archive(self) -> Iterator[Iterator[bytes]]:
        yield iter((END_MARK,))


async def work(dsn: str, engine: SimulatedEngine, name: str, store: str) -> None:
    """One worker, until the queue is empty."""
    identity = WorkerIdentity(name, uuid.uuid4(), "fleet", f"engine of {name}", "0", ())
    queue = await Queue.connected(dsn, identity, lease_seconds=300)
    database_id = await queue.register(takeover=False)
    context = RunContext(
        queue, cast("Any", engine), ArtifactStore.from_url(store), HostPolicy(), name, database_id, 3.0, 60.0, 2**20
    )
    options = DaemonOptions(concurrency=CONCURRENCY, until_idle=True, lease=300, poll=5.0, drain=None)
    try:
        await Daemon(context, queue, cast("Any", engine), Metrics(), options, Disk((), None, 0)).run()
    finally:
        await queue.close()


def work_together(dsn: str, names: Sequence[str], seconds: float, store: str) -> Counter[str]:
    """Several workers in one process; returns how often each container was started."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    async def together() -> Counter[str]:
        engines = [SimulatedEngine(seconds) for _ in names]
        async with anyio.create_task_group() as tasks:
            for engine, name in zip(engines, names, strict=True):
                tasks.start_soon(work, dsn, engine, name, store)
        return sum((engine.starts for engine in engines), Counter[str]())

    return asyncio.run(together())


async def queue_runs(db: asyncpg.Connection, runs: int) -> None:
    for n in range(PROJECTS):
        project = await new_project(db, f"p{n}")
        workflow = await new_workflow(db, project, config={"command": ["true"], "artifacts": []})
        sql = (
            "insert into ops.runs (project_id, workflow_id, status) select $1, $2, 'queued' from generate_series(1, $3)"
        )
        await db.execute(sql, project, workflow, runs // PROJECTS)
    await db.execute("analyze ops.runs")


FACTS = """
    select count(*) as runs, count(*) filter (where r.status = 'succeeded') as succeeded,
        count(*) filter (where l.lines = $1 and l.first = 1 and l.last = $1) as logged,
        extract(epoch from percentile_disc(0.9) within group (order by r.finished_at)
            - percentile_disc(0.3) within group (order by r.finished_at)) as seconds
    from ops.runs as r
    left join (
        select run_id, count(*) as lines, min(seq) as first, max(seq) as last from ops.run_logs group by run_id
    ) as l on l.run_id = r.id
"""


async def measure(workers: int, runs: int, seconds: float) -> bool:
    """Runs so many runs with so many workers; returns whether each was started once and is complete."""
    with (
        tempfile.TemporaryDirectory() as store,
        Cluster(settings=SETTINGS) as cluster,
        cluster.database(cluster.template()) as database,
    ):
        url = cluster.url(database)
        db = await asyncpg.connect(url)
        await db.execute("insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', 'odoo:19')")
        await queue_runs(db, runs)
        processes = min(workers, os.cpu_count() or 1)
        names = [f"worker-{n}" for n in range(workers)]
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            parts = [
                pool.submit(work_together, url, names[n::processes], seconds, Path(store).as_uri())
                for n in range(processes)
            ]
            starts = sum([await asyncio.wrap_future(part) for part in parts], Counter[str]())
        facts = await db.fetchrow(FACTS, LINES)
        await db.close()
    once = sum(1 for count in starts.values() if count == 1)
    console.print(
        f"{workers} workers: {0.6 * facts['runs'] / float(facts['seconds']):,.0f} runs/s; of {facts['runs']:,} runs "
        f"{once:,} were started once, {facts['succeeded']:,} succeeded, {facts['logged']:,} have every line once"
    )
    return {once, len(starts), facts["succeeded"], facts["logged"]} == {facts["runs"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.db.fleet")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long a simulated container runs")
    options = parser.parse_args()
    held = [asyncio.run(measure(workers, options.runs, options.seconds)) for workers in options.workers]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
