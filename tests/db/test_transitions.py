"""The state machine, as somebody meets it who updates ``ops.runs`` directly."""

from __future__ import annotations

import itertools

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import FINAL, STATES, World

ALLOWED = {
    ("queued", "claimed"), ("queued", "canceled"),
    ("claimed", "running"), ("claimed", "queued"), ("claimed", "canceled"),
    ("running", "succeeded"), ("running", "failed"), ("running", "canceled"),
}  # fmt: skip
PAIRS = list(itertools.product(STATES, STATES))


@pytest.mark.parametrize(("old", "new"), [pair for pair in PAIRS if pair in ALLOWED])
async def test_an_allowed_change_writes_one_event(world: World, old: str, new: str) -> None:
    run = await world.run_in(old)
    before = len(await world.events(run, "state_change"))
    await world.set_status(run, new)
    assert await world.status(run) == new
    (event,) = (await world.events(run, "state_change"))[before:]
    assert (event["previous_status"], event["new_status"], event["actor"]) == (old, new, "postgres")


@pytest.mark.parametrize(("old", "new"), [(a, b) for a, b in PAIRS if a != b and (a, b) not in ALLOWED])
async def test_every_other_change_is_refused(world: World, old: str, new: str) -> None:
    run = await world.run_in(old)
    with pytest.raises(asyncpg.PostgresError, match=f"may not change from {old} to {new}") as refused:
        await world.set_status(run, new)
    assert refused.value.sqlstate == "OPS01"
    assert await world.status(run) == old


@pytest.mark.parametrize("state", STATES)
async def test_an_update_that_leaves_the_status_alone_passes_in_every_state(world: World, state: str) -> None:
    run = await world.run_in(state)
    before = await world.row(run)
    events = await world.db.fetchval("select count(*) from ops.run_events")
    await world.db.execute("""update ops.runs set metadata = '{"a": 1}', status = status where id = $1""", run)
    after = await world.row(run)
    assert after["metadata"] == '{"a": 1}'
    assert after["updated_at"] > before["updated_at"]
    assert await world.db.fetchval("select count(*) from ops.run_events") == events


@pytest.mark.parametrize("state", STATES)
async def test_columns_and_lease_follow_the_status(world: World, state: str) -> None:
    run = await world.run_in(state)
    row = await world.row(run)
    was_claimed = state not in {"queued", "canceled"}
    assert (row["claimed_at"] is not None, row["claimed_by"] is not None) == (was_claimed, was_claimed)
    assert (row["started_at"] is not None) == (state in {"running", "succeeded", "failed"})
    assert (row["finished_at"] is not None) == (state in FINAL)
    assert row["exit_code"] == (0 if state == "succeeded" else None)
    assert row["reason"] == (state if state in FINAL else None)
    assert (await world.lease(run) is not None) == (state in {"claimed", "running"})


async def test_a_run_that_goes_back_to_the_queue_forgets_its_claim(world: World) -> None:
    run = await world.claimed()
    await world.set_status(run, "queued")
    row = await world.row(run)
    assert (row["claimed_by"], row["claimed_at"], row["claimed_instance"]) == (None, None, None)
    assert await world.lease(run) is None
    assert (await world.claim())["run_id"] == str(run)
    assert (await world.row(run))["claim_count"] == 2


async def test_what_the_update_gives_is_kept(world: World) -> None:
    run = await world.queue()
    await world.db.execute(
        "update ops.runs set status = 'claimed', claimed_by = 'me', claimed_at = '2026-01-01Z' where id = $1",
        run,
    )
    row = await world.row(run)
    assert (row["claimed_by"], row["claimed_at"].year) == ("me", 2026)
    lease = await world.lease(run)
    assert lease is not None
    assert lease["worker_id"] == "me"


@pytest.mark.parametrize("state", STATES[1:])
async def test_a_run_begins_as_queued(world: World, state: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match="begins as queued") as refused:
        await world.queue(status=state)
    assert refused.value.sqlstate == "OPS01"


async def test_service_role_changes_the_status_and_all_stays_consistent(world: World, connect: Connect) -> None:
    service = await connect(role="service_role")
    run = await world.queue()
    for status in ("claimed", "running", "failed"):
        await service.execute("update ops.runs set status = $2 where id = $1", run, status)
    row = await world.row(run)
    assert (row["claimed_by"], row["reason"]) == ("service_role", "failed")
    assert {event["actor"] for event in await world.events(run, "state_change")} == {"service_role"}
    assert await world.lease(run) is None


@pytest.mark.parametrize(("column", "value"), [("run_number", "7"), ("project_id", "gen_random_uuid()")])
async def test_a_run_keeps_its_number_and_its_project(world: World, column: str, value: str) -> None:
    run = await world.queue()
    with pytest.raises(asyncpg.PostgresError, match="keeps its project and its number"):
        await world.db.execute(f"update ops.runs set {column} = {value} where id = $1", run)


CONTRADICTIONS = {
    "queued": (
        "finished_at = now()",
        "claimed_by = 'w'",
        "started_at = now()",
        "exit_code = 1",
        "concurrency_key = ''",
        "labels = '{a,null}'",
        "metadata = '[]'",
        "reason = 'two words'",
        "attempt = 0",
        "retry_of = id",
    ),
    "claimed": (
        "claimed_by = null",
        "claimed_by = ''",
        "started_at = now()",
        "scheduled_at = now()",
    ),
    "running": (
        "started_at = null",
        "finished_at = now()",
    ),
    "succeeded": (
        "finished_at = null",
        "exit_code = 1",
        "exit_code = null",
    ),
    "failed": ("started_at = null",),
}


@pytest.mark.parametrize("state", CONTRADICTIONS)
async def test_what_contradicts_the_status_cannot_be_stored(world: World, state: str) -> None:
    run = await world.run_in(state)
    for change in CONTRADICTIONS[state]:
        try:
            await world.db.execute(f"update ops.runs set {change} where id = $1", run)
        except asyncpg.CheckViolationError:
            continue
        pytest.fail(f"{state}, {change}: stored")
