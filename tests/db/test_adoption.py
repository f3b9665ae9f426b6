"""Which worker adopts a run that another one holds, and when a run that keeps losing its workers is quarantined."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import ENGINE, FINAL, INSTANCE, OTHER_INSTANCE, WORKER, World, adopt, call, reap, shift_clock

HOST = {"p_host_id": "machine-1"}


@pytest.mark.parametrize("state", ["claimed", "running"])
async def test_the_next_instance_of_a_worker_adopts(world: World, state: str) -> None:
    run = await (world.claimed() if state == "claimed" else world.running())
    answer = await adopt(world, run)
    assert (answer["run_id"], answer["status"], answer["claim_count"]) == (str(run), state, 2)
    row = await world.row(run)
    assert (row["claimed_by"], row["claimed_instance"]) == (WORKER, OTHER_INSTANCE)
    assert (await world.events(run, "info"))[-1] == {
        "actor": "postgres", "worker_id": WORKER, "previous_worker_id": WORKER,
    }  # fmt: skip
    for function in ("append_run_log", "add_run_event"):
        named = {"p_worker_id": WORKER, "p_instance_id": INSTANCE}
        assert (await call(world.db, function, run, "info", "late", **named))["code"] == "not_owner"


async def test_the_holder_that_adopts_renews_and_counts_nothing(world: World) -> None:
    await call(world.db, "register_worker", WORKER, INSTANCE, **HOST, p_lease_seconds=300)
    run = await world.running()
    before = await world.expires_at(run)
    await shift_clock(world.db, 60)
    answer = await adopt(world, run, instance=INSTANCE)
    assert (answer["run_id"], answer["claim_count"]) == (str(run), 1)
    assert await world.expires_at(run) > before
    assert len(await world.events(run, "info")) == 1


async def test_a_live_instance_keeps_its_run_and_one_that_was_replaced_does_not_take_it_back(world: World) -> None:
    await call(world.db, "register_worker", WORKER, INSTANCE, **HOST)
    run, other = await world.running(), await world.running()
    answer = await adopt(world, run)
    assert (answer.get("run_id"), answer["code"], answer["status"]) == (None, "worker_id_taken", "running")
    await shift_clock(world.db, 61)  # its registration ran out, the lease did not
    assert (await adopt(world, run))["run_id"] == str(run)
    await call(world.db, "register_worker", WORKER, INSTANCE, **HOST)
    await call(world.db, "register_worker", WORKER, OTHER_INSTANCE, **HOST, p_takeover=True)
    assert (await adopt(world, other))["run_id"] == str(other)
    assert (await adopt(world, other, instance=INSTANCE))["code"] == "worker_id_taken"


NOW, EXPIRED = 299, 301  # seconds after a claim for 300
HERE: dict[str, Any] = {}
NEXT_DOOR = {"worker": "host-b"}
ADOPTIONS = [
    # how the run was claimed, when and by which worker it is adopted; whether it is
    (HERE, NOW, NEXT_DOOR, False),
    (HERE, EXPIRED, NEXT_DOOR | {"engine": "engine-2"}, False),
    (HERE, EXPIRED, NEXT_DOOR, True),
    ({"instance": None}, NOW, HERE, False),
    ({"instance": None}, EXPIRED, HERE, True),
    ({"engine": None}, EXPIRED, NEXT_DOOR | {"engine": None}, False),
    (HERE, NOW, {"engine": "engine-2"}, True),
]


@pytest.mark.parametrize(("claimed", "seconds", "adopter", "adopted"), ADOPTIONS)
async def test_a_neighbour_on_the_engine_adopts_once_the_lease_ran_out(
    world: World, claimed: dict[str, Any], seconds: int, adopter: dict[str, Any], *, adopted: bool
) -> None:
    run = await world.running(**claimed)
    await shift_clock(world.db, seconds)
    answer = await adopt(world, run, **adopter)
    assert (answer.get("run_id"), answer.get("code")) == ((str(run), None) if adopted else (None, "not_owner"))
    if adopted:  # and the run belongs to the engine of its new holder
        await shift_clock(world.db, 2 * EXPIRED)
        engine = adopter.get("engine", ENGINE)
        assert (await adopt(world, run, worker="host-c", engine="engine-3"))["code"] == "not_owner"
        assert (await adopt(world, run, worker="host-c", engine=engine))["run_id"] == str(run)


async def test_another_role_adopts_nothing(world: World, connect: Connect) -> None:
    run = await world.running()
    await shift_clock(world.db, EXPIRED)
    other = await connect(role="ops_worker")
    assert (await call(other, "adopt_run", run, WORKER, OTHER_INSTANCE, ENGINE))["code"] == "not_owner"


async def test_a_run_without_a_lease_cannot_be_adopted(world: World) -> None:
    for state in ("queued", *FINAL):
        answer = await adopt(world, await world.run_in(state))
        code = "not_claimed" if state == "queued" else "final"
        assert (answer.get("run_id"), answer["status"], answer["code"]) == (None, state, code)
    answer = await adopt(world, uuid.uuid4())
    assert (answer.get("run_id"), answer["code"], answer["status"]) == (None, "not_found", None)


async def test_offered_is_what_may_be_adopted(world: World, connect: Connect) -> None:
    run = await world.running()

    async def offered(worker: str, instance: uuid.UUID, engine: str, db: asyncpg.Connection = world.db) -> bool:
        return str(run) in (await call(db, "adoptable_runs", worker, instance, engine))["runs"]

    assert not await offered(WORKER, INSTANCE, ENGINE), "its own"
    assert await offered(WORKER, OTHER_INSTANCE, "engine-2"), "of an earlier instance"
    assert not await offered("host-b", OTHER_INSTANCE, ENGINE), "a neighbour's that lives"
    await shift_clock(world.db, EXPIRED)
    assert await offered("host-b", OTHER_INSTANCE, ENGINE)
    assert not await offered("host-b", OTHER_INSTANCE, "engine-2")
    assert not await offered(WORKER, OTHER_INSTANCE, ENGINE, await connect(role="ops_worker"))


# Quarantine -------------------------------------------------------------------------------------------------


async def test_a_run_that_keeps_losing_its_worker_is_quarantined(world: World) -> None:
    run = await world.queue()
    for n in range(1, 7):
        assert (await world.claim())["claim_count"] == n
        await shift_clock(world.db, 301 * n)
        reaped = await reap(world)
        assert reaped["requeued"] == ([str(run)] if n < 6 else [])
    assert reaped["quarantined"] == [str(run)]
    row = await world.row(run)
    assert (row["status"], row["reason"]) == ("canceled", "poison")
    assert [event["reason"] for event in await world.events(run, "error")] == ["poison"]


async def new_holder(world: World, run: uuid.UUID) -> dict[str, Any]:
    """The holder is killed, and its successor finds the container."""
    return await adopt(world, run, instance=uuid.uuid4())


async def test_a_run_whose_holders_are_lost_one_after_the_other_fails(world: World) -> None:
    run = await world.running()
    for _ in range(10):  # all within a minute: something else may be killing them
        assert (await new_holder(world, run))["run_id"] == str(run)
    await shift_clock(world.db, 61)
    assert (await new_holder(world, run))["code"] == "final"
    row = await world.row(run)
    assert (row["status"], row["reason"], "11 workers" in row["error_message"]) == ("failed", "poison", True)
    assert [event["reason"] for event in await world.events(run, "error")] == ["poison"]


async def make_progress(world: World, run: uuid.UUID, sign: str) -> None:
    """The holder stores a line, renews after its container was created, or leaves."""
    instance = (await world.row(run))["claimed_instance"]
    if sign == "line":
        seq = 1 + await world.db.fetchval("select count(*) from ops.run_logs where run_id = $1", run)
        line = (seq, "on it goes", "i", [datetime.now(UTC)])
        assert (await call(world.db, "append_run_logs", run, WORKER, instance, *line))["success"]
    elif sign == "renewal":
        await call(world.db, "heartbeat", WORKER, instance)
    else:
        await call(world.db, "unregister_worker", WORKER, instance)


@pytest.mark.parametrize("sign", ["line", "renewal", "leave"])
async def test_a_holder_that_made_progress_does_not_count_as_lost(world: World, sign: str) -> None:
    """Progress counts for the holder that made it, and for no later one."""
    run = await world.running()
    if sign == "renewal":
        await call(world.db, "record_container", run, WORKER, INSTANCE, "c")
    for n in range(12):
        await shift_clock(world.db, 30 * n)
        await make_progress(world, run, sign)
        assert (await new_holder(world, run))["run_id"] == str(run)
    for _ in range(5):
        assert (await new_holder(world, run))["run_id"] == str(run)
    await shift_clock(world.db, 30 * 11 + 61)
    assert (await new_holder(world, run))["code"] == "final"


@pytest.mark.parametrize("state", ["claimed", "running"])
async def test_a_run_that_kills_its_workers_before_its_container_is_created_is_quarantined(
    world: World, state: str
) -> None:
    """Though each of them renews the lease before it dies."""
    run = await (world.claimed() if state == "claimed" else world.running())
    for n in range(5):
        await shift_clock(world.db, 30 * n)
        assert (await new_holder(world, run))["run_id"] == str(run)
        await make_progress(world, run, "renewal")
    await shift_clock(world.db, 150)
    answer = await new_holder(world, run)
    final = "canceled" if state == "claimed" else "failed"
    assert (answer["code"], answer["status"], await world.status(run)) == ("final", final, final)
    assert (await world.row(run))["reason"] == "poison"
