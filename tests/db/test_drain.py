"""``ops.drain_worker`` and ``ops-worker drain``: a worker that claims nothing, and whose runs end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from tests.conftest import Connect
from tests.db.persons import Said, ops
from tests.db.world import (
    INSTANCE,
    OTHER_INSTANCE,
    WORKER,
    World,
    blocked,
    call,
    freeze_clock,
    next_of,
    use,
    woken,
)

DRAINED = {"run_id": None, "waiting": False, "draining": True, "message": "the worker is drained"}


async def registered(world: World, worker: str = WORKER, **named: object) -> None:
    assert (await call(world.db, "register_worker", worker, INSTANCE, p_lease_seconds=900, **named))["success"]


async def test_drained_worker_finishes_its_runs_and_claims_no_more(world: World) -> None:
    await registered(world)
    run = await world.running()
    waiting = await world.queue()
    answer = await call(world.db, "drain_worker", WORKER, p_reason="new disk")
    assert answer == {"success": True, "draining": True, "changed": True, "runs": 1}
    assert await world.claim() == DRAINED
    assert (await use(world.db, "append_run_log", run))["success"]
    assert (await call(world.db, "heartbeat", WORKER, INSTANCE))["draining"]
    assert (await use(world.db, "complete_workflow_run", run))["success"]
    assert await call(world.db, "drain_worker", WORKER) == answer | {"changed": False, "runs": 0}
    assert (await world.claim("host-b", OTHER_INSTANCE))["run_id"] == str(waiting)


async def test_drained_worker_stays_so_when_it_starts_again_until_that_is_undone(world: World) -> None:
    await registered(world)
    await call(world.db, "drain_worker", WORKER)
    await call(world.db, "unregister_worker", WORKER, INSTANCE)
    await call(world.db, "register_worker", WORKER, OTHER_INSTANCE)
    run = await world.queue()
    assert await world.claim(instance=OTHER_INSTANCE) == DRAINED
    undone = await call(world.db, "drain_worker", WORKER, p_drain=False)
    assert undone == {"success": True, "draining": False, "changed": True, "runs": 0}
    assert (await world.claim(instance=OTHER_INSTANCE))["run_id"] == str(run)
    assert not (await call(world.db, "heartbeat", WORKER, OTHER_INSTANCE))["draining"]


async def test_shut_out_worker_id_is_not_drained_for_its_next_host(world: World) -> None:
    await registered(world)
    await call(world.db, "drain_worker", WORKER)
    await call(world.db, "shut_out_worker", WORKER)
    await registered(world)
    assert (await world.claim())["message"] == "no queued runs"


async def test_worker_is_notified_of_a_drain_and_of_its_undo(world: World, connect: Connect) -> None:
    await registered(world)
    assert (await world.claim())["run_id"] is None  # it is idle now
    told = await woken(connect, [INSTANCE])
    for drain in (True, False):
        await call(world.db, "drain_worker", WORKER, drain)
        assert await next_of(told) == INSTANCE
    await call(world.db, "drain_worker", WORKER)
    await world.claim()
    await world.queue()
    assert [await next_of(told), await next_of(told)] == [INSTANCE, None], "a run is not announced to it alone"


async def test_drain_returns_after_the_claims_that_began_before_it(world: World, connect: Connect) -> None:
    """Else ``--wait`` could find no run, and one would be claimed after that."""
    await registered(world)
    await world.queue()
    claimer, operator = await connect(), await connect()
    async with claimer.transaction():
        assert (await call(claimer, "claim_next_run", WORKER, INSTANCE))["run_id"] is not None
        draining = await blocked(world.db, operator, call(operator, "drain_worker", WORKER))
    assert (await draining)["runs"] == 1


async def test_claim_does_not_wait_for_a_drain_that_is_not_committed(world: World, connect: Connect) -> None:
    await registered(world)
    operator = await connect()
    async with operator.transaction():
        await call(operator, "drain_worker", WORKER)
        assert await asyncio.wait_for(world.claim(), 10) == DRAINED


async def test_queue_says_that_every_worker_for_a_run_is_drained(world: World) -> None:
    await registered(world)
    await registered(world, "host-g", p_labels=["gpu"])
    await call(world.db, "drain_worker", "host-g")
    await world.queue()
    await world.queue(labels=["gpu"])
    rows = await world.db.fetch("select waits_for from ops.list_queued_runs()")
    assert [row["waits_for"] for row in rows] == [
        "worker: the next one that is free", "worker: each that has its labels is drained",
    ]  # fmt: skip


async def test_workers_show_one_that_drains_also_when_it_has_stopped(world: World, db_url: str) -> None:
    await freeze_clock(world.db, at := datetime(2026, 2, 13, tzinfo=UTC))
    await registered(world)
    run = await world.running()
    states = []
    for step in ("", "drain", "complete", "unregister"):
        if step == "drain":
            await call(world.db, "drain_worker", WORKER, p_reason="new disk")
        elif step == "complete":
            await use(world.db, "complete_workflow_run", run)
        elif step:
            await call(world.db, "unregister_worker", WORKER, INSTANCE)
        states.append((await ops(db_url, "workers")).out.splitlines()[1].split()[1])
    assert states == ["alive", "draining", "drained", "drained"]
    [row] = (await ops(db_url, "workers", "--json")).json
    assert datetime.fromisoformat(row["drained_at"]) == at
    assert (row["alive"], row["drained_by"], row["drain_reason"]) == (False, "postgres", "new disk")


# --- the command ----------------------------------------------------------------------------------------------------


async def test_drain_prints_what_the_worker_still_runs(world: World, db_url: str) -> None:
    await registered(world)
    run = await world.running()
    assert (await ops(db_url, "drain", WORKER)).out == "host-a is draining: 1 run left\n"
    await use(world.db, "complete_workflow_run", run)
    assert await ops(db_url, "drain", WORKER, "--wait") == Said(0, "host-a is drained: it has no runs, as before\n", "")
    assert (await ops(db_url, "drain", WORKER, "--undo")).out == "host-a is not drained: it claims runs\n"
    done = await ops(db_url, "drain", "nowhere")
    assert done == Said(5, "", "drain: no worker has registered this worker_id\n")


async def test_drain_waits_until_the_worker_has_no_runs(world: World, db_url: str, connect: Connect) -> None:
    await registered(world)
    run = await world.running()
    done = await ops(db_url, "drain", WORKER, "--wait", "--timeout", "0.2")
    assert (done.status, done.out) == (4, "")
    assert done.err.splitlines()[1:] == ["--timeout: host-a has runs after 0.2 s; it is still drained"]
    waiting = asyncio.create_task(ops(db_url, "drain", WORKER, "--wait"))
    await asyncio.sleep(1.5)
    assert not waiting.done()
    await use(world.db, "complete_workflow_run", run)
    assert await waiting == Said(
        0, "host-a is drained: it has no runs, as before\n",
        "host-a claims nothing more; waiting for 1 run to end\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--undo", "--wait"], "--undo: does not go with --wait; expected one of the two"),
        (["--undo", "--reason", "x"], "--undo: does not go with --reason; expected one of the two"),
        (["--timeout", "3"], "--timeout: expected --wait with it"),
    ],
)
async def test_options_of_drain_that_do_not_go_together(db_url: str, words: list[str], says: str) -> None:
    assert await ops(db_url, "drain", WORKER, *words) == Said(2, "", f"{says}\n")
