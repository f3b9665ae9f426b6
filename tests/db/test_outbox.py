"""The outbox: which change of a run writes a message for whom, and how workers take and settle messages."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.persons import ops
from tests.db.world import INSTANCE, OTHER_INSTANCE, WORKER, World, blocked, call, new_workflow, shift_clock
from worker.outcomes.deliver import TIMINGS
from worker.outcomes.settings import FORGE_EVENTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EVERY = ["*"]


def wanted(name: str = "chat", **changed: Any) -> dict[str, Any]:
    """A destination as a worker registers it."""
    return {
        "name": name, "events": ["red", "green_again"], "commits_only": False, "projects": EVERY, "workflows": EVERY,
        "branches": EVERY,
    } | changed  # fmt: skip


def forge(**changed: Any) -> dict[str, Any]:
    return wanted("forge", events=list(FORGE_EVENTS), commits_only=True, **changed)


async def register(world: World, *destinations: dict[str, Any], worker: str = WORKER) -> None:
    answer = await call(world.db, "register_destinations", worker, json.dumps(destinations))
    assert answer == {"success": True}


async def waiting(world: World) -> list[tuple[str, str]]:
    """Destination and event of each message, in the order in which they were written."""
    rows = await world.db.fetch("select destination, event from ops_private.outbox order by seq, destination")
    return [(row["destination"], row["event"]) for row in rows]


async def take(world: World, *names: str, instance: uuid.UUID = INSTANCE) -> list[dict[str, Any]]:
    answer = await call(world.db, "take_deliveries", WORKER, instance, list(names or ("chat", "forge")))
    assert answer["registered"]
    found: list[dict[str, Any]] = answer["deliveries"]
    return found


async def settle(world: World, delivery: dict[str, Any], error: str | None = None, **named: Any) -> dict[str, Any]:
    instance = named.pop("instance", INSTANCE)
    return await call(world.db, "settle_delivery", delivery["delivery_id"], instance, error, **named)


# --- what is written --------------------------------------------------------------------------------------------------


async def test_nothing_is_written_without_a_destination_and_nothing_of_a_change_that_is_rolled_back(
    world: World,
) -> None:
    await world.run_in("failed")
    assert await waiting(world) == []
    await register(world, wanted())
    run = await world.run_in("running")
    with pytest.raises(asyncpg.RaiseError):
        async with world.db.transaction():
            await world.set_status(run, "failed")
            assert await waiting(world) == [("chat", "red")]
            await world.db.execute("do $$ begin raise exception 'no'; end $$")
    assert await waiting(world) == []
    await world.set_status(run, "failed")
    assert await waiting(world) == [("chat", "red")]
    await world.db.execute("delete from ops.runs")
    assert await waiting(world) == []


async def test_a_success_after_a_failure_of_the_same_workflow_and_branch_is_green_again(world: World) -> None:
    await register(world, wanted(), wanted("all", events=["every"]))
    other = await new_workflow(world.db, world.project, "other")

    async def ended(status: str, ref: str | None = None, workflow: uuid.UUID | None = None) -> list[str]:
        """The events for ``all`` and ``chat`` of a run that ended so."""
        metadata = json.dumps({"git_ref": ref} if ref else {})
        run = await world.queue(workflow_id=workflow or world.workflow, metadata=metadata)
        for step in ("claimed", "running", status):
            await world.set_status(run, step)
        rows = await world.db.fetch(
            "select destination || ' ' || event from ops_private.outbox where run_id = $1 order by 1", run
        )
        return [row[0] for row in rows]

    green, red, again = ["all succeeded"], ["all red", "chat red"], ["all green_again", "chat green_again"]
    assert await ended("succeeded") == green
    assert await ended("failed", "18.0") == red
    assert await ended("succeeded") == green  # of no branch
    assert await ended("succeeded", "18.0", other) == green
    assert await ended("failed", "18.0") == red
    assert await ended("canceled", "18.0") == ["all canceled"]
    earlier = await world.run_in("running")
    assert await ended("succeeded", "18.0") == again
    assert await ended("succeeded", "18.0") == green
    assert await ended("failed") == red
    assert await ended("succeeded") == again
    await world.set_status(earlier, "succeeded")  # it is not the first one
    assert await world.db.fetchval("select event from ops_private.outbox where run_id = $1", earlier) == "succeeded"


@pytest.mark.parametrize(
    ("filters", "is_wanted"),
    [
        ({"projects": ["acme"]}, True), ({"projects": ["other", "ac*"]}, True), ({"projects": ["acm_"]}, False),
        ({"workflows": ["nightly"]}, True), ({"workflows": ["build"]}, True), ({"workflows": ["test"]}, False),
        ({"branches": ["feature/*"]}, True), ({"branches": ["feature"]}, False), ({"branches": ["%"]}, False),
        ({"branches": ["feature/*"], "projects": ["other"]}, False),
    ],
)  # fmt: skip
async def test_a_destination_gets_the_projects_workflows_and_branches_that_it_wants(
    world: World, filters: dict[str, Any], *, is_wanted: bool
) -> None:
    await register(world, wanted(**filters))
    await register(world, wanted(**filters), worker="another")  # two hosts share the destination
    workflow = await new_workflow(world.db, world.project, "nightly")
    run = await world.queue(workflow_id=workflow, metadata='{"git_ref": "feature/x"}')
    for step in ("claimed", "running", "failed"):
        await world.set_status(run, step)
    assert await waiting(world) == ([("chat", "red")] if is_wanted else [])


async def test_a_forge_gets_each_state_of_a_commit_and_a_newer_one_replaces_one_not_taken(world: World) -> None:
    await register(world, forge())
    for metadata in ("{}", '{"git_commit": "../../user"}', '{"git_commit": ["abcdef0"]}'):
        await world.queue(metadata=metadata)
    assert await waiting(world) == []
    await world.db.execute("update ops.workflows set git_commit = $1", COMMIT)
    await world.queue(metadata='{"git_ref": "feature/x"}')  # the commit of the workflow is of another branch
    assert await waiting(world) == []
    run = await world.queue()
    assert await waiting(world) == [("forge", "queued")]
    await world.set_status(run, "claimed")
    await world.set_status(run, "running")
    assert await waiting(world) == [("forge", "started")]
    [started] = await take(world)
    assert (started["event"], started["run"]["git_commit"]) == ("started", COMMIT)
    await world.set_status(run, "succeeded")
    assert await waiting(world) == [("forge", "started"), ("forge", "succeeded")]
    assert await take(world) == []  # or it could arrive before the first
    assert await settle(world, started) == {"success": True, "given_up": False}
    assert [each["event"] for each in await take(world)] == ["succeeded"]


async def test_a_retry_tells_the_forge_again(world: World) -> None:
    await register(world, forge())
    run = await world.queue(metadata=json.dumps({"git_commit": COMMIT}))
    await world.set_status(run, "canceled")
    await call(world.db, "retry_run", run)
    assert await waiting(world) == [("forge", "canceled"), ("forge", "queued")]


async def test_a_destination_that_is_not_served_fills_up_to_its_bound_and_then_gets_nothing(world: World) -> None:
    await register(world, forge())
    many = "insert into ops.runs (project_id, workflow_id, metadata) select $1, $2, $3 from generate_series(1, $4)"
    metadata = json.dumps({"git_commit": COMMIT})
    for count in (995, 10, 1):
        await world.db.execute(many, world.project, world.workflow, metadata, count)
    assert len(await waiting(world)) == 1000
    await shift_clock(world.db, 86_401)  # no worker has asked for a day
    await world.db.execute("delete from ops_private.outbox")
    await world.db.execute(many, world.project, world.workflow, metadata, 1)
    assert await waiting(world) == []


async def test_old_messages_are_deleted_by_workers_and_by_prune(world: World, db_url: str) -> None:
    await register(world, wanted())
    await world.run_in("failed")
    await shift_clock(world.db, 86_401)
    assert await take(world) == []
    assert await waiting(world) == []
    await world.run_in("failed")
    for later, left in ((120_000, [("chat", "red")]), (180_000, [])):
        await shift_clock(world.db, later)
        assert (await ops(db_url, "prune", "--artifact-store", "file:///tmp")).status == 0
        assert await waiting(world) == left


# --- take and settle --------------------------------------------------------------------------------------------------


async def test_a_message_says_what_failed(world: World) -> None:
    await register(world, wanted())
    run = await world.running()
    for level, line in (
        ("error", "first"), ("info", "fine"), ("error", "Traceback (most recent call last):"),
        ("error", '  File "/x.py", line 1'), ("error", "KeyError: 'x'"),
    ):  # fmt: skip
        await call(world.db, "append_run_log", run, level, line)
    tests = {"passed": 1, "failed": 1, "skipped": 0, "failing": ["t.one"]}
    await call(world.db, "record_report", run, WORKER, INSTANCE, p_tests=json.dumps(tests))
    await call(world.db, "complete_workflow_run", run, 1, "exit code 1", WORKER, INSTANCE, "exit_code")
    [found] = await take(world)
    assert (found["destination"], found["event"], found["attempt"]) == ("chat", "red", 1)
    assert found["errors"] == ["first", "KeyError: 'x'"]
    assert found["known"] == ["new: t.one"]
    facts = ("project", "run_number", "workflow_type", "workflow", "reason", "exit_code", "error_message", "tests")
    assert [found["run"][fact] for fact in facts] == [
        "acme", 1, "build", "build", "exit_code", 1, "exit code 1", tests,
    ]  # fmt: skip


async def test_a_message_is_leased_and_due_again_with_the_same_id_when_the_lease_ends(world: World) -> None:
    await register(world, wanted())
    await world.run_in("failed")
    [first] = await take(world)
    left = "select extract(epoch from due_at - ops_private.current_time())::float8 from ops_private.outbox"
    assert TIMINGS.send * 2 < TIMINGS.lease < await world.db.fetchval(left)  # a worker stops before its lease ends
    assert await take(world, instance=OTHER_INSTANCE) == []
    await shift_clock(world.db, 280)
    assert await take(world, instance=OTHER_INSTANCE) == []
    await shift_clock(world.db, 301)
    [second] = await take(world, instance=OTHER_INSTANCE)
    assert (second["delivery_id"], second["attempt"]) == (first["delivery_id"], 2)
    assert (await settle(world, first))["code"] == "not_found"  # the lease is another's
    assert (await settle(world, second, instance=OTHER_INSTANCE))["success"]
    assert (await settle(world, second, instance=OTHER_INSTANCE))["code"] == "not_found"


async def test_an_error_makes_it_wait_longer_each_time_until_it_is_given_up(world: World) -> None:
    await register(world, wanted())
    await world.run_in("failed")
    later, waits = 0.0, []
    for attempt in range(1, 21):
        [found] = await take(world)
        assert found["attempt"] == attempt
        answer = await settle(world, found, "the receiver answered with status 500")
        assert answer == {"success": True, "given_up": attempt == 20}
        if attempt < 20:
            left = "select extract(epoch from due_at - ops_private.current_time())::float8 from ops_private.outbox"
            waits.append(await world.db.fetchval(left))
            later += waits[-1] + 1
            await shift_clock(world.db, later)
    assert await waiting(world) == []
    for n, wait in enumerate(waits):
        most = min(3600, 10 * 2**n)
        assert most / 2 - 1 <= wait <= most


async def test_a_final_error_gives_a_message_up_at_once(world: World) -> None:
    await register(world, wanted())
    await world.run_in("failed")
    [found] = await take(world)
    assert await settle(world, found, "no", p_final=True) == {"success": True, "given_up": True}
    assert await waiting(world) == []


async def test_each_destination_gets_its_share_however_many_messages_another_has(world: World) -> None:
    await register(world, wanted(), wanted("dead"), wanted("foreign"))
    for _ in range(7):
        await world.run_in("failed")
    taken = await take(world, "dead", "chat", "unknown")
    assert sorted(each["destination"] for each in taken) == ["chat"] * 5 + ["dead"] * 5
    assert len({each["delivery_id"] for each in taken}) == 10


async def test_a_worker_takes_only_for_destinations_that_it_registered_and_learns_that_it_has_none(
    world: World,
) -> None:
    await register(world, wanted())
    await world.run_in("failed")
    answer = await call(world.db, "take_deliveries", "another", INSTANCE, ["chat"])
    assert answer == {"success": True, "registered": False, "deliveries": []}


async def test_taking_waits_for_no_other_transaction_and_no_run_waits_for_it(world: World, connect: Connect) -> None:
    await register(world, forge())
    run = await world.queue(metadata=json.dumps({"git_commit": COMMIT}))
    other = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops_private.outbox for update")
        answer = await asyncio.wait_for(call(other, "take_deliveries", WORKER, INSTANCE, ["forge"]), 10)
        assert answer["deliveries"] == []
        await asyncio.wait_for(other.execute("update ops.runs set status = 'canceled' where id = $1", run), 10)
    assert await waiting(world) == [("forge", "queued"), ("forge", "canceled")]
    [first] = await take(world)
    waiter = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops_private.outbox for update")
        settling = call(waiter, "settle_delivery", first["delivery_id"], INSTANCE)
        task = await blocked(world.db, waiter, settling)
    assert (await task)["success"]


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_a_host_delivers_only_if_an_operator_permits_it(
    world: World, hosts: tuple[asyncpg.Connection, asyncpg.Connection]
) -> None:
    host, other = hosts
    await world.db.execute("grant ops_notifier to host_one")
    destinations = json.dumps([wanted()])
    assert await call(host, "register_destinations", "host-one", destinations) == {"success": True}
    await world.run_in("failed")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"with: grant ops_notifier to host_two$"):
        await call(other, "register_destinations", "host-two", destinations)
    for sql in (
        f"select ops.take_deliveries('host-one', '{INSTANCE}', '{{chat}}')",
        f"select ops.settle_delivery('{INSTANCE}', '{INSTANCE}')",
        "select from ops_private.outbox",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for"):
            await other.execute(sql)
    answer = await call(host, "take_deliveries", "host-one", INSTANCE, ["chat"])
    assert [each["event"] for each in answer["deliveries"]] == ["red"]


@pytest.mark.parametrize(
    ("destinations", "error"),
    [
        ({}, "a list of at most 50"), ([{}] * 51, "a list of at most 50"), ([1], "must be objects with name"),
        ([wanted("A b")], "must be objects with name"), ([wanted(commits_only="yes")], "must be objects with name"),
        ([wanted(events=[])], r"destinations.events must be a list"),
        ([wanted(projects=["x" * 256])], r"destinations.projects must be a list"),
        ([wanted(branches=[1])], r"destinations.branches must be a list"),
    ],
    ids=lambda value: str(value)[:25],
)  # fmt: skip
async def test_wrong_destinations_are_refused_by_field(world: World, destinations: object, error: str) -> None:
    answer = await call(world.db, "register_destinations", WORKER, json.dumps(destinations))
    assert answer["code"] == "bad_argument"
    assert error in answer["error"]
