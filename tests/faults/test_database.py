"""PostgreSQL goes away in every way it can: containers run on, nothing is dropped, and no lease runs out by it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import asyncpg
import pytest
import pytest_asyncio

from tests.faults.relay import EXECUTED, LOGIN, Fate, fatal
from tests.faults.scene import LEASE, Job, Scene, new_scene
from tests.support.docker import PATIENCE, WorkerProcess
from tests.support.postgres import Cluster


@pytest_asyncio.fixture
async def mortal(
    mortal_cluster: Cluster, image: str, tmp_path: Path, engine_socket: str
) -> AsyncIterator[Scene]:
    """A scene on a server that the test may stop."""
    async with new_scene(mortal_cluster, image, tmp_path, engine_socket) as made:
        yield made
        await made.nothing_is_left()


@asynccontextmanager
async def at_work(scene: Scene, job: Job, *flags: str) -> AsyncIterator[WorkerProcess]:
    """A worker whose container is up; after the block the run must end as if nothing had happened."""
    async with scene.worker("--until-idle", *flags) as worker:
        await scene.until_up(job)
        yield worker
        assert await worker.wait() == 0, worker.output.read_text()
    await scene.holds(job)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_restarts_costs_a_delay(mortal: Scene, mode: Literal["fast", "immediate"]) -> None:
    job = await mortal.job(5_000, waits=True, big=True)
    async with at_work(mortal, job):
        mortal.cluster.stop(mode)
        await mortal.release(job)
        mortal.plane.docker("wait", job.container)  # it runs to its end with nobody to store what it says
        mortal.cluster.start()
        await mortal.reconnect()


CONNECTIONS: dict[str, Callable[[Scene], None]] = {
    "cut": lambda scene: scene.database.cut(),
    "half-open": lambda scene: scene.database.freeze(),
}


@pytest.mark.parametrize("what", CONNECTIONS)
async def test_connections_that_break_are_made_anew(scene: Scene, what: str) -> None:
    job = await scene.job(5_000, waits=True, pause=0.1)
    async with at_work(scene, job):
        await scene.release(job)
        await scene.plane.until_logged(job.run_id, job.lines[500])
        CONNECTIONS[what](scene)


async def test_a_server_that_accepts_and_never_answers_is_waited_for(scene: Scene) -> None:
    job = await scene.job(5_000, waits=True)
    async with at_work(scene, job):
        scene.database.stall()
        await scene.release(job)
        scene.plane.docker("wait", job.container)
        scene.database.flow()


async def test_a_server_at_another_address_is_found_after_a_failover(
    cluster: Cluster, image: str, tmp_path: Path, engine_socket: str
) -> None:
    with Cluster() as primary:
        async with new_scene(primary, image, tmp_path, engine_socket) as scene:
            job = await scene.job(2_000, waits=True)
            with standby(primary) as second:
                hosts = f"{primary.directory},{second.directory}"
                url = f"postgresql://{role_of(scene)}@/{database_of(scene)}?host={hosts}&port=5432,5432"
                scene.plane.url = f"{url}&target_session_attrs=read-write"
                async with at_work(scene, job):
                    await until_caught_up(primary, second)
                    primary.stop("immediate")
                    second.execute("select pg_promote()")
                    scene.cluster = second
                    await scene.reconnect()
                    await scene.release(job)
                await scene.nothing_is_left()


async def test_a_server_that_only_reads_is_left_for_one_that_writes(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    name = database_of(scene)
    async with at_work(scene, job):
        await scene.plane.db.execute(f"alter database {name} set default_transaction_read_only = on")
        await sever(scene)
        await scene.release(job)
        scene.plane.docker("wait", job.container)
        await scene.workers[0].until_said("database unavailable, retrying")
        await scene.plane.db.execute("set default_transaction_read_only = off")
        await scene.plane.db.execute(f"alter database {name} reset default_transaction_read_only")
        await sever(scene)


async def test_a_server_with_too_many_connections_is_asked_again(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    role = role_of(scene)
    async with at_work(scene, job):
        await scene.plane.db.execute(f"alter role {role} connection limit 0")
        await sever(scene)
        await scene.release(job)
        await scene.workers[0].until_said("database unavailable, retrying")
        assert "too many connections" in scene.workers[0].output.read_text()
        await scene.plane.db.execute(f"alter role {role} connection limit -1")


@pytest.mark.parametrize("sqlstate", ["57P03", "57P01", "53300", "53200", "58030"])
async def test_a_server_that_turns_clients_away_for_a_while_is_asked_again(scene: Scene, sqlstate: str) -> None:
    job = await scene.job(500)
    async with at_work(scene, job):
        refusal = scene.database.strike(LOGIN, Fate.ANSWERED, answer=fatal(sqlstate, "not now"), times=3)
        scene.database.cut()
        await refusal.until_struck(1)


async def test_statements_over_the_time_limit_are_made_again(scene: Scene) -> None:
    job = await scene.job(2_000, waits=True)
    role = role_of(scene)
    async with at_work(scene, job):
        async with scene.plane.db.transaction():
            await scene.plane.db.execute("lock ops.run_logs in access exclusive mode")
            await scene.plane.db.execute(f"alter role {role} set statement_timeout = '200ms'")
            await scene.database_cut_and_release(job)
            await until_statement_cancelled(scene)


async def test_serialization_failures_are_made_again(scene: Scene) -> None:
    await scene.plane.db.execute(f"alter database {database_of(scene)} set default_transaction_isolation = serializable")
    await scene.plane.db.execute(FAILS_HALF_THE_TIME)
    jobs = [await scene.job(500) for _ in range(4)]
    async with scene.worker("--until-idle", "--concurrency", "2") as first:
        async with scene.worker("--until-idle", "--concurrency", "2", name="b") as second:
            await scene.until_final(*jobs)
            assert (await first.wait(), await second.wait()) == (0, 0)
    for job in jobs:
        await scene.holds(job)
    assert await scene.plane.db.fetchval("select last_value from public.failures") > 10


FAILS_HALF_THE_TIME = """
create sequence public.failures;
grant usage on sequence public.failures to public;
create function public.fail_half() returns trigger language plpgsql security definer as $$
begin
    if nextval('public.failures') % 2 = 0 then
        raise exception 'could not serialize access' using errcode = '40001';
    end if;
    return null;
end $$;
create trigger fail_half after insert on ops.run_logs for each statement execute function public.fail_half();
create trigger fail_half after insert or update on ops.runs for each statement execute function public.fail_half();
create trigger fail_half after insert or update on ops.run_artifacts for each statement
    execute function public.fail_half();
create trigger fail_half after insert on ops.run_events for each statement execute function public.fail_half();
"""


@pytest.mark.parametrize(
    "function",
    ["claim_next_run", "start_workflow_run", "append_run_logs", "add_run_artifact", "complete_workflow_run",
     "register_worker", "heartbeat", "adopt_run"],
)  # fmt: skip
async def test_an_acknowledgement_that_is_lost_after_the_commit_changes_nothing(scene: Scene, function: str) -> None:
    job = await scene.job(2_000)
    if function == "adopt_run":
        await scene.killed(points="logged=kill")
    lost = scene.database.strike(f"ops\\.{function}\\(", Fate.LOST, mark=EXECUTED)
    async with scene.worker() as worker:
        await scene.until_final(job)
        await lost.until_struck()
        await scene.until_gone()
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    await scene.holds(job)


async def test_no_lease_runs_out_because_the_database_was_away(scene: Scene) -> None:
    """The first worker back must not take the other one's silence for its death."""
    jobs = [await scene.job(waits=True) for _ in range(2)]
    async with scene.worker("--concurrency", "1") as first, scene.worker("--concurrency", "1", name="b") as second:
        for job in jobs:
            await scene.until_up(job)
        holders = {(await scene.plane.run(job.run_id))["claimed_by"]: job for job in jobs}
        assert len(holders) == 2
        scene.database.down = True
        scene.database.cut()
        await scene.later(100 * LEASE)
        alone = scene.database.strike(LOGIN, Fate.CUT, times=0)
        del alone
        scene.database.down = False
        for worker in (first, second):
            worker.signal(0)
        for job in jobs:
            await scene.release(job)
        await scene.until_final(*jobs)
        await scene.until_gone()
    for job in jobs:
        await scene.holds(job)
        assert await scene.adoptions(job) == []


async def test_the_memory_of_a_worker_is_bounded_while_a_run_talks_into_the_void(scene: Scene) -> None:
    job = await scene.job(400_000, waits=True)
    async with at_work(scene, job):
        scene.database.stall()
        await scene.release(job)
        scene.plane.docker("wait", job.container)
        await asyncio.sleep(1)  # what the bound allows is read by now, and nothing more comes
        scene.database.flow()


# --- servers --------------------------------------------------------------------------------------------------------
