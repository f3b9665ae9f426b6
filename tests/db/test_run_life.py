"""One run's life through the functions: start, complete, release, cancel, and who may call them."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.db.world import FINAL, INSTANCE, OTHER_INSTANCE, STATES, WORKER, World, call

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BATCH: dict[str, Any] = {
    "p_seqs": [1], "p_streams": ["stdout"], "p_levels": ["info"], "p_messages": ["hello"],
    "p_timestamps": [NOW],
}  # fmt: skip
LIFE: dict[str, dict[str, Any]] = {
    "start_workflow_run": {},
    "complete_workflow_run": {"p_exit_code": 0},
    "release_run": {},
    "append_run_log": {"p_level": "info", "p_message": "hello"},
    "append_run_logs": BATCH,
    "add_run_artifact": {"p_artifact_key": "a.txt", "p_artifact_url": "file:///a.txt"},
    "add_run_event": {"p_event_type": "info", "p_message": "hello"},
    "record_container": {"p_container_id": "c"},
}
"""Every function that a worker calls for one run, with arguments that are right."""
ANSWERS = {
    # what it answers for a claimed run, and for a running one
    "start_workflow_run": (None, None),
    "complete_workflow_run": ("not_running", None),
    "release_run": (None, "not_claimed"),
    "append_run_log": ("not_running", None),
    "append_run_logs": ("not_running", None),
    "add_run_artifact": ("not_running", None),
    "add_run_event": (None, None),
    "record_container": ("not_running", None),
}


async def use(
    db: asyncpg.Connection, function: str, run: uuid.UUID, worker: str | None = WORKER,
    instance: uuid.UUID | None = INSTANCE,
) -> dict[str, Any]:  # fmt: skip
    return await call(db, function, p_run_id=run, p_worker_id=worker, p_instance_id=instance, **LIFE[function])


async def stored(db: asyncpg.Connection) -> list[Any]:
    """All that a call could have changed."""
    return [
        await db.fetch(f"select * from {table} order by 1, 2")
        for table in ("ops.runs", "ops.run_events", "ops.run_logs", "ops.run_artifacts", "ops_private.leases")
    ]


@pytest_asyncio.fixture
async def host(world: World, connect: Connect) -> asyncpg.Connection:
    """A connection of one build host's own role."""
    name = f"host_{uuid.uuid4().hex[:12]}"
    await world.db.execute(f"create role {name} login in role ops_worker")
    return await connect(user=name)


@pytest.mark.parametrize("state", ["claimed", "running"])
@pytest.mark.parametrize("function", LIFE)
async def test_the_owner_may_do_what_the_state_allows(world: World, function: str, state: str) -> None:
    run = await (world.claimed() if state == "claimed" else world.running())
    answer = await use(world.db, function, run)
    assert answer.get("code") == ANSWERS[function][state == "running"]
    assert answer["success"] == (answer.get("code") is None)


@pytest.mark.parametrize("state", ["queued", *FINAL])
@pytest.mark.parametrize("function", LIFE)
async def test_a_run_that_nobody_holds_takes_nothing(world: World, function: str, state: str) -> None:
    run = await world.run_in(state)
    before = await stored(world.db)
    answer = await use(world.db, function, run)
    claims = "claimed" if function in {"start_workflow_run", "release_run", "add_run_event"} else "running"
    assert answer["code"] == (f"not_{claims}" if state == "queued" else "final")
    assert answer["success"] is False
    assert answer["error"]
    assert await stored(world.db) == before


@pytest.mark.parametrize("function", LIFE)
async def test_there_is_nothing_to_do_for_a_run_that_is_not_there(world: World, function: str) -> None:
    assert (await use(world.db, function, uuid.uuid4()))["code"] == "not_found"


@pytest.mark.parametrize(
    ("worker", "instance"),
    [("host-b", INSTANCE), (WORKER, OTHER_INSTANCE), ("host-b", None), (None, OTHER_INSTANCE)],
    ids=["other worker", "other instance", "other worker unnamed instance", "other instance unnamed worker"],
)
@pytest.mark.parametrize("function", LIFE)
async def test_another_worker_or_instance_is_refused(
    world: World, function: str, worker: str | None, instance: uuid.UUID | None
) -> None:
    run = await (world.claimed() if function == "release_run" else world.running())
    before = await stored(world.db)
    assert (await use(world.db, function, run, worker, instance))["code"] == "not_owner"
    assert await stored(world.db) == before


@pytest.mark.parametrize("named", [True, False], ids=["with the owner's names", "without names"])
@pytest.mark.parametrize("function", LIFE)
async def test_another_host_is_refused_whatever_it_writes(
    world: World, host: asyncpg.Connection, function: str, *, named: bool
) -> None:
    run = await (world.claimed() if function == "release_run" else world.running())
    before = await stored(world.db)
    names = (WORKER, INSTANCE) if named else (None, None)
    assert (await use(host, function, run, *names))["code"] == "not_owner"
    assert await stored(world.db) == before


async def test_a_host_works_on_what_it_claimed_and_its_role_is_the_actor(
    world: World, host: asyncpg.Connection
) -> None:
    run = await world.queue()
    assert (await call(host, "claim_next_run", WORKER, INSTANCE))["run_id"] == str(run)
    life = sorted(set(LIFE) - {"start_workflow_run", "complete_workflow_run", "release_run"})
    for function in ("start_workflow_run", *life, "complete_workflow_run"):
        assert (await use(host, function, run))["success"]
    role = await host.fetchval("select session_user::text")
    events = await world.events(run, "state_change")
    assert [(event["actor"], event["worker_id"]) for event in events] == [(role, WORKER)] * 3


async def test_a_host_cannot_pose_as_a_user(world: World, host: asyncpg.Connection) -> None:
    run = await world.queue()
    await host.execute(f"set request.jwt.claim.sub = '{uuid.uuid4()}'")
    await call(host, "claim_next_run", WORKER)
    (event,) = await world.events(run, "state_change")
    assert event["actor"] == await host.fetchval("select session_user::text")


async def test_a_trusted_caller_may_act_for_any_worker(world: World, host: asyncpg.Connection) -> None:
    run = await world.queue()
    await call(host, "claim_next_run", WORKER, INSTANCE)
    await call(host, "start_workflow_run", run, WORKER, INSTANCE)
    assert (await call(world.db, "append_run_log", run, "info", "hello"))["success"]
    assert (await call(world.db, "complete_workflow_run", run, 0))["success"]


async def test_the_contract_calls_work_by_position(world: World) -> None:
    run = await world.queue()
    assert (await call(world.db, "claim_next_run", "test-worker"))["run_id"] == str(run)
    started = await call(world.db, "start_workflow_run", run, "test-worker")
    row = await world.row(run)
    text = "select to_jsonb($1::timestamptz) #>> '{}'"
    assert started == {"success": True, "started_at": await world.db.fetchval(text, row["started_at"])}
    logged = await call(world.db, "append_run_log", run, "info", "hello", '{"a": 1}')
    assert set(logged) == {"success", "timestamp"}
    kept = await call(
        world.db,
        "add_run_artifact",
        run,
        "out/a.txt",
        "file:///a.txt",
        "text/plain",
        3,
        "sha256:" + "0" * 64,
        NOW,
        "{}",
    )
    assert set(kept) == {"success", "artifact_id"}
    done = await call(world.db, "complete_workflow_run", run, 3, "it broke")
    row = await world.row(run)
    assert done == {
        "success": True, "status": "failed", "exit_code": 3,
        "finished_at": await world.db.fetchval(text, row["finished_at"]),
    }  # fmt: skip
    assert (row["status"], row["exit_code"], row["error_message"]) == ("failed", 3, "it broke")


async def test_start_by_another_than_the_claimer_is_refused(world: World) -> None:
    run = await world.claimed(worker="one", instance=None)
    refused = await call(world.db, "start_workflow_run", run, "two")
    assert (refused["success"], bool(refused["error"])) == (False, True)
    assert await world.status(run) == "claimed"


@pytest.mark.parametrize(
    ("exit_code", "reason", "asked", "status", "stored_reason"),
    [
        (0, None, False, "succeeded", "succeeded"),
        (1, None, False, "failed", "failed"),
        (137, "oom", False, "failed", "oom"),
        (None, "image_missing", False, "failed", "image_missing"),
        (143, "canceled", True, "canceled", "canceled"),
        (None, "canceled", True, "canceled", "canceled"),
        (143, "canceled", False, "failed", "canceled"),
        (0, None, True, "succeeded", "succeeded"),
        (1, "timeout", True, "failed", "timeout"),
    ],
)
async def test_how_a_run_ends(
    world: World, exit_code: int | None, reason: str | None, *, asked: bool, status: str, stored_reason: str
) -> None:
    run = await world.running()
    if asked:
        await call(world.db, "cancel_run", run)
    answer = await call(world.db, "complete_workflow_run", run, exit_code, p_reason=reason)
    assert (answer["success"], answer["status"], answer["exit_code"]) == (True, status, exit_code)
    row = await world.row(run)
    assert (row["status"], row["exit_code"], row["reason"]) == (status, exit_code, stored_reason)
    event = (await world.events(run, "state_change"))[-1]
    assert (event["new_status"], event["reason"], event.get("exit_code")) == (
        status,
        stored_reason,
        exit_code,
    )
    assert len(await world.events(run, "error")) == (status == "failed")


@pytest.mark.parametrize(("exit_code", "message"), [(3, "exit code 3"), (None, "no exit code")])
async def test_a_failure_without_a_message_says_the_exit_code(
    world: World, exit_code: int | None, message: str
) -> None:
    run = await world.running()
    await call(world.db, "complete_workflow_run", run, exit_code)
    told = await world.db.fetchval("select message from ops.run_events where run_id = $1 and event_type = 'error'", run)
    assert told == message


async def test_a_failure_is_told_in_full_by_an_error_event(world: World) -> None:
    run = await world.running()
    details = {"signal": "SIGKILL", "reason": "forged"}
    await call(
        world.db,
        "complete_workflow_run",
        run,
        137,
        "out of memory",
        p_reason="oom",
        p_details=json.dumps(details),
    )
    assert await world.events(run, "error") == [{"signal": "SIGKILL", "reason": "oom", "exit_code": 137}]
    message = await world.db.fetchval("select message from ops.run_events where event_type = 'error'")
    assert message == "out of memory"


@pytest.mark.parametrize("wrong", [{"p_reason": "Two words"}, {"p_reason": ""}, {"p_details": "[]"}])
async def test_an_ending_that_makes_no_sense_is_refused(world: World, wrong: dict[str, str]) -> None:
    run = await world.running()
    answer = await call(world.db, "complete_workflow_run", run, 1, **wrong)
    assert answer["code"] == "bad_argument"
    assert answer["error"].startswith(f"the {next(iter(wrong)).removeprefix('p_')} must be ")
    assert await world.status(run) == "running"


async def test_a_long_error_message_is_cut(world: World) -> None:
    run = await world.running()
    await call(world.db, "complete_workflow_run", run, 1, "x" * 20_000)
    assert len((await world.row(run))["error_message"]) == 10_000


# Lost acknowledgements --------------------------------------------------------------------------------------


async def test_start_can_be_repeated_by_the_same_instance_only(world: World) -> None:
    run = await world.claimed()
    first = await call(world.db, "start_workflow_run", run, WORKER, INSTANCE)
    before = await stored(world.db)
    assert await call(world.db, "start_workflow_run", run, WORKER, INSTANCE) == first
    assert (await call(world.db, "start_workflow_run", run, WORKER, OTHER_INSTANCE))["code"] == "not_owner"
    assert (await call(world.db, "start_workflow_run", run, WORKER))["code"] == "not_claimed"
    assert await stored(world.db) == before


@pytest.mark.parametrize(("exit_code", "reason"), [(0, None), (2, None), (None, "engine_lost"), (143, "canceled")])
async def test_complete_can_be_repeated_with_the_same_outcome(
    world: World, exit_code: int | None, reason: str | None
) -> None:
    run = await world.running()
    if reason == "canceled":
        await call(world.db, "cancel_run", run)
    end: dict[str, Any] = {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_reason": reason}
    first = await call(world.db, "complete_workflow_run", run, exit_code, **end)
    before = await stored(world.db)
    assert first["success"]
    assert await call(world.db, "complete_workflow_run", run, exit_code, **end) == first
    for other in ({"p_instance_id": OTHER_INSTANCE}, {"p_worker_id": "host-b"}, {"p_instance_id": None}):
        assert (await call(world.db, "complete_workflow_run", run, exit_code, **(end | other)))["code"] == "final"
    assert (await call(world.db, "complete_workflow_run", run, 99, **end))["code"] == "final"
    assert await stored(world.db) == before


async def test_a_run_that_was_cancelled_before_its_start_was_not_completed_by_its_claimer(world: World) -> None:
    run = await world.claimed()
    await call(world.db, "cancel_run", run)
    end = {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_reason": "canceled"}
    assert (await call(world.db, "complete_workflow_run", run, None, **end))["code"] == "final"


async def test_an_end_of_another_kind_is_no_repetition(world: World) -> None:
    run = await world.running()
    await call(world.db, "cancel_run", run)
    end = {"p_worker_id": WORKER, "p_instance_id": INSTANCE}
    assert (await call(world.db, "complete_workflow_run", run, None, p_reason="engine_lost", **end))["success"]
    late = await call(world.db, "complete_workflow_run", run, None, p_reason="canceled", **end)
    assert (late.get("code"), await world.status(run)) == ("final", "failed")


async def test_release_gives_the_run_back_and_does_not_count_it(world: World) -> None:
    run = await world.claimed()
    assert (await call(world.db, "release_run", run, WORKER, INSTANCE))["success"]
    row = await world.row(run)
    assert (row["status"], row["claim_count"]) == ("queued", 0)
    assert (await world.events(run, "state_change"))[-1]["reason"] == "released"
    assert (await call(world.db, "release_run", run, WORKER, INSTANCE))["code"] == "not_claimed"


# Cancel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
async def test_cancel_in_each_state(world: World, state: str) -> None:
    run = await world.run_in(state)
    answer = await call(world.db, "cancel_run", run, "no longer wanted")
    if state in {"succeeded", "failed"}:
        assert (answer["success"], answer["code"], await world.status(run)) == (False, "final", state)
        return
    expected = "running" if state == "running" else "canceled"
    assert (answer["success"], answer["status"], bool(answer["message"])) == (True, expected, True)
    assert await world.status(run) == expected
    row = await world.row(run)
    if state in {"queued", "claimed"}:
        assert (row["error_message"], row["reason"]) == ("no longer wanted", "canceled")
        assert await world.lease(run) is None
    if state == "running":
        assert row["cancel_requested_at"] is not None
        assert (await world.events(run, "info"))[-1] == {"actor": "postgres", "reason": "no longer wanted"}


async def test_cancel_of_a_running_run_tells_its_worker_each_time(world: World, connect: Connect) -> None:
    run = await world.running()
    heard: asyncio.Queue[str] = asyncio.Queue()
    await (await connect()).add_listener("ops_cancel", lambda *args: heard.put_nowait(args[3]))
    for _ in range(2):
        assert (await call(world.db, "cancel_run", run))["success"]
        assert await asyncio.wait_for(heard.get(), 10) == str(run)
    assert len(await world.events(run, "info")) == 2  # queued, cancel requested: asked once
    renewed = await call(world.db, "heartbeat", WORKER, INSTANCE)
    assert renewed["runs"] == [{"run_id": str(run), "status": "running", "cancel_requested": True}]


async def test_cancel_of_a_claimed_run_tells_its_worker_too(world: World, connect: Connect) -> None:
    run = await world.claimed()
    heard: asyncio.Queue[str] = asyncio.Queue()
    await (await connect()).add_listener("ops_cancel", lambda *args: heard.put_nowait(args[3]))
    await world.set_status(run, "canceled")
    assert await asyncio.wait_for(heard.get(), 10) == str(run)
    assert (await call(world.db, "start_workflow_run", run, WORKER, INSTANCE))["code"] == "final"


async def test_cancel_of_a_run_that_is_not_there(world: World) -> None:
    assert (await call(world.db, "cancel_run", uuid.uuid4()))["code"] == "not_found"


@pytest.mark.parametrize("function", ["append_run_log", "complete_workflow_run"])
async def test_a_client_that_keeps_the_run_locked_delays_its_worker_for_a_moment_only(
    world: World, connect: Connect, function: str
) -> None:
    run = await world.running()
    other = await connect()
    async with world.db.transaction():
        assert (await call(world.db, "cancel_run", run))["success"]
        with pytest.raises(asyncpg.LockNotAvailableError):
            await asyncio.wait_for(call(other, function, p_run_id=run, **LIFE[function]), 10)


async def test_details_that_just_fit_are_no_error(world: World) -> None:
    run = await world.running()
    answer = await call(world.db, "complete_workflow_run", run, 1, p_details=json.dumps({"a": "x" * 262_130}))
    assert answer["code"] == "bad_argument"
