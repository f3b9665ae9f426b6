"""Same ids, runs and engine: no worker adopts, stops or removes what belongs to another worker or database."""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.faults.scene import LEASE, Job, Scene, new_scene
from tests.support.docker import until
from tests.support.postgres import Cluster
from worker.run.preparation import container_name

WAITS = "waiting: another worker works under this id (--worker-id)"


def state(scene: Scene, container: str) -> str:
    """The state of a container, empty if it is not there."""
    return scene.plane.docker("ps", "-a", "--filter", f"name=^{container}$", "--format", "{{.State}}").strip()


# --- one worker id twice --------------------------------------------------------------------------------------------


async def test_of_two_workers_with_one_id_the_second_adopts_when_the_first_is_killed(scene: Scene) -> None:
    running, waiting = await scene.job(2_000, waits=True), await scene.job(waits=True)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(scene.worker("--concurrency", "1"))
        await scene.until_up(running)
        second = await stack.enter_async_context(scene.worker("--until-idle"))
        await second.until_said(WAITS)
        assert (await scene.plane.run(waiting.run_id))["status"] == "queued"
        first.signal(signal.SIGKILL)
        await first.wait()
        await scene.later(LEASE + 1)
        await second.until_said("run adopted")
        await scene.until_up(waiting)
        for job in (running, waiting):
            await scene.release(job)
        assert await second.wait() == 0
    await scene.holds(running)
    await scene.holds(waiting)
    assert (await scene.adoptions(running), await scene.adoptions(waiting)) == (["a"], [])


async def test_of_two_workers_with_one_id_the_one_that_was_stopped_detaches(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(scene.worker())
        await scene.until_up(job)
        second = await stack.enter_async_context(scene.worker("--until-idle"))
        await second.until_said(WAITS)
        first.signal(signal.SIGSTOP)
        await scene.later(LEASE + 1)
        await second.until_said("run adopted")
        first.signal(signal.SIGCONT)
        await first.until_said("detaching: another worker has this worker id now (--worker-id)")
        assert await first.wait() == 0
        assert state(scene, job.container) == "running"
        await scene.release(job)
        assert await second.wait() == 0
    await scene.holds(job)
    assert await scene.adoptions(job) == ["a"]


# --- two databases on one engine ------------------------------------------------------------------------------------


@asynccontextmanager
async def foreign_container(scene: Scene, image: str) -> AsyncIterator[str]:
    """A running container as a worker of a third database would have made it, for a run of the scene's."""
    database = uuid.uuid4()
    name = await running_container(scene, image, uuid.uuid4(), database)
    try:
        yield name
    finally:
        scene.plane.docker("rm", "-fv", name)


async def running_container(scene: Scene, image: str, run_id: uuid.UUID, database: uuid.UUID) -> str:
    """A container that says that it is of that run of that database; returns its name."""
    name = container_name(run_id, database)
    labels = {"run-id": run_id, "database-id": database, "worker-id": f"{scene.plane.name}-a"}
    words = [word for key, value in labels.items() for word in ("--label", f"ops-worker.{key}={value}")]
    scene.plane.docker("run", "-d", "--name", name, *words, image, "sleep", "600")
    return name


async def test_two_databases_on_one_engine_touch_only_their_own(
    scene: Scene, cluster: Cluster, image: str, tmp_path: Path, engine_socket: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    left = await scene.job(2_000, waits=True)
    await scene.killed(points="logged=kill")
    async with new_scene(cluster, image, folder, engine_socket) as other, foreign_container(scene, image) as foreign:
        assert other.plane.identity != scene.plane.identity
        own = await other.job(2_000, waits=True)
        flags = ("--worker-id", f"{scene.plane.name}-a")
        await other.killed(*flags, points="logged=kill")
        unknown = await running_container(other, image, uuid.uuid4(), other.plane.identity)
        await other.release(own)
        await other.work(*flags, "--stop-grace", "1")
        await other.holds(own)
        assert [state(scene, name) for name in (left.container, foreign, unknown)] == ["running", "running", ""]
        await other.nothing_is_left()
        await scene.release(left)
        await scene.work()
        assert state(scene, foreign) == "running"
    await scene.holds(left)


# --- a copy of the database -----------------------------------------------------------------------------------------


async def until_alone(cluster: Cluster, name: str) -> None:
    """Waits until no session is connected to a database, which may then be copied."""
    await until(lambda: not cluster.execute("select from pg_stat_activity where datname = $1", name))


@pytest.mark.parametrize("when", ["running", "queued"])
async def test_a_worker_on_a_copy_of_the_database_leaves_the_original_s_containers(
    scene: Scene, cluster: Cluster, image: str, when: str
) -> None:
    """Both workers have one id and one engine, and the runs have one id too."""
    job = await scene.job(2_000, waits=True)
    async with AsyncExitStack() as stack:
        if when == "running":
            await scene.killed(points="logged=kill")
        copy = await stack.enter_async_context(copied(scene, cluster))
        if when == "queued":
            await scene.killed(points="logged=kill")
        worker = await stack.enter_async_context(
            scene.worker("--until-idle", OPS_WORKER_DATABASE_URL=scene.plane.url.replace(scene.name, copy))
        )
        there = await asyncpg.connect(cluster.url(copy))
        if when == "queued":
            await released(scene, there, job)
        assert await worker.wait() == 0
        status, reason = await there.fetchrow("select status, reason from ops.runs")
        await there.close()
        ended = {"running": ("failed", "database_copied"), "queued": ("succeeded", "succeeded")}
        assert (status, reason) == ended[when]
        assert state(scene, job.container) == "running"
        await scene.release(job)
        await scene.work()
    await scene.holds(job)


@asynccontextmanager
async def copied(scene: Scene, cluster: Cluster) -> AsyncIterator[str]:
    """A copy of the scene's database beside it; the scene's workers must be gone."""
    scene.plane.db.terminate()
    await until_alone(cluster, scene.name)
    with cluster.database(scene.name) as name:
        await scene.reconnect()
        yield name


async def released(scene: Scene, there: asyncpg.Connection, job: Job) -> None:
    """Lets the copy's container of that run go on once it is up."""
    await until(lambda: there.fetchval("select count(*) from ops.run_logs"))
    identity = await there.fetchval("select database_id from ops_private.control")
    assert identity != scene.plane.identity
    scene.plane.release_container(container_name(job.run_id, identity))
