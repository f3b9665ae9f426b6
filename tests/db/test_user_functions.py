"""What users call to queue a run and to retry one."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.db.world import FINAL, STATES, World, blocked, call, new_project, new_workflow, sign_in
from worker.model import config

INSERT = "insert into ops.runs (project_id, workflow_id, metadata) values ($1, $2, $3)"


@pytest_asyncio.fixture
async def developer(world: World, connect: Connect) -> asyncpg.Connection:
    return await sign_in(world, connect, "developer")


async def run_ids(world: World) -> list[uuid.UUID]:
    return [row["id"] for row in await world.db.fetch("select id from ops.runs order by run_number")]


# Queue ------------------------------------------------------------------------------------------------------


async def test_a_run_is_queued_with_what_was_asked_for(world: World, developer: asyncpg.Connection) -> None:
    due = await world.db.fetchval("select now() + interval '1 hour'")
    metadata = {"args": ["-v"]}
    answer = await call(developer, "enqueue_run", world.workflow, p_metadata=json.dumps(metadata), p_scheduled_at=due)
    (run_id,) = await run_ids(world)
    assert answer == {
        "success": True, "created": True, "run_id": str(run_id), "run_number": 1, "status": "queued", "attempt": 1
    }  # fmt: skip
    run = await world.row(run_id)
    assert (json.loads(run["metadata"]), run["scheduled_at"]) == (metadata, due)
    assert run["created_by"] == await developer.fetchval("select ops.current_user_id()")


async def test_without_a_key_each_call_is_a_run_and_a_time_that_is_past_is_now(
    world: World, developer: asyncpg.Connection, connect: Connect
) -> None:
    past = await world.db.fetchval("select now() - interval '1 hour'")
    first, second = [await call(developer, "enqueue_run", world.workflow, p_scheduled_at=past) for _ in range(2)]
    assert (first["run_number"], second["run_number"], second["created"]) == (1, 2, True)
    assert await world.db.fetchval("select count(*) from ops_private.run_requests") == 0
    assert (await world.row(uuid.UUID(second["run_id"])))["scheduled_at"] is None
    machine = await call(await connect(role="service_role"), "enqueue_run", world.workflow, p_idempotency_key="k")
    assert machine["created"]
    assert (await world.row(uuid.UUID(machine["run_id"])))["created_by"] is None


async def test_the_same_key_gives_the_same_run_whatever_became_of_it(
    world: World, developer: asyncpg.Connection
) -> None:
    due = await world.db.fetchval("select now() + interval '1 hour'")
    request: dict[str, Any] = {
        "p_metadata": '{"args": ["a"], "env": {}}', "p_idempotency_key": "build-7", "p_scheduled_at": due
    }  # fmt: skip
    first = await call(developer, "enqueue_run", world.workflow, **request)
    assert first["created"]
    # what is stored changes later, the request does not
    await world.db.execute("update ops.runs set scheduled_at = null, metadata = '{}'")
    await world.set_status(uuid.UUID(first["run_id"]), "canceled")
    await world.db.execute("update ops.workflows set enabled = false")
    await developer.execute("set timezone = 'Asia/Kathmandu'")  # the same moment in other words
    request["p_metadata"] = '{"env":{}, "args":["a"]}'  # the same object in other words
    again = await call(developer, "enqueue_run", world.workflow, **request)
    assert again == {**first, "created": False, "status": "canceled"}
    assert len(await run_ids(world)) == 1


async def test_another_request_under_the_same_key_is_refused(world: World, developer: asyncpg.Connection) -> None:
    request = {"p_workflow_id": world.workflow, "p_idempotency_key": "k"}
    await call(developer, "enqueue_run", **request)
    await world.queue(idempotency_key=f"{world.project}:by a machine")
    for other in (
        {"p_metadata": '{"args": []}'},
        {"p_scheduled_at": await world.db.fetchval("select now() + interval '1 hour'")},
        {"p_workflow_id": await new_workflow(world.db, world.project, "another")},
        {"p_idempotency_key": "by a machine"},
    ):
        answer = await call(developer, "enqueue_run", **(request | other))
        assert (other, answer["success"], answer["code"]) == (other, False, "key_reused")
    assert len(await run_ids(world)) == 2


async def test_the_same_key_in_two_projects_is_two_keys(world: World, connect: Connect) -> None:
    elsewhere = await new_project(world.db, "elsewhere")
    workflow = await new_workflow(world.db, elsewhere)
    here = await sign_in(world, connect, "developer")
    there = await sign_in(world, connect, "developer", elsewhere)
    for connection, of in ((here, world.workflow), (there, workflow)):
        assert (await call(connection, "enqueue_run", of, p_idempotency_key="release"))["created"]
    # nor can a key be written so that it becomes the other project's
    forged = f"{elsewhere}:release"
    assert (await call(here, "enqueue_run", world.workflow, p_idempotency_key=forged))["created"]
    keys = await world.db.fetch("select idempotency_key from ops.runs order by created_at")
    assert [row[0] for row in keys] == [
        f"{world.project}:release", f"{elsewhere}:release", f"{world.project}:{forged}"
    ]  # fmt: skip


METADATA: list[tuple[dict[str, Any], str | None]] = [
    ({"user": "root"}, "user: a run may set env, args, git_ref, git_commit; user belongs into the workflow's config"),
    ({"env": {"A": "1", "B": "2"}},
     "env.B: the workflow does not list it; add \"B\" to run_env in the workflow's config"),
    ({"env": [["LD_PRELOAD", "x"]]}, "env: expected an object"),
    ({"args": "-v"}, "args: expected a list"),
    ({"env": {"A": "1"}, "args": ["-v"], "note": "x"}, None),
]  # fmt: skip


async def test_metadata_that_a_worker_would_refuse_is_refused_by_function_and_insert(
    world: World, developer: asyncpg.Connection
) -> None:
    workflow = await new_workflow(world.db, world.project, "listing", {"run_env": ["A"]})
    for metadata, refused in METADATA:
        answer = await call(developer, "enqueue_run", workflow, json.dumps(metadata))
        insert = developer.execute(INSERT, world.project, workflow, json.dumps(metadata))
        if refused is None:
            assert answer["success"]
            await insert
        else:
            assert (answer["code"], answer["error"]) == ("bad_argument", f"run metadata, {refused}")
            with pytest.raises(asyncpg.CheckViolationError) as error:
                await insert
            assert error.value.message == f"run metadata, {refused}"


async def test_a_retry_is_queued_though_the_workflow_lists_less_by_now(world: World) -> None:
    workflow = await new_workflow(world.db, world.project, "listing", {"run_env": ["A"]})
    run = await world.queue(workflow_id=workflow, metadata='{"env": {"A": "1"}}')
    await world.set_status(run, "canceled")
    await world.db.execute("update ops.workflows set config = '{}'")
    assert (await call(world.db, "retry_run", run))["success"]


async def test_worker_and_database_have_the_same_rules(world: World) -> None:
    reserved = await world.db.fetchval("select ops_private.reserved_keys()")
    assert set(reserved) == config.RunOptions.reserved
    for ref in ["main", "18.0", "feature/x", "refs/heads/a-b", "v1@2", "ä", "-x", "/x", ".x", "x/", "x.", "a..b",
                "a//b", "a@{b", "a b", "a\tb", "a\x7fb", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a\\b", "",
                "x" * 255, "x" * 256, "x\n"]:  # fmt: skip
        assert await world.db.fetchval("select ops_private.is_git_ref($1)", ref) == bool(
            config._GIT_REF.fullmatch(ref)
        ), ref


async def test_the_queue_of_a_project_holds_max_queued_runs(world: World, developer: asyncpg.Connection) -> None:
    await world.db.execute("update ops_private.control set max_queued_runs = 2")
    ended = await world.run_in("canceled")
    mine = uuid.UUID((await call(developer, "enqueue_run", world.workflow))["run_id"])
    await call(developer, "cancel_run", mine)
    for _ in range(2):
        assert (await call(developer, "enqueue_run", world.workflow))["success"]
    answer = await call(developer, "enqueue_run", world.workflow)
    assert answer["error"] == "the queue of the project is full: at most 2 runs (max_queued_runs)"
    assert (answer["code"], (await call(developer, "retry_run", mine))["code"]) == ("queue_full", "queue_full")
    with pytest.raises(asyncpg.PostgresError, match="full") as error:
        await world.queue()
    assert error.value.sqlstate == "OPS04"
    for run in (ended, mine):
        assert (await call(world.db, "retry_run", run))["success"], "service_role may"
    elsewhere = await new_project(world.db, "elsewhere")
    assert (await call(world.db, "enqueue_run", await new_workflow(world.db, elsewhere)))["success"]


async def test_retries_do_not_hide_runs_from_the_count(world: World, developer: asyncpg.Connection) -> None:
    await world.db.execute("update ops_private.control set max_queued_runs = 2000")  # counted at each second run
    first = uuid.UUID((await call(developer, "enqueue_run", world.workflow))["run_id"])
    await call(developer, "cancel_run", first)
    await call(developer, "retry_run", first)  # has the second number
    counted = await world.db.fetchval("select counted from ops_private.run_counters")
    await call(developer, "enqueue_run", world.workflow)
    assert counted == 0
    assert await world.db.fetchval("select counted from ops_private.run_counters") == 3


WRONG = [
    ("metadata", "jsonb", "[]"), ("metadata", "jsonb", '{"a": ' + "[" * 33 + "]" * 33 + "}"),
    ("metadata", "jsonb", json.dumps({"a": "x" * 2**18})), ("metadata", "jsonb", "null"),
    ("idempotency_key", "text", ""), ("idempotency_key", "text", "k" * 201), ("idempotency_key", "text", "ß" * 101),
    ("scheduled_at", "timestamptz", "infinity"),
]  # fmt: skip


async def test_a_request_with_a_wrong_argument_is_refused(world: World) -> None:
    for name, kind, value in WRONG:
        sql = f"select ops.enqueue_run($1, p_{name} => $2::text::{kind})"
        answer = json.loads(await world.db.fetchval(sql, world.workflow, value))
        assert answer["code"] == "bad_argument"
        assert answer["error"].startswith(f"the {name} must ")
    assert await run_ids(world) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("update ops.workflows set enabled = false", "workflow_disabled"),
        ("update ops.projects set status = 'archived'", "project_archived"),
    ],
)
async def test_a_run_that_no_worker_would_execute_is_not_queued(world: World, change: str, code: str) -> None:
    ended = await world.run_in("failed")
    await world.db.execute(change)
    assert (await call(world.db, "enqueue_run", world.workflow))["code"] == code
    assert (await call(world.db, "retry_run", ended))["code"] == code
    assert await run_ids(world) == [ended]


# Retry ------------------------------------------------------------------------------------------------------


async def test_only_a_run_that_has_ended_can_be_retried(world: World) -> None:
    for state in STATES:
        run = await world.run_in(state)
        before = len(await run_ids(world))
        answer = await call(world.db, "retry_run", run)
        expected = (True, None) if state in FINAL else (False, "not_final")
        assert (state, answer["success"], answer.get("code")) == (state, *expected)
        assert len(await run_ids(world)) == before + (state in FINAL)


async def test_a_retry_is_a_new_run_of_the_same(world: World, connect: Connect) -> None:
    admin = await sign_in(world, connect, "admin")
    old = await world.queue(
        metadata='{"args": ["x"]}', priority=7, labels=["gpu"], concurrency_key="deploy", created_by=uuid.uuid4()
    )
    await world.set_status(old, "canceled")
    answer = await call(admin, "retry_run", old)
    assert (answer["created"], answer["attempt"], answer["run_number"], answer["status"]) == (True, 2, 2, "queued")
    before, after = await world.row(old), await world.row(uuid.UUID(answer["run_id"]))
    for column in ("project_id", "workflow_id", "metadata", "priority", "labels", "concurrency_key"):
        assert after[column] == before[column]
    me = await admin.fetchval("select ops.current_user_id()")
    assert (after["retry_of"], after["attempt"], after["scheduled_at"], after["created_by"]) == (old, 2, None, me)
    assert await world.events(old, "info") == [
        {"actor": "postgres"}, {"actor": str(me), "retry_run_id": answer["run_id"]}
    ]  # fmt: skip
    await world.set_status(after["id"], "canceled")
    assert (await call(admin, "retry_run", after["id"]))["attempt"] == 3


async def test_a_repeated_request_at_the_same_time_gets_the_same_run(world: World, connect: Connect) -> None:
    ended = await world.run_in("failed")
    one, two = [await sign_in(world, connect, "admin") for _ in range(2)]
    for function, argument, named in (
        ("enqueue_run", world.workflow, {"p_idempotency_key": "k"}), ("retry_run", ended, {}),
    ):  # fmt: skip
        async with one.transaction():
            first = await call(one, function, argument, **named)
            waiting = await blocked(world.db, two, call(two, function, argument, **named))
        assert await waiting == {**first, "created": False}
    await world.set_status(uuid.UUID(first["run_id"]), "canceled")
    assert (await call(two, "retry_run", ended))["created"], "once that has ended"


async def test_a_worker_queues_the_retry_of_what_it_completes(world: World, hosts: tuple[asyncpg.Connection]) -> None:
    """As ``complete_workflow_run`` may do it, with the owner's rights on behalf of a host that may not insert."""
    await world.db.execute(
        """create function public.retry(p_run_id uuid) returns uuid language sql security definer
           return ops_private.queue_retry(p_run_id, interval '1 minute')"""
    )
    owner, host = uuid.uuid4(), hosts[0]
    run = await world.queue(created_by=owner)
    retry = await world.row(await host.fetchval("select public.retry($1)", run))
    assert (retry["retry_of"], retry["attempt"], retry["created_by"]) == (run, 2, owner)
    assert retry["scheduled_at"] - retry["created_at"] > timedelta(seconds=59)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await host.execute("insert into ops.runs (project_id, workflow_id) values ($1, $2)", run, run)
    assert await host.fetchval("select public.retry($1)", uuid.uuid4()) is None
