"""Served runs: who claims them, when they are ready, and what a worker that adopts one is told."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import INSTANCE, NOW, OTHER_INSTANCE, WORKER, World, adopt, call, new_project, new_workflow, sign_in
from worker.model.serve import SERVE_LABEL

URL = "http://127.0.0.1:40001"


async def tool(world: World, config: dict[str, Any]) -> None:
    sql = "insert into ops.tools (tool_name, version, docker_image, config) values ('odoo', '19.0', 'odoo:19', $1)"
    await world.db.execute(sql, json.dumps(config))


@pytest.mark.parametrize(
    ("config", "of_tool", "labels"),
    [
        ({"serve": {"port": 1}}, {}, [SERVE_LABEL]), ({}, {"serve": {"port": 1}}, [SERVE_LABEL]),
        ({"serve": {"port": 1}, "labels": ["big", SERVE_LABEL]}, {}, ["big", SERVE_LABEL]),
        ({"serve": {"port": 1}, "labels": ["big"]}, {}, ["big", SERVE_LABEL]),
        ({"serve": None}, {"serve": {"port": 1}}, []), ({"version": "18.0"}, {"serve": {"port": 1}}, []), ({}, {}, []),
    ],
)  # fmt: skip
async def test_only_a_worker_with_room_for_one_claims_a_served_run(
    world: World, config: dict[str, Any], of_tool: dict[str, Any], labels: list[str]
) -> None:
    await tool(world, of_tool)
    for slug in ("first", "second"):  # the first run of a project, and a later one
        project = await new_project(world.db, slug)
        workflow = await new_workflow(world.db, project, "preview", config)
        for _ in range(2):
            run = await world.queue(project_id=project, workflow_id=workflow)
            assert (await world.row(run))["labels"] == labels
    without = await world.claim(p_labels=["big"])
    assert (without["run_id"] is None) == bool(labels)
    assert without.get("waiting", False) is False
    assert (await world.claim(p_labels=["big", SERVE_LABEL]))["run_id"] is not None


async def test_a_retry_of_a_served_run_keeps_its_label(world: World) -> None:
    workflow = await new_workflow(world.db, world.project, "preview", {"serve": {"port": 1}})
    run = await world.queue(workflow_id=workflow)
    await world.set_status(run, "canceled")
    again = await call(world.db, "retry_run", run)
    assert (await world.db.fetchval("select labels from ops.runs where id = $1", again["run_id"])) == [SERVE_LABEL]


async def test_a_run_is_ready_once_and_keeps_its_first_url(world: World, connect: Connect) -> None:
    run = await world.running()
    first = await call(world.db, "mark_ready", run, WORKER, INSTANCE, URL)
    row = await world.row(run)
    assert (first["success"], first["url"], row["url"]) == (True, URL, URL)
    assert row["ready_at"] is not None
    assert await call(world.db, "mark_ready", run, WORKER, INSTANCE, "http://127.0.0.1:2") == first
    events = await world.db.fetch(
        "select message, payload from ops.run_events where run_id = $1 and message = 'ready'", run
    )
    assert [json.loads(event["payload"]) for event in events] == [{"url": URL}]
    member = await sign_in(world, connect, "viewer")
    assert await member.fetchval("select url from ops.runs where id = $1", run) == URL
    await call(world.db, "complete_workflow_run", run, 0, None, WORKER, INSTANCE, "ttl")
    row = await world.row(run)
    assert (row["status"], row["reason"], row["url"]) == ("succeeded", "ttl", URL)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "http://",
        "ftp://x",
        "javascript:alert(1)",
        "http://x y",
        "http://x\n",
        "http://ä",
        "http://" + "x" * 2048,
    ],
)
async def test_a_url_that_no_client_could_open_is_refused(world: World, url: str | None) -> None:
    run = await world.running()
    answer = await call(world.db, "mark_ready", run, WORKER, INSTANCE, url)
    assert (answer["success"], answer["code"]) == (False, "bad_argument")
    assert answer["error"].startswith("the url must")
    assert (await world.row(run))["ready_at"] is None


async def test_an_adopting_worker_learns_that_the_run_was_ready_and_when_its_log_began(world: World) -> None:
    run = await world.running()
    fresh = await adopt(world, run, instance=OTHER_INSTANCE)
    assert (fresh["ready_at"], fresh["log_began_at"]) == (None, None)
    lines = {"p_first_seq": 1, "p_messages": "a", "p_marks": "i", "p_timestamps": [NOW]}
    await call(world.db, "append_run_logs", run, WORKER, OTHER_INSTANCE, **lines)
    ready = await call(world.db, "mark_ready", run, WORKER, OTHER_INSTANCE, URL)
    again = await adopt(world, run, instance=OTHER_INSTANCE)
    assert again["ready_at"] == ready["ready_at"]
    assert again["log_began_at"].startswith(NOW.isoformat()[:19])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("ready_at = now()", "ready_of_started"),
        ("started_at = null, url = 'http://x'", "url_of_ready"),
    ],
)
async def test_only_a_run_that_started_is_ready_and_only_a_ready_one_has_a_url(
    world: World, change: str, rule: str
) -> None:
    run = await world.claimed()
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await world.db.execute(f"update ops.runs set {change} where id = $1", run)
    assert refused.value.constraint_name == f"runs_{rule}"
