"""Cancel and time limit end the container whatever goes wrong meanwhile, and the run says which of them it was."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.scene import LONG, LONG_LEASE, UP, Job, Scene
from tests.faults.test_engine import CALLS
from tests.support.docker import PATIENCE
from tests.support.relay import Fate

DEAF = "trap '' TERM; "
"""Before a script that is to outlive the signal."""

STUBBORN = {
    "forks": f'{DEAF}for n in 1 2 3; do setsid sh -c "{DEAF}while :; do sleep 0.1; done" & done; echo {UP}; wait',
    "prints": f"{DEAF}echo {UP}; n=0; while :; do n=$((n+1)); echo $n; done",
}
ENDINGS = {"cancel": ("canceled", "canceled"), "timeout": ("failed", "timeout")}


def limit(how: str, seconds: float) -> dict[str, Any]:
    """The configuration of a run that is to end in that way."""
    return {"timeout_seconds": seconds} if how == "timeout" else {}


async def stubborn(scene: Scene, script: str, **config: object) -> Job:
    """A run of that script, which must not end by itself."""
    run_id = await scene.plane.shell(script, resources={"cpus": 0.2}, **config)
    return Job(run_id, [], {}, 0, scene.plane.container(run_id))


async def until_stopped(scene: Scene, job: Job) -> None:
    """Waits until the container has ended, or is gone."""
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(scene.plane.docker, "wait", job.container)


async def test_a_program_that_forks_or_prints_without_end_is_ended(scene: Scene) -> None:
    wanted = [(program, how) for program in STUBBORN for how in ENDINGS]
    jobs = {(program, how): await stubborn(scene, STUBBORN[program], **limit(how, 2)) for program, how in wanted}
    async with scene.worker("--until-idle", "--concurrency", "4", "--stop-grace", "1") as worker:
        for (_, how), job in jobs.items():
            await scene.until_up(job)
            if how == "cancel":
                await scene.cancel(job)
        assert await worker.wait() == 0
    for (program, how), job in jobs.items():
        printed = len(await scene.plane.log(job.run_id)) - 1
        assert (printed > 0) == (program == "prints")
        whole = replace(job, lines=[UP, *(str(n) for n in range(1, printed + 1))])
        await scene.holds(whole, *ENDINGS[how], log="begun")


# --- the worker dies ------------------------------------------------------------------------------------------------


KILLED = [
    ("started", "cancel", False),
    ("told", "cancel", False),
    ("up", "cancel", True),
    ("logged", "cancel", True),
    ("started", "timeout", True),  # it counts from the start of the container
    ("up", "timeout", True),
    ("stopped", "cancel", True),
    ("stopped", "timeout", True),
    ("completing", "cancel", True),
    ("completing", "timeout", True),
]


async def test_the_worker_that_adopts_a_run_carries_out_its_cancel_or_time_limit(scene: Scene) -> None:
    """Each host is killed at another point: before, during or after the stop. A neighbour adopts all runs."""
    jobs = []
    for point, how, _ in KILLED:
        jobs.append(job := await scene.job(waits=True, **limit(how, 1)))
        flags = (*LONG_LEASE, "--stop-grace", "1")
        async with scene.worker(*flags, points=f"{point}=kill", name=f"{point}{how}") as worker:
            if point in ("stopped", "completing"):
                await scene.until_up(job)
                if how == "cancel":
                    await scene.cancel(job)
            assert await worker.wait() == -signal.SIGKILL
        scene.note_volumes()
        if how == "cancel" and point not in ("stopped", "completing"):
            await scene.cancel(job)
    await scene.later(LONG + 1)
    await scene.work("--stop-grace", "1", "--concurrency", "4", name="b")
    for job, (_, how, ran) in zip(jobs, KILLED, strict=True):
        await scene.holds(job, *ENDINGS[how], log="begun", ran=ran)


# --- the engine -----------------------------------------------------------------------------------------------------


async def test_a_cancel_during_pull_create_or_start(scene: Scene) -> None:
    calls = {"pull": "POST /v[0-9.]+/images/create", "create": CALLS["create"], "start": CALLS["start"]}
    missing = await scene.plane.tool("none.invalid/none:1")
    async with scene.worker(OPS_PATIENCE="worker.engine.client.API_TIMEOUT=3"):
        for call, request in calls.items():
            hangs = scene.engine.strike(request, Fate.MUTE)
            config: dict[str, Any] = {"version": missing} if call == "pull" else {}
            job = await scene.job(waits=True, **config)
            await hangs.until_struck()
            await scene.cancel(job)
            await scene.until_final(job)
            await scene.until_gone()
            await scene.holds(job, "canceled", "canceled", log="begun", ran=call == "start")


async def test_a_cancel_or_time_limit_is_carried_out_when_the_engine_is_back(scene: Scene) -> None:
    jobs = {how: await scene.job(waits=True, **limit(how, 3)) for how in ENDINGS}
    async with scene.worker("--until-idle", "--stop-grace", "1", "--concurrency", "2") as worker:
        for job in jobs.values():
            await scene.until_up(job)
        scene.engine.down = True
        scene.engine.cut()
        await scene.cancel(jobs["cancel"])
        await worker.until_said("engine unavailable, retrying")
        await asyncio.sleep(3)  # the time limit has passed now
        scene.engine.down = False
        assert await worker.wait() == 0
    for how, job in jobs.items():
        await scene.holds(job, *ENDINGS[how], log="begun")


# --- the database ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["turned away", "no answer"])
async def test_a_time_limit_counts_while_the_database_is_away_and_a_cancel_when_it_is_back(
    scene: Scene, fault: str
) -> None:
    jobs = {"cancel": await scene.job(waits=True), "timeout": await scene.job(waits=True, timeout_seconds=4)}
    flags = ("--until-idle", "--stop-grace", "1", "--concurrency", "2")
    async with scene.worker(*flags, OPS_PATIENCE="worker.database.connection.CALL_TIMEOUT=3") as worker:
        for job in jobs.values():
            await scene.until_up(job)
        if fault == "turned away":
            scene.database.down = True
            scene.database.cut()
        else:
            scene.database.freeze()
            scene.database.stall()
        await scene.cancel(jobs["cancel"])
        await worker.until_said("background task failed, trying again")
        await until_stopped(scene, jobs["timeout"])
        assert (await scene.plane.run(jobs["cancel"].run_id))["status"] == "running"
        scene.database.down = False
        scene.database.flow()
        assert await worker.wait() == 0
    for how, job in jobs.items():
        await scene.holds(job, *ENDINGS[how], log="begun")


async def test_a_log_stream_that_never_begins_is_requested_again(scene: Scene) -> None:
    hangs = [scene.engine.strike(CALLS[call], Fate.MUTE) for call in ("follow", "last")]
    job = await scene.job(waits=True)
    async with scene.worker("--until-idle", OPS_PATIENCE="worker.engine.client.API_TIMEOUT=3") as worker:
        await scene.until_up(job)
        await asyncio.sleep(4)  # once it has begun, it may be silent for longer than that
        await scene.release(job)
        assert await worker.wait() == 0
    assert [rule.struck for rule in hangs] == [1, 1]
    assert [said["event"] for said in worker.said].count("log stream broken, reading again") == 1
    await scene.holds(job)
