"""The worker is killed, stopped or blocked at any step; nothing is executed twice, lost or left behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.scene import LEASE, LONG, Scene
from worker.run.services import service_container

KILLED_TWICE = [
    ("claimed", "completing"),
    ("started", "exited"),
    ("created", "recorded"),
    ("up", "uploaded@2"),
    ("logging@2", "logged@1"),
]


async def test_the_next_worker_continues_where_a_killed_one_was(scene: Scene) -> None:
    """Each host is killed at two points of its run; a neighbour on the engine finishes what all of them left."""
    jobs = {}
    for first, second in KILLED_TWICE:
        host = first.partition("@")[0]
        jobs[host] = await scene.job(3_000, exit_code=3, big=True)
        for point in (first, second):
            await scene.killed(points=f"{point}=kill", name=host)
    await scene.work(name="b")
    for job in jobs.values():
        assert (await scene.plane.run(job.run_id))["status"] == "running", "the leases have not run out"
    await scene.later(LONG + 1)
    await scene.work("--concurrency", "5", name="b")
    for host, job in jobs.items():
        await scene.holds(job, "failed", "exit_code")
        assert await scene.adoptions(job) == [host, "b"]


KILLED_WITH_SERVICES = [
    ("networked", "created@1"), ("created@2", "told"), ("up@1", "up@2"), ("up@3", "logging"), ("exited", "completing"),
]  # fmt: skip


async def test_the_next_worker_finds_the_services_of_a_killed_one(scene: Scene) -> None:
    """Each host is killed at two points of a run with two services; a neighbour starts none of them again."""
    jobs = {}
    for first, second in KILLED_WITH_SERVICES:
        host = first.partition("@")[0] + first[-1]
        jobs[host] = await scene.job(500, exit_code=3, services=2, volume=True, network="none")
        await scene.killed(points=f"{first}=kill", name=host)
        point, _, count = second.partition("@")
        done = {"up@2": 1, "created@1": 1}.get(second, int(count or 1))
        await scene.killed(points=f"{point}@{done}=kill", name=host)
    await scene.later(LONG + 1)
    await scene.work("--concurrency", "5", name="b")
    for host, job in jobs.items():
        await scene.holds(job, "failed", "exit_code")
        assert await scene.adoptions(job) == [host, "b"]


KILLED_WHILE_SERVED = [("created", "joined"), ("told", "up"), ("answered", "ready"), ("logging", "logging")]


async def test_a_served_run_outlives_its_killed_workers(scene: Scene) -> None:
    """Each host is killed at two points; a neighbour finds the runs on the network of their project, ready or not."""
    jobs = []
    for first, second in KILLED_WHILE_SERVED:
        jobs.append(await scene.job(500, ttl=3600, network="project"))
        for point in (first, second):
            await scene.killed(points=f"{point}=kill", name=first)
    await scene.later(LONG + 1)
    async with scene.worker("--max-served", "1", name="b") as worker:
        for job in jobs:
            await scene.until_ready(job)
            await scene.cancel(job)
        await scene.until_final(*jobs)
        await scene.until_gone()
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    for job in jobs:
        await scene.holds(job, "canceled", "canceled")


@pytest.mark.parametrize("point", ["stopped", "completing", "completed", "removed", "parted"])
async def test_a_served_run_whose_time_is_over_is_ended_once_whenever_its_worker_dies(scene: Scene, point: str) -> None:
    job = await scene.job(50, ttl=3, network="project")
    await scene.killed(points=f"{point}=kill")
    await scene.work()
    await scene.holds(job, "succeeded", "ttl")
    async with scene.worker():
        await scene.until_gone()


async def test_a_service_that_died_while_no_worker_looked_ends_the_run(scene: Scene) -> None:
    jobs = [await scene.job(waits=True, services=2, network="none") for _ in range(2)]
    async with scene.worker() as worker:
        for job in jobs:
            await scene.until_up(job)
        worker.signal(signal.SIGKILL)
        await worker.wait()
    for job in jobs:
        scene.plane.docker("kill", service_container(job.container, "s1"))
    await scene.release(jobs[1])
    await scene.work()
    for job in jobs:
        await scene.holds(job, "failed", "service_failed", log="begun")
    [error] = await scene.plane.events(jobs[0].run_id, "error")
    assert error["message"] == "service 's1' ended with exit code 137"


async def test_a_cache_is_that_of_a_run_that_succeeded_whenever_a_worker_dies(scene: Scene) -> None:
    """Runs that succeed and runs that fail in the middle of a change of it take turns."""
    for point in ("filled", "exited", "kept", "completed"):
        good = await scene.job(50, caches=True, network="none")
        await scene.killed(points=f"{point}=kill")
        await scene.work()
        bad = await scene.job(50, caches=True, network="none", then="date > /cache/n; exit 3", exit_code=3)
        if point != "kept":  # that one keeps nothing
            await scene.killed(points=f"{point}=kill")
        await scene.work()
        await scene.holds(good)
        await scene.holds(bad, "failed", "exit_code")
    last = await scene.job(50, caches=True, network="none")
    await scene.work()
    await scene.holds(last)
    await scene.until_gone()
    assert len(scene.plane.caches()) == 1, "what a killed worker left is removed by the next run with a cache"


@pytest.mark.parametrize("point", ["completed", "removed", "alone"])
async def test_a_worker_killed_after_completion_leaves_no_container(scene: Scene, point: str) -> None:
    job = await scene.job(services=1)
    await scene.killed(points=f"{point}=kill")
    await scene.holds(job)
    await scene.work()


async def test_a_lost_host_fails_its_running_runs_and_requeues_its_claimed_ones(scene: Scene) -> None:
    running = await scene.job(waits=True)
    async with scene.worker(points="claimed@2=kill") as worker:
        await scene.until_up(running)
        claimed = await scene.job()
        await worker.wait()
    await scene.plane.db.execute("update ops_private.leases set engine_id = 'of the host that is gone'")
    scene.plane.docker("rm", "-fv", running.container)
    async with scene.worker("--concurrency", "1", name="b"):
        await scene.later(2 * LEASE + 1)
        await scene.until_final(running, claimed)
        await scene.until_gone()
    await scene.holds(running, "failed", "worker_lost", log="begun")
    await scene.holds(claimed)
    assert (await scene.plane.run(claimed.run_id))["claim_count"] == 2


async def test_a_run_that_keeps_killing_workers_is_quarantined(scene: Scene) -> None:
    deadly = await scene.job()
    for n in range(1, 7):
        await scene.killed(points="claimed=kill", name=f"host{n}")
        await scene.plane.db.execute("update ops_private.leases set engine_id = 'of the host that is gone'")
        await scene.later(n * (LONG + 1))
        await scene.plane.db.execute("select ops.reap()")  # as any worker does that goes on
    healthy = await scene.job()
    await scene.work(name="survivor")
    await scene.holds(healthy)
    await scene.holds(deadly, "canceled", "poison", ran=False)
    assert (await scene.plane.run(deadly.run_id))["claim_count"] == 6


@pytest.mark.parametrize("point", ["told", "logged"])
async def test_an_adopted_run_keeps_its_terms_though_its_configuration_is_refused_now(scene: Scene, point: str) -> None:
    job = await scene.job(500, waits=point == "logged", artifacts=[{"path": "ran"}, {"path": "deep/"}])
    await scene.killed(points=f"{point}=kill")
    await scene.plane.db.execute("update ops.workflows set config = '{\"comand\": 1}', enabled = false")
    await scene.plane.db.execute("update ops.tools set docker_image = 'gone:1', config = '{\"user\": 7}'")
    if point == "logged":
        await scene.release(job)
    await scene.work("--allowed-images", "none.example/*", "--max-timeout", "1")
    await scene.holds(job)


async def test_a_worker_stopped_beyond_its_lease_writes_nothing_to_a_lost_run(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker(points="logged=stop") as sleeper:
        await scene.until_up(job)
        await scene.later(LEASE + 1)
        async with scene.worker("--until-idle", name="b") as other:
            await other.until_said("run adopted")
            await scene.release(job)
            await sleeper.resume()
            assert await other.wait() == 0
        await sleeper.until_said("lease lost, nothing more is written for this run")
    await scene.holds(job)
    assert await scene.adoptions(job) == ["b"]


async def test_a_worker_stopped_beyond_its_lease_continues_a_run_that_was_not_adopted(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker("--until-idle", points="logged=stop") as sleeper:
        await scene.until_up(job)
        await scene.later(LEASE + 1)
        await scene.release(job)
        await sleeper.resume()
        assert await sleeper.wait() == 0
    await scene.holds(job)


async def test_a_blocked_event_loop_does_not_keep_an_adopted_run(scene: Scene, tmp_path: Path) -> None:
    unblocks = tmp_path / "unblocks"
    job = await scene.job(2_000, waits=True)
    async with scene.worker(points=f"logged=block={unblocks}") as starved:
        await scene.until_up(job)
        await scene.later(LEASE + 1)
        async with scene.worker("--until-idle", name="b") as other:
            await other.until_said("run adopted")
            await scene.release(job)
            assert await other.wait() == 0
        unblocks.touch()
        await starved.until_said("lease lost, nothing more is written for this run")
    await scene.holds(job)
    assert await scene.adoptions(job) == ["b"]
