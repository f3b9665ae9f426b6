"""The engine is stopped or killed, and started again, with and without live-restore, during runs."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.engine import IMAGE, OwnEngine
from tests.faults.scene import Job, Scene, new_scene
from tests.support.docker import until
from tests.support.postgres import Cluster

pytestmark = pytest.mark.xdist_group("engine restarts")  # one process starts the engines

LIVE, PLAIN = "live-restore", "no live-restore"
WAYS: dict[str, Callable[[OwnEngine], None]] = {"stopped": OwnEngine.stop, "killed": OwnEngine.kill}


@pytest.fixture(scope="module", params=[LIVE, PLAIN])
def engine(request: pytest.FixtureRequest, image: str) -> Iterator[OwnEngine]:
    if os.geteuid() != 0:
        pytest.skip("starting an engine needs root")
    with OwnEngine(live_restore=request.param == LIVE) as started:
        started.load_image(image)
        yield started


@pytest_asyncio.fixture
async def scene(cluster: Cluster, tmp_path: Path, engine: OwnEngine) -> AsyncIterator[Scene]:
    async with new_scene(cluster, IMAGE, tmp_path, engine.socket, own=True) as made:
        yield made
        await made.nothing_is_left()
        assert engine.docker("volume", "ls", "--quiet") == ""


@pytest.mark.parametrize("engine", [LIVE], indirect=True)
@pytest.mark.parametrize("way", WAYS)
async def test_a_container_that_survives_is_followed_again_with_all_its_lines(
    scene: Scene, engine: OwnEngine, way: str
) -> None:
    async with between_create_and_start(scene) as (made, resume), scene.worker() as worker:
        # more lines than its pipe holds while the engine does not read
        printing = await scene.job(20_000, waits=True, network="none")
        await scene.until_up(printing)
        its_gate = gate(scene, printing)
        with engine.away(WAYS[way]):
            its_gate.mkdir(parents=True)
            # a restart that ends before a call of this run fails leaves no trace
            await until(lambda: any(
                line["level"] == "warning" and line.get("run_id") == str(printing.run_id) for line in worker.said
            ))  # fmt: skip
        resume()
        await scene.until_final(printing, made)
        await scene.until_gone()
    await scene.holds(printing)
    await scene.holds(made)
    assert await warnings(scene, printing) == ["log_damaged"]
    assert await warnings(scene, made) == []


@pytest.mark.parametrize("engine", [LIVE], indirect=True)
async def test_last_lines_printed_while_the_engine_is_away_are_lost_with_a_warning(
    scene: Scene, engine: OwnEngine
) -> None:
    job = await scene.job(100, waits=True, network="none")
    async with scene.worker():
        await scene.until_up(job)
        go_on = gate(scene, job)
        with engine.away(OwnEngine.stop):
            go_on.mkdir(parents=True)
            await until(lambda: not go_on.exists())
        await scene.until_final(job)
        await scene.until_gone()
    known = (await scene.plane.run(job.run_id))[
        "status"
    ] == "succeeded"  # Docker 20.10 finds the exit code; 26 does not
    ending = ("succeeded", "succeeded") if known else ("failed", "engine_lost")
    await scene.holds(job, *ending, log="begun")
    assert await warnings(scene, job) == ["log_damaged"]


@pytest.mark.parametrize("engine", [PLAIN], indirect=True)
@pytest.mark.parametrize("way", WAYS)
async def test_a_container_that_does_not_survive_fails_its_run_as_engine_lost(
    scene: Scene, engine: OwnEngine, way: str
) -> None:
    async with between_create_and_start(scene) as (made, resume), scene.worker() as worker:
        willing = await scene.job(network="none", then="trap 'exit 0' TERM; while :; do sleep 0.05; done")
        await scene.plane.until_logged(willing.run_id, willing.lines[-2])
        printing = await scene.job(100, pause=0.5, network="none")
        await scene.plane.until_logged(printing.run_id, printing.lines[30])
        with engine.away(WAYS[way]):
            await until(lambda: any(line["level"] == "warning" for line in worker.said))
        resume()
        await scene.until_final(printing, willing, made)
        await scene.until_gone()
    await scene.holds(made)
    for job in (printing, willing):
        await scene.holds(job, "failed", "engine_lost", log="begun")
        ran = (await scene.plane.artifacts(job.run_id))["ran"]
        assert scene.plane.stored(ran).read_bytes() == b"ran\n"


@asynccontextmanager
async def between_create_and_start(scene: Scene) -> AsyncIterator[tuple[Job, Callable[[], None]]]:
    """A run whose container is created and not started, its worker stopped; and the call that continues it."""
    job = await scene.job(network="none")
    flags = ("--concurrency", "1", "--lease", "300")
    async with scene.worker(*flags, name="b", points="created=stop") as worker:
        await until(lambda: worker.is_stopped)
        yield job, partial(worker.signal, signal.SIGCONT)


def gate(scene: Scene, job: Job) -> Path:
    """What a job waits for, by a path that needs no engine; it is there as long as the container's processes are."""
    pid = scene.plane.docker("inspect", "--format", "{{.State.Pid}}", job.container).strip()
    return Path("/proc", pid, "root", "tmp", "go")


async def warnings(scene: Scene, job: Job) -> list[str]:
    return [event["payload"]["reason"] for event in await scene.plane.events(job.run_id, "warning")]
