"""The events of a run: added, never changed, in one order."""

from __future__ import annotations

import json

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import FINAL, World, call


async def test_an_event_is_added(world: World) -> None:
    run = await world.claimed()
    payload = {"path": "../x", "nothing": None}
    for kind in ("info", "warning", "error"):
        answer = await call(world.db, "add_run_event", run, kind, "skipped", json.dumps(payload))
        row = await world.db.fetchrow("select * from ops.run_events where id::text = $1", answer["event_id"])
        assert (answer["success"], row["message"], row["event_type"]) == (True, "skipped", kind)
        assert (row["project_id"], json.loads(row["payload"])) == (world.project, payload)


async def test_an_event_with_a_wrong_argument_is_refused(world: World) -> None:
    run = await world.running()
    right: dict[str, object] = {"p_event_type": "info", "p_message": "hello"}
    for name, value in (
        ("event_type", "state_change"), ("event_type", "note"), ("event_type", None), ("message", None),
        ("payload", "[]"),
    ):  # fmt: skip
        answer = await call(world.db, "add_run_event", p_run_id=run, **(right | {f"p_{name}": value}))
        assert answer["code"] == "bad_argument"
        assert answer["error"].startswith(f"the {name} must ")


async def test_events_stay_even_for_the_superuser(world: World, connect: Connect) -> None:
    await world.queue()
    await world.db.execute("create role ops_other superuser")
    for setting in ("", "on"):
        connection = await connect(role="ops_other")
        if setting:
            await connection.execute(f"set ops.prune_run_events = '{setting}'")
        for statement in (
            "update ops.run_events set message = 'x'", "delete from ops.run_events", "truncate ops.run_events",
            "truncate ops.runs cascade",
        ):  # fmt: skip
            with pytest.raises(asyncpg.PostgresError, match="append-only") as refused:
                await connection.execute(statement)
            assert refused.value.sqlstate == "OPS02"
    assert await world.db.fetchval("select count(*) from ops.run_events") == 1


@pytest.mark.parametrize("table", ["runs", "workflows", "projects"])
async def test_events_go_with_their_run(world: World, table: str) -> None:
    await world.running()
    await world.db.execute(f"delete from ops.{table}")
    for gone in ("ops.runs", "ops.run_events", "ops_private.leases"):
        assert await world.db.fetchval(f"select count(*) from {gone}") == 0


async def test_retention_removes_events_of_runs_that_ended_before(world: World, connect: Connect) -> None:
    ended = [await world.run_in(state) for state in FINAL]
    running = await world.run_in("running")
    pruned = "select events from ops_private.prune_run_events"
    assert await world.db.fetchval(f"{pruned}(now() - interval '1 day')") == 0
    assert await world.db.fetchval(f"{pruned}(clock_timestamp())") > 0
    left = await world.db.fetch("select distinct run_id from ops.run_events")
    assert [row["run_id"] for row in left] == [running]
    assert await world.db.fetchval("select count(*) from ops.runs where id = any ($1)", ended) == 3
    service = await connect(role="service_role")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service.execute("select ops_private.prune_run_events(now())")


async def test_events_have_one_order(world: World) -> None:
    run = await world.running()
    await call(world.db, "complete_workflow_run", run, 1, "it broke")
    rows = await world.db.fetch("select event_type, message from ops.run_events order by seq")
    assert [tuple(row) for row in rows] == [
        ("info", "queued"),
        ("state_change", "queued -> claimed"),
        ("state_change", "claimed -> running"),
        ("state_change", "running -> failed"),
        ("error", "it broke"),
    ]
