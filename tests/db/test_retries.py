"""Automatic retries: a new run exactly where ``retry`` in the workflow's configuration asks for one."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import WORKER, World, call, new_workflow, shift_clock
from worker.model.outcome import HOST_FAULTS, Reason

EVERYTHING = ["worker_lost", "failed", "timeout", "oom"]


async def retrying(world: World, **retry: object) -> World:
    """The same project with a workflow that retries."""
    workflow = await new_workflow(world.db, world.project, f"w{uuid.uuid4().hex[:8]}", {"retry": retry})
    return World(world.db, world.project, workflow)


async def fail(world: World, run: uuid.UUID, reason: str = "exit_code", code: int | None = 1) -> dict[str, Any]:
    return await call(world.db, "complete_workflow_run", run, code, p_reason=reason)


async def retries(world: World, run: uuid.UUID) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await world.db.fetch("select * from ops.runs where retry_of = $1", run)
    return rows


async def test_a_run_that_failed_is_queued_again_as_a_run_that_names_it(world: World) -> None:
    world = await retrying(world, max_attempts=2, on=["failed"], delay_seconds=0)
    run = await world.queue(metadata='{"args": ["-v"]}', priority=3, labels=["gpu"])
    await world.claim(p_labels=["gpu"])
    await call(world.db, "start_workflow_run", run, WORKER)
    await fail(world, run)
    (retry,) = await retries(world, run)
    assert (retry["status"], retry["attempt"], retry["priority"], retry["labels"]) == ("queued", 2, 3, ["gpu"])
    assert (retry["metadata"], retry["workflow_id"]) == ('{"args": ["-v"]}', world.workflow)
    assert (await world.events(run, "info"))[-1]["retry_run_id"] == str(retry["id"])
    await world.claim(p_labels=["gpu"])
    await call(world.db, "start_workflow_run", retry["id"], WORKER)
    await fail(world, retry["id"])
    assert await retries(world, retry["id"]) == []  # two attempts were asked for


RETRIED_AS: dict[str, str | None] = {
    Reason.EXIT_CODE: "failed", Reason.SIGNAL: "failed", Reason.IMAGE_MISSING: "failed",
    Reason.ARTIFACTS_FAILED: "failed", Reason.DISK_FULL: "failed", Reason.SERVICE_FAILED: "failed",
    Reason.NOT_READY: "failed", Reason.SERVE_ENDED: "failed",
    Reason.ENGINE_ERROR: "failed", Reason.ENGINE_LOST: "failed",
    Reason.TIMEOUT: "timeout", Reason.OUT_OF_MEMORY: "oom", "worker_lost": "worker_lost",
    # the next attempt would end in the same way
    Reason.OUTPUT_LIMIT: None, Reason.DISK_LIMIT: None, Reason.WORKFLOW_DISABLED: None, Reason.PROJECT_ARCHIVED: None,
    Reason.TOOL_MISSING: None, Reason.INVALID_CONFIG: None, Reason.SECRET_MISSING: None,
    Reason.IMAGE_NOT_ALLOWED: None, Reason.WORKER_ERROR: None, "poison": None, "database_copied": None,
    Reason.SUCCEEDED: None, Reason.CANCELED: None, Reason.TTL: None,
}  # fmt: skip
"""The word of a workflow's ``retry.on`` for each reason of the worker and of the database; None: never retried."""


async def test_every_reason_is_retried_or_not_as_the_table_says(world: World) -> None:
    assert set(RETRIED_AS) == {*Reason, "worker_lost", "poison", "database_copied"}
    classes = {reason: await world.db.fetchval("select ops_private.retry_class($1)", reason) for reason in RETRIED_AS}
    assert classes == RETRIED_AS


def test_faults_of_the_host_are_retried_but_errors_of_the_worker_are_not() -> None:
    assert {reason for reason in HOST_FAULTS if RETRIED_AS[reason] != "failed"} == {Reason.WORKER_ERROR}


@pytest.mark.parametrize("reason", ["exit_code", "timeout", "out_of_memory", "invalid_config"])
async def test_only_what_the_workflow_names_is_retried(world: World, reason: str) -> None:
    word = RETRIED_AS[reason]
    others = [other for other in EVERYTHING if other != word]
    for on, expected in ((others, 0), (EVERYTHING, 1 if word else 0), *([([word], 1)] if word else [])):
        here = await retrying(world, max_attempts=3, on=on)
        run = await here.running()
        await fail(here, run, reason, 1 if word else None)
        assert (on, len(await retries(here, run))) == (on, expected)
        await here.db.execute("delete from ops.runs")


NO_RETRIES: list[dict[str, object]] = [
    {}, {"retry": {}}, {"retry": []}, {"retry": "yes"}, {"retry": {"max_attempts": 3}},
    {"retry": {"on": ["failed"]}}, {"retry": {"max_attempts": "3", "on": ["failed"]}},
    {"retry": {"max_attempts": 1, "on": ["failed"]}}, {"retry": {"max_attempts": 3, "on": {}}},
    {"retry": {"max_attempts": 3, "on": ["failed"], "delay_seconds": -5}},
]  # fmt: skip


async def test_a_run_is_retried_only_where_the_configuration_asks_for_it(world: World) -> None:
    for config in NO_RETRIES:
        run = await world.running()
        await world.db.execute("update ops.workflows set config = $1", json.dumps(config))  # wrong since it was queued
        assert (await fail(world, run))["success"]
        assert (config, await retries(world, run)) == (config, [])
        await world.db.execute("update ops.workflows set config = '{}'")


async def test_success_cancel_and_what_was_switched_off_are_not_retried(world: World) -> None:
    world = await retrying(world, max_attempts=3, on=EVERYTHING)
    good, stopped, disabled, archived = [await world.running() for _ in range(4)]
    await fail(world, good, "succeeded", 0)
    await call(world.db, "cancel_run", stopped)
    await fail(world, stopped, "exit_code", 1)  # it failed before the request reached it
    await world.db.execute("update ops.workflows set enabled = false")
    await fail(world, disabled)
    await world.db.execute("update ops.workflows set enabled = true")
    await world.db.execute("update ops.projects set status = 'archived'")
    await fail(world, archived)
    assert await world.db.fetchval("select count(*) from ops.runs where retry_of is not null") == 0


async def test_an_answer_that_was_lost_does_not_retry_twice(world: World) -> None:
    world = await retrying(world, max_attempts=5, on=EVERYTHING)
    run = await world.running()
    row = await world.row(run)
    for _ in range(2):
        answer = await call(
            world.db, "complete_workflow_run", run, 1, None, WORKER, row["claimed_instance"], "exit_code"
        )
        assert answer["success"]
    assert len(await retries(world, run)) == 1


async def test_a_lost_worker_is_retried_where_that_is_asked_for(world: World) -> None:
    asked, not_asked = await retrying(world, max_attempts=2, on=["worker_lost"]), world
    runs = [await asked.running(), await not_asked.running()]
    await shift_clock(world.db, 601)
    reaped = await call(world.db, "reap")
    assert set(reaped["failed"]) == {str(run) for run in runs}
    assert [len(await retries(world, run)) for run in runs] == [1, 0]


async def test_the_wait_doubles_up_to_an_hour_and_varies(world: World) -> None:
    world = await retrying(world, max_attempts=100, on=EVERYTHING, delay_seconds=60)
    for attempt, most in ((1, 60), (2, 120), (3, 240), (20, 3600), (99, 3600)):
        waits = set()
        for _ in range(5):
            run = await world.running()
            await world.db.execute("update ops.runs set attempt = $2 where id = $1", run, attempt)
            await fail(world, run)
            (retry,) = await retries(world, run)
            waits.add(round((retry["scheduled_at"] - retry["created_at"]).total_seconds()))
            await world.db.execute("delete from ops.runs")
        assert all(most / 2 - 1 <= wait <= most + 1 for wait in waits)
        assert len(waits) > 1


async def test_a_failed_run_does_not_wait_for_a_client_that_keeps_its_transaction_open(
    world: World, connect: Connect
) -> None:
    world = await retrying(world, max_attempts=2, on=EVERYTHING)
    run = await world.running()
    client = await connect()
    queueing = client.transaction()
    await queueing.start()
    await World(client, world.project, world.workflow).queue()  # has the counter of the project's runs
    failing = asyncio.create_task(fail(world, run))
    assert (await asyncio.wait_for(failing, 10))["success"]
    assert (await retries(world, run), (await world.claim())["waiting"]) == ([], True), "it is still to come"
    await call(world.db, "reap")
    assert await retries(world, run) == []
    await queueing.commit()
    for _ in range(2):
        await call(world.db, "reap")
    assert len(await retries(world, run)) == 1


@pytest.mark.parametrize("locking", ["a client that queues", "a project that is locked"])
async def test_reap_does_not_wait_for_other_transactions(world: World, connect: Connect, locking: str) -> None:
    world = await retrying(world, max_attempts=2, on=EVERYTHING)
    run = await world.running()
    await shift_clock(world.db, 601)
    client = await connect()
    async with client.transaction():
        if locking == "a project that is locked":
            await client.execute("select from ops.projects for update")
        else:
            await World(client, world.project, world.workflow).queue()
        assert (await asyncio.wait_for(call(world.db, "reap"), 10))["failed"] == []  # the next one does it
    assert (await call(world.db, "reap"))["failed"] == [str(run)]
    assert len(await retries(world, run)) == 1
