"""Runs: what the worker adds to the engine's own cost, in time, in CPU, in statements and in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import docker
from docker.types import LogConfig

from tests.bench.backlog import fill
from tests.bench.harness import Bench, emptied
from tests.bench.log_store import work_once
from tests.bench.report import Figure, Mark
from tests.bench.simulated import crowd
from tests.support.docker import Plane
from tests.support.docker import docker as docker_command
from worker.cli.settings import Settings
from worker.engine.networks import NETWORK, ensure_network

SDK = "create, start, wait, remove by the SDK"
MIB = 1 << 20
OPENING = ("select 1", "pg_notify", "typeinfo")
"""What a new connection sends: its first statement, the probe of the notifications, the driver's look at the types."""


def bare_containers(image: str, runs: int, concurrency: int) -> tuple[float, float]:
    """Seconds and CPU seconds for ``runs`` containers such as the worker makes, by the SDK alone."""
    clients = [docker.APIClient(version="auto") for _ in range(concurrency)]
    host = clients[0].create_host_config(
        network_mode=NETWORK, cap_drop=["ALL"], security_opt=["no-new-privileges"], nano_cpus=2_000_000_000,
        mem_limit="256m", memswap_limit="256m", pids_limit=1024, init=True, log_config=LogConfig(type="json-file"),
    )  # fmt: skip

    def lane(client: docker.APIClient, count: int) -> None:
        for _ in range(count):
            container = client.create_container(image, ["true"], volumes=["/artifacts"], host_config=host)["Id"]
            client.start(container)
            client.wait(container)
            client.remove_container(container, v=True, force=True)

    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(lane, clients, [runs // concurrency] * concurrency))
    return time.perf_counter() - began, time.process_time() - cpu


async def worker_runs(plane: Plane, runs: int, concurrency: int, config: Mapping[str, object]) -> tuple[float, float]:
    """Seconds from the first claim to the last completion of ``runs`` runs, and the worker's CPU seconds."""
    workflow = await plane.workflow({"command": ["true"], **config})
    ids = [await plane.queue(workflow) for _ in range(runs)]
    cpu = await work_once(plane, "--concurrency", str(concurrency))
    span = await plane.db.fetchval(
        "select extract(epoch from max(finished_at) - min(claimed_at)) from ops.runs where id = any ($1)", ids
    )
    return float(span), cpu


async def throughput(bench: Bench) -> list[Figure]:
    """Runs that print nothing, at concurrency 4 and 16, without and with a look for artifacts; and CPU per run."""
    figures = []
    cpu, bare_cpu = list[float](), list[float]()
    await asyncio.to_thread(ensure_network, docker.APIClient(version="auto"))
    async with bench.plane(docker=True) as plane:
        idle = await work_once(plane)
        for concurrency, without, with_artifacts in ((4, 0.92, 0.88), (16, 0.90, 0.88)):
            runs = max(bench.size(32 // concurrency, 1), 1) * concurrency

            async def by_sdk(runs: int = runs, concurrency: int = concurrency) -> float:
                wall, used = await asyncio.to_thread(bare_containers, plane.image, runs, concurrency)
                bare_cpu.append(used * 1000 / runs)
                return runs / wall

            async def by_worker(runs: int = runs, concurrency: int = concurrency, **config: object) -> float:
                wall, used = await worker_runs(plane, runs, concurrency, config)
                if "artifacts" in config:
                    cpu.append(max(used - idle, 0) * 1000 / runs)
                return runs / wall

            bare, plain, collecting = await bench.alternate(by_sdk, partial(by_worker, artifacts=[]), by_worker)
            figures += [
                Figure(f"`true` at concurrency {concurrency}, artifacts: []", "runs/s", plain, SDK, bare,
                    Mark("≥", without)),
                Figure(f"`true` at concurrency {concurrency}, /artifacts is empty", "runs/s", collecting, SDK, bare,
                    Mark("≥", with_artifacts)),
            ]  # fmt: skip
    return [*figures, Figure("CPU of the worker for a run", "ms", cpu, SDK, bare_cpu, Mark("≤", 20, "value"))]


# --- statements -------------------------------------------------------------------------------------------------------


async def counting(bench: Bench) -> list[Figure]:
    """Statements of a call and of an idle minute, as the server's log shows them."""
    runs, pause = bench.size(10, 2), max(60 * min(bench.scale, 1), 3)
    async with bench.plane(docker=True) as plane:
        log = await bench.statement_log(plane)
        workflow = await plane.workflow({"command": ["true"], "artifacts": []})
        for _ in range(runs):
            await plane.queue(workflow)
        began = log.size
        await plane.work()
        sent = [one for program, one in log.since(began) if not program.endswith(" control")]
        calls = [one for one in sent if "ops." in one]
        opening = [one for one in sent if any(text in one for text in OPENING)]
        async with plane.worker(OPS_WORKER_POLL_INTERVAL=str(Settings.model_fields["poll_interval"].default)) as worker:
            await worker.until_said("worker started")
            await asyncio.sleep(3)
            began = log.size
            await asyncio.sleep(pause)
            idle = len(log.since(began)) * 60 / pause
    return [
        Figure(
            "statements of a call of the pool", "statements", [(len(sent) - len(opening)) / len(calls)],
            mark=Mark("≤", 1, "value"),
        ),
        Figure("statements of an idle worker in a minute", "statements", [idle], mark=Mark("≤", 20, "value")),
    ]  # fmt: skip


# --- memory -----------------------------------------------------------------------------------------------------------


ENDLESS = """
import sys, time
while True:
    sys.stderr.write('2026-01-01 00:00:00,000 12 INFO demo odoo.modules.loading: loading module number\\n' * 200)
    time.sleep(0.02)
"""
"""Prints up to 10,000 lines a second, more than the worker's share of the database takes, and spares the disk."""


def resident(pid: int) -> int:
    """Bytes that the process has in memory now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def memory(bench: Bench) -> list[Figure]:
    """The worker's memory while many runs print without end."""
    runs, samples = bench.size(16, 2), bench.size(45, 6)
    async with bench.plane(docker=True) as plane:
        async with plane.worker(
            "--concurrency", str(runs), OPS_WORKER_DEFAULT_OUTPUT="64g", OPS_WORKER_MAX_LOG="4m"
        ) as worker:
            await worker.until_said("worker started")
            await asyncio.sleep(2)
            idle = resident(worker.process.pid)
            for run_id in [await plane.python(ENDLESS, artifacts=[]) for _ in range(runs)]:
                await plane.until(run_id, "running")
            sizes = []
            for number in range(samples):
                bench.say(f"sample {number + 1} of {samples}")
                await asyncio.sleep(1)
                sizes.append(resident(worker.process.pid))
        docker_command("rm", "-fv", *await plane.containers(), check=False)  # the worker was killed
    third = max(samples // 3, 1)
    growth = max(sizes[-third:]) - max(sizes[-2 * third : -third])
    return [
        Figure(f"memory above idle while {runs} runs print", "MiB", [(max(sizes) - idle) / MIB], "idle worker",
            [idle / MIB], Mark("≤", 40, "value")),
        Figure("its growth from the second third of the time to the last", "MiB", [growth / MIB],
            mark=Mark("≤", 4, "value")),
    ]  # fmt: skip


# --- many workers -----------------------------------------------------------------------------------------------------


async def crowds(bench: Bench) -> list[Figure]:
    """Many workers with a simulated engine empty a queue, against a tenth of them in as many processes."""
    runs, processes, many = bench.size(10_000, 20), bench.size(10, 2), 10
    async with bench.plane() as plane:
        workflow = await plane.workflow({"command": ["true"], "artifacts": []})

        async def rate(count: int) -> float:
            await fill(plane.db, workflow, count)
            await emptied(plane, count)
            span = await plane.db.fetchval(
                "select extract(epoch from max(finished_at) - min(claimed_at)) from ("
                "select * from ops.runs order by run_number desc limit $1) as r",
                count,
            )
            return count / float(span)

        async def by(each: int) -> float:
            bench.say(f"{processes * each} workers, {runs:,} runs")
            async with crowd(plane, processes, each):
                await rate(10 * processes * each)  # a session plans its functions when it first claims a run
                return await rate(runs)

        few, crowded = await bench.alternate(lambda: by(1), lambda: by(many))
        twice = await plane.db.fetchval("select count(*) from ops.runs where claim_count <> 1 or status <> 'succeeded'")
    return [
        Figure(f"{processes * many} workers, simulated engine, {runs:,} runs", "runs/s", crowded,
            f"{processes} workers", few, Mark("≥", 1.0)),
        Figure("runs that were claimed twice or did not succeed", "runs", [twice], mark=Mark("≤", 0, "value")),
    ]  # fmt: skip


CASES = (throughput, counting, memory, crowds)
