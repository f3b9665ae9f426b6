"""Chains: what a workflow's ``then`` starts when a run succeeds, and which chains are refused."""

from __future__ import annotations

import json
import uuid
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import INSTANCE, WORKER, World, call, new_project, new_workflow, sign_in
from worker.model.config import WorkflowConfig, read


async def chained(world: World, *names: str, **columns: object) -> World:
    """The same project with a workflow that names these."""
    workflow = await new_workflow(world.db, world.project, "first", {"then": names})
    for column, value in columns.items():
        await world.db.execute(f"update ops.workflows set {column} = $2 where id = $1", workflow, value)
    return World(world.db, world.project, workflow)


async def succeed(world: World, run: uuid.UUID) -> dict[str, Any]:
    assert (await world.claim())["run_id"] == str(run)
    await call(world.db, "start_workflow_run", run, WORKER)
    return await call(world.db, "complete_workflow_run", run, 0, p_worker_id=WORKER, p_instance_id=INSTANCE)


async def children(world: World, run: uuid.UUID) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await world.db.fetch(
        "select r.*, w.name from ops.runs as r join ops.workflows as w on w.id = r.workflow_id "
        "where r.parent_run_id = $1 order by r.run_number",
        run,
    )
    return rows


async def test_a_success_queues_the_next_runs_with_the_commit_of_the_first(world: World) -> None:
    await new_workflow(world.db, world.project, "notify")
    first = await chained(world, "build/build", "notify", git_ref="18.0", git_commit="4f2a91c")
    user = uuid.uuid4()
    run = await first.queue(metadata='{"git_ref": "17.0", "git_commit": "ABCDEF0", "args": ["-v"]}', created_by=user)
    await succeed(first, run)
    found = await children(world, run)
    assert [(row["name"], row["status"], row["created_by"]) for row in found] == [
        ("build", "queued", user), ("notify", "queued", user),
    ]  # fmt: skip
    assert json.loads(found[0]["metadata"]) == {"git_ref": "17.0", "git_commit": "abcdef0"}
    assert (await world.claim())["parent_run_id"] == str(run)
    events = await world.events(run, "info")
    assert [event["next_run_id"] for event in events[1:]] == [str(row["id"]) for row in found]
    again = await first.queue()
    await world.db.execute("update ops.runs set priority = 1 where id = $1", again)
    await succeed(first, again)
    assert json.loads((await children(world, again))[0]["metadata"]) == {"git_ref": "18.0", "git_commit": "4f2a91c"}


async def test_only_a_success_and_only_once_queues_the_next_run(world: World) -> None:
    first = await chained(world, "build/build")
    for code, count in ((1, 0), (0, 1)):
        run = await first.running()
        for _ in range(2):  # the first answer was lost
            answer = await call(
                world.db, "complete_workflow_run", run, code, p_worker_id=WORKER, p_instance_id=INSTANCE
            )
            assert answer["success"]
        await world.db.execute("select ops_private.queue_next_runs($1)", run)
        assert len(await children(world, run)) == count


async def test_a_locked_project_delays_the_next_run_to_the_next_reap(world: World, connect: Connect) -> None:
    first = await chained(world, "build/build")
    run = await first.running()
    holder = await connect()
    async with holder.transaction():
        await holder.execute("select from ops_private.run_counters for update")
        answer = await call(world.db, "complete_workflow_run", run, 0)
        assert (answer["status"], await children(world, run)) == ("succeeded", [])
        await call(world.db, "reap")
        assert await children(world, run) == []
    await call(world.db, "reap")
    await call(world.db, "reap")
    assert len(await children(world, run)) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("update ops.workflows set enabled = false where name = 'build'", "the workflow is disabled"),
        ("update ops.workflows set name = 'other' where name = 'build'", 'the project has no workflow "build/build"'),
        ("update ops_private.control set max_queued_runs = 1", "the queue of the project is full: at most 1 runs"),
    ],
)
async def test_what_cannot_be_queued_is_a_warning_and_the_run_succeeds(world: World, change: str, says: str) -> None:
    first = await chained(world, "build/build")
    run = await first.running()
    await world.queue()
    await world.db.execute(change)
    assert (await call(world.db, "complete_workflow_run", run, 0))["status"] == "succeeded"
    [warning] = await world.events(run, "warning")
    assert (warning["reason"], warning["workflow"], await children(world, run)) == ("chain_broken", "build/build", [])
    message = await world.db.fetchval("select message from ops.run_events where event_type = 'warning'")
    assert message.startswith(f"build/build is not queued: {says}")


async def test_a_retry_of_a_chained_run_keeps_its_parent(world: World) -> None:
    first = await chained(world, "build/build")
    run = await first.running()
    await call(world.db, "complete_workflow_run", run, 0)
    [child] = await children(world, run)
    await world.set_status(child["id"], "canceled")
    retry = uuid.UUID((await call(world.db, "retry_run", child["id"]))["run_id"])
    assert (await world.row(retry))["parent_run_id"] == run


# What is refused --------------------------------------------------------------------------------------------


async def test_a_cycle_is_refused_with_its_names(world: World) -> None:
    a, c = await chained(world, "build/build"), await new_workflow(world.db, world.project, "c", {"then": ["first"]})
    change = "update ops.workflows set config = $2 where id = $1"
    for workflow, then, says in (
        (world.workflow, "c", "build/build -> build/c -> build/first -> build/build"),
        (world.workflow, "build", "build/build -> build/build"),
        (a.workflow, "c", "build/first -> build/c -> build/first"),
    ):  # fmt: skip
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await world.db.execute(change, workflow, json.dumps({"then": [then]}))
        assert refused.value.message == f"workflow config, then: expected no cycle, got {says}"
    await world.db.execute(change, c, '{"then": ["build"]}')  # two ways to one workflow are no cycle


async def test_a_cycle_that_no_write_saw_ends_after_one_round(world: World) -> None:
    first = await chained(world, "build/build")
    async with world.db.transaction():
        await world.db.execute("set local session_replication_role = replica")
        await world.db.execute("""update ops.workflows set config = '{"then": ["first"]}' where name = 'build'""")
    run = await first.running()
    await call(world.db, "complete_workflow_run", run, 0)
    [child] = await children(world, run)
    await succeed(world, child["id"])
    assert await children(world, child["id"]) == []
    assert [event["reason"] for event in await world.events(child["id"], "warning")] == ["chain_broken"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"then": "deploy"}, "then: expected a list"), ({"then": [1]}, "then: expected texts of 1 to 200 characters"),
    ({"then": ["x"] * 11}, "then: expected at most 10 entries"),
    ({"approval": "yes"}, "approval: expected true or false"),
    ({"on_newer": "oldest", "concurrency_key": "k"}, "on_newer: expected one of queue, newest, cancel_running"),
    ({"on_newer": ["queue"]}, "on_newer: expected one of queue, newest, cancel_running"),
    ({"queue_timeout_seconds": 0}, "queue_timeout_seconds: expected a whole number from 1 to 31536000"),
    ({"queue_timeout_seconds": 1.5}, "queue_timeout_seconds: expected a whole number from 1 to 31536000"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "says"), BAD)
async def test_a_wrong_key_is_refused_where_the_workflow_is_written_and_by_the_worker(
    world: World, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await new_workflow(world.db, world.project, "wrong", config)
    assert refused.value.message == f"workflow config, {says}"
    with pytest.raises(Exception, match=f"^workflow config, {says.partition(':')[0]}"):
        read(WorkflowConfig, "workflow config", config)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", 'the project has no workflow "none"'),
        ("elsewhere", 'the project has no workflow "elsewhere"'),
        ("build", '"build" may mean several workflows; expected one of build/build, test/build'),
        ("deploy", '"deploy" may mean several workflows; expected one of deploy/a, deploy/b'),
    ],
)
async def test_a_name_must_mean_one_workflow_of_the_project(
    world: World, connect: Connect, name: str, says: str
) -> None:
    await new_workflow(world.db, await new_project(world.db, "other"), "elsewhere")
    await world.db.execute(
        "insert into ops.workflows (project_id, workflow_type, name) "
        "values ($1, 'test', 'build'), ($1, 'deploy', 'a'), ($1, 'deploy', 'b'), ($1, 'backup', 'nightly')",
        world.project,
    )
    developer = await sign_in(world, connect, "developer")
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await new_workflow(developer, world.project, "wrong", {"then": [name]})
    assert refused.value.message == f"workflow config, then: {says}"
    await new_workflow(developer, world.project, "right", {"then": ["test/build", "backup"], "on_newer": "queue"})
    read(WorkflowConfig, "workflow config", {"then": ["test/build", "backup"], "on_newer": "queue"})
