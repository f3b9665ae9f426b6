"""Cancel and time limit end the container whatever goes wrong meanwhile, and the run says which of them it was."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.relay import Fate
from tests.faults.scene import LEASE, UP, Job, Scene
from tests.faults.test_engine import CALLS
from tests.support.docker import PATIENCE

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


@pytest.mark.parametrize(
    ("point", "how", "ran"),
    [
        ("started", "cancel", False),
        ("told", "cancel", False),
        ("up", "cancel", True),
        ("started", "timeout", True),  # it counts from the start of the container
        ("up", "timeout", True),
    ],
)
async def test_the_next_worker_ends_what_was_to_end(scene: Scene, point: str, how: str, ran: bool) -> None:  # noqa: FBT001 - a parameter
    job = await scene.job(waits=True, **limit(how, 1))
    await scene.killed(points=f"{point}=kill")
    if how == "cancel":
        await scene.cancel(job)
    await scene.work("--stop-grace", "1")
    await scene.holds(job, *ENDINGS[how], log="begun", ran=ran)


@pytest.mark.parametrize("point", ["stopped", "completing"])
@pytest.mark.parametrize("how", ENDINGS)
async def test_a_worker_that_dies_of_the_stop_changes_nothing_of_how_it_ended(
    scene: Scene, point: str, how: str
) -> None:
    job = await scene.job(waits=True, **limit(how, 1))
    async with scene.worker("--stop-grace", "1", points=f"{point}=kill") as worker:
        await scene.until_up(job)
        if how == "cancel":
            await scene.cancel(job)
        await worker.wait()
    await scene.work("--stop-grace", "1")
    await scene.holds(job, *ENDINGS[how], log="begun")


async def test_a_cancel_whose_worker_s_host_is_gone_is_carried_out_by_the_neighbour(scene: Scene) -> None:
    job = await scene.job(waits=True)
    await scene.killed(points="logged=kill")
    await scene.cancel(job)
    await scene.later(LEASE + 1)
    await scene.work(name="b")
    await scene.holds(job, "canceled", "canceled", log="begun")


# --- the engine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["pull", "create", "start"])
async def test_a_cancel_that_comes_while_the_engine_is_asked_for_the_container(scene: Scene, call: str) -> None:
    job = await scene.job(waits=True)
    if call == "pull":
        await scene.plane.db.execute("update ops.tools set docker_image = 'none.invalid/none:1'")
    hangs = scene.engine.strike({"pull": "POST /v[0-9.]+/images/create", **CALLS}[call], Fate.MUTE)
    async with scene.worker("--until-idle", OPS_PATIENCE="worker.engine.client.API_TIMEOUT=3") as worker:
        await hangs.until_struck()
        await scene.cancel(job)
        assert await worker.wait() == 0
    await scene.holds(job, "canceled", "canceled", log="begun", ran=call == "start")


@pytest.mark.parametrize("how", ENDINGS)
async def test_an_engine_that_was_away_hears_of_it_afterwards(scene: Scene, how: str) -> None:
    job = await scene.job(waits=True, **limit(how, 3))
    async with scene.worker("--until-idle", "--stop-grace", "1") as worker:
        await scene.until_up(job)
        scene.engine.down = True
        scene.engine.cut()
        if how == "cancel":
            await scene.cancel(job)
        await worker.until_said("engine unavailable, retrying")
        if how == "timeout":
            await asyncio.sleep(3)  # it has passed now
        scene.engine.down = False
        assert await worker.wait() == 0
    await scene.holds(job, *ENDINGS[how], log="begun")


# --- the database ---------------------------------------------------------------------------------------------------


async def test_a_time_limit_strikes_while_the_database_is_away(scene: Scene) -> None:
    job = await scene.job(waits=True, timeout_seconds=4)
    async with scene.worker("--until-idle", "--stop-grace", "1") as worker:
        await scene.until_up(job)
        scene.database.down = True
        scene.database.cut()
        await until_stopped(scene, job)
        scene.database.down = False
        assert await worker.wait() == 0
    await scene.holds(job, "failed", "timeout", log="begun")


@pytest.mark.parametrize("silence", ["turned away", "no answer"])
async def test_a_cancel_that_the_worker_could_not_hear_of_takes_effect_afterwards(scene: Scene, silence: str) -> None:
    job = await scene.job(waits=True)
    async with scene.worker("--until-idle", OPS_PATIENCE="worker.database.connection.CALL_TIMEOUT=3") as worker:
        await scene.until_up(job)
        if silence == "turned away":
            scene.database.down = True
            scene.database.cut()
        else:
            scene.database.freeze()
            scene.database.stall()
        await scene.cancel(job)
        await worker.until_said("background task failed, trying again")
        assert (await scene.plane.run(job.run_id))["status"] == "running"
        scene.database.down = False
        scene.database.flow()
        assert await worker.wait() == 0
    await scene.holds(job, "canceled", "canceled", log="begun")


async def test_a_log_that_the_engine_never_begins_to_give_is_asked_for_again(scene: Scene) -> None:
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
