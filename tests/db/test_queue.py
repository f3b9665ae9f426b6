"""The queue: whose run is next, why each run waits, whom a new run wakes, and what pauses and limits hold back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import (
    INSTANCE,
    WORKER,
    World,
    blocked,
    call,
    heard,
    new_project,
    new_workflow,
    next_of,
    woken,
)  # fmt: skip
from worker.database.queue import _channel
from worker.model.claim import WorkerIdentity

# Fairness, and why a run waits ------------------------------------------------------------------------------


async def test_a_project_with_many_runs_does_not_delay_another(world: World) -> None:
    await world.db.execute(
        "insert into ops.runs (project_id, workflow_id) select $1, $2 from generate_series(1, 50)",
        world.project, world.workflow,
    )  # fmt: skip
    other = await new_project(world.db, "other")
    workflow = await new_workflow(world.db, other)
    for held in (3, 0):  # while runs of the first are active, and while none is
        claimed = [uuid.UUID((await world.claim())["run_id"]) for _ in range(3)]
        for run in claimed[held:]:
            await world.set_status(run, "canceled")
        single = await world.queue(project_id=other, workflow_id=workflow)
        assert (await world.claim())["run_id"] == str(single)
        await world.db.execute("update ops.runs set status = 'canceled' where status = 'claimed'")
    assert (await world.claim())["run_number"] == 7


async def test_the_list_says_why_each_run_waits(world: World) -> None:
    await world.db.execute(
        "insert into ops_private.workers (worker_id, instance_id, db_role, labels, started_at, expires_at)"
        " values ('w', gen_random_uuid(), 'postgres', '{linux}', now(), now() + interval '1 hour')"
    )
    waits = {
        await world.queue(concurrency_key="prod"): None,
        await world.queue(concurrency_key="prod"): "key: run #1 holds prod",
        await world.queue(concurrency_key="free"): "worker: the next one that is free",
        await world.queue(concurrency_key="free"): "key: run #3 goes before it for free",
        await world.queue(concurrency_key="free", priority=-1): "key: run #3 goes before it for free",
        await world.queue(labels=["linux", "gpu"]): "labels: no worker has linux, gpu",
        await world.queue(labels=["linux"]): "worker: the next one that is free",
        await world.queue(scheduled_at=datetime(2099, 1, 2, tzinfo=UTC)): "time: due at 2099-01-02 00:00:00 UTC",
        (late := await world.queue()): "time: it waited as long as it may; a worker cancels it soon",
    }
    await world.db.execute("update ops.runs set wanted_until = now() - interval '1 s' where id = $1", late)
    assert (await world.claim())["run_number"] == 1
    listed = await world.db.fetch("select run_id, waits_for from ops.list_queued_runs()")
    assert {row["run_id"]: row["waits_for"] for row in listed} == waits
    few = await world.db.fetch("select run_id, waits_for from ops.list_queued_runs(3)")
    assert few == listed[:3]


# Lanes ------------------------------------------------------------------------------------------------------

LANES = "select count(*) from ops_private.lanes"


async def test_each_change_of_a_run_keeps_it_in_the_right_lane(world: World) -> None:
    """After every statement the queue's tables are those that a rebuild would make."""
    run, other = await world.queue(labels=["a"]), await world.queue()
    for statement in (
        "update ops.runs set labels = '{b}', priority = 3, concurrency_key = 'k' where id = $1",
        "update ops.runs set scheduled_at = now() + interval '1 hour' where id = $1",
        "update ops.runs set scheduled_at = null, created_at = now() - interval '1 hour' where id = $1",
        "update ops.runs set status = 'claimed' where id = $1",
        "update ops.runs set concurrency_key = 'm' where id = $1",
        "update ops.runs set status = 'queued' where id = $1",
        "delete from ops.runs where id = $1",
    ):
        await world.db.execute(statement, run)
        entries = """select q.run_id, q.scheduled_at, q.created_at, q.run_number, l.project_id, l.priority, l.labels,
                            l.concurrency_key from ops_private.queued as q join ops_private.lanes as l using (lane_id)
                     order by 1"""
        kept = await world.db.fetch(entries)
        held = await world.db.fetch("select concurrency_key from ops_private.leases")
        assert held == await world.db.fetch("select concurrency_key from ops.runs where status = 'claimed'")
        await world.db.fetchval("select ops_private.rebuild_queue()")
        assert (statement, kept) == (statement, await world.db.fetch(entries))
    assert [entry["run_id"] for entry in kept] == [other]


async def test_a_lane_without_runs_is_dropped_unless_one_is_about_to_enter(world: World, connect: Connect) -> None:
    gone, back = await world.queue(labels=["gone"]), await world.queue(labels=["back"])
    await world.set_status(gone, "canceled")
    await world.set_status(back, "claimed")
    queueing = await connect()
    async with queueing.transaction():
        await queueing.execute("update ops.runs set status = 'queued' where id = $1", back)
        await call(world.db, "reap")
        assert await world.db.fetchval(LANES) == 1
    assert (await world.claim(p_labels=["back"]))["run_id"] == str(back)
    async with queueing.transaction():
        new = await queueing.fetchval(
            "insert into ops.runs (project_id, workflow_id, labels) values ($1, $2, '{back}') returning id",
            world.project, world.workflow,
        )  # fmt: skip
        await call(world.db, "reap")
    assert (await world.claim(p_labels=["back"]))["run_id"] == str(new)
    await call(world.db, "reap")
    assert await world.db.fetchval(LANES) == 0


async def test_no_update_in_the_life_of_a_run_writes_an_index(world: World) -> None:
    async with world.db.transaction():
        run = await world.running()
        await call(world.db, "complete_workflow_run", run, 0, p_worker_id=WORKER, p_instance_id=INSTANCE)
        updates = await world.db.fetchrow(
            """select pg_stat_get_xact_tuples_updated('ops.runs'::regclass),
                      pg_stat_get_xact_tuples_hot_updated('ops.runs'::regclass)"""
        )
    assert tuple(updates) == (3, 3)


async def test_a_newer_run_reads_the_lane_of_its_key_and_no_other(world: World) -> None:
    workflow = await new_workflow(world.db, world.project, "newest", {"on_newer": "newest", "concurrency_key": "ref"})
    queue = """insert into ops.runs (project_id, workflow_id, concurrency_key)
        select $1, $2, $3 || i from generate_series(1, $4::integer) as i"""
    await world.db.execute(queue, world.project, workflow, "branch ", 1000)
    await world.db.execute("analyze ops_private.lanes")
    read = """select sum(pg_stat_get_xact_tuples_returned(c.oid)) from pg_class as c
        where c.oid = 'ops_private.lanes'::regclass
            or c.oid in (select i.indexrelid from pg_index as i where i.indrelid = 'ops_private.lanes'::regclass)"""
    async with world.db.transaction():
        before = await world.db.fetchval(read)
        await world.db.execute(queue, world.project, workflow, "branch ", 1)
        assert await world.db.fetchval(read) - before < 10
    assert await world.db.fetchval("select count(*) from ops.runs where reason = 'superseded'") == 1


async def test_a_function_that_forbids_sequential_scans_forbids_the_jit_compiler(world: World) -> None:
    """A forbidden scan that has no index costs 1e10, and the compiler would spend 700 ms on each such query."""
    rows = await world.db.fetch(
        """select p.proname as name, 'jit=off' = any (p.proconfig) as is_off from pg_proc as p
           where 'enable_seqscan=off' = any (p.proconfig)"""
    )
    assert "next_run" in {row["name"] for row in rows}
    assert [row["name"] for row in rows if not row["is_off"]] == []


# Waking workers ---------------------------------------------------------------------------------------------


async def test_a_new_run_wakes_three_of_the_workers_that_wait_for_such_runs(world: World, connect: Connect) -> None:
    waiting = [(f"w{n}", uuid.uuid4(), ["gpu"] if n else []) for n in range(6)]
    for name, instance, labels in waiting:
        assert (await world.claim(name, instance, p_labels=labels))["run_id"] is None
    instances = [instance for _, instance, _ in waiting]
    told = await woken(connect, instances)

    async def told_of(how_many: int, **columns: object) -> Sequence[int | None]:
        run = await world.queue(**columns)
        names = [await next_of(told) for _ in range(how_many)]
        await world.set_status(run, "canceled")
        return sorted(instances.index(name) for name in names if name) or [None]

    assert await told_of(3, labels=["gpu"]) == [1, 2, 3]  # who waits longest; each once, until it waits again
    assert await told_of(3) == [0, 4, 5]
    assert await told_of(1) == [None], "no worker is known to wait: all are woken"
    assert (await world.claim("w2", waiting[2][1], p_labels=["gpu"]))["run_id"] is None
    assert await told_of(1) == [2]
    assert told.empty()


async def test_the_worker_listens_on_the_channel_that_the_database_names(world: World) -> None:
    me = WorkerIdentity(WORKER, INSTANCE, "h1", "e1", "0", ())
    assert _channel(me) == await world.db.fetchval("select ops_private.channel_of($1)", me.instance_id)


async def test_a_worker_that_got_a_run_or_is_gone_waits_no_more(world: World, connect: Connect) -> None:
    mine = uuid.uuid4()
    await world.claim("one", mine)
    await world.claim("gone", uuid.uuid4())
    client = await connect()
    async with client.transaction():  # which names both, and stays open
        await client.execute(
            "insert into ops.runs (project_id, workflow_id) values ($1, $2)", world.project, world.workflow
        )
        assert (await world.claim("one", mine))["run_id"] is None
        await call(world.db, "reap")
    await world.db.execute("delete from ops.runs")
    await world.claim("one", mine)
    await call(world.db, "reap")  # neither is registered
    assert await world.db.fetchval("select count(*) from ops_private.idle_workers") == 0
    await world.claim("one", mine)
    await world.queue()
    await world.queue()
    await world.claim("one", mine)
    assert await world.db.fetchval("select count(*) from ops_private.idle_workers") == 0


# Pause and limits -------------------------------------------------------------------------------------------


async def waiting(world: World) -> list[str | None]:
    """Why each run waits, in the order of the queue."""
    return [row["waits_for"] for row in await world.db.fetch("select waits_for from ops.list_queued_runs()")]


@pytest.mark.parametrize("what", ["project", "queue"])
async def test_what_is_paused_is_not_claimed_until_it_is_resumed(world: World, connect: Connect, what: str) -> None:
    which = [world.project] if what == "project" else []
    run = await world.queue()
    assert (await call(world.db, f"pause_{what}", *which))["changed"]
    assert (await call(world.db, f"pause_{what}", *which))["changed"] is False
    answer = await world.claim()
    assert (answer["run_id"], answer["waiting"]) == (None, True)
    assert await waiting(world) == ["project: paused by postgres" if which else "queue: paused"]
    wakes = await heard(connect, "ops_queue")
    assert (await call(world.db, f"resume_{what}", *which))["changed"]
    await next_of(wakes)
    assert (await world.claim())["run_id"] == str(run)


async def test_a_limited_project_has_no_more_active_runs_than_it_may(world: World, connect: Connect) -> None:
    assert (await call(world.db, "limit_project", world.project, 2))["success"]
    runs = [await world.queue() for _ in range(4)]
    slow, fast = await connect(), await connect()
    async with slow.transaction():
        assert (await call(slow, "claim_next_run", "slow"))["run_id"] == str(runs[0])
        # it counts the active runs once the first claim is committed
        racing = await blocked(world.db, fast, call(fast, "claim_next_run", "fast"))
    assert (await racing)["run_id"] == str(runs[1])
    assert (await world.claim())["run_id"] is None
    assert await waiting(world) == [None, None, *["limit: the project has 2 active runs"] * 2]
    wakes = await heard(connect, "ops_queue")
    await world.set_status(runs[0], "canceled")
    await next_of(wakes)
    assert (await world.claim())["run_id"] == str(runs[2])


async def test_a_claim_locks_only_the_limit_of_the_project_whose_run_it_takes(world: World, connect: Connect) -> None:
    first = await world.queue(priority=1)
    other = await new_project(world.db, "other")
    await world.queue(project_id=other, workflow_id=await new_workflow(world.db, other))
    for project in (world.project, other):
        await call(world.db, "limit_project", project, 2)
    worker = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops_private.project_limits where project_id = $1 for update", other)
        claim = await asyncio.wait_for(call(worker, "claim_next_run", WORKER, INSTANCE), 10)
    assert claim["run_id"] == str(first)


async def test_a_limit_of_queued_runs_is_the_projects_own(world: World) -> None:
    await call(world.db, "limit_project", world.project, None, 3)
    for _ in range(3):
        await world.queue()
    with pytest.raises(asyncpg.PostgresError, match=r"at most 3 runs \(max_queued_runs\)"):
        await world.queue()
    for name, values in (("max_active_runs", (0, 1)), ("max_queued_runs", (1, 0))):
        answer = await call(world.db, "limit_project", world.project, *values)
        assert (answer["code"], answer["error"]) == ("bad_argument", f"the {name} must be at least 1")
