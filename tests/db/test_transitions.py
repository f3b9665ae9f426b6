"""The state machine, as a client meets it that updates ``ops.runs`` directly."""

from __future__ import annotations

import itertools

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.model import TRANSITIONS
from tests.db.world import FINAL, STATES, World


@pytest.mark.parametrize("old", STATES)
async def test_an_allowed_change_writes_one_event_and_every_other_is_refused(world: World, old: str) -> None:
    for new in STATES:
        run = await world.run_in(old)
        before = len(await world.events(run, "state_change"))
        if (old, new) in TRANSITIONS:
            await world.set_status(run, new)
            assert await world.status(run) == new
            (event,) = (await world.events(run, "state_change"))[before:]
            assert (event["previous_status"], event["new_status"], event["actor"]) == (old, new, "postgres")
        elif old != new:
            with pytest.raises(asyncpg.PostgresError, match=f"may not change from {old} to {new}") as refused:
                await world.set_status(run, new)
            assert (refused.value.sqlstate, await world.status(run)) == ("OPS01", old)
        if new != "queued":
            with pytest.raises(asyncpg.PostgresError, match="begins as queued") as refused:
                await world.queue(status=new)
            assert refused.value.sqlstate == "OPS01"


def test_the_model_knows_the_eight_changes_of_the_contract() -> None:
    allowed = {
        "queued": "claimed canceled",
        "claimed": "running queued canceled",
        "running": "succeeded failed canceled",
    }
    pairs = itertools.chain.from_iterable([(old, new) for new in words.split()] for old, words in allowed.items())
    assert set(pairs) == TRANSITIONS


async def test_columns_and_lease_follow_the_status_and_other_updates_pass(world: World) -> None:
    for state in STATES:
        run = await world.run_in(state)
        row = await world.row(run)
        claimed, started = state not in {"queued", "canceled"}, state in {"running", "succeeded", "failed"}
        assert [row[name] is not None for name in ("claimed_at", "claimed_by", "started_at", "finished_at")] == [
            claimed, claimed, started, state in FINAL,
        ]  # fmt: skip
        assert row["exit_code"] == (0 if state == "succeeded" else None)
        assert row["reason"] == (state if state in FINAL else None)
        assert (await world.lease(run) is not None) == (state in {"claimed", "running"})
        events = await world.db.fetchval("select count(*) from ops.run_events")
        await world.db.execute("""update ops.runs set metadata = '{"a": 1}', status = status where id = $1""", run)
        after = await world.row(run)
        assert (after["metadata"], after["updated_at"] > row["updated_at"]) == ('{"a": 1}', True)
        assert await world.db.fetchval("select count(*) from ops.run_events") == events


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
        "update ops.runs set status = 'claimed', claimed_by = 'me', claimed_at = '2026-01-01Z' where id = $1", run
    )
    row, lease = await world.row(run), await world.lease(run)
    assert lease is not None
    assert (row["claimed_by"], row["claimed_at"].year, lease["worker_id"]) == ("me", 2026, "me")


async def test_service_role_changes_the_status_and_all_stays_consistent(world: World, connect: Connect) -> None:
    service = await connect(role="service_role")
    run = await world.queue()
    for status in ("claimed", "running", "failed"):
        await service.execute("update ops.runs set status = $2 where id = $1", run, status)
    row = await world.row(run)
    assert (row["claimed_by"], row["reason"]) == ("service_role", "failed")
    assert {event["actor"] for event in await world.events(run, "state_change")} == {"service_role"}
    assert await world.lease(run) is None


async def test_a_run_keeps_its_number_and_its_project(world: World) -> None:
    run = await world.queue()
    for change in ("run_number = 7", "project_id = gen_random_uuid()"):
        with pytest.raises(asyncpg.PostgresError, match="keeps its project and its number"):
            await world.db.execute(f"update ops.runs set {change} where id = $1", run)


CONTRADICTIONS = {
    "queued": {
        "finished_at = now()": "finished_at_iff_final", "claimed_by = 'w'": "queued_is_unclaimed",
        "started_at = now()": "queued_is_unclaimed", "exit_code = 1": "exit_code_of_finished",
        "concurrency_key = ''": "concurrency_key_length", "labels = '{a,null}'": "labels_hold_no_null",
        "metadata = '[]'": "metadata_check", "reason = 'two words'": "reason_is_a_word", "attempt = 0": "attempt_check",
        "retry_of = id": "retry_is_later_attempt", "claim_count = -1": "claim_count_check",
        "container_id = 'c'": "container_of_started", "warnings = -1": "counts_check", "tests = '[]'": "tests_check",
    },
    "claimed": {
        "claimed_by = null": "claimed_names_worker", "claimed_by = ''": "claimed_by_not_empty",
        "started_at = now()": "claimed_not_started", "scheduled_at = now()": "scheduled_is_unclaimed",
    },
    "running": {"started_at = null": "started_at", "finished_at = now()": "finished_at_iff_final"},
    "succeeded": {
        "finished_at = null": "finished_at_iff_final", "exit_code = 1": "succeeded_exited_zero",
        "exit_code = null": "succeeded_exited_zero",
    },
    "failed": {"started_at = null": "started_at"},
}  # fmt: skip


async def test_what_contradicts_the_status_cannot_be_stored_and_the_error_names_the_rule(world: World) -> None:
    for state, changes in CONTRADICTIONS.items():
        run = await world.run_in(state)
        for change, rule in changes.items():
            with pytest.raises(asyncpg.CheckViolationError) as refused:
                await world.db.execute(f"update ops.runs set {change} where id = $1", run)
            assert refused.value.constraint_name == f"runs_{rule}", change
            assert f'"runs_{rule}"' in str(refused.value)


async def test_an_event_of_an_unknown_type_cannot_be_stored(world: World) -> None:
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await world.db.execute(
            "insert into ops.run_events (run_id, event_type, message) values ($1, 'x', 'x')", await world.queue()
        )
    assert refused.value.constraint_name == "run_events_event_type_check"
