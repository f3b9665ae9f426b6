"""PostgreSQL fails in every way: containers run on, no line is lost, and no lease expires because of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import asyncpg
import pytest
import pytest_asyncio

from deploy.demo import cluster
from tests.faults.scene import DURABLE, LEASE, Job, Scene, new_scene
from tests.support.docker import WorkerProcess, until
from tests.support.postgres import Cluster, client_binaries
from tests.support.relay import EXECUTED, LOGIN, Fate, Relay, fatal


@pytest_asyncio.fixture
async def mortal(mortal_cluster: Cluster, image: str, tmp_path: Path, engine_socket: str) -> AsyncIterator[Scene]:
    """A scene on a server that the test may stop."""
    async with new_scene(mortal_cluster, image, tmp_path, engine_socket) as made:
        yield made
        await made.nothing_is_left()


GROWTH_BOUND = 16 << 20
"""Bytes that may come on top while the database is away; the lines that wait then would take 40 MB."""

FAILED_INSIDE = "run failed inside the worker"


@asynccontextmanager
async def at_work(scene: Scene, *jobs: Job) -> AsyncIterator[WorkerProcess]:
    """A worker whose containers are up; after the block the runs must end as if nothing had happened."""
    flags = ("--until-idle", "--concurrency", "4")
    async with scene.worker(*flags, OPS_PATIENCE="worker.database.connection.CALL_TIMEOUT=3") as worker:
        for job in jobs:
            await scene.until_up(job)
        yield worker
        assert await worker.wait() == 0, worker.output.read_text()
    assert not [line for line in worker.said if line["event"] == FAILED_INSIDE], "its run was adopted again"
    for job in jobs:
        await scene.holds(job)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_server_is_waited_for(mortal: Scene, mode: Literal["fast", "immediate"]) -> None:
    job = await mortal.job(5_000, waits=True, big=True)
    async with at_work(mortal, job) as worker:
        mortal.cluster.stop(mode)
        await mortal.release(job)
        mortal.plane.docker("wait", job.container)  # it runs to its end while no line can be stored
        await worker.until_written("database unavailable, retrying")
        mortal.cluster.start()
        await mortal.reconnect()


def stalled(scene: Scene, job: Job) -> None:
    scene.database.stall()
    scene.plane.docker("wait", job.container)
    scene.database.flow()


CONNECTIONS: dict[str, Callable[[Scene, Job], None]] = {
    "cut": lambda scene, _: scene.database.cut(),
    "half-open": lambda scene, _: scene.database.freeze(),
    "accepted and never answered": stalled,
}


async def test_broken_connections_are_replaced(scene: Scene) -> None:
    jobs = {fault: await scene.job(5_000, waits=True, pause=0.1) for fault in CONNECTIONS}
    async with at_work(scene, *jobs.values()):
        for fault, job in jobs.items():
            await scene.release(job)
            await scene.plane.until_logged(job.run_id, job.lines[500])
            CONNECTIONS[fault](scene, job)


async def test_a_server_at_another_address_is_found_after_a_failover(
    image: str, tmp_path: Path, engine_socket: str
) -> None:
    with Cluster(settings=DURABLE) as primary:
        async with new_scene(primary, image, tmp_path, engine_socket) as scene:
            job = await scene.job(2_000, waits=True)
            with Standby(primary) as second:
                hosts = f"host={primary.directory},{second.directory}&port={primary.port},{second.port}"
                scene.plane.url = f"postgresql://{scene.role}@/{scene.name}?{hosts}&target_session_attrs=read-write"
                async with at_work(scene, job):
                    await until_caught_up(primary, second)
                    primary.stop("immediate")
                    second.execute("select pg_promote()")
                    scene.cluster = second
                    await scene.reconnect()
                    await scene.release(job)
                await scene.nothing_is_left()
                scene.plane.db.terminate()
            primary.start()
            scene.cluster = primary


REFUSALS = {
    "read-only transaction": (
        "alter database {name} set default_transaction_read_only = on",
        "alter database {name} reset default_transaction_read_only",
    ),
    "too many connections": ("alter role {role} connection limit 0", "alter role {role} connection limit -1"),
}


async def test_what_the_server_refuses_for_a_while_is_retried(scene: Scene) -> None:
    jobs = {text: await scene.job(1_000, waits=True) for text in (*REFUSALS, "statement timeout", "logins")}

    async def execute(sql: str) -> None:
        await scene.plane.db.execute(sql.format(name=scene.name, role=scene.role))

    async with at_work(scene, *jobs.values()) as worker:
        for text, (begin, end) in REFUSALS.items():
            await execute(begin)
            await sever(scene)
            await scene.release(jobs[text])
            await worker.until_written(text)
            await execute(end)
        await execute("alter role {role} set statement_timeout = '500ms'")
        async with scene.plane.db.transaction():
            await execute("lock ops.run_logs in access exclusive mode")
            scene.database.cut()
            await scene.release(jobs["statement timeout"])
            await worker.until_written("statement timeout")
        await execute("alter role {role} reset statement_timeout")
        codes = ("57P03", "57P01", "53300", "53200", "58030", "08006")
        refusals = [scene.database.strike(LOGIN, Fate.ANSWERED, answer=fatal(code, "not now")) for code in codes]
        scene.database.cut()
        await scene.release(jobs["logins"])
        await refusals[-1].until_struck()


async def test_serialization_failures_are_retried(scene: Scene) -> None:
    jobs = [await scene.job(500) for _ in range(4)]
    await scene.plane.db.execute(f"alter database {scene.name} set default_transaction_isolation = serializable")
    await scene.plane.db.execute(FAILS_NOW_AND_THEN)
    first = scene.worker("--until-idle", "--concurrency", "2")
    second = scene.worker("--until-idle", "--concurrency", "2", name="b")
    async with first as one, second as other:
        assert (await one.wait(), await other.wait()) == (0, 0)
    for job in jobs:
        await scene.holds(job)
    assert await scene.plane.db.fetchval("select last_value from public.attempts") > 10


FAILS_NOW_AND_THEN = """
create sequence public.attempts;
grant usage on sequence public.attempts to public;
create function public.fail_now_and_then() returns trigger language plpgsql security definer as $$
begin
    if nextval('public.attempts') % 5 = 0 then
        raise exception 'could not serialize access' using errcode = '40001';
    end if;
    return null;
end $$;
create trigger t after insert on ops.run_logs for each statement execute function public.fail_now_and_then();
create trigger t after insert or update on ops.runs for each statement execute function public.fail_now_and_then();
create trigger t after insert or update on ops.run_artifacts for each statement
    execute function public.fail_now_and_then();
create trigger t after insert on ops.run_events for each statement execute function public.fail_now_and_then();
"""


async def test_a_lost_reply_after_the_commit_changes_nothing(scene: Scene) -> None:
    job = await scene.job(2_000)
    await scene.killed(points="claimed=kill")
    functions = (
        "register_worker", "adopt_run", "heartbeat", "start_workflow_run", "record_container", "append_run_logs",
        "add_run_artifact", "complete_workflow_run",
    )  # fmt: skip
    lost = [scene.database.strike(rf"ops\.{name}\(", Fate.LOST, mark=EXECUTED) for name in functions]
    async with scene.worker() as worker:
        await scene.until_final(job)
        claim = scene.database.strike(r"ops\.claim_next_run\(", Fate.LOST, mark=scene.plane.name.encode(), times=1000)
        scene.database.cut()  # a connection that has the claim prepared would not name it again
        await until(lambda: claim.times < 1000)
        lost.append(claim)
        second = await scene.job()
        await scene.until_final(second)
        for rule in lost:
            await rule.until_struck()
        await scene.until_gone()
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    doubted = [line for line in worker.said if line.get("ours_again") or line["event"] == FAILED_INSIDE]
    assert doubted == [], "the worker adopted a run whose lease it never lost"
    await scene.holds(job)
    await scene.holds(second)


async def test_no_lease_runs_out_because_the_database_was_away(scene: Scene) -> None:
    """The first worker that is back must not take the other one's silence for its death."""
    jobs = [await scene.job(waits=True) for _ in range(2)]
    other = Relay(scene.database.upstream)
    async with other.running():
        url = scene.plane.url.replace(str(scene.database.port), str(other.port))
        flags = ("--concurrency", "1", "--lease", str(3 * LEASE))
        late = scene.worker(*flags)
        early = scene.worker(*flags, name="b", OPS_WORKER_DATABASE_URL=url)
        async with late, early as sweeper:
            for job in jobs:
                await scene.until_up(job)
            for relay in (scene.database, other):
                relay.down = True
                relay.cut()
            await scene.later(100 * LEASE)
            assert len(await expired(scene)) == 2
            await sweeper.until_written("LeaseKeeper.sweep")  # it will sweep again within 5 s, as often as it may try
            other.down = False

            async def one_renewed() -> bool:
                return len(await expired(scene)) < 2

            await until(one_renewed)
            await asyncio.sleep(6)  # the early one must wait for a third of the lease, 15 s
            scene.database.down = False
            for job in jobs:
                await scene.release(job)
            await scene.until_final(*jobs)
            await scene.until_gone()
    for job in jobs:
        await scene.holds(job)
        assert await scene.adoptions(job) == []


async def test_the_worker_s_memory_is_bounded_while_the_database_stores_no_log_lines(scene: Scene) -> None:
    job = await scene.job(120_000, waits=True)
    async with at_work(scene, job) as worker:
        before = worker.peak_memory
        scene.database.stall()
        await scene.release(job)
        scene.plane.docker("wait", job.container)
        await scene.engine.until_quiet()  # what the worker may hold is read by now
        assert worker.peak_memory - before < GROWTH_BOUND
        scene.database.flow()


# --- servers --------------------------------------------------------------------------------------------------------


class Standby(Cluster):
    """A copy that follows another server until it is promoted."""

    def __init__(self, primary: Cluster) -> None:
        self._primary = primary
        with (primary.data / "pg_hba.conf").open("a") as hba:
            hba.write("local replication all trust\n")
        primary.execute("select pg_reload_conf()")
        super().__init__()

    def _init(self) -> None:
        words = ["-h", str(self._primary.directory), "-p", str(self._primary.port), "-U", self.superuser]
        words += ["-D", str(self.data), "--write-recovery-conf", "--checkpoint", "fast", "--no-sync"]
        cluster.run(client_binaries() / "pg_basebackup", *words, folder=self.directory)  # npm's servers lack it
        # an older server knows not all parameters that the newest client writes
        source = f"host={self._primary.directory} port={self._primary.port} user={self.superuser}"
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{source}'\n")


async def until_caught_up(primary: Cluster, standby: Cluster) -> None:
    """Waits until all that is committed is on the other side: what a synchronous standby guarantees."""
    written = primary.execute("select pg_current_wal_lsn()")[0][0]
    await until(lambda: standby.execute("select pg_last_wal_replay_lsn() >= $1", written)[0][0])


async def sever(scene: Scene) -> None:
    """Ends the workers' sessions, as a server does that restarts."""
    await scene.plane.db.fetch("select pg_terminate_backend(pid) from pg_stat_activity where usename = $1", scene.role)


async def expired(scene: Scene) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await scene.plane.db.fetch(
        "select run_id from ops_private.leases where expires_at < ops_private.current_time()"
    )
    return rows
