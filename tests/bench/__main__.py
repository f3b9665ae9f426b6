"""What the worker costs, each figure beside its baseline from the same run on the same machine.

    python -m tests.bench [--rounds 5] [--runs 40] [--lines 200000]

Rounds of baseline and worker alternate, so that a machine that speeds up or slows down does both alike; what counts
is the median of the ratios. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import docker
from docker.types import LogConfig
from rich.console import Console
from rich.table import Table

from tests.support import policies
from tests.support.docker import Plane, base_image, new_plane
from tests.support.postgres import Cluster
from worker.database.queue import Queue
from worker.engine.create import NETWORK, ensure_network
from worker.model.claim import LogLine, WorkerIdentity

console = Console()
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on"}
CONCURRENCY = 2
BATCH = 1_000
READS = 200
"""Queries in a round; each is well below a millisecond."""


@dataclass
class Comparison:
    """Seconds for the same work, in pairs."""

    name: str
    unit: str
    amount: int
    baseline: list[float] = field(default_factory=list)
    worker: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / bare for ours, bare in zip(self.worker, self.baseline, strict=True)]


def bare_containers(image: str, runs: int, network: str) -> float:
    """Seconds for create, start, wait, remove of ``runs`` containers such as the worker makes, by the SDK alone."""
    clients = [docker.APIClient(version="auto") for _ in range(CONCURRENCY)]
    host = clients[0].create_host_config(
        network_mode=network, cap_drop=["ALL"], security_opt=["no-new-privileges"], nano_cpus=2_000_000_000,
        mem_limit="256m", memswap_limit="256m", pids_limit=1024, init=True, log_config=LogConfig(type="json-file"),
    )  # fmt: skip

    def one(client: docker.APIClient) -> None:
        container = client.create_container(image, ["true"], volumes=["/artifacts"], host_config=host)["Id"]
        client.start(container)
        client.wait(container)
        client.remove_container(container, v=True, force=True)

    def lane(client: docker.APIClient, count: int) -> None:
        for _ in range(count):
            one(client)

    began = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        list(pool.map(lane, clients, [runs // CONCURRENCY] * CONCURRENCY))
    return time.perf_counter() - began


async def worker_runs(plane: Plane, runs: int, config: Mapping[str, object]) -> float:
    """Seconds from the first claim to the last completion of ``runs`` runs through a real worker."""
    workflow = await plane.workflow({"command": ["true"], **config})
    ids = [await plane.queue(workflow) for _ in range(runs)]
    await plane.work("--concurrency", str(CONCURRENCY))
    span: float = await plane.db.fetchval(
        "select extract(epoch from max(finished_at) - min(claimed_at)) from ops.runs where id = any ($1)", ids
    )
    return float(span)


async def compare_runs(plane: Plane, rounds: int, runs: int) -> Iterator[Comparison]:
    """A run through the worker against the bare engine, without and with a look for artifacts."""
    await asyncio.to_thread(ensure_network, docker.APIClient(version="auto"))
    plain = Comparison("run, artifacts: [] (against create, start, wait, remove)", "runs/s", runs)
    collecting = Comparison("run, /artifacts collected (empty)", "runs/s", runs)
    for _ in range(rounds):
        bare = await asyncio.to_thread(bare_containers, plane.image, runs, NETWORK)
        cases: tuple[tuple[Comparison, Mapping[str, object]], ...] = ((plain, {"artifacts": []}), (collecting, {}))
        for comparison, config in cases:
            comparison.baseline.append(bare)
            comparison.worker.append(await worker_runs(plane, runs, config))
    return iter((plain, collecting))


def lines(count: int) -> list[LogLine]:
    now = datetime.now(UTC)
    text = "2026-01-01 00:00:00,000 12 INFO demo odoo.modules.loading: loading module number"
    return [LogLine(n, "stderr", "info", f"{text} {n}", now) for n in range(1, count + 1)]


async def compare_logs(plane: Plane, rounds: int, count: int) -> Iterator[Comparison]:
    """Stored log lines: a bare COPY, the worker's batches, and the whole way out of a container, masked too."""
    batches = Comparison("log lines, ops.append_run_logs (against COPY)", "lines/s", count)
    whole = Comparison("log lines, container to table (against COPY)", "lines/s", count)
    masked = Comparison("the same, with a secret to look for (against without)", "lines/s", count)
    (plane.folder / "secrets").mkdir()
    (plane.folder / "secrets" / "token").write_bytes(os.urandom(24).hex().encode())
    workflow = await plane.workflow({"artifacts": []})
    identity = WorkerIdentity("bench", uuid.uuid4(), "bench", "bench", "0", ())
    queue = await Queue.connected(plane.login(plane.url), identity, lease_seconds=3600)
    text = lines(count)

    async def claimed() -> uuid.UUID:
        await plane.queue(workflow)
        claim = (await queue.claim()).claim
        assert claim is not None
        await queue.start(claim.run_id)
        return claim.run_id

    async def by_copy(run_id: uuid.UUID) -> None:
        rows = [(run_id, plane.project_id, *line) for line in text]
        columns = ["run_id", "project_id", "seq", "stream", "log_level", "message", "timestamp"]
        for at in range(0, count, BATCH):
            await plane.db.copy_records_to_table(
                "run_logs", schema_name="ops", columns=columns, records=rows[at : at + BATCH]
            )

    async def by_function(run_id: uuid.UUID) -> None:
        for at in range(0, count, BATCH):
            await queue.append_logs(run_id, text[at : at + BATCH])

    async def timed(work: Callable[[uuid.UUID], Awaitable[None]]) -> float:
        run_id = await claimed()
        began = time.perf_counter()
        await work(run_id)
        seconds = time.perf_counter() - began
        await plane.db.execute("delete from ops.runs where id = $1", run_id)
        return seconds

    async def by_worker(**config: object) -> float:
        run_id = await plane.python(printing, artifacts=[], **config)
        await plane.work("--secrets-dir", str(plane.folder / "secrets"))
        run = await plane.run(run_id)
        await plane.db.execute("delete from ops.runs where id = $1", run_id)
        return float((run["finished_at"] - run["started_at"]).total_seconds())

    printing = f"import sys; sys.stderr.writelines('{text[0].message[:-2]} %d\\n' % n for n in range({count}))"
    for _ in range(rounds):
        bare = await timed(by_copy)
        batches.baseline.append(bare)
        batches.worker.append(await timed(by_function))
        whole.baseline.append(bare)
        whole.worker.append(await by_worker())
        masked.baseline.append(whole.worker[-1])
        masked.worker.append(await by_worker(secrets=["token"]))
    await queue.close()
    return iter((batches, whole, masked))


async def compare_policies(rounds: int) -> Iterator[Comparison]:
    """50 of 200,000 log lines, as a member of 50 projects among 500, against the same query without policies."""
    last = Comparison("last 50 lines of a run, with row policies (against without)", "reads/s", READS)
    some = Comparison("any 50 lines of one's own, with row policies (against without)", "reads/s", READS)
    with Cluster(settings=DURABLE) as cluster, cluster.database(cluster.template()) as name:
        owner, member = await asyncpg.connect(cluster.url(name)), await asyncpg.connect(cluster.url(name))
        run = await policies.populate(owner, projects=500, member_of=50, lines=400)
        await member.execute(f"set role authenticated; set request.jwt.claim.sub = '{policies.MEMBER}'")
        own = [row["id"] for row in await member.fetch("select id from ops.projects")]

        async def timed(connection: asyncpg.Connection, query: str, *args: object) -> float:
            began = time.perf_counter()
            for _ in range(READS):
                assert len(await connection.fetch(query, *args)) == 50
            return time.perf_counter() - began

        for _ in range(rounds):
            last.baseline.append(await timed(owner, policies.LAST_LINES, run))
            last.worker.append(await timed(member, policies.LAST_LINES, run))
            some.baseline.append(await timed(owner, policies.OWN_LINES, own))
            some.worker.append(await timed(member, policies.ANY_LINES))
        await owner.close()
        await member.close()
    return iter((last, some))


def report(comparisons: list[Comparison]) -> None:
    table = Table(title="medians; ratio = worker's seconds / baseline's seconds", title_justify="left")
    for heading in ("what", "baseline", "worker", "ratio", "least to most"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for each in comparisons:
        bare, ours = (statistics.median(each.amount / s for s in times) for times in (each.baseline, each.worker))
        table.add_row(
            each.name,
            f"{bare:,.1f} {each.unit}",
            f"{ours:,.1f} {each.unit}",
            f"{statistics.median(each.ratios):.2f}",
            f"{min(each.ratios):.2f} to {max(each.ratios):.2f}",
        )
    console.print(table)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=40, help="runs a round")
    parser.add_argument("--lines", type=int, default=200_000, help="log lines a round")
    options = parser.parse_args()
    image = await asyncio.to_thread(base_image, "python3-minimal")
    with tempfile.TemporaryDirectory() as folder, Cluster(settings=DURABLE) as cluster:
        engine = docker.APIClient(version="auto").version()["Version"]
        [(postgres,)] = cluster.execute("show server_version")
        console.print(
            f"{os.cpu_count()} CPUs, Python {platform.python_version()}, Docker {engine}, PostgreSQL {postgres}"
        )
        with cluster.database(cluster.template()) as name:
            db = await asyncpg.connect(cluster.url(name))
            plane = await new_plane(db, cluster.url(name), image, Path(folder))
            with console.status("log lines"):
                logs = list(await compare_logs(plane, options.rounds, options.lines))
            with console.status("runs"):
                runs = list(await compare_runs(plane, options.rounds, options.runs))
            await db.close()
        with console.status("row policies"):
            reads = list(await compare_policies(options.rounds))
    report([*runs, *logs, *reads])


if __name__ == "__main__":
    asyncio.run(main())
