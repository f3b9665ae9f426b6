"""What keeps a run in the queue: an approval, a time after which it is not wanted, a newer run."""

from __future__ import annotations

import json
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.crowd import Crowd
from tests.db.persons import Said, as_role, ops
from tests.db.world import (
    INSTANCE,
    WORKER,
    World,
    blocked,
    call,
    heard,
    new_workflow,
    next_of,
    shift_clock,
    sign_in,
)  # fmt: skip

DAY = 24 * 3600


async def governed(world: World, **config: object) -> World:
    """The same project with a workflow of that configuration."""
    workflow = await new_workflow(world.db, world.project, "live", config)
    return World(world.db, world.project, workflow)


async def waits(world: World) -> list[str | None]:
    return [row["waits_for"] for row in await world.db.fetch("select waits_for from ops.list_queued_runs()")]


# Approval ---------------------------------------------------------------------------------------------------


async def test_a_run_waits_for_its_approval_and_blocks_no_other(world: World, connect: Connect) -> None:
    live = await governed(world, approval=True, concurrency_key="live")
    run, other = await live.queue(), await world.queue(concurrency_key="live")
    assert (await waits(world))[1].startswith("approval: an admin approves or rejects it until ")  # type: ignore[union-attr]
    assert (await world.claim())["run_id"] == str(other)
    await world.set_status(other, "canceled")
    answer = await world.claim()
    assert (answer["run_id"], answer["waiting"]) == (None, False)
    for change in ("priority = 3", "scheduled_at = now() - interval '1 day'", "scheduled_at = null"):
        await world.db.execute(f"update ops.runs set {change} where id = $1", run)
        assert (await world.claim())["run_id"] is None
    with pytest.raises(asyncpg.CheckViolationError, match="approved_before_claim"):
        await world.set_status(run, "claimed")
    await world.db.fetchval("select ops_private.rebuild_queue()")
    assert (await world.claim())["run_id"] is None
    admin, wakes = await sign_in(world, connect, "admin"), await heard(connect, "ops_queue")
    assert await call(admin, "approve_run", run) == {"success": True, "approval": "approved", "changed": True}
    assert (await call(admin, "approve_run", run))["changed"] is False
    await next_of(wakes)
    user = await admin.fetchval("select ops.current_user_id()")
    assert (await world.events(run, "info"))[1:] == [{"actor": str(user)}]
    assert (await world.claim())["run_id"] == str(run)
    assert (await call(admin, "reject_run", run))["code"] == "not_waiting"


async def test_a_rejected_run_is_canceled_with_the_reason(world: World, connect: Connect) -> None:
    live = await governed(world, approval=True)
    admin = await sign_in(world, connect, "admin")
    run = await live.queue()
    assert (await call(admin, "reject_run", run, "not on a Friday"))["success"]
    row = await world.row(run)
    assert (row["status"], row["approval"], row["reason"]) == ("canceled", "rejected", "rejected")
    assert row["error_message"] == (await world.events(run, "info"))[1]["reason"] == "not on a Friday"
    assert (await call(admin, "approve_run", run))["code"] == "final"
    assert (await call(admin, "approve_run", await world.queue()))["code"] == "not_waiting"


async def test_the_user_who_queued_a_run_does_not_decide_about_it(world: World, connect: Connect) -> None:
    live = await governed(world, approval=True)
    owner, other = await sign_in(world, connect, "owner"), await sign_in(world, connect, "admin")
    run = uuid.UUID((await call(owner, "enqueue_run", live.workflow))["run_id"])
    for function in ("approve_run", "reject_run"):
        answer = await call(owner, function, run)
        assert (answer["code"], answer["error"]) == (
            "not_allowed", "another admin than the one who queued the run must decide",
        )  # fmt: skip
    assert (await call(other, "approve_run", run))["success"]


async def test_an_approval_expires_after_24_hours(world: World) -> None:
    live = await governed(world, approval=True, queue_timeout_seconds=60)
    runs = [await live.queue() for _ in range(2)]
    await shift_clock(world.db, DAY - 100)
    assert (await call(world.db, "reap"))["expired"] == []
    await call(world.db, "approve_run", runs[1])
    await shift_clock(world.db, DAY + 1)
    assert (await call(world.db, "approve_run", runs[0]))["code"] == "not_waiting"
    assert sorted((await call(world.db, "reap"))["expired"]) == sorted(map(str, runs))
    rows = [await world.row(run) for run in runs]
    assert [(row["status"], row["approval"], row["reason"]) for row in rows] == [
        ("canceled", "expired", "approval_expired"), ("canceled", "approved", "queue_timeout"),
    ]  # fmt: skip
    assert [event["reason"] for event in await world.events(runs[0], "state_change")] == ["approval_expired"]


async def test_only_an_automatic_retry_keeps_the_approval(world: World) -> None:
    live = await governed(world, approval=True, retry={"max_attempts": 3, "on": ["failed"], "delay_seconds": 0})
    run = await live.queue()
    await call(world.db, "approve_run", run)
    await world.claim()
    await call(world.db, "start_workflow_run", run, WORKER)
    await call(world.db, "complete_workflow_run", run, 1, p_reason="exit_code")
    retry = await world.db.fetchrow("select * from ops.runs where retry_of = $1", run)
    assert (retry["approval"], retry["wanted_until"]) == ("approved", None)
    await world.set_status(retry["id"], "canceled")
    again = await call(world.db, "retry_run", run)
    assert (await world.row(uuid.UUID(again["run_id"])))["approval"] == "pending"


async def test_only_an_admin_removes_the_approval_of_a_workflow(world: World, connect: Connect) -> None:
    live = await governed(world, approval=True)
    change = "update ops.workflows set config = $2 where id = $1"
    developer = await sign_in(world, connect, "developer")
    await developer.execute(change, live.workflow, '{"approval": true, "priority": 1}')
    for config in ("{}", '{"approval": false}'):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="approval: only an admin may remove it"):
            await developer.execute(change, live.workflow, config)
    await (await sign_in(world, connect, "admin")).execute(change, live.workflow, "{}")


async def test_approve_and_reject_by_command(crowd: Crowd, db_url: str) -> None:
    world = crowd.world
    live = await governed(world, approval=True)
    runs = [await live.queue(), await live.queue(created_by=crowd.users["admin"])]
    names = [f"acme#{(await world.row(run))['run_number']}" for run in runs]
    admin, developer = (as_role(db_url, "authenticated", crowd.users[who]) for who in ("admin", "developer"))
    shown = await ops(developer, "queue")
    assert shown.out.count("approval: an admin approves or rejects it until") == 2
    refused = await ops(developer, "runs", "approve", names[0])
    assert refused == Said(6, "", "runs approve: a developer may not approve or reject runs\n")
    assert await ops(admin, "runs", "approve", names[0]) == Said(0, f"{names[0]} is approved\n", "")
    assert await ops(admin, "runs", "approve", names[0]) == Said(0, f"{names[0]} is approved, as before\n", "")
    assert (await ops(admin, "runs", "reject", names[1])).status == 6
    document = (await ops(db_url, "runs", "reject", names[1], "--reason", "too late", "--json")).json
    assert document == {"run_id": str(runs[1]), "run": names[1], "approval": "rejected", "changed": True}
    page = await ops(admin, "runs", "show", names[1])
    assert f"{names[1]} canceled: too late\n  rejected: an admin rejected it." in page.out
    assert "Approval   rejected" in page.out


# A time after which a run is not wanted ---------------------------------------------------------------------


async def test_a_run_that_waits_too_long_is_canceled_and_not_claimed(world: World) -> None:
    live = await governed(world, queue_timeout_seconds=60)
    old, young = await live.queue(), await world.queue()
    await shift_clock(world.db, 61)
    assert (await world.claim())["run_id"] == str(young)
    assert (await call(world.db, "reap"))["expired"] == [str(old)]
    assert (await world.events(old, "state_change"))[-1]["reason"] == "queue_timeout"


async def test_the_time_of_a_scheduled_run_counts_from_its_due_time(world: World) -> None:
    live = await governed(world, queue_timeout_seconds=60)
    answer = await call(world.db, "enqueue_run", live.workflow)
    await world.db.execute("delete from ops.runs where id = $1", uuid.UUID(answer["run_id"]))
    due = await world.db.fetchval("select now() + interval '1 hour'")
    run = uuid.UUID((await call(world.db, "enqueue_run", live.workflow, "{}", None, due))["run_id"])
    await shift_clock(world.db, 3650)
    assert (await call(world.db, "reap"))["expired"] == []
    await shift_clock(world.db, 3661)
    assert (await call(world.db, "reap"))["expired"] == [str(run)]


# A newer run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "statuses", "asked"),
    [
        ("queue", ["running", "queued", "queued", "queued"], False),
        ("newest", ["running", "canceled", "canceled", "queued"], False),
        ("cancel_running", ["running", "canceled", "canceled", "queued"], True),
    ],
)
async def test_ten_pushes_are_not_ten_deploys(world: World, policy: str, statuses: list[str], *, asked: bool) -> None:
    live = await governed(world, concurrency_key="live", on_newer=policy)
    runs = [await live.running()]
    rows = await world.db.fetch(
        "insert into ops.runs (project_id, workflow_id) select $1, $2 from generate_series(1, 2) returning id",
        live.project, live.workflow,
    )  # fmt: skip
    runs += [row["id"] for row in rows] + [await live.queue()]
    assert [await world.status(run) for run in runs] == statuses
    assert ((await world.row(runs[0]))["cancel_requested_at"] is not None) == asked
    if policy != "queue":
        row = await world.row(runs[1])
        assert row["reason"] == "superseded"
        assert row["error_message"] == "superseded: run #3 of the same workflow, key and git ref is newer"
        assert (await world.events(runs[2], "state_change"))[-1]["reason"] == "superseded"
    if asked:
        assert "superseded: run #3 " in (await world.events(runs[0], "info"))[-1]["reason"]


@pytest.mark.parametrize("active", [True, False])
async def test_a_run_supersedes_a_run_that_may_start_only_when_it_is_approved(world: World, *, active: bool) -> None:
    live = await governed(world, concurrency_key="live", on_newer="cancel_running", approval=True)
    old = await live.queue(approval="approved")
    if active:
        assert (await world.claim())["run_id"] == str(old)
        await call(world.db, "start_workflow_run", old, WORKER)
    status = await world.status(old)
    pending, new = await live.queue(), await live.queue()
    assert [await world.status(run) for run in (old, pending, new)] == [status, "canceled", "queued"]
    assert (await world.row(old))["cancel_requested_at"] is None
    assert (await call(world.db, "approve_run", new))["success"]
    assert [await world.status(run) for run in (old, new)] == ["running" if active else "canceled", "queued"]
    assert (await world.row(old))["cancel_requested_at"] is not None


async def test_a_run_for_later_supersedes_only_runs_for_later(world: World) -> None:
    live = await governed(world, concurrency_key="live", on_newer="cancel_running")
    tomorrow = await world.db.fetchval("select now() + interval '1 day'")
    runs = [await live.queue(), await live.queue(scheduled_at=tomorrow), await live.queue(scheduled_at=tomorrow)]
    assert [await world.status(run) for run in runs] == ["queued", "canceled", "queued"]
    await live.queue()
    assert [await world.status(run) for run in runs] == ["canceled", "canceled", "canceled"]


async def test_only_the_same_workflow_key_and_ref_is_superseded(world: World) -> None:
    await world.db.execute('update ops.workflows set config = \'{"concurrency_key": "live"}\'')
    live = await governed(world, concurrency_key="live", on_newer="newest")
    await world.db.execute("update ops.workflows set git_ref = 'main' where id = $1", live.workflow)

    async def pushed(ref: str | None, **columns: object) -> uuid.UUID:
        return await live.queue(metadata=json.dumps({"git_ref": ref} if ref else {}), **columns)

    other = await world.queue()
    keyed, branch, main = await pushed("main", concurrency_key="else"), await pushed("feature"), await pushed("main")
    newest = await pushed(None)  # main is the workflow's own
    kept = {run: await world.status(run) for run in (other, keyed, branch, main, newest)}
    assert {run for run, status in kept.items() if status == "canceled"} == {main}


async def test_a_claim_under_way_is_superseded_only_by_cancel_running(world: World, connect: Connect) -> None:
    """The new run waits for the claim of the old one, and then finds it claimed."""
    for policy, status in (("newest", "claimed"), ("cancel_running", "canceled")):
        live = World(world.db, world.project, await new_workflow(
            world.db, world.project, policy, {"concurrency_key": policy, "on_newer": policy}
        ))  # fmt: skip
        old = await live.queue()
        worker, client = await connect(), await connect()
        async with worker.transaction():
            assert (await call(worker, "claim_next_run", WORKER, INSTANCE))["run_id"] == str(old)
            queueing = await blocked(world.db, client, call(client, "enqueue_run", live.workflow))
        new: dict[str, Any] = await queueing
        assert (new["success"], await world.status(old)) == (True, status)
        await world.set_status(uuid.UUID(new["run_id"]), "canceled")


async def test_a_retry_supersedes_nothing_and_a_newer_run_supersedes_it(world: World) -> None:
    live = await governed(
        world,
        concurrency_key="live",
        on_newer="newest",
        retry={"max_attempts": 9, "on": ["failed"], "delay_seconds": 0},
    )
    run = await live.running()
    await call(world.db, "complete_workflow_run", run, 1, p_reason="exit_code")
    assert await world.db.fetchval("select count(*) from ops.runs where retry_of = $1", run) == 1
    second = await world.db.fetchval("select id from ops.runs where retry_of = $1", run)
    newer = await live.queue()
    assert (await world.row(second))["reason"] == "superseded"
    assert (await call(world.db, "retry_run", run))["success"]
    assert await world.status(newer) == "queued"
    await world.db.execute("update ops.runs set priority = 1 where id = $1", newer)
    await world.claim()
    await call(world.db, "start_workflow_run", newer, WORKER)
    await live.queue()
    await call(world.db, "complete_workflow_run", newer, 1, p_reason="exit_code")
    assert await world.db.fetchval("select count(*) from ops.runs where retry_of = $1", newer) == 0
