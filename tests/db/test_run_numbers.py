"""Queueing: the number of a run, its idempotency key, and what it takes from its workflow."""

from __future__ import annotations

import asyncio
import json
import uuid

import asyncpg
import pytest
from pydantic import ValidationError

from tests.conftest import Connect
from tests.db.world import World, heard, new_project, new_workflow, next_of
from worker.model.config import MAX_LABEL, MAX_LABELS, WorkflowConfig

INSERT = "insert into ops.runs (project_id, workflow_id, status) values ($1, $2, 'queued')"
WITH_KEY = "insert into ops.runs (project_id, workflow_id, idempotency_key) values ($1, $2, $3)"


async def numbers(world: World) -> list[int]:
    rows = await world.db.fetch(
        "select run_number from ops.runs where project_id = $1 order by run_number", world.project
    )
    return [row["run_number"] for row in rows]


async def test_numbers_count_within_each_project(world: World) -> None:
    other = await new_project(world.db, "other")
    workflow = await new_workflow(world.db, other)
    for _ in range(2):
        await world.queue()
        await world.queue(project_id=other, workflow_id=workflow)
    assert await numbers(world) == [1, 2]


async def test_twenty_at_once_leave_no_gap(world: World, connect: Connect) -> None:
    connections = [await connect() for _ in range(20)]

    async def insert(connection: asyncpg.Connection, me: int) -> None:
        for turn in range(10):
            await connection.execute(INSERT, world.project, world.workflow)
            # all twenty meet at one key
            meeting = f"{WITH_KEY} on conflict (idempotency_key) do nothing"
            await connection.execute(meeting, world.project, world.workflow, f"key-{turn}")
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(INSERT, world.project, world.workflow)
            await (transaction.rollback() if (me + turn) % 2 else transaction.commit())

    await asyncio.gather(*(insert(connection, me) for me, connection in enumerate(connections)))
    assert await numbers(world) == list(range(1, 20 * 10 + 10 + 100 + 1))


TWICE = "insert into ops.runs (project_id, workflow_id, idempotency_key) values ($1, $2, 'k'), ($1, $2, 'k')"
FIFTY = "insert into ops.runs (project_id, workflow_id) select $1, $2 from generate_series(1, 50)"


@pytest.mark.parametrize(
    ("statement", "times", "numbered"),
    [
        (f"{WITH_KEY} on conflict (idempotency_key) do nothing", 3, 1),
        (f"{WITH_KEY} on conflict do nothing", 3, 1),
        (f"{WITH_KEY} on conflict (idempotency_key) do update set metadata = excluded.metadata", 3, 1),
        (f"{TWICE} on conflict (idempotency_key) do nothing", 1, 1),
        (INSERT.replace("(project_id", "(id, project_id").replace("($1", "($3::uuid, $1") + " on conflict do nothing",
         2, 1),
        (INSERT.replace("status)", "run_number)").replace("'queued'", "99"), 1, 1),
        (FIFTY, 1, 50),
    ],
    ids=["key", "any conflict", "update", "twice in one statement", "id", "number of the client", "fifty at once"],
)  # fmt: skip
async def test_only_a_run_that_is_stored_takes_a_number(
    world: World, statement: str, times: int, numbered: int
) -> None:
    more = [str(uuid.uuid4())] if "$3" in statement else []
    for _ in range(times):
        await world.db.execute(statement, world.project, world.workflow, *more)
    await world.queue()
    assert await numbers(world) == list(range(1, numbered + 2))


async def test_a_large_insert_into_an_emptied_table_is_not_quadratic(world: World) -> None:
    """The triggers plan for a table without pages and keep the plan: a scan for each row took 19 s for 16,000 rows."""
    await world.queue()
    await world.db.execute("delete from ops.runs")
    await world.db.execute("vacuum (analyze) ops.runs, ops_private.leases, ops_private.queued")
    scanned = """select pg_stat_get_xact_tuples_returned('ops.runs'::regclass)
                     + pg_stat_get_xact_tuples_returned('ops_private.leases'::regclass)"""
    async with world.db.transaction():
        before = await world.db.fetchval(scanned)
        await world.db.execute(FIFTY.replace("50", "2000"), world.project, world.workflow)
        assert await world.db.fetchval(scanned) == before


async def test_a_deleted_run_does_not_free_its_number(world: World) -> None:
    await world.db.execute("delete from ops.runs where id = $1", await world.queue())
    await world.queue()
    assert await numbers(world) == [2]


async def test_a_key_that_is_taken_and_a_foreign_workflow_are_errors(world: World) -> None:
    await world.queue(idempotency_key="same")
    with pytest.raises(asyncpg.UniqueViolationError):
        await world.queue(idempotency_key="same")
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="runs_workflow_of_project_fkey"):
        await world.queue(project_id=await new_project(world.db, "other"))
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="runs_"):
        await world.queue(project_id=uuid.uuid4())


async def test_the_workflow_says_how_its_runs_queue(world: World) -> None:
    config = {"priority": 7, "labels": ["gpu", "big"], "concurrency_key": "prod"}
    workflow = await new_workflow(world.db, world.project, "w", config)
    row = await world.row(await world.queue(workflow_id=workflow))
    assert (row["priority"], row["labels"], row["concurrency_key"]) == (7, ["gpu", "big"], "prod")
    row = await world.row(await world.queue(workflow_id=workflow, priority=1, labels=["x"], concurrency_key="y"))
    assert (row["priority"], row["labels"], row["concurrency_key"]) == (1, ["x"], "y")


QUEUEING: dict[str, list[object]] = {
    "priority": [0, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 10**400, 1.5, 1.0, "high", None, True],
    "labels": [[], ["gpu"], ["x" * MAX_LABEL] * MAX_LABELS, ["x"] * (MAX_LABELS + 1), ["x" * (MAX_LABEL + 1)], [""],
               [None], [1], "gpu", {"a": 1}, None],
    "concurrency_key": ["", "prod", None, "ü" * 200, "x" * 201, 3, ["x"]],
    "retry": [None, [], "yes", {}],
}  # fmt: skip
RETRIES: list[dict[str, object]] = [
    {}, {"max_attempts": 2}, {"max_attempts": 100}, {"max_attempts": 1}, {"max_attempts": 101}, {"max_attempts": "3"},
    {"max_attempts": None}, {"on": []}, {"on": ["oom", "oom", "timeout", "worker_lost"]}, {"on": ["poison"]},
    {"on": "failed"}, {"on": {}}, {"on": [["failed"]]}, {"more": 1}, {"delay_seconds": 0}, {"delay_seconds": 3600.0},
    {"delay_seconds": 3600.5}, {"delay_seconds": -5}, {"delay_seconds": "x"}, {"delay_seconds": 10**400},
    {"delay_seconds": None}, {"delay_seconds": True},
]  # fmt: skip
QUEUEING["retry"] += [{"max_attempts": 3, "on": ["failed"]} | changed for changed in RETRIES]


@pytest.mark.parametrize("field", QUEUEING)
async def test_a_configuration_that_the_worker_refuses_is_not_queued(world: World, field: str) -> None:
    workflow = await new_workflow(world.db, world.project, "odd", {})
    for value in QUEUEING[field]:
        config = json.dumps({field: value})
        await world.db.execute("update ops.workflows set config = $2 where id = $1", workflow, config)
        refused = stored = None
        try:
            WorkflowConfig.model_validate({field: value})
        except ValidationError:
            refused = f"workflow config, {field}"
        try:
            row = await world.row(await world.queue(workflow_id=workflow))
        except asyncpg.CheckViolationError as error:
            stored = str(error)[: len(f"workflow config, {field}")]
        else:
            if field != "retry":
                assert row[field] == (value or None if field == "concurrency_key" else value)
        assert (config[:80], stored) == (config[:80], refused)


async def test_a_new_run_has_an_event_and_wakes_a_worker(world: World, connect: Connect) -> None:
    wakes = await heard(connect, "ops_queue")
    run = await world.queue()
    assert await world.events(run, "info") == [{"actor": "postgres"}]
    assert await world.events(run, "state_change") == []
    assert await next_of(wakes) == ""
