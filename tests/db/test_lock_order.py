"""Locks are taken in one order: projects, run_counters, runs, leases, everything else."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import ENGINE, INSTANCE, LIFE, WORKER, World, blocked, call, shift_clock

RUN_FIRST: dict[str, dict[str, Any]] = {
    **{name: {"p_worker_id": WORKER, "p_instance_id": INSTANCE, **named} for name, named in LIFE.items()},
    "adopt_run": {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_engine_id": ENGINE},
    "cancel_run": {},
}


@pytest.mark.parametrize("function", RUN_FIRST)
async def test_who_waits_for_a_run_does_not_hold_its_lease(world: World, connect: Connect, function: str) -> None:
    run = await (world.claimed() if function in {"release_run", "start_workflow_run"} else world.running())
    waiter = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops.runs where id = $1 for update", run)
        waiting = await blocked(world.db, waiter, call(waiter, function, p_run_id=run, **RUN_FIRST[function]))
        await world.db.execute("select from ops_private.leases where run_id = $1 for update nowait", run)
    answer = await asyncio.wait_for(waiting, 10)
    assert answer.get("success", True)


@pytest.mark.parametrize("function", ["insert", "enqueue_run", "retry_run", "approve_run"])
async def test_queueing_locks_the_project_then_the_counter_then_runs(
    world: World, connect: Connect, function: str
) -> None:
    run, waiter = await world.run_in("failed"), await connect()
    if function == "approve_run":
        run = await world.queue(approval="pending")
    insert = "insert into ops.runs (project_id, workflow_id) values ($1, $2) returning id"
    queueing = (
        waiter.fetchval(insert, world.project, world.workflow) if function == "insert"
        else call(waiter, function, world.workflow if function == "enqueue_run" else run)
    )  # fmt: skip
    async with world.db.transaction():
        await world.db.execute("select from ops.projects for update")
        waiting = await blocked(world.db, waiter, queueing)
        await world.db.execute("select from ops_private.run_counters for update nowait")
        await world.db.execute("select from ops.runs for update nowait")
    assert await asyncio.wait_for(waiting, 10)


async def test_a_renewal_locks_the_leases_in_the_order_of_their_runs(world: World, connect: Connect) -> None:
    """Else two renewals of one worker may each wait for a lease that the other has locked."""
    first, *others = sorted(uuid.uuid4() for _ in range(5))
    for run in reversed([first, *others]):  # so that they lie the other way round
        await world.queue(id=run)
        assert (await world.claim())["run_id"] == str(run)
    lie = [row["run_id"] for row in await world.db.fetch("select run_id from ops_private.leases order by ctid")]
    assert lie == [*reversed(others), first]
    waiter = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops_private.leases where run_id = $1 for update", first)
        waiting = await blocked(world.db, waiter, call(waiter, "heartbeat", WORKER, INSTANCE))
        await world.db.execute("select from ops_private.leases where run_id = any ($1) for update nowait", others)
    assert len((await asyncio.wait_for(waiting, 10))["runs"]) == 5


@pytest.mark.parametrize("locked", ["ops.runs", "ops_private.leases"])
async def test_reap_and_claim_wait_for_no_lock(world: World, connect: Connect, locked: str) -> None:
    await world.running()
    await world.claimed()
    other = await connect()
    async with world.db.transaction():
        await world.db.execute(f"select from {locked} for update")
        await asyncio.wait_for(call(other, "claim_next_run", "host-b"), 10)
        await shift_clock(other, 601)
        answer = await asyncio.wait_for(call(other, "reap"), 10)
    assert (answer["requeued"], answer["failed"]) == ([], [])


async def test_a_claim_skips_a_run_that_another_transaction_has_locked(world: World, connect: Connect) -> None:
    first, second = await world.queue(), await world.queue()
    other = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops.runs where id = $1 for update", first)
        claim = await asyncio.wait_for(call(other, "claim_next_run", "host-b"), 10)
    assert claim["run_id"] == str(second)


async def test_everything_at_once_never_deadlocks(world: World, connect: Connect) -> None:
    """Eight connections of one worker do everything to the same runs, in any order."""
    seed = random.randrange(2**32)
    runs = [await world.queue(concurrency_key=f"key-{n % 3}") for n in range(12)]
    connections = [await connect(server_settings={"deadlock_timeout": "10ms"}) for _ in range(8)]

    async def work(connection: asyncpg.Connection, dice: random.Random) -> None:
        for _ in range(60):
            run = dice.choice(runs)
            functions: list[tuple[str, dict[str, Any]]] = [
                ("claim_next_run", {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_engine_id": ENGINE}),
                ("heartbeat", {"p_worker_id": WORKER, "p_instance_id": INSTANCE,
                               "p_lease_seconds": dice.choice([1, 300])}),
                ("reap", {}),
                *((name, {"p_run_id": run, **named}) for name, named in RUN_FIRST.items()),
            ]  # fmt: skip
            name, named = dice.choice(functions)
            if name in {"complete_workflow_run", "cancel_run"} and dice.random() < 0.8:
                continue  # else all end at once
            await call(connection, name, **named)

    try:
        await asyncio.gather(*(work(one, random.Random(seed + n)) for n, one in enumerate(connections)))
    except asyncpg.DeadlockDetectedError as error:
        pytest.fail(f"seed {seed}: {error.detail}")
    leases = await world.db.fetch("select run_id from ops_private.leases")
    held = await world.db.fetch("select id from ops.runs where status in ('claimed', 'running')")
    assert {row["run_id"] for row in leases} == {row["id"] for row in held}


async def test_a_lost_lease_stays_lost_for_a_write_that_waited(world: World, connect: Connect) -> None:
    """Ownership is read after the lock, not before: here it changes while the old owner waits for the run."""
    run = await world.running()
    waiter = await connect()
    async with world.db.transaction():
        assert (await call(world.db, "adopt_run", run, WORKER, uuid.uuid4(), ENGINE))["run_id"]
        late = {"p_worker_id": WORKER, "p_instance_id": INSTANCE}
        waiting = await blocked(world.db, waiter, call(waiter, "append_run_log", run, "info", "late", **late))
    assert (await asyncio.wait_for(waiting, 10))["code"] == "not_owner"
