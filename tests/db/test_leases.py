"""Workers, their leases, and what happens when one is gone. The clock is the database's; tests move it."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import ENGINE, FINAL, INSTANCE, OTHER_INSTANCE, WORKER, World, call, shift_clock

HOST = {"p_host_id": "machine-1"}


async def register(db: asyncpg.Connection, instance: uuid.UUID = INSTANCE, **named: object) -> dict[str, Any]:
    return await call(db, "register_worker", WORKER, instance, **(HOST | named))


async def adopt(
    world: World,
    run: uuid.UUID,
    worker: str = WORKER,
    instance: uuid.UUID = OTHER_INSTANCE,
    engine: str = ENGINE,
) -> dict[str, Any]:
    return await call(world.db, "adopt_run", run, worker, instance, engine)


async def reap(world: World) -> dict[str, Any]:
    return await call(world.db, "reap")


# Registration -----------------------------------------------------------------------------------------------


async def test_a_worker_learns_which_database_it_serves(world: World) -> None:
    unused = await world.db.fetchval("select database_id from ops_private.control")
    answer = await register(world.db, p_labels=["gpu"], p_version="1.0", p_engine_id=ENGINE)
    identity = await world.db.fetchval("select database_id from ops_private.control")
    assert answer == {"success": True, "database_id": str(identity)}
    assert identity != unused, "a copy that was made before would have the same one"
    row = await world.db.fetchrow("select * from ops_private.workers")
    assert row is not None
    assert (row["worker_id"], row["instance_id"], row["db_role"]) == (WORKER, INSTANCE, "postgres")
    assert (row["host_id"], row["engine_id"], row["version"], row["labels"]) == (
        "machine-1",
        ENGINE,
        "1.0",
        ["gpu"],
    )


async def test_one_worker_id_has_one_live_instance(world: World) -> None:
    await register(world.db)
    refused = await register(world.db, OTHER_INSTANCE)
    assert (refused["success"], refused["code"], "expires_at" in refused) == (False, "worker_id_taken", True)
    assert (await register(world.db))["success"]  # the same instance again
    await shift_clock(world.db, 61)
    assert (await register(world.db, OTHER_INSTANCE))["success"]
    assert (await register(world.db))["code"] == "worker_id_taken"


@pytest.mark.parametrize(
    ("host", "takeover", "accepted"),
    [("machine-1", True, True), ("machine-1", False, False), ("machine-2", True, False), (None, True, False)],
)
async def test_only_the_same_host_takes_over(world: World, host: str | None, *, takeover: bool, accepted: bool) -> None:
    await register(world.db)
    answer = await register(world.db, OTHER_INSTANCE, p_host_id=host, p_takeover=takeover)
    assert answer["success"] == accepted


async def test_another_role_takes_no_live_name(world: World, connect: Connect) -> None:
    await register(world.db)
    other = await connect(role="ops_worker")
    assert (await register(other, OTHER_INSTANCE, p_takeover=True))["code"] == "worker_id_taken"
    assert (await register(other, INSTANCE))["code"] == "worker_id_taken"
    await call(other, "unregister_worker", WORKER, INSTANCE)
    assert (await call(other, "heartbeat", WORKER, INSTANCE))["registered"] is False
    assert (await register(world.db, OTHER_INSTANCE))["code"] == "worker_id_taken"


async def test_who_unregisters_frees_the_name(world: World) -> None:
    await register(world.db)
    assert (await call(world.db, "unregister_worker", WORKER, OTHER_INSTANCE))["success"]
    assert (await register(world.db, OTHER_INSTANCE))["code"] == "worker_id_taken"
    for _ in range(2):
        assert (await call(world.db, "unregister_worker", WORKER, INSTANCE))["success"]
    assert (await register(world.db, OTHER_INSTANCE))["success"]


@pytest.mark.parametrize("wrong", [{"worker": ""}, {"instance": None}, {"p_lease_seconds": 0}])
async def test_a_registration_that_makes_no_sense_is_refused(world: World, wrong: dict[str, object]) -> None:
    named = {"worker": WORKER, "instance": INSTANCE} | wrong
    answer = await call(world.db, "register_worker", named.pop("worker"), named.pop("instance"), **named)
    assert answer["code"] == "bad_argument"
    names = {"worker": "worker_id", "instance": "instance_id", "p_lease_seconds": "lease_seconds"}
    assert [name for name in names.values() if name in answer["error"]] == [names[next(iter(wrong))]]


# Heartbeat --------------------------------------------------------------------------------------------------


async def test_a_heartbeat_renews_the_worker_and_all_its_leases(world: World) -> None:
    await register(world.db)
    runs = [await world.claimed(), await world.running()]
    other = await world.claimed(worker="host-b", instance=OTHER_INSTANCE)
    before = {run: await world.expires_at(run) for run in [*runs, other]}
    await shift_clock(world.db, 100)
    answer = await call(world.db, "heartbeat", WORKER, INSTANCE, 300)
    assert (answer["success"], answer["registered"]) == (True, True)
    assert {(run["run_id"], run["status"], run["cancel_requested"]) for run in answer["runs"]} == {
        (str(runs[0]), "claimed", False), (str(runs[1]), "running", False),
    }  # fmt: skip
    gained = {run: (await world.expires_at(run) - before[run]).total_seconds() for run in before}
    assert all(99 < gained[run] < 110 for run in runs)
    assert gained[other] == 0
    expires_in = await world.db.fetchval(
        "select extract(epoch from expires_at - ops_private.current_time()) from ops_private.workers"
    )
    assert 290 < expires_in <= 300


async def test_a_heartbeat_renews_a_lease_that_ran_out_but_was_not_taken(world: World) -> None:
    run = await world.running()
    await shift_clock(world.db, 10_000)
    assert [one["run_id"] for one in (await call(world.db, "heartbeat", WORKER, INSTANCE))["runs"]] == [str(run)]
    assert (await reap(world))["failed"] == []


@pytest.mark.parametrize(("worker", "instance"), [(WORKER, OTHER_INSTANCE), ("host-b", INSTANCE)])
async def test_a_heartbeat_of_somebody_else_renews_nothing(world: World, worker: str, instance: uuid.UUID) -> None:
    run = await world.claimed()
    before = await world.expires_at(run)
    answer = await call(world.db, "heartbeat", worker, instance)
    assert answer == {"success": True, "registered": False, "runs": []}
    assert await world.expires_at(run) == before


async def test_a_heartbeat_from_another_host_renews_nothing(world: World, connect: Connect) -> None:
    run = await world.claimed()
    before = await world.expires_at(run)
    assert (await call(await connect(role="ops_worker"), "heartbeat", WORKER, INSTANCE))["runs"] == []
    assert await world.expires_at(run) == before


async def test_a_run_that_ended_or_was_taken_is_not_listed(world: World) -> None:
    ended, taken = await world.running(), await world.running()
    await world.set_status(ended, "failed")
    await adopt(world, taken)
    assert (await call(world.db, "heartbeat", WORKER, INSTANCE))["runs"] == []


async def test_a_heartbeat_with_a_senseless_lease_is_refused(world: World) -> None:
    assert (await call(world.db, "heartbeat", WORKER, INSTANCE, 0))["code"] == "bad_argument"


# Adoption ---------------------------------------------------------------------------------------------------


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
    for function, old in (("append_run_log", ("info", "late")), ("add_run_event", ("info", "late"))):
        refused = await call(world.db, function, run, *old, p_worker_id=WORKER, p_instance_id=INSTANCE)
        assert refused["code"] == "not_owner"


async def test_to_adopt_what_one_holds_renews_it_and_counts_nothing(world: World) -> None:
    await register(world.db, p_lease_seconds=300)
    run = await world.running()
    before = await world.expires_at(run)
    await shift_clock(world.db, 60)
    answer = await adopt(world, run, instance=INSTANCE)
    assert (answer["run_id"], answer["claim_count"]) == (str(run), 1)
    assert await world.expires_at(run) > before
    assert len(await world.events(run, "info")) == 1


async def test_a_live_instance_keeps_its_run(world: World) -> None:
    await register(world.db)
    run = await world.running()
    answer = await adopt(world, run)
    assert (answer["success"], answer["code"], answer["status"]) == (False, "worker_id_taken", "running")
    await shift_clock(world.db, 61)  # its registration ran out, the lease did not
    assert (await adopt(world, run))["run_id"] == str(run)


async def test_an_instance_that_was_replaced_does_not_take_back(world: World) -> None:
    await register(world.db)
    run = await world.running()
    await register(world.db, OTHER_INSTANCE, p_takeover=True)
    assert (await adopt(world, run))["run_id"] == str(run)
    assert (await adopt(world, run, instance=INSTANCE))["code"] == "worker_id_taken"


@pytest.mark.parametrize(
    ("seconds", "engine", "adopted"), [(299, ENGINE, False), (301, "engine-2", False), (301, ENGINE, True)]
)
async def test_a_neighbour_on_the_engine_adopts_once_the_lease_ran_out(
    world: World, seconds: int, engine: str, *, adopted: bool
) -> None:
    run = await world.running()
    await shift_clock(world.db, seconds)
    answer = await adopt(world, run, worker="host-b", engine=engine)
    assert answer["success"] == adopted
    assert answer.get("code") == (None if adopted else "not_owner")


async def test_a_run_of_an_unnamed_instance_is_adopted_only_when_its_lease_ran_out(world: World) -> None:
    run = await world.running(instance=None)
    assert (await adopt(world, run))["code"] == "not_owner"
    await shift_clock(world.db, 301)
    assert (await adopt(world, run))["run_id"] == str(run)


async def test_no_engine_is_not_the_same_engine(world: World) -> None:
    run = await world.running(engine=None)
    await shift_clock(world.db, 301)
    assert (await call(world.db, "adopt_run", run, "host-b", OTHER_INSTANCE, None))["code"] == "not_owner"


async def test_another_host_adopts_nothing(world: World, connect: Connect) -> None:
    run = await world.running()
    await shift_clock(world.db, 301)
    other = await connect(role="ops_worker")
    assert (await call(other, "adopt_run", run, WORKER, OTHER_INSTANCE, ENGINE))["code"] == "not_owner"


@pytest.mark.parametrize("state", ["queued", *FINAL])
async def test_what_nobody_holds_cannot_be_adopted(world: World, state: str) -> None:
    run = await world.run_in(state)
    answer = await adopt(world, run)
    assert (answer["success"], answer["status"]) == (False, state)
    assert answer["code"] == ("not_claimed" if state == "queued" else "final")


async def test_to_adopt_a_run_that_is_not_there(world: World) -> None:
    answer = await adopt(world, uuid.uuid4())
    assert (answer["success"], answer["code"], answer["status"]) == (False, "not_found", None)


# Reaping ----------------------------------------------------------------------------------------------------


async def test_nothing_is_reaped_while_leases_last(world: World) -> None:
    await world.claimed()
    await world.running()
    await shift_clock(world.db, 299)
    assert await reap(world) == {"requeued": [], "failed": [], "set_aside": [], "woken": 0}


async def test_a_claimed_run_goes_back_to_the_queue(world: World, connect: Connect) -> None:
    run = await world.claimed()
    woken = asyncio.Event()
    await (await connect()).add_listener("ops_queue", lambda *_: woken.set())
    await shift_clock(world.db, 301)
    assert (await reap(world))["requeued"] == [str(run)]
    assert await world.status(run) == "queued"
    assert (await world.events(run, "state_change"))[-1]["reason"] == "lease_expired"
    await asyncio.wait_for(woken.wait(), 10)
    assert (await call(world.db, "start_workflow_run", run, WORKER, INSTANCE))["code"] == "not_claimed"
    assert (await world.claim(worker="host-b"))["run_id"] == str(run)


@pytest.mark.parametrize(
    ("seconds", "engine", "failed"), [(599, ENGINE, False), (601, ENGINE, True), (301, None, True)]
)
async def test_a_running_run_fails_when_nobody_can_adopt_it_any_more(
    world: World, seconds: int, engine: str | None, *, failed: bool
) -> None:
    run = await world.running(engine=engine)
    await shift_clock(world.db, seconds)
    assert (await reap(world))["failed"] == ([str(run)] if failed else [])
    row = await world.row(run)
    if failed:
        assert (row["status"], row["reason"], row["exit_code"]) == ("failed", "worker_lost", None)
        assert row["error_message"].startswith("worker lost: ")
        (event,) = await world.events(run, "error")
        assert (event["reason"], event["worker_id"]) == ("worker_lost", WORKER)
    else:
        assert row["status"] == "running"


async def test_a_run_that_keeps_losing_its_worker_is_set_aside(world: World) -> None:
    run = await world.queue()
    for n in range(1, 7):
        assert (await world.claim())["claim_count"] == n
        await shift_clock(world.db, 301 * n)
        reaped = await reap(world)
        assert reaped["requeued"] == ([str(run)] if n < 6 else [])
    assert reaped["set_aside"] == [str(run)]
    row = await world.row(run)
    assert (row["status"], row["reason"]) == ("canceled", "poison")
    (event,) = await world.events(run, "error")
    assert event["reason"] == "poison"


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
    assert (row["status"], row["reason"]) == ("failed", "poison")
    assert "11 workers" in row["error_message"]
    assert [event["reason"] for event in await world.events(run, "error")] == ["poison"]


@pytest.mark.parametrize("sign", ["line", "renewal", "leave"])
async def test_a_holder_that_made_progress_does_not_count_as_lost(world: World, sign: str) -> None:
    run = await world.running()
    if sign == "renewal":
        await call(world.db, "record_container", run, WORKER, INSTANCE, "c")
    for n in range(20):
        await shift_clock(world.db, 30 * n)
        answer = await new_holder(world, run)
        assert answer["run_id"] == str(run)
        instance = (await world.row(run))["claimed_instance"]
        if sign == "line":
            line = ([n + 1], ["stdout"], ["info"], ["on it goes"], [datetime.now(UTC)])
            assert (await call(world.db, "append_run_logs", run, WORKER, instance, *line))["success"]
        elif sign == "renewal":
            await call(world.db, "heartbeat", WORKER, instance)
        else:
            await call(world.db, "unregister_worker", WORKER, instance)


@pytest.mark.parametrize("sign", ["line", "renewal", "leave"])
async def test_progress_counts_for_the_holder_that_made_it(world: World, sign: str) -> None:
    run = await world.running()
    if sign == "line":
        line = ([1], ["stdout"], ["info"], ["once"], [datetime.now(UTC)])
        await call(world.db, "append_run_logs", run, WORKER, INSTANCE, *line)
    elif sign == "leave":
        await call(world.db, "unregister_worker", WORKER, INSTANCE)
    else:
        await call(world.db, "record_container", run, WORKER, INSTANCE, "c")
        await call(world.db, "heartbeat", WORKER, INSTANCE)
    for _ in range(6):
        assert (await new_holder(world, run))["run_id"] == str(run)
    await shift_clock(world.db, 61)
    assert (await new_holder(world, run))["code"] == "final"


@pytest.mark.parametrize("state", ["claimed", "running"])
async def test_a_run_that_kills_its_workers_before_its_container_is_created_is_set_aside(
    world: World, state: str
) -> None:
    """Though each of them renews the lease before it dies."""
    run = await (world.claimed() if state == "claimed" else world.running())
    for n in range(5):
        await shift_clock(world.db, 30 * n)
        assert (await new_holder(world, run))["run_id"] == str(run)
        await call(world.db, "heartbeat", WORKER, (await world.row(run))["claimed_instance"])
    await shift_clock(world.db, 150)
    answer = await new_holder(world, run)
    final = "canceled" if state == "claimed" else "failed"
    assert (answer["code"], answer["status"], await world.status(run)) == ("final", final, final)
    assert (await world.row(run))["reason"] == "poison"


async def test_offered_is_what_may_be_adopted(world: World, connect: Connect) -> None:
    run = await world.running()

    async def offered(worker: str, instance: uuid.UUID, engine: str, db: asyncpg.Connection = world.db) -> bool:
        return str(run) in (await call(db, "adoptable_runs", worker, instance, engine))["runs"]

    assert not await offered(WORKER, INSTANCE, ENGINE), "its own"
    assert await offered(WORKER, OTHER_INSTANCE, "engine-2"), "of an earlier instance"
    assert not await offered("host-b", OTHER_INSTANCE, ENGINE), "a neighbour's that lives"
    await shift_clock(world.db, 301)
    assert await offered("host-b", OTHER_INSTANCE, ENGINE)
    assert not await offered("host-b", OTHER_INSTANCE, "engine-2")
    assert not await offered(WORKER, OTHER_INSTANCE, ENGINE, await connect(role="ops_worker"))


async def test_a_run_belongs_to_the_engine_of_its_holder(world: World) -> None:
    run = await world.running()
    assert (await adopt(world, run, engine="engine-2"))["run_id"] == str(run)
    await shift_clock(world.db, 301)
    assert (await adopt(world, run, worker="host-b", engine=ENGINE))["code"] == "not_owner"
    assert (await adopt(world, run, worker="host-b", engine="engine-2"))["run_id"] == str(run)


# A copy of the database -------------------------------------------------------------------------------------


async def test_a_copy_of_the_database_has_an_identity_of_its_own_and_ends_what_it_does_not_run(world: World) -> None:
    original = (await register(world.db))["database_id"]
    claimed, running, queued = await world.claimed(), await world.running(), await world.queue()
    assert (await register(world.db))["database_id"] == original
    server_and_database = """select format('%s/%s', s.system_identifier, d.oid)
        from pg_control_system() as s, pg_database as d where d.datname = current_database()"""
    assert await world.db.fetchval("select fingerprint from ops_private.control") == await world.db.fetchval(
        server_and_database
    )
    # what a restore elsewhere looks like: the same rows under another server or another database
    await world.db.execute("update ops_private.control set fingerprint = 'another server/5'")
    copy = (await register(world.db, OTHER_INSTANCE))["database_id"]
    assert copy != original
    assert [await world.status(run) for run in (claimed, running, queued)] == ["canceled", "failed", "queued"]
    for run in (claimed, running):
        assert (await world.events(run, "error"))[-1]["reason"] == "database_copied"
    assert (await register(world.db, OTHER_INSTANCE))["database_id"] == copy


async def test_a_dump_that_is_restored_beside_the_original_is_another_database(
    db_url: str, db: asyncpg.Connection
) -> None:
    original = (await register(db))["database_id"]
    name = f"copy_{uuid.uuid4().hex[:8]}"
    source = await db.fetchval("select current_database()")
    server, other = db_url.replace(f"/{source}?", "/postgres?"), db_url.replace(f"/{source}?", f"/{name}?")
    await db.close()  # nobody may be connected to a template
    admin = await asyncpg.connect(server)
    await admin.execute(f"create database {name} template {source}")
    copy = await asyncpg.connect(other)
    try:
        assert (await register(copy, OTHER_INSTANCE))["database_id"] != original
    finally:
        await copy.close()
        await admin.execute(f"drop database {name}")
        await admin.close()


async def test_reaping_wakes_scheduled_runs_that_are_due(world: World) -> None:
    run = await world.queue()
    await world.db.execute("update ops.runs set scheduled_at = clock_timestamp() + interval '1 hour'")
    assert (await reap(world))["woken"] == 0
    await shift_clock(world.db, 3601)
    assert (await reap(world))["woken"] == 1
    assert (await world.row(run))["scheduled_at"] is None


async def test_twenty_reap_at_once_and_each_run_is_ended_once(world: World, connect: Connect) -> None:
    runs = {str(await world.running()) for _ in range(20)} | {str(await world.claimed()) for _ in range(20)}
    await shift_clock(world.db, 601)
    connections = [await connect() for _ in range(20)]
    answers = await asyncio.gather(*(call(connection, "reap") for connection in connections))
    reaped = [run for answer in answers for run in answer["failed"] + answer["requeued"]]
    assert (len(reaped), set(reaped)) == (40, runs)


async def test_a_run_is_either_reaped_or_adopted(world: World, connect: Connect) -> None:
    run = await world.running()
    await shift_clock(world.db, 601)
    adopter = await connect()
    transaction = adopter.transaction()
    await transaction.start()
    assert (await call(adopter, "adopt_run", run, "host-b", OTHER_INSTANCE, ENGINE))["run_id"]
    assert (await asyncio.wait_for(reap(world), 10))["failed"] == []  # skipped, not waited for
    await transaction.commit()
    assert (await reap(world))["failed"] == []
    assert await world.status(run) == "running"
