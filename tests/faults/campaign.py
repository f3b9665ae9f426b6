"""Random faults under random runs, all drawn from a seed.

    python -m tests.faults.campaign --seeds 200     seeds 1 to 200, a line each
    python -m tests.faults.campaign --seed 17       that one
    python -m tests.faults.campaign --kills 100     100 runs of 10,000 lines, their worker killed every second

The exit status is 1 when anything did not hold; what the workers said is then kept below ``build/faults``. A seed
fixes what happens and when; how far the worker has come by then is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console

from tests.faults.plan import Fault, Order, Plan, draw
from tests.faults.scene import DURABLE, LEASE, Job, Scene, new_scene
from tests.support.docker import FINAL, ROOT, WorkerProcess, base_image
from tests.support.postgres import Cluster
from tests.support.relay import EXECUTED, LOGIN, Fate, http_error
from tests.support.relay import fatal as refused
from worker.model.volume import VOLUME_PREFIX

PATIENCE = 300.0
"""Seconds after which a seed counts as stuck."""

LIMITS = (
    "worker.database.connection.CALL_TIMEOUT=5,worker.run.ports.TIMINGS.quiet=1,worker.engine.client.API_TIMEOUT=10"
)
"""The worker's own time limits, shorter than usual: half-open connections are common here."""

EXPECTED_CODES = (0, -signal.SIGKILL, -signal.SIGTERM)
"""How a worker may end here; the last before it listens to signals."""

console = Console(soft_wrap=True, markup=False, highlight=False)

KEPT = ROOT / "build" / "faults"


# --- carrying it out ------------------------------------------------------------------------------------------------


@dataclass
class Host:
    """A worker that is started again whenever it ends, as a service manager does."""

    scene: Scene
    name: str
    process: WorkerProcess | None = None
    starts: int = 0
    over: bool = False

    async def run(self) -> None:
        while not self.over:
            async with self.scene.worker("--concurrency", "3", name=self.name, OPS_PATIENCE=LIMITS) as worker:
                self.process = worker
                self.starts += 1
                if self.over:  # it was told to leave while this one was being started
                    self.signal(signal.SIGTERM)
                code = await worker.process.wait()
            self.scene.workers.remove(worker)
            assert code in EXPECTED_CODES, f"worker {self.name} ended with {code}:\n{worker.output.read_text()}"

    def signal(self, number: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has just ended
                self.process.signal(number)

    @property
    def at_work(self) -> bool:
        """Whether it has registered, so that it has begun to do something."""
        return self.process is not None and any(line["event"] == "worker started" for line in self.process.said)

    def leave(self) -> None:
        self.over = True
        self.signal(signal.SIGTERM)


@dataclass
class Injector:
    """Injects the faults."""

    scene: Scene
    hosts: dict[str, Host]
    straight: asyncio.Lock = field(default_factory=asyncio.Lock)
    """For the test's own connection: one statement at a time, and none while the server is stopped."""

    async def inject(self, fault: Fault) -> None:
        await asyncio.sleep(fault.after)
        await getattr(self, f"_{fault.what}")(fault)

    async def cancel(self, job: Job, after: float) -> None:
        await asyncio.sleep(after)
        async with self.straight:
            await self.scene.plane.db.fetchval("select ops.cancel_run($1)", job.run_id)  # it may have ended already

    def repair(self) -> None:
        """Ends what is still wrong."""
        for relay in (self.scene.database, self.scene.engine):
            relay.rules.clear()
            relay.delay = 0.0
            relay.down = False
            relay.flow()

    # workers

    async def _kill(self, fault: Fault) -> None:
        self.hosts[fault.host].signal(signal.SIGKILL)

    async def _pause(self, fault: Fault) -> None:
        host = self.hosts[fault.host]
        host.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        host.signal(signal.SIGCONT)

    async def _drain(self, fault: Fault) -> None:
        self.hosts[fault.host].signal(signal.SIGTERM)

    async def _detach(self, fault: Fault) -> None:
        for _ in range(2):
            self.hosts[fault.host].signal(signal.SIGTERM)
            await asyncio.sleep(0.1)

    async def _late(self, _fault: Fault) -> None:
        async with self.straight:
            await self.scene.later(LEASE + 1)

    # the database

    async def _cut(self, _fault: Fault) -> None:
        self.scene.database.cut()

    async def _frozen(self, _fault: Fault) -> None:
        self.scene.database.freeze()

    async def _stalled(self, fault: Fault) -> None:
        self.scene.database.stall()
        await asyncio.sleep(fault.seconds)
        self.scene.database.flow()

    async def _away(self, fault: Fault) -> None:
        self.scene.database.down = True
        self.scene.database.cut()
        await asyncio.sleep(fault.seconds)
        self.scene.database.down = False

    async def _full(self, _fault: Fault) -> None:
        answer = refused("53300", "too many clients already")
        self.scene.database.strike(LOGIN, Fate.ANSWERED, answer=answer, times=3)
        self.scene.database.cut()

    async def _unheard(self, fault: Fault) -> None:
        self.scene.database.strike(rf"ops\.{fault.call}\(", Fate.LOST, mark=EXECUTED)

    async def _restart(self, fault: Fault) -> None:
        async with self.straight:
            mode: Literal["fast", "immediate"] = "fast" if fault.seconds < 2 else "immediate"
            await asyncio.to_thread(self.scene.cluster.stop, mode)
            await asyncio.sleep(fault.seconds / 2)
            self.scene.cluster.start()  # not in a thread of its own: the server ends with the thread that started it
            await self.scene.reconnect()

    # the engine

    async def _engine_cut(self, _fault: Fault) -> None:
        self.scene.engine.cut()

    async def _engine_frozen(self, _fault: Fault) -> None:
        self.scene.engine.freeze()

    async def _engine_stalled(self, fault: Fault) -> None:
        self.scene.engine.stall()
        await asyncio.sleep(fault.seconds)
        self.scene.engine.flow()

    async def _engine_away(self, fault: Fault) -> None:
        self.scene.engine.down = True
        self.scene.engine.cut()
        await asyncio.sleep(fault.seconds)
        self.scene.engine.down = False

    async def _engine_error(self, fault: Fault) -> None:
        self.scene.engine.strike(fault.call, Fate.ANSWERED, answer=http_error(500, "injected"))

    async def _engine_unheard(self, fault: Fault) -> None:
        self.scene.engine.strike(fault.call, Fate.LOST)

    async def _engine_broken(self, fault: Fault) -> None:
        self.scene.engine.strike(fault.call, Fate.BROKEN, passing=int(fault.seconds * 100))


@asynccontextmanager
async def at_work(scene: Scene, names: tuple[str, ...]) -> AsyncIterator[dict[str, Host]]:
    """Hosts that work until the block ends, and then drain."""
    hosts = {name: Host(scene, name) for name in names}
    async with asyncio.TaskGroup() as tasks:
        for host in hosts.values():
            tasks.create_task(host.run())
        yield hosts
        for host in hosts.values():
            host.leave()


async def play(scene: Scene, plan: Plan) -> str:
    """Injects the faults under the runs, and checks what must hold. Returns a summary."""
    jobs: list[tuple[Order, Job]] = []
    foreign = f"{VOLUME_PREFIX}{uuid.uuid4()}"
    scene.plane.docker("volume", "create", "--label", f"ops-worker.database-id={uuid.uuid4()}", foreign)
    async with asyncio.timeout(PATIENCE), at_work(scene, plan.hosts) as hosts:
        injector = Injector(scene, hosts)

        async def order(wanted: Order) -> None:
            await asyncio.sleep(wanted.after)
            more: dict[str, Any] = {"network": "none", "services": wanted.services, "volume": wanted.volume}
            more["caches"] = wanted.caches
            if wanted.ends == "timeout":
                more |= {"then": "sleep 1000", "timeout_seconds": 5 if not wanted.services else 20}
            if wanted.ends == "ttl":
                more |= {"ttl": 30, "network": "project"}
            async with injector.straight:
                job = await scene.job(
                    wanted.lines, pause=wanted.pause, exit_code=wanted.exit_code, big=wanted.big, **more
                )
            jobs.append((wanted, job))
            if wanted.ends == "canceled":
                await injector.cancel(job, wanted.after)

        async with asyncio.TaskGroup() as tasks:
            for wanted in plan.orders:
                tasks.create_task(order(wanted))
            for fault in plan.faults:
                tasks.create_task(injector.inject(fault))
        injector.repair()
        for _, job in jobs:
            while (await scene.plane.run(job.run_id))["status"] not in FINAL:
                await asyncio.sleep(0.1)
        await scene.until_gone()
    for wanted, job in jobs:
        await verify(scene, wanted, job)
    await scene.nothing_is_left()
    assert scene.plane.docker("volume", "rm", foreign).strip() == foreign, "another database's volume is still there"
    return f"{len(jobs)} runs, {sum(host.starts for host in hosts.values())} worker starts"


async def verify(scene: Scene, wanted: Order, job: Job) -> None:
    """A run that was cancelled may have ended by itself before; everything else ends in just one way."""
    itself = ("failed", "exit_code") if wanted.exit_code else ("succeeded", "succeeded")
    if wanted.ends == "timeout":
        await scene.holds(job, "failed", "timeout", log="begun")
    elif wanted.ends == "ttl":
        await scene.holds(job, "succeeded", "ttl", log="begun")
    elif wanted.ends == "canceled" and (await scene.plane.run(job.run_id))["status"] == "canceled":
        await scene.holds(job, "canceled", "canceled", log="begun", ran=None)
    else:
        await scene.holds(job, *itself)


async def kill_every_second(scene: Scene, runs: int, lines: int) -> str:
    """Every second one of two workers is killed, until all runs have ended; no run may show it.

    It is the turn of the one that has been at work for longer. No worker is killed while neither has come that far, or
    while one more loss would quarantine a run, for which no worker has stored a line: a busy machine needs more than a
    second for each.
    """
    jobs = [
        await scene.job(lines, network="none", services=n % 2, volume=n % 4 < 2, caches=n % 3 == 0) for n in range(runs)
    ]
    db = scene.plane.db
    async with at_work(scene, ("a", "b")) as hosts:
        while await db.fetchval("select count(*) from ops.runs where status <> all($1)", list(FINAL)):
            await asyncio.sleep(1)
            ready = [host for host in hosts.values() if host.at_work]
            if ready and not await db.fetchval(ENDANGERED):
                min(ready, key=lambda host: host.starts).signal(signal.SIGKILL)
        await scene.until_gone()
    for job in jobs:
        await scene.holds(job)
    await scene.nothing_is_left()
    return f"{runs} runs of {lines:,} lines, {sum(host.starts for host in hosts.values())} worker starts"


ENDANGERED = """
    select exists (select from ops_private.leases as l, ops_private.control as c where l.lost >= c.max_lost_leases)
"""


# --- the command ----------------------------------------------------------------------------------------------------


async def seeds_in(queue: list[int], image: str, engine: str, report: Callable[[int, str | None, str], None]) -> None:
    """Plays seeds of the queue, one after the other, on a server of its own."""
    with Cluster(settings=DURABLE) as cluster:
        while queue:
            seed = queue.pop(0)
            plan = draw(seed)
            folder = KEPT / str(seed)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            started = time.monotonic()
            failure = None
            try:
                async with new_scene(cluster, image, folder, engine) as scene:
                    said = await play(scene, plan)
                shutil.rmtree(folder)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this seed's failure
                said, failure = str(plan), told(error)
                (folder / "failure").write_text(f"{plan}\n{failure}")
            report(seed, failure, f"{time.monotonic() - started:.1f} s, {said}")


def told(error: BaseException) -> str:
    """The errors within a group, without the frames of the groups."""
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(told(each) for each in error.exceptions)
    return "".join(traceback.format_exception(error))


async def campaign(seeds: list[int], lanes: int, image: str, engine: str) -> bool:
    """Whether every seed held."""
    count, failed = len(seeds), list[int]()
    done = 0

    def report(seed: int, failure: str | None, said: str) -> None:
        nonlocal done
        done += 1
        console.print(f"[{done}/{count}] seed {seed}: {'FAILED' if failure else 'ok'}, {said}")
        if failure:
            failed.append(seed)
            console.print(failure)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(lanes, count)):
            tasks.create_task(seeds_in(seeds, image, engine, report))
    kept = f"; see {KEPT.relative_to(ROOT)}" if failed else ""
    console.print(
        f"{count - len(failed)} of {count} seeds held{kept}", *(f"seed {seed} failed" for seed in failed), sep="\n"
    )
    return not failed


async def kills(runs: int, lines: int, image: str, engine: str) -> bool:
    folder = KEPT / "kills"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    with Cluster(settings=DURABLE) as cluster:
        async with new_scene(cluster, image, folder, engine) as scene:
            said = await kill_every_second(scene, runs, lines)
    shutil.rmtree(folder)
    console.print(f"nothing lost, nothing doubled: {said} in {time.monotonic() - started:.0f} s")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="play the seeds from 1 to this (20)")
    parser.add_argument("--seed", type=int, help="play this one only")
    parser.add_argument("--lanes", type=int, default=2 * (os.cpu_count() or 1), help="how many at a time")
    parser.add_argument("--kills", type=int, help="instead, kill the worker of this many runs every second")
    parser.add_argument("--lines", type=int, default=10_000, help="which each of them prints (10000)")
    words = parser.parse_args()
    image = base_image("python3-minimal")
    engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    if words.kills:
        held = asyncio.run(kills(words.kills, words.lines, image, engine))
    else:
        seeds = [words.seed] if words.seed is not None else list(range(1, words.seeds + 1))
        held = asyncio.run(campaign(seeds, words.lanes, image, engine))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
