"""The worker dies, stands still or is starved at any step; nothing is executed twice, lost or left behind."""

from __future__ import annotations

import pytest

from tests.faults.scene import LEASE, Scene


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("claimed", "completing"),
        ("started", "exited"),
        ("created", "recorded"),
        ("up", "uploaded@2"),
        ("logging@2", "logged@1"),
    ],
)
async def test_the_next_one_goes_on_where_a_killed_worker_was(scene: Scene, first: str, second: str) -> None:
    job = await scene.job(3_000, exit_code=3, big=True)
    await scene.killed(points=f"{first}=kill")
    await scene.killed(points=f"{second}=kill")
    await scene.work()
    await scene.holds(job, "failed", "exit_code")
    assert await scene.adoptions(job) == ["a", "a"]


@pytest.mark.parametrize("point", ["completed", "removed"])
async def test_a_worker_that_dies_after_its_last_word_leaves_no_container(scene: Scene, point: str) -> None:
    job = await scene.job()
    await scene.killed(points=f"{point}=kill")
    await scene.holds(job)
    await scene.work()


@pytest.mark.parametrize("point", ["started", "created", "logged"])
async def test_a_neighbour_on_the_engine_goes_on_once_the_lease_ran_out(scene: Scene, point: str) -> None:
    job = await scene.job(2_000)
    await scene.killed(points=f"{point}=kill")
    await scene.work(name="b")
    assert (await scene.plane.run(job.run_id))["status"] == "running", "not before"
    await scene.later(LEASE + 1)
    await scene.work(name="b")
    await scene.holds(job)
    assert await scene.adoptions(job) == ["b"]


async def test_a_host_that_does_not_come_back_loses_what_ran_and_nothing_that_waited(scene: Scene) -> None:
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


async def test_a_run_whose_claim_kills_one_host_after_the_other_is_set_aside(scene: Scene) -> None:
    poison = await scene.job()
    for n in range(1, 7):
        await scene.killed(points="claimed=kill", name=f"host{n}")
        await scene.plane.db.execute("update ops_private.leases set engine_id = 'of the host that is gone'")
        await scene.later(n * (LEASE + 1))
        await scene.plane.db.execute("select ops.reap()")  # as any worker does that goes on
    healthy = await scene.job()
    await scene.work(name="survivor")
    await scene.holds(healthy)
    await scene.holds(poison, "canceled", "poison", ran=False)
    assert (await scene.plane.run(poison.run_id))["claim_count"] == 6


@pytest.mark.parametrize("point", ["told", "logged"])
async def test_a_run_ends_as_it_began_though_nothing_of_it_would_be_allowed_now(scene: Scene, point: str) -> None:
    job = await scene.job(500, waits=point == "logged", artifacts=[{"path": "ran"}, {"path": "deep/"}])
    await scene.killed(points=f"{point}=kill")
    await scene.plane.db.execute("update ops.workflows set config = '{\"comand\": 1}', enabled = false")
    await scene.plane.db.execute("update ops.tools set docker_image = 'gone:1', config = '{\"user\": 7}'")
    if point == "logged":
        await scene.release(job)
    await scene.work("--allowed-images", "none.example/*", "--max-timeout", "1")
    await scene.holds(job)


async def test_a_container_that_is_gone_is_not_executed_again(scene: Scene) -> None:
    job = await scene.job()
    await scene.killed(points="logged=kill")
    scene.plane.docker("rm", "-fv", job.container)
    await scene.work()
    await scene.holds(job, "failed", "engine_lost", log="begun")


async def test_a_worker_that_stood_still_beyond_its_lease_writes_nothing_to_what_it_lost(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker(points="logged=stop") as sleeper:
        await scene.until_up(job)
        await scene.later(LEASE + 1)
        async with scene.worker("--until-idle", name="b") as other:
            await other.until_said("run adopted")
            await scene.release(job)
            await sleeper.go_on()
            assert await other.wait() == 0
        await sleeper.until_said("lease lost, nothing more is written for this run")
    await scene.holds(job)
    assert await scene.adoptions(job) == ["b"]


async def test_a_worker_that_stood_still_and_lost_nothing_goes_on(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker("--until-idle", points="logged=stop") as sleeper:
        await scene.until_up(job)
        await scene.later(LEASE + 1)
        await scene.release(job)
        await sleeper.go_on()
        assert await sleeper.wait() == 0
    await scene.holds(job)


async def test_a_starved_event_loop_does_not_keep_what_another_took(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    async with scene.worker(points="logged=block=8") as starved:
        await scene.until_up(job)
        await scene.later(LEASE + 1)
        async with scene.worker("--until-idle", name="b") as other:
            await other.until_said("run adopted")
            await scene.release(job)
            assert await other.wait() == 0
        await starved.until_said("lease lost, nothing more is written for this run")
    await scene.holds(job)
    assert await scene.adoptions(job) == ["b"]
