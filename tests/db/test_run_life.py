"""One run's life through the functions: start, complete, release, cancel, and who may call them."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import (
    FINAL,
    INSTANCE,
    LIFE,
    NOW,
    OTHER_INSTANCE,
    STATES,
    WORKER,
    World,
    call,
    everything,
    heard,
    next_of,
    use,
)

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
    "record_report": ("not_running", None),
    "mark_ready": ("not_running", None),
}
Hosts = tuple[asyncpg.Connection, asyncpg.Connection]


async def held(world: World, function: str) -> uuid.UUID:
    """A run in the state that the function is meant for."""
    return await (world.claimed() if function == "release_run" else world.running())


async def test_the_owner_may_do_what_the_state_allows(world: World) -> None:
    for function, codes in ANSWERS.items():
        for run, code in zip((await world.claimed(), await world.running()), codes, strict=True):
            answer = await use(world.db, function, run)
            assert (function, answer.get("code"), answer["success"]) == (function, code, code is None)
        await world.db.execute("delete from ops.runs")  # one was released


@pytest.mark.parametrize("state", ["queued", *FINAL])
async def test_a_run_without_a_lease_changes_by_no_call(world: World, state: str) -> None:
    run = await world.run_in(state)
    before = await everything(world.db)
    for function in LIFE:
        answer = await use(world.db, function, run)
        claims = "claimed" if function in {"start_workflow_run", "release_run", "add_run_event"} else "running"
        assert (function, answer["code"]) == (function, f"not_{claims}" if state == "queued" else "final")
        assert (answer["success"], bool(answer["error"])) == (False, True)
        assert (await use(world.db, function, uuid.uuid4()))["code"] == "not_found"
    assert await everything(world.db) == before


async def test_another_worker_or_instance_is_refused(world: World) -> None:
    others = (("host-b", INSTANCE), (WORKER, OTHER_INSTANCE), ("host-b", None), (None, OTHER_INSTANCE))
    for function in LIFE:
        run = await held(world, function)
        before = await everything(world.db)
        for names in others:
            assert (function, names, (await use(world.db, function, run, *names))["code"]) == (
                function, names, "not_owner"
            )  # fmt: skip
        assert await everything(world.db) == before


async def test_the_role_of_a_host_is_the_actor_and_no_user_it_claims_to_be(world: World, hosts: Hosts) -> None:
    host, run = hosts[0], await world.queue()
    await host.execute(f"set request.jwt.claim.sub = '{uuid.uuid4()}'")
    assert (await call(host, "claim_next_run", WORKER, INSTANCE))["run_id"] == str(run)
    life = sorted(set(LIFE) - {"start_workflow_run", "complete_workflow_run", "release_run"})
    for function in ("start_workflow_run", *life, "complete_workflow_run"):
        assert (await use(host, function, run))["success"]
    events = await world.events(run, "state_change")
    assert [(event["actor"], event["worker_id"]) for event in events] == [("host_one", WORKER)] * 3


async def test_the_contract_calls_work_by_position(world: World) -> None:
    run, db = await world.queue(), world.db
    told = "select to_jsonb($1::timestamptz) #>> '{}'"
    assert (await call(db, "claim_next_run", "test-worker"))["run_id"] == str(run)
    refused = await call(db, "start_workflow_run", run, "two")
    assert (refused["success"], bool(refused["error"]), await world.status(run)) == (False, True, "claimed")
    started = await call(db, "start_workflow_run", run, "test-worker")
    at = (await world.row(run))["started_at"]
    assert started == {"success": True, "started_at": await db.fetchval(told, at)}
    logged = await call(db, "append_run_log", run, "info", "hello", '{"a": 1}')
    assert set(logged) == {"success", "timestamp"}
    artifact = ("out/a.txt", "file:///a.txt", "text/plain", 3, "sha256:" + "0" * 64, NOW, "{}")
    assert set(await call(db, "add_run_artifact", run, *artifact)) == {"success", "artifact_id"}
    done = await call(db, "complete_workflow_run", run, 3, "it broke")
    row = await world.row(run)
    assert done == {
        "success": True, "status": "failed", "exit_code": 3, "finished_at": await db.fetchval(told, row["finished_at"]),
    }  # fmt: skip
    assert (row["status"], row["exit_code"], row["error_message"]) == ("failed", 3, "it broke")


OUTCOMES = [
    # exit code, reason, whether it was cancelled; the status, the reason that is stored
    (0, None, False, "succeeded", "succeeded"),
    (1, None, False, "failed", "failed"),
    (137, "oom", False, "failed", "oom"),
    (None, "image_missing", False, "failed", "image_missing"),
    (143, "canceled", True, "canceled", "canceled"),
    (None, "canceled", True, "canceled", "canceled"),
    (143, "canceled", False, "failed", "canceled"),
    (0, None, True, "succeeded", "succeeded"),
    (1, "timeout", True, "failed", "timeout"),
]


async def test_the_outcome_follows_from_exit_code_reason_and_cancel(world: World) -> None:
    for exit_code, reason, asked, status, stored in OUTCOMES:
        run = await world.running()
        if asked:
            await call(world.db, "cancel_run", run)
        answer = await call(world.db, "complete_workflow_run", run, exit_code, p_reason=reason)
        assert (answer["success"], answer["status"], answer["exit_code"]) == (True, status, exit_code)
        row = await world.row(run)
        assert (row["status"], row["exit_code"], row["reason"]) == (status, exit_code, stored)
        event = (await world.events(run, "state_change"))[-1]
        assert (event["new_status"], event["reason"], event.get("exit_code")) == (status, stored, exit_code)
        assert len(await world.events(run, "error")) == (status == "failed")


async def test_a_failure_is_told_by_an_error_event(world: World) -> None:
    sql = "select message from ops.run_events where run_id = $1 and event_type = 'error'"
    details = json.dumps({"signal": "SIGKILL", "reason": "forged"})
    for exit_code, message, told in ((3, None, "exit code 3"), (None, None, "no exit code"), (137, "oom!", "oom!")):
        run = await world.running()
        await call(world.db, "complete_workflow_run", run, exit_code, message, p_reason="oom", p_details=details)
        assert await world.db.fetchval(sql, run) == told
        assert await world.events(run, "error") == [{"signal": "SIGKILL", "reason": "oom", "exit_code": exit_code}]


async def test_a_reason_or_details_of_the_wrong_form_are_refused(world: World) -> None:
    run = await world.running()
    too_much = json.dumps({"a": "x" * 262_130})  # with the reason that is added
    for name, value in (("reason", "Two words"), ("reason", ""), ("details", "[]"), ("details", too_much)):
        answer = await call(world.db, "complete_workflow_run", run, 1, **{f"p_{name}": value})
        assert (name, answer["code"]) == (name, "bad_argument")
        assert answer["error"].startswith(f"the {name} must ")
    assert await world.status(run) == "running"
    await call(world.db, "complete_workflow_run", run, 1, "x" * 20_000)
    assert len((await world.row(run))["error_message"]) == 10_000


# Lost replies -----------------------------------------------------------------------------------------------


async def test_start_can_be_repeated_by_the_same_instance_only(world: World) -> None:
    run = await world.claimed()
    first = await call(world.db, "start_workflow_run", run, WORKER, INSTANCE)
    before = await everything(world.db)
    assert await call(world.db, "start_workflow_run", run, WORKER, INSTANCE) == first
    assert (await call(world.db, "start_workflow_run", run, WORKER, OTHER_INSTANCE))["code"] == "not_owner"
    assert (await call(world.db, "start_workflow_run", run, WORKER))["code"] == "not_claimed"
    assert await everything(world.db) == before


async def test_complete_can_be_repeated_with_the_same_outcome(world: World) -> None:
    for exit_code, reason in ((0, None), (2, None), (None, "engine_lost"), (143, "canceled")):
        run = await world.running()
        if reason == "canceled":
            await call(world.db, "cancel_run", run)
        end: dict[str, Any] = {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_reason": reason}
        first = await call(world.db, "complete_workflow_run", run, exit_code, **end)
        before = await everything(world.db)
        assert first["success"]
        assert await call(world.db, "complete_workflow_run", run, exit_code, **end) == first
        for other in ({"p_instance_id": OTHER_INSTANCE}, {"p_worker_id": "host-b"}, {"p_instance_id": None}):
            assert (await call(world.db, "complete_workflow_run", run, exit_code, **(end | other)))["code"] == "final"
        assert (await call(world.db, "complete_workflow_run", run, 99, **end))["code"] == "final"
        assert await everything(world.db) == before


async def test_an_end_of_another_kind_is_no_repetition(world: World) -> None:
    end = {"p_worker_id": WORKER, "p_instance_id": INSTANCE}
    run, claimed = await world.running(), await world.claimed()
    for one in (run, claimed):  # the claimed one ends by that, before its start
        await call(world.db, "cancel_run", one)
    assert (await call(world.db, "complete_workflow_run", run, None, p_reason="engine_lost", **end))["success"]
    for one in (run, claimed):
        late = await call(world.db, "complete_workflow_run", one, None, p_reason="canceled", **end)
        assert late.get("code") == "final"
    assert await world.status(run) == "failed"


async def test_release_gives_the_run_back_and_does_not_count_it(world: World) -> None:
    run = await world.claimed()
    assert (await use(world.db, "release_run", run))["success"]
    row = await world.row(run)
    assert (row["status"], row["claim_count"]) == ("queued", 0)
    assert (await world.events(run, "state_change"))[-1]["reason"] == "released"
    assert (await use(world.db, "release_run", run))["code"] == "not_claimed"


# Cancel -----------------------------------------------------------------------------------------------------


async def test_cancel_in_each_state(world: World) -> None:
    assert (await call(world.db, "cancel_run", uuid.uuid4()))["code"] == "not_found"
    for state in STATES:
        run = await world.run_in(state)
        answer = await call(world.db, "cancel_run", run, "no longer wanted")
        row, status = await world.row(run), await world.status(run)
        if state in {"succeeded", "failed"}:
            assert (answer["success"], answer["code"], status) == (False, "final", state)
            continue
        expected = "running" if state == "running" else "canceled"
        assert (state, answer["success"], answer["status"], bool(answer["message"])) == (state, True, expected, True)
        assert status == expected
        if state in {"queued", "claimed"}:
            assert (row["error_message"], row["reason"]) == ("no longer wanted", "canceled")
            assert await world.lease(run) is None
        if state == "running":
            assert row["cancel_requested_at"] is not None
            assert (await world.events(run, "info"))[-1] == {"actor": "postgres", "reason": "no longer wanted"}


async def test_cancel_of_a_running_run_tells_its_worker_each_time(world: World, connect: Connect) -> None:
    run = await world.running()
    cancels = await heard(connect, "ops_cancel")
    for _ in range(2):
        assert (await call(world.db, "cancel_run", run))["success"]
        assert await next_of(cancels) == str(run)
    assert len(await world.events(run, "info")) == 2  # queued, cancel requested: asked once
    renewed = await call(world.db, "heartbeat", WORKER, INSTANCE)
    assert renewed["runs"] == [{"run_id": str(run), "status": "running", "cancel_requested": True}]


async def test_cancel_of_a_claimed_run_tells_its_worker_too(world: World, connect: Connect) -> None:
    run = await world.claimed()
    cancels = await heard(connect, "ops_cancel")
    await world.set_status(run, "canceled")
    assert await next_of(cancels) == str(run)
    assert (await use(world.db, "start_workflow_run", run))["code"] == "final"


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
