"""``ops-worker runs enqueue | cancel | retry``, ``queue``, ``pause`` and ``resume`` against a real database."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.db.crowd import ADMINS, DEVELOPERS, ROLES, Crowd
from tests.db.persons import Said, as_role, ops
from tests.db.world import INSTANCE, OTHER_INSTANCE, World, call, new_project, new_workflow

EVERYBODY = (*ROLES, "stranger", "service_role", "operator")
OPERATORS = {"service_role", "operator"}


def url_of(crowd: Crowd, db_url: str, who: str) -> str:
    if who == "operator":
        return db_url
    return (
        as_role(db_url, "service_role") if who == "service_role" else as_role(db_url, "authenticated", crowd.users[who])
    )


@pytest.mark.parametrize("who", EVERYBODY)
async def test_who_may_do_what_by_command(crowd: Crowd, db_url: str, who: str) -> None:
    """The same as by a call (tests/db/test_calls.py); a refusal is an exit code, and changes nothing."""
    world, url = crowd.world, url_of(crowd, db_url, who)
    others, ended = await world.queue(), await world.run_in("failed")
    await call(world.db, "register_worker", "host-d", OTHER_INSTANCE)
    for line, who_may in (
        ("runs enqueue acme/build", DEVELOPERS | OPERATORS), (f"runs cancel {others}", ADMINS | OPERATORS),
        (f"runs retry {ended}", ADMINS | OPERATORS), ("pause acme", ADMINS | OPERATORS),
        ("resume acme", ADMINS | OPERATORS), ("pause", OPERATORS), ("resume", OPERATORS),
        ("drain host-d", OPERATORS),
    ):  # fmt: skip
        before = await world.db.fetch("select * from ops.runs order by id")
        done = await ops(url, *line.split())
        hidden = who == "stranger" and line not in ("pause", "resume", "drain host-d")
        assert (line, done.status) == (line, 0 if who in who_may else 5 if hidden else 6)
        if who not in who_may:
            assert (done.out, len(done.err.splitlines())) == ("", 1)
            assert await world.db.fetch("select * from ops.runs order by id") == before


# --- enqueue --------------------------------------------------------------------------------------------------------


async def test_enqueue_prints_the_name_of_the_run_alone(world: World, db_url: str) -> None:
    done = await ops(db_url, "runs", "enqueue", "acme/build")
    assert done == Said(0, "acme#1\n", "queued\n")
    assert (await ops(db_url, "runs", "show", done.out.strip(), "--json")).json["status"] == "queued"


async def test_enqueue_passes_everything_on(world: World, db_url: str) -> None:
    await world.db.execute("""update ops.workflows set config = '{"run_env": ["BRANCH", "X"]}'""")
    words = (
        "--ref", "18.0", "--commit", "4f2a91c", "--arg=--test-tags", "--arg", "/library", "--env", "BRANCH=a=b",
        "--env", "X=", "--metadata", '{"asked_by": "ci", "git_ref": "17.0"}', "--at", "2h", "--key", "push-1",
    )  # fmt: skip
    document = (await ops(db_url, "runs", "enqueue", str(world.workflow), "--json", *words)).json
    row = await world.row(uuid.UUID(document["run_id"]))
    assert json.loads(row["metadata"]) == {
        "asked_by": "ci", "git_ref": "18.0", "git_commit": "4f2a91c", "args": ["--test-tags", "/library"],
        "env": {"BRANCH": "a=b", "X": ""},
    }  # fmt: skip
    assert timedelta(hours=1) < row["scheduled_at"] - datetime.now(UTC) < timedelta(hours=3)
    assert document["created"] is True
    assert row["idempotency_key"].endswith(":push-1")


async def test_the_same_key_queues_once_and_another_request_with_it_is_refused(world: World, db_url: str) -> None:
    enqueue = ("runs", "enqueue", "acme/build", "--key", "k")
    first, again = await ops(db_url, *enqueue), await ops(db_url, *enqueue)
    assert (first.out, again.out) == ("acme#1\n", "acme#1\n")
    assert again.err == "this key has queued it before; queued\n"
    done = await ops(db_url, *enqueue, "--ref", "18.0")
    assert done == Said(6, "", "runs enqueue: this idempotency key was used for another request\n")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["acme/build", "--env", "BRANCH"], 2, "--env: expected NAME=VALUE, got 'BRANCH'"),
        (["acme/build", "--metadata", "[]"], 2, "--metadata: expected a JSON object, got '[]'"),
        (["acme/build", "--env", "X=1"], 6, "runs enqueue: run metadata, env.X: the workflow does not list it; add"),
        (["acme/build", "--metadata", '{"user": "root"}'], 6, "runs enqueue: run metadata, user: "),
        (["acme/build", "--commit", "nothing"], 2, "--commit: expected 7 to 64 hexadecimal digits, got 'nothing'"),
        (["acme"], 2, "WORKFLOW: expected a workflow id"), (["acme/none"], 5, "there is no workflow acme/none"),
        ([str(uuid.uuid4())], 5, "there is no such workflow"),
    ],
)  # fmt: skip
async def test_what_enqueue_refuses(world: World, db_url: str, words: list[str], status: int, says: str) -> None:
    done = await ops(db_url, "runs", "enqueue", *words)
    assert (done.status, done.out, says in done.err) == (status, "", True), done.err


# --- cancel and retry -----------------------------------------------------------------------------------------------


async def test_cancel_with_a_reason(world: World, db_url: str) -> None:
    await world.running()
    done = await ops(db_url, "runs", "cancel", "acme#1", "--reason", "not needed")
    assert done == Said(0, "acme#1 running: the worker is asked to stop the run\n", "")
    run = await world.queue()
    document = (await ops(db_url, "runs", "cancel", "acme#2", "--reason", "not needed", "--json")).json
    assert document == {"run": "acme#2", "run_id": str(run), "status": "canceled", "message": "the run is canceled"}
    assert (await world.row(run))["error_message"] == "not needed"
    await world.run_in("succeeded")
    assert await ops(db_url, "runs", "cancel", "acme#3") == Said(6, "", "runs cancel: the run is already succeeded\n")


async def test_retry_names_the_next_attempt(world: World, db_url: str) -> None:
    await world.run_in("failed")
    done = await ops(db_url, "runs", "retry", "acme#1")
    assert done == Said(0, "acme#2\n", "attempt 2 after acme#1: queued\n")
    again = await ops(db_url, "runs", "retry", "acme#1")
    assert again == Said(0, "acme#2\n", "attempt 2 after acme#1: it exists already; queued\n")
    assert (await ops(db_url, "runs", "retry", "acme#2")).err == "runs retry: the run is still queued\n"


# --- queue ----------------------------------------------------------------------------------------------------------


async def test_the_queue_in_the_order_of_the_claims_with_why_each_waits(world: World, db_url: str) -> None:
    await call(world.db, "register_worker", "host-a", INSTANCE)
    keyed = await new_workflow(world.db, world.project, "keyed", {"concurrency_key": "live"})
    await world.queue(workflow_id=keyed)
    await world.claim()
    for columns in ({}, {"priority": 5}, {"workflow_id": keyed}, {"labels": ["gpu"]}):
        await world.queue(**columns)
    rows = (await ops(db_url, "queue", "--json")).json
    waits = {row["run"]: row["waits_for"] for row in rows}
    assert list(waits) == ["acme#1", "acme#3", "acme#2", "acme#4", "acme#5"]
    assert waits == {
        "acme#1": None, "acme#3": "worker: the next one that is free", "acme#2": "worker: the next one that is free",
        "acme#4": "key: run #1 holds live", "acme#5": "labels: no worker has gpu",
    }  # fmt: skip
    done = await ops(db_url, "queue", "--limit", "2")
    assert re.match(r"RUN +WORKFLOW +STATUS +PRIORITY +QUEUED +WAITS FOR\n", done.out)
    assert re.search(r"acme#1 .* claimed .* its start by host-a\nacme#3 .* 5 .* worker: the next", done.out)
    assert done.err == "there is more; --limit 10 shows it\n"
    claimed: list[str] = []
    while (claim := await world.claim(p_labels=["gpu"]))["run_id"]:
        claimed.append(f"acme#{claim['run_number']}")
    assert claimed == ["acme#3", "acme#2", "acme#5"]


async def test_the_queue_of_one_project_and_of_a_member(crowd: Crowd, db_url: str) -> None:
    third = await new_project(crowd.world.db, "third")
    other = World(crowd.world.db, third, await new_workflow(crowd.world.db, third))
    await other.queue()
    await crowd.world.queue()
    assert len((await ops(db_url, "queue", "--json")).json) == 2
    assert [row["run"] for row in (await ops(db_url, "queue", "--project", "third", "--json")).json] == ["third#1"]
    for who, runs in (("viewer", ["acme#2"]), ("stranger", [])):
        url = as_role(db_url, "authenticated", crowd.users[who])
        assert [row["run"] for row in (await ops(url, "queue", "--json")).json] == runs
        done = await ops(url, "queue", "--project", "third", "--json")
        assert (done.status, done.err) == (5, "--project: there is no project third, or this role may not see it\n")


# --- pause and resume -----------------------------------------------------------------------------------------------


async def test_pause_and_resume(world: World, db_url: str) -> None:
    await world.queue()
    for line, said, waits in (
        ("pause acme --reason audit", "acme is paused\n", "project: paused by postgres"),
        ("pause acme", "acme is paused, as before\n", "project: paused by postgres"),
        ("resume acme", "acme is not paused\n", "labels: no worker has registered"),
        ("pause", "the queue of all projects is paused\n", "queue: paused"),
        ("resume", "the queue of all projects is not paused\n", "labels: no worker has registered"),
        ("resume", "the queue of all projects is not paused, as before\n", "labels: no worker has registered"),
    ):  # fmt: skip
        assert await ops(db_url, *line.split()) == Said(0, said, "")
        assert (await ops(db_url, "queue", "--json")).json[0]["waits_for"] == waits
    document = (await ops(db_url, "pause", "acme", "--json")).json
    assert document == {"project": "acme", "paused": True, "changed": True}
    assert (await ops(db_url, "pause", "nowhere")).status == 5
    assert (await ops(db_url, "pause", "No Where")).status == 2
