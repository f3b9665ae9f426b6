"""Claiming: order, labels, concurrency keys, schedules, races, and what it costs."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import (
    ENGINE,
    INSTANCE,
    WORKER,
    World,
    blocked,
    call,
    heard,
    next_of,
    shift_clock,
)  # fmt: skip
from worker.cli.settings import MAX_LEASE as MOST

HOUR_AHEAD = "update ops.runs set scheduled_at = clock_timestamp() + interval '1 hour' where id = $1"


async def test_the_answer_holds_all_that_a_worker_needs(world: World) -> None:
    empty = {"run_id": None, "message": "no queued runs", "waiting": False}
    assert await call(world.db, "claim_next_run", WORKER) == empty
    config = {"tool": "odoo", "version": "18.0", "env": {"A": "1"}}
    await world.db.execute(
        "update ops.workflows set config = $1, git_ref = 'main', git_commit = 'abc'", json.dumps(config)
    )
    await world.db.execute(
        """insert into ops.tools (tool_name, version, docker_image, config)
           values ('odoo', '18.0', 'odoo:18', '{"a": 1}'), ('odoo', '19.0', 'odoo:19', '{}')"""
    )
    run = await world.queue(metadata='{"args": ["-v"]}')
    answer = await world.claim()
    row = await world.row(run)
    expires_at = await world.expires_at(run)
    for name, stored in {"claimed_at": row["claimed_at"], "lease_expires_at": expires_at}.items():
        assert answer.pop(name) == await world.db.fetchval("select to_jsonb($1::timestamptz) #>> '{}'", stored)
    assert datetime.fromisoformat(answer.pop("queued_at")) == row["created_at"]
    assert answer == {
        "run_id": str(run), "project_id": str(world.project), "workflow_id": str(world.workflow),
        "run_number": 1, "started_at": None, "status": "claimed", "claim_count": 1, "cancel_requested": False,
        "log_position": 0, "ready_at": None, "log_began_at": None,
        "container_id": None,
        "metadata": {"args": ["-v"]}, "parent_run_id": None,
        "project": {"slug": "acme", "name": "Acme", "workspace_key": "acme", "odoo_version": "19.0",
                    "status": "active"},
        "workflow": {"workflow_type": "build", "name": "build", "enabled": True, "git_ref": "main",
                     "git_commit": "abc", "config": config},
        "tool": {"tool_name": "odoo", "version": "18.0", "docker_image": "odoo:18", "config": {"a": 1}},
        "services": [],
    }  # fmt: skip


async def test_the_answer_says_since_when_the_run_could_be_claimed(world: World) -> None:
    """After it was returned to the queue, and when a scheduled run was due; not since it was first queued."""
    run = await world.claimed()
    await world.queue(scheduled_at=datetime.now(UTC) + timedelta(minutes=50))
    await shift_clock(world.db, 1_000)
    await call(world.db, "release_run", run, WORKER, INSTANCE)
    await shift_clock(world.db, 1_005)
    answers = [await world.claim()]
    await shift_clock(world.db, 3_600)
    answers.append(await world.claim())
    waits = [datetime.fromisoformat(it["claimed_at"]) - datetime.fromisoformat(it["queued_at"]) for it in answers]
    assert timedelta(seconds=5) <= waits[0] < timedelta(seconds=60)
    assert timedelta(0) <= waits[1] < timedelta(seconds=60)


@pytest.mark.parametrize(
    ("workflow", "tool", "named"),
    [
        ([{"name": "a", "tool": "pg", "version": "16"}, {"name": "b", "tool": "odoo"}], None, {"pg:16", "odoo:19"}),
        ([{"name": "a", "tool": "pg"}, {"name": "b", "image": "pg:16"}], None, set()),
        (None, [{"name": "a", "tool": "pg", "version": "16"}], {"pg:16"}),
        ([], [{"name": "a", "tool": "pg", "version": "16"}], set()),
        ([1, "pg", None, [], {"tool": {"tool": "pg"}}, {"tool": "pg", "version": ["16"]}], None, set()),
        (None, {"tool": "pg"}, set()),
    ],
)
async def test_the_answer_holds_the_tools_that_services_name(
    world: World, workflow: object, tool: object, named: set[str]
) -> None:
    config = {} if workflow is None else {"services": workflow}
    await world.db.execute("update ops.workflows set config = $1", json.dumps(config))
    await world.db.execute(
        """insert into ops.tools (tool_name, version, docker_image, config)
           values ('odoo', '19.0', 'odoo:19', $1), ('pg', '16', 'pg:16', '{}')""",
        json.dumps({} if tool is None else {"services": tool}),
    )
    await world.queue()
    found = (await world.claim())["services"]
    assert {each["docker_image"] for each in found} == named
    assert all(each.keys() == {"tool_name", "version", "docker_image", "config"} for each in found)


async def test_the_lease_says_who_and_for_how_long_and_a_tool_has_a_default(world: World) -> None:
    run = await world.queue()
    answer = await world.claim(p_lease_seconds=77, p_labels=None)
    assert answer["run_id"] == str(run)
    assert answer["tool"] == {"tool_name": "odoo", "version": "19.0", "docker_image": None, "config": None}
    lease, claimed_at = await world.lease(run), (await world.row(run))["claimed_at"]
    assert lease is not None
    assert (lease["worker_id"], lease["instance_id"], lease["db_role"]) == (WORKER, INSTANCE, "postgres")
    assert (lease["engine_id"], lease["lease_seconds"]) == (ENGINE, 77)
    assert 76 < (lease["expires_at"] - claimed_at).total_seconds() < 78


async def test_the_highest_priority_goes_first_then_the_oldest(world: World) -> None:
    late = await world.queue()
    early = await world.queue(created_at=await world.db.fetchval("select now() - interval '1 day'"))
    urgent = await world.queue(priority=1)
    last = await world.queue(priority=-1)
    listed = await world.db.fetch("select run_id from ops.list_queued_runs()")
    # an index would give that order unasked
    await world.db.execute("set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off")
    order = [uuid.UUID((await world.claim())["run_id"]) for _ in range(4)]
    assert order == [urgent, early, late, last] == [row["run_id"] for row in listed]


async def test_list_queued_runs_shows_claimed_ones_first_and_nothing_else(world: World) -> None:
    await world.run_in("succeeded")
    await world.run_in("running")
    claimed = await world.claimed()
    queued = await world.queue()
    scheduled = await world.queue()
    await world.db.execute(HOUR_AHEAD, scheduled)
    rows = await world.db.fetch("select * from ops.list_queued_runs()")
    assert [row["run_id"] for row in rows] == [claimed, queued, scheduled]
    assert list(rows[0].keys()) == [
        "run_id", "project_id", "workflow_id", "run_number", "status", "created_at", "claimed_by",
        "claimed_at", "waits_for",
    ]  # fmt: skip


async def test_a_run_goes_to_a_worker_that_has_all_its_labels(world: World) -> None:
    for wanted, offered, claimed in (
        ([], [], True), ([], ["a"], True), (["a"], ["a", "b"], True), (["a"], [], False), (["a", "b"], ["a"], False),
    ):  # fmt: skip
        await world.queue(labels=wanted)
        answer = await world.claim(p_labels=offered)
        assert (wanted, offered, answer["run_id"] is not None) == (wanted, offered, claimed)
        # what only others can run is nothing to wait for
        assert claimed or answer["waiting"] is False
        await world.db.execute("delete from ops.runs")


async def test_runs_that_no_worker_with_these_labels_can_claim_are_counted(world: World) -> None:
    for labels in ([], ["a"], ["a", "gpu"], ["big"], ["big", "gpu"]):
        await world.queue(labels=labels)
    ended = await world.queue(labels=["old"])
    await world.db.execute("select ops.cancel_run($1)", ended)
    assert await call(world.db, "unclaimable_runs", ["a"]) == {"success": True, "runs": 3, "labels": ["big", "gpu"]}
    assert await call(world.db, "unclaimable_runs", ["a", "big", "gpu"]) == {"success": True, "runs": 0, "labels": []}


async def test_one_run_per_concurrency_key_at_a_time(world: World, connect: Connect) -> None:
    first = await world.queue(concurrency_key="prod")
    second = await world.queue(concurrency_key="prod")
    third = await world.queue()
    assert (await world.claim())["run_id"] == str(first)
    assert (await world.claim())["run_id"] == str(third)
    blocked = await world.claim()
    assert (blocked["run_id"], blocked["waiting"]) == (None, True)
    wakes = await heard(connect, "ops_queue")
    await call(world.db, "start_workflow_run", first, WORKER)
    assert (await world.claim())["run_id"] is None
    await call(world.db, "complete_workflow_run", first, 0)
    await next_of(wakes)
    assert (await world.claim())["run_id"] == str(second)


async def test_a_race_for_a_key_goes_on_to_the_next_run(world: World, connect: Connect) -> None:
    first = await world.queue(concurrency_key="prod", priority=2)
    second = await world.queue(concurrency_key="prod", priority=1)
    free = await world.queue()
    slow, fast = await connect(), await connect()
    async with slow.transaction():
        assert (await call(slow, "claim_next_run", "slow"))["run_id"] == str(first)
        # the other sees the key as free, picks the second run, and waits for the first claim to end
        racing = await blocked(world.db, fast, call(fast, "claim_next_run", "fast"))
    assert (await racing)["run_id"] == str(free)
    with pytest.raises(asyncpg.UniqueViolationError, match="leases_concurrency_idx"):
        await world.set_status(second, "claimed")


async def test_twenty_workers_claim_two_hundred_runs_once_each(world: World, connect: Connect) -> None:
    await world.db.execute(
        "insert into ops.runs (project_id, workflow_id, concurrency_key) "
        "select $1, $2, case when i % 10 = 0 then 'key-' || i end from generate_series(1, 200) as i",
        world.project, world.workflow,
    )  # fmt: skip
    connections = [await connect() for _ in range(20)]

    async def work(connection: asyncpg.Connection, me: int) -> list[str]:
        mine: list[str] = []
        while (answer := await call(connection, "claim_next_run", f"worker-{me}", uuid.uuid4()))["run_id"]:
            mine.append(answer["run_id"])
        return mine

    claims = await asyncio.gather(*(work(connection, me) for me, connection in enumerate(connections)))
    counted = Counter(run for mine in claims for run in mine)
    assert len(counted) == 200
    assert set(counted.values()) == {1}
    owners = {row["run_id"]: row["worker_id"] for row in await world.db.fetch("select * from ops_private.leases")}
    assert owners == {uuid.UUID(run): f"worker-{me}" for me, mine in enumerate(claims) for run in mine}


async def test_a_scheduled_run_waits_for_its_time(world: World) -> None:
    run = await world.queue()
    await world.db.execute(HOUR_AHEAD, run)
    early = await world.claim()
    assert (early["run_id"], early["waiting"]) == (None, True)
    await shift_clock(world.db, 3601)
    assert (await world.claim())["run_id"] == str(run)
    assert (await world.row(run))["scheduled_at"] is None


async def test_a_claim_names_the_argument_at_fault(world: World) -> None:
    run = await world.queue()
    for worker, lease in (("", 300), (None, 300), (WORKER, 0), (WORKER, -1), (WORKER, MOST + 1), (WORKER, None)):
        answer = await call(world.db, "claim_next_run", worker, p_lease_seconds=lease)
        assert (answer["run_id"], answer["code"]) == (None, "bad_argument")
        assert answer["message"] == (
            f"the lease_seconds must be from 1 to {MOST}" if worker else "the worker_id must not be empty"
        )
    assert await world.status(run) == "queued"
    assert (await world.claim(p_lease_seconds=MOST))["run_id"] == str(run)  # the longest that a worker can ask for


@pytest.mark.parametrize("how", ["claim", "adopt"])
async def test_a_run_that_cannot_be_read_fails_and_holds_nothing_up(world: World, how: str) -> None:
    await world.db.execute("alter table ops.runs drop constraint runs_valid")
    deep, healthy = await world.queue(), await world.queue()
    if how == "adopt":
        assert (await world.claim())["run_id"] == str(deep)
    nested = f'{{"a": {"[" * 3000}{"]" * 3000}}}'
    await world.db.execute("update ops.runs set metadata = $2 where id = $1", deep, nested)
    await world.db.execute("set max_stack_depth = '100kB'")
    if how == "adopt":
        answer = await call(world.db, "adopt_run", deep, WORKER, uuid.uuid4(), "engine-1")
        assert (answer["success"], answer["code"], answer["status"]) == (False, "final", "failed")
    assert (await world.claim(instance=None))["run_id"] == str(healthy)
    await world.db.execute("reset max_stack_depth")
    row = await world.row(deep)
    assert (row["status"], row["reason"]) == ("failed", "invalid_config")
    assert row["error_message"].startswith("the run cannot be read: stack depth limit exceeded")
    assert (await world.events(deep, "error"))[-1]["reason"] == "invalid_config"


@pytest.mark.parametrize(("planned", "runs"), [("on an empty table", 10_000), ("on the full table", 1_000_000)])
async def test_a_claim_reads_the_first_entries_of_its_lanes_and_nothing_else(
    world: World, planned: str, runs: int
) -> None:
    """A million runs cost a claim nothing: not due, with labels that the worker lacks, with a key that is held.
    Nor do a thousand keys.

    A worker's session plans its claim once, maybe while the tables are empty, and keeps the plan as they grow.
    """
    held = await world.queue(concurrency_key="held")
    assert (await world.claim())["run_id"] == str(held)
    if planned == "on an empty table":
        for _ in range(8):  # plans become generic after five
            assert (await world.claim())["run_id"] is None
    for columns in ({"labels": ["gpu"]}, {"concurrency_key": "held"}, {"priority": 1}):
        await world.queue(**columns)
    await world.db.execute("update ops.runs set scheduled_at = now() + interval '1 day' where priority = 1")
    await world.db.execute(
        """insert into ops.runs (project_id, workflow_id, priority, concurrency_key)
           select $1, $2, 2, 'key ' || i from generate_series(1, 1000) as i""",
        world.project, world.workflow,
    )  # fmt: skip
    # entries like those three, without runs: a claim must not look for their runs
    await world.db.execute(
        """insert into ops_private.queued (run_id, lane_id, group_id, scheduled_at, created_at, run_number)
           select gen_random_uuid(), q.lane_id, q.group_id, q.scheduled_at, q.created_at - interval '1 day', i
           from ops_private.queued as q join ops.runs as r on r.id = q.run_id, generate_series(1, $1 / 3) as i
           where r.priority < 2""",
        runs,
    )
    if planned == "on the full table":
        await world.db.execute("analyze ops_private.queued, ops_private.lanes")
    async with world.db.transaction():
        before = await reads(world.db)
        for _ in range(8):
            assert (await world.claim())["run_id"] is not None
        rows, scans, entries = (b - a for a, b in zip(before, await reads(world.db), strict=True))
    # One finds the groups. Each of the three that it may take: the first entries, and whether there are more unless one
    # can be claimed. That with the held key: its lanes, and the first entry of one of them. One locks the run.
    assert (rows, scans) == (0, 8 * 9)
    assert entries <= 8 * 100


async def reads(db: asyncpg.Connection) -> tuple[int, ...]:
    """Rows of runs and of the queue read by sequential scans, and scans and entries of the queue's indexes, so far."""
    tables, indexes = ("ops.runs", "ops_private.queued"), ("queued_lane_idx", "queued_group_idx", "lanes_group_idx")
    return tuple(
        await db.fetchrow(
            """select (select sum(pg_stat_get_xact_tuples_returned(t)) from unnest($1::regclass[]) as t),
                      sum(pg_stat_get_xact_numscans(i)), sum(pg_stat_get_xact_tuples_returned(i))
               from unnest($2::regclass[]) as i""",
            tables, [f"ops_private.{index}" for index in indexes],
        )
    )  # fmt: skip
