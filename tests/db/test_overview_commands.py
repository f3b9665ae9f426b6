"""``ops-worker workers``, ``projects``, ``workflows``, ``tools list`` and ``members`` against a real database."""

from __future__ import annotations

import json
import re

import pytest

from tests.db.crowd import Crowd
from tests.db.persons import as_role, ops
from tests.db.world import INSTANCE, OTHER_INSTANCE, World, call, new_workflow, shift_clock

COMMANDS = ("workers", "projects", "workflows", "tools list", "members")


@pytest.mark.parametrize("line", COMMANDS)
async def test_who_sees_what(crowd: Crowd, db_url: str, line: str) -> None:
    """An operator sees all, a member the own project; a user without a project sees the catalogue of tools only."""
    await call(crowd.world.db, "register_worker", "host-a", INSTANCE)
    await crowd.world.db.execute("delete from ops.project_memberships where user_id = $1", crowd.users["admin"])
    counts = {
        "workers": (1, 1, 1, 0), "projects": (2, 1, 1, 0), "workflows": (1, 1, 0, 0), "tools list": (1, 1, 1, 1),
        "members": (4, 3, 1, 0),
    }  # fmt: skip
    member, stranger, removed = (
        as_role(db_url, "authenticated", crowd.users[who]) for who in ("viewer", "stranger", "admin")
    )
    for url, count in zip((db_url, member, stranger, removed), counts[line], strict=True):
        assert len((await ops(url, *line.split(), "--json")).json) == count
    done = await ops(as_role(db_url, "anon"), *line.split())
    assert (done.status, done.out) == (6, "")


async def test_workers_show_labels_and_the_runs_that_the_caller_may_see(crowd: Crowd, db_url: str) -> None:
    db = crowd.world.db
    await call(db, "register_worker", "host-b", OTHER_INSTANCE, p_labels=["gpu", "\x1b[2Jbig"], p_lease_seconds=900)
    await call(db, "register_worker", "host-a", INSTANCE, p_version="1.2", p_lease_seconds=15)
    await shift_clock(db, 60)
    title, *rows = (await ops(db_url, "workers")).out.splitlines()
    assert title.split() == ["WORKER", "STATE", "VERSION", "LABELS", "DISK", "FREE", "STARTED", "RUNS"]
    assert re.match(r"host-b +alive +gpu,big +\S+$", rows[0])
    assert re.match(r"host-a +gone +1\.2 +\S+Z +acme#1$", rows[1])
    for who, runs in (("viewer", ["acme#1"]), ("stranger", [])):
        found = (await ops(as_role(db_url, "authenticated", crowd.users[who]), "workers", "--json")).json
        assert [run["run"] for row in found for run in row["runs"]] == runs
        assert [row["db_role"] for row in found] == [None, None]
    assert (await ops(db_url, "workers", "--json")).json[0]["db_role"] == "postgres"


async def test_workers_show_the_disk_as_last_reported(world: World, db_url: str) -> None:
    await call(world.db, "register_worker", "host-a", INSTANCE)
    for reported, shown in (((3 * 2**30, 12 * 2**30), "3.0g (25%)"), ((0, 0), "0.0g"), ((None, None), None)):
        assert (await call(world.db, "heartbeat", "host-a", INSTANCE, 60, *reported))["registered"]
        [row] = (await ops(db_url, "workers", "--json")).json
        assert (row["disk_free"], row["disk_total"]) == reported
        line = (await ops(db_url, "workers")).out.splitlines()[1]
        assert re.findall(r"^host-a +alive +(?:(\S+(?: \(\d+%\))?)  +)?\S+Z$", line) == [shown or ""]
    refused = await call(world.db, "heartbeat", "host-a", INSTANCE, 60, 2, 1)
    assert refused == {
        "success": False, "code": "bad_argument", "error": "the disk_free must be from 0 to disk_total",
    }  # fmt: skip


async def test_projects_show_what_holds_their_runs_back(crowd: Crowd, db_url: str) -> None:
    await crowd.world.queue()
    viewer = as_role(db_url, "authenticated", crowd.users["viewer"])
    for line, held in (
        ("", ""), ("limit_project($1, 1)", "at most 1 active run"), ("limit_project($1, 3)", "at most 3 active runs"),
        ("pause_project($1, 'audit')", "paused by postgres: audit"),
    ):  # fmt: skip
        if line:
            assert json.loads(await crowd.world.db.fetchval(f"select ops.{line}", crowd.world.project))["success"]
        title, row = (await ops(viewer, "projects")).out.splitlines()
        assert title.split() == ["PROJECT", "NAME", "ODOO", "STATUS", "ROLE", "QUEUED", "ACTIVE", "HELD", "BACK", "BY"]
        assert re.fullmatch(rf"acme +Acme +19\.0 +active +viewer +1 +1 *{held}", row)
    [row, _] = (await ops(db_url, "projects", "--json")).json
    assert (row["role"], row["pause_reason"], row["max_active_runs"]) == (None, "audit", 3)


async def test_workflows_show_the_newest_run_of_each(world: World, db_url: str) -> None:
    await new_workflow(world.db, world.project, "idle")
    await world.db.execute("update ops.workflows set enabled = false, git_ref = '18.0' where name = 'idle'")
    await world.run_in("failed")
    await world.queue()
    title, *rows = (await ops(db_url, "workflows", "acme")).out.splitlines()
    assert title.split() == ["WORKFLOW", "TYPE", "ENABLED", "REF", "NEWEST", "RUN", "STATUS", "QUEUED", "NEXT", "AT"]
    assert re.match(r"acme/build +build +yes +acme#2 +queued +\S+Z$", rows[0])
    assert re.match(r"acme/idle +build +no +18\.0$", rows[1])


async def test_a_project_that_is_not_there_is_an_error_and_not_an_empty_list(crowd: Crowd, db_url: str) -> None:
    viewer = as_role(db_url, "authenticated", crowd.users["viewer"])
    for command in ("workflows", "members"):
        for slug in ("nowhere", "elsewhere"):
            done = await ops(viewer, command, slug)
            assert (done.status, done.err) == (5, f"PROJECT: there is no project {slug}, or this role may not see it\n")


async def test_tools_and_members_page_by_limit(crowd: Crowd, db_url: str) -> None:
    await crowd.world.db.execute(
        "insert into ops.tools (tool_name, version, docker_image) values ('odoo', '18.0', 'odoo:18')"
    )
    done = await ops(db_url, "tools", "list", "--limit", "1")
    assert done.out.splitlines()[1:] == ["odoo  18.0     odoo:18"]
    assert done.err == "there is more; --limit 5 shows it\n"
    rows = (await ops(db_url, "members", "acme", "--json")).json
    assert [row["role"] for row in rows] == ["owner", "admin", "developer", "viewer"]
    assert rows[0]["user_id"] == str(crowd.users["owner"])


async def test_no_name_or_text_reaches_a_terminal_unescaped(crowd: Crowd, db_url: str) -> None:
    """No command prints a text of the control plane so that a terminal would execute it."""
    db, evil = crowd.world.db, "\x1b]0;x\x07\x1b[2Jevil\u202e\x9b1m\r"
    workflow = await new_workflow(db, crowd.world.project, evil)
    run = await crowd.world.queue(workflow_id=workflow, labels=[evil], concurrency_key=evil)
    await call(db, "register_worker", evil, OTHER_INSTANCE, p_version=evil, p_labels=[evil])
    assert (await crowd.world.claim(evil, OTHER_INSTANCE, p_labels=[evil]))["run_id"] == str(run)
    await call(db, "start_workflow_run", run, evil)
    for level in ("info", "error"):
        await call(db, "append_run_log", run, level, evil)
    await call(db, "add_run_event", run, "info", evil, p_worker_id=evil)
    await call(db, "add_run_artifact", run, "a", evil)
    await crowd.world.queue(workflow_id=workflow, labels=[evil], concurrency_key=evil)
    await db.execute("update ops.workflows set description = $1", evil)
    await db.execute("update ops.projects set name = $1", evil)
    await db.execute("insert into ops.tools (tool_name, version, docker_image) values ($1, $1, 'x')", evil)
    shown = [await ops(db_url, "queue"), await ops(db_url, "workers"), await ops(db_url, "doctor")]
    await call(db, "complete_workflow_run", run, 1, evil, evil, OTHER_INSTANCE)
    await call(db, "pause_project", crowd.world.project, evil)
    await call(db, "pause_queue", evil)
    lines = (
        "runs list", "runs show acme#2", "runs logs acme#2", "runs logs acme#2 -f", "runs wait acme#2", "projects",
        "workflows", "tools list", "doctor", "queue", "members",
    )  # fmt: skip
    shown += [await ops(db_url, *line.split()) for line in lines]
    shown.append(await ops(db_url, "runs", "show", f"acme/{evil}x"))
    for done in shown:
        assert re.findall(r"[^\n -~\u00a1-\u00ac\u00ae-\u024f…]", done.out + done.err) == []
    assert sum("evil" in done.out + done.err for done in shown) == len(shown) - 1  # members have no text
