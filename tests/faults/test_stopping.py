"""Drain, detach and upgrade while something is broken: no job is killed, and the next worker continues it."""

from __future__ import annotations

import asyncio
import configparser
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.scene import Scene
from tests.support.docker import ROOT, WorkerProcess
from tests.support.relay import EXECUTED, Fate

DRAINS = "stopping: no more claims, waiting for the runs; once more to leave them to the next worker"
DETACHES = "detaching: the containers run on"


def database_is_cut(scene: Scene) -> None:
    scene.database.down = True
    scene.database.cut()


def engine_is_stalled(scene: Scene) -> None:
    """The log's stream breaks too, so that the worker asks for it anew and gets no answer."""
    scene.engine.stall()
    scene.engine.cut()


FAULTS: dict[str, Callable[[Scene], None]] = {"database": database_is_cut, "engine": engine_is_stalled}


def repair(scene: Scene) -> None:
    scene.database.down = False
    scene.engine.flow()


@pytest.mark.parametrize("fault", FAULTS)
async def test_sigterm_drains_and_waits_for_a_database_or_engine_that_is_away(scene: Scene, fault: str) -> None:
    job = await scene.job(2_000, waits=True)
    late = await scene.job()
    async with scene.worker("--concurrency", "1") as worker:
        await scene.until_up(job)
        FAULTS[fault](scene)
        worker.signal(signal.SIGTERM)
        await worker.until_said(DRAINS)
        await scene.release(job)
        scene.plane.docker("wait", job.container)
        repair(scene)
        assert await worker.wait() == 0
    await scene.holds(job)
    assert (await scene.plane.run(late.run_id))["status"] == "queued"
    await scene.work()
    await scene.holds(late)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_second_signal_detaches_and_a_new_version_adopts(scene: Scene, fault: str) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker() as worker:
        await scene.until_up(job)
        FAULTS[fault](scene)
        worker.signal(signal.SIGINT)
        await worker.until_said(DRAINS)
        worker.signal(signal.SIGTERM)
        await worker.until_said(DETACHES)
        assert await worker.wait() == 0
    repair(scene)
    async with scene.worker("--until-idle", "--labels", "new", OPS_VERSION="99.0") as successor:
        await successor.until_said("run adopted")
        assert await scene.plane.db.fetchval("select version from ops_private.workers") == "99.0"
        await scene.release(job)
        assert await successor.wait() == 0
    await scene.holds(job)
    assert await scene.adoptions(job) == ["a"]


async def test_a_worker_killed_while_it_drains_loses_nothing(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker() as worker:
        await scene.until_up(job)
        worker.signal(signal.SIGTERM)
        await worker.until_said(DRAINS)
        worker.signal(signal.SIGKILL)
        await worker.wait()
    await scene.release(job)
    await scene.work()
    await scene.holds(job)


async def test_a_claim_with_lost_reply_of_a_draining_worker_goes_to_the_next(scene: Scene) -> None:
    lost = scene.database.strike(r"ops\.claim_next_run\(", Fate.LOST, mark=EXECUTED, times=1000)
    job = await scene.job()
    async with scene.worker() as worker:
        await scene.plane.until(job.run_id, "claimed")
        await lost.until_struck()
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    lost.times = 0
    await scene.work()
    await scene.holds(job)


# --- systemctl restart ----------------------------------------------------------------------------------------------


def unit() -> dict[str, str]:
    """What deploy/ops-worker.service says of its process; of what is there twice, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(ROOT / "deploy" / "ops-worker.service")
    return dict(parser["Service"])


def drain_seconds() -> float:
    return float(unit()["Environment"].removeprefix("OPS_WORKER_DRAIN_TIMEOUT="))


def family(pid: int) -> set[int]:
    """That process and all that descend from it: what systemd finds in the unit's control group."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return {pid}.union(*(family(int(child)) for child in children))


async def stop_as_systemd_does(worker: WorkerProcess, seconds: float) -> None:
    """KillMode=mixed: the signal to the main process; after the time limit SIGKILL to the whole control group."""
    group = family(worker.process.pid)
    worker.signal(getattr(signal, unit()["KillSignal"]))
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await worker.process.wait()
    for pid in group:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await worker.wait()


def test_the_unit_stops_the_worker_later_than_its_drain_timeout() -> None:
    service = unit()
    assert service["KillMode"] == "mixed"
    assert service["KillSignal"] == "SIGTERM"
    assert float(service["TimeoutStopSec"]) > drain_seconds()
    assert service["Restart"] == "always"


@pytest.mark.parametrize("fault", [None, *FAULTS])
async def test_systemctl_restart_detaches_at_the_drain_timeout(scene: Scene, fault: str | None) -> None:
    """The unit's times, forty times shorter."""
    job = await scene.job(2_000, waits=True)
    async with scene.worker(OPS_WORKER_DRAIN_TIMEOUT=str(drain_seconds() / 40)) as worker:
        await scene.until_up(job)
        if fault is not None:
            FAULTS[fault](scene)
        await stop_as_systemd_does(worker, float(unit()["TimeoutStopSec"]) / 40)
    assert scene.plane.docker("inspect", "--format", "{{.State.Running}}", job.container).strip() == "true"
    async with scene.worker("--until-idle") as successor:
        repair(scene)
        await scene.release(job)
        assert await successor.wait() == 0
    await scene.holds(job)
