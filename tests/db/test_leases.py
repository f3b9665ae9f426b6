"""Workers, their leases, and what happens when one is gone. The clock is the database's; tests move it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import (
    ENGINE,
    INSTANCE,
    OTHER_INSTANCE,
    WORKER,
    World,
    adopt,
    call,
    heard,
    next_of,
    reap,
    shift_clock,
)


async def register(db: asyncpg.Connection, instance: uuid.UUID = INSTANCE, **named: object) -> dict[str, Any]:
    return await call(db, "register_worker", WORKER, instance, **({"p_host_id": "machine-1"} | named))


# Registration -----------------------------------------------------------------------------------------------


async def test_a_worker_learns_which_database_it_serves(world: World) -> None:
    unused = await world.db.fetchval("select database_id from ops_private.control")
    answer = await register(world.db, p_labels=["gpu"], p_version="1.0", p_engine_id=ENGINE)
    identity = await world.db.fetchval("select database_id from ops_private.control")
    assert answer == {"success": True, "database_id": str(identity)}
    assert identity != unused, "a copy that was made before would have the same one"
    row = await world.db.fetchrow(
        "select worker_id, instance_id, db_role, host_id, engine_id, version, labels from ops_private.workers"
    )
    assert tuple(row) == (WORKER, INSTANCE, "postgres", "machine-1", ENGINE, "1.0", ["gpu"])


async def test_one_worker_id_has_one_live_instance(world: World) -> None:
    await register(world.db)
    refused = await register(world.db, OTHER_INSTANCE)
    assert (refused["success"], refused["code"], "expires_at" in refused) == (False, "worker_id_taken", True)
    assert (await register(world.db))["success"]  # the same instance again
    await shift_clock(world.db, 61)
    assert (await register(world.db, OTHER_INSTANCE))["success"]
    assert (await register(world.db))["code"] == "worker_id_taken"
    await world.queue()
    refused = await world.claim()
    assert (refused["run_id"], refused["code"]) == (None, "worker_id_taken")
    assert (await world.claim(instance=OTHER_INSTANCE))["run_id"] is not None


async def test_only_the_same_host_takes_over(world: World) -> None:
    await register(world.db)
    for host, takeover, accepted in (
        ("machine-1", False, False), ("machine-2", True, False), (None, True, False), ("machine-1", True, True),
    ):  # fmt: skip
        answer = await register(world.db, OTHER_INSTANCE, p_host_id=host, p_takeover=takeover)
        assert (host, takeover, answer["success"]) == (host, takeover, accepted)


async def test_another_role_takes_no_live_name(world: World, connect: Connect) -> None:
    await register(world.db)
    other = await connect(role="ops_worker")
    assert (await register(other, OTHER_INSTANCE, p_takeover=True))["code"] == "worker_id_taken"
    assert (await register(other, INSTANCE))["code"] == "worker_id_taken"
    await call(other, "unregister_worker", WORKER, INSTANCE)
    assert (await call(other, "heartbeat", WORKER, INSTANCE))["registered"] is False
    assert (await register(world.db, OTHER_INSTANCE))["code"] == "worker_id_taken"


async def test_a_worker_that_unregisters_frees_its_id(world: World) -> None:
    await register(world.db)
    assert (await call(world.db, "unregister_worker", WORKER, OTHER_INSTANCE))["success"]
    assert (await register(world.db, OTHER_INSTANCE))["code"] == "worker_id_taken"
    for _ in range(2):
        assert (await call(world.db, "unregister_worker", WORKER, INSTANCE))["success"]
    assert (await register(world.db, OTHER_INSTANCE))["success"]


async def test_a_registration_names_the_argument_at_fault(world: World) -> None:
    right = {"p_worker_id": WORKER, "p_instance_id": INSTANCE}
    for name, value in (("worker_id", ""), ("instance_id", None), ("lease_seconds", 0)):
        answer = await call(world.db, "register_worker", **(right | {f"p_{name}": value}))
        assert answer["code"] == "bad_argument"
        named = [one for one in ("worker_id", "instance_id", "lease_seconds") if one in answer["error"]]
        assert named == [name]
    answer = await call(world.db, "heartbeat", WORKER, INSTANCE, 0)
    assert (answer["code"], "lease_seconds" in answer["error"]) == ("bad_argument", True)


# Heartbeat --------------------------------------------------------------------------------------------------


async def test_a_heartbeat_renews_the_worker_and_all_its_leases(world: World, connect: Connect) -> None:
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
    left = "select extract(epoch from expires_at - ops_private.current_time()) from ops_private.workers"
    assert 290 < await world.db.fetchval(left) <= 300

    renewed = await world.expires_at(runs[0])
    strangers = [(world.db, WORKER, OTHER_INSTANCE), (world.db, "host-c", INSTANCE),
                 (await connect(role="ops_worker"), WORKER, INSTANCE)]  # fmt: skip
    for db, worker, instance in strangers:
        answer = await call(db, "heartbeat", worker, instance)
        assert answer == {"success": True, "registered": False, "draining": False, "runs": []}
    assert await world.expires_at(runs[0]) == renewed


async def test_a_heartbeat_renews_a_lease_that_ran_out_and_not_one_that_ended_or_was_adopted(world: World) -> None:
    run, ended, adopted = [await world.running() for _ in range(3)]
    await shift_clock(world.db, 10_000)
    await world.set_status(ended, "failed")
    await adopt(world, adopted)
    assert [one["run_id"] for one in (await call(world.db, "heartbeat", WORKER, INSTANCE))["runs"]] == [str(run)]
    assert (await reap(world))["failed"] == []


# Reaping ----------------------------------------------------------------------------------------------------


async def test_reap_ends_nothing_while_leases_last(world: World) -> None:
    await world.claimed()
    await world.running()
    await shift_clock(world.db, 299)
    assert await reap(world) == {"requeued": [], "failed": [], "quarantined": [], "expired": [], "woken": 0}


async def test_a_claimed_run_goes_back_to_the_queue(world: World, connect: Connect) -> None:
    run = await world.claimed()
    wakes = await heard(connect, "ops_queue")
    await shift_clock(world.db, 301)
    assert (await reap(world))["requeued"] == [str(run)]
    assert await world.status(run) == "queued"
    assert (await world.events(run, "state_change"))[-1]["reason"] == "lease_expired"
    await next_of(wakes)
    assert (await call(world.db, "start_workflow_run", run, WORKER, INSTANCE))["code"] == "not_claimed"
    assert (await world.claim(worker="host-b"))["run_id"] == str(run)


@pytest.mark.parametrize(
    ("seconds", "engine", "failed"), [(599, ENGINE, False), (601, ENGINE, True), (301, None, True)]
)
async def test_a_running_run_fails_when_no_worker_can_adopt_it_any_more(
    world: World, seconds: int, engine: str | None, *, failed: bool
) -> None:
    run = await world.running(engine=engine)
    await shift_clock(world.db, seconds)
    assert (await reap(world))["failed"] == ([str(run)] if failed else [])
    row = await world.row(run)
    assert row["status"] == ("failed" if failed else "running")
    if failed:
        assert (row["reason"], row["exit_code"]) == ("worker_lost", None)
        assert row["error_message"].startswith("worker lost: ")
        (event,) = await world.events(run, "error")
        assert (event["reason"], event["worker_id"]) == ("worker_lost", WORKER)


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
    async with adopter.transaction():
        assert (await call(adopter, "adopt_run", run, "host-b", OTHER_INSTANCE, ENGINE))["run_id"]
        assert (await asyncio.wait_for(reap(world), 10))["failed"] == []  # skipped, not waited for
    assert (await reap(world))["failed"] == []
    assert await world.status(run) == "running"


# A copy of the database -------------------------------------------------------------------------------------


async def test_a_copy_of_the_database_has_an_identity_of_its_own_and_ends_what_it_does_not_run(world: World) -> None:
    original = (await register(world.db))["database_id"]
    claimed, running, queued = await world.claimed(), await world.running(), await world.queue()
    assert (await register(world.db))["database_id"] == original
    here = """select format('%s/%s', s.system_identifier, d.oid)
        from pg_control_system() as s, pg_database as d where d.datname = current_database()"""
    fingerprint = await world.db.fetchval("select fingerprint from ops_private.control")
    assert fingerprint == await world.db.fetchval(here)
    # what a restore elsewhere looks like: the same rows under another server or another database
    await world.db.execute("update ops_private.control set fingerprint = 'another server/5'")
    copy = (await register(world.db, OTHER_INSTANCE))["database_id"]
    assert copy != original
    assert [await world.status(run) for run in (claimed, running, queued)] == ["canceled", "failed", "queued"]
    for run in (claimed, running):
        assert (await world.events(run, "error"))[-1]["reason"] == "database_copied"
    assert (await register(world.db, OTHER_INSTANCE))["database_id"] == copy


async def test_a_dump_that_is_restored_beside_the_original_is_another_database(
    db_url: str, db: asyncpg.Connection, connect: Connect
) -> None:
    original = (await register(db))["database_id"]
    name = f"copy_{uuid.uuid4().hex[:8]}"
    source = await db.fetchval("select current_database()")
    server, other = db_url.replace(f"/{source}?", "/postgres?"), db_url.replace(f"/{source}?", f"/{name}?")
    await db.close()  # no connection may be open to a template
    admin = await connect(server)
    await admin.execute(f"create database {name} template {source}")
    try:
        assert (await register(await connect(other), OTHER_INSTANCE))["database_id"] != original
    finally:
        await admin.execute(f"drop database {name} with (force)")
