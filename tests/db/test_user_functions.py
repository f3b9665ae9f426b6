"""What users call: queue and retry a run, search logs, see the advisories of an upgrade."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.db.world import FINAL, STATES, World, call, new_project, new_workflow, until_blocked
from worker.model import config


async def sign_in(world: World, connect: Connect, role: str, project: uuid.UUID | None = None) -> asyncpg.Connection:
    """A connection as a new member of the project."""
    user = uuid.uuid4()
    await world.db.execute(
        "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, $3)",
        project or world.project, user, role,
    )  # fmt: skip
    connection = await connect(role="authenticated")
    await connection.execute(f"set request.jwt.claim.sub = '{user}'")
    return connection


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


async def test_without_a_key_each_call_is_a_run(world: World, developer: asyncpg.Connection) -> None:
    first, second = [await call(developer, "enqueue_run", world.workflow) for _ in range(2)]
    assert (first["run_number"], second["run_number"], second["created"]) == (1, 2, True)
    assert await world.db.fetchval("select count(*) from ops_private.run_requests") == 0


async def test_a_time_that_is_past_is_now(world: World, developer: asyncpg.Connection) -> None:
    past = await world.db.fetchval("select now() - interval '1 hour'")
    run_id = uuid.UUID((await call(developer, "enqueue_run", world.workflow, p_scheduled_at=past))["run_id"])
    assert (await world.row(run_id))["scheduled_at"] is None


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


@pytest.mark.parametrize("other", ["p_metadata", "p_scheduled_at", "p_workflow_id"])
async def test_another_request_under_the_same_key_is_refused(
    world: World, developer: asyncpg.Connection, other: str
) -> None:
    changed = {
        "p_metadata": '{"args": []}',
        "p_scheduled_at": await world.db.fetchval("select now() + interval '1 hour'"),
        "p_workflow_id": await new_workflow(world.db, world.project, "another"),
    }
    request = {"p_workflow_id": world.workflow, "p_idempotency_key": "k"}
    await call(developer, "enqueue_run", **request)
    answer = await call(developer, "enqueue_run", **{**request, other: changed[other]})
    assert (answer["success"], answer["code"]) == (False, "key_reused")
    assert len(await run_ids(world)) == 1


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


async def test_a_key_that_a_machine_wrote_itself_is_nobodys_request(
    world: World, developer: asyncpg.Connection
) -> None:
    await world.queue(idempotency_key=f"{world.project}:k")
    assert (await call(developer, "enqueue_run", world.workflow, p_idempotency_key="k"))["code"] == "key_reused"


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        ({"user": "root"},
         "user: a run may set env, args, git_ref, git_commit; user belongs into the workflow's config"),
        ({"env": {"A": "1", "B": "2"}},
         "env.B: the workflow does not list it; add \"B\" to run_env in the workflow's config"),
        ({"env": [["LD_PRELOAD", "x"]]}, "env: expected an object"),
        ({"args": "-v"}, "args: expected a list"),
        ({"env": {"A": "1"}, "args": ["-v"], "note": "x"}, None),
    ],
)  # fmt: skip
async def test_what_a_worker_would_refuse_is_refused_where_it_is_asked_for(
    world: World, developer: asyncpg.Connection, metadata: dict[str, Any], refused: str | None
) -> None:
    workflow = await new_workflow(world.db, world.project, "listing", {"run_env": ["A"]})
    answer = await call(developer, "enqueue_run", workflow, json.dumps(metadata))
    insert = "insert into ops.runs (project_id, workflow_id, metadata) values ($1, $2, $3)"
    if refused is None:
        assert answer["success"]
        await developer.execute(insert, world.project, workflow, json.dumps(metadata))
    else:
        assert (answer["code"], answer["error"]) == ("bad_argument", f"run metadata, {refused}")
        with pytest.raises(asyncpg.CheckViolationError) as error:
            await developer.execute(insert, world.project, workflow, json.dumps(metadata))
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


async def test_a_queue_has_an_end(world: World, developer: asyncpg.Connection) -> None:
    await world.db.execute("update ops_private.control set max_queued_runs = 2")
    ended = await world.run_in("canceled")
    for _ in range(2):
        assert (await call(developer, "enqueue_run", world.workflow))["success"]
    answer = await call(developer, "enqueue_run", world.workflow)
    assert (answer["code"], answer["error"]) == (
        "queue_full", "the queue of the project is full: at most 2 runs (max_queued_runs)",
    )  # fmt: skip
    with pytest.raises(asyncpg.PostgresError, match="full") as error:
        await world.queue()
    assert error.value.sqlstate == "OPS04"
    assert (await call(world.db, "retry_run", ended))["success"]
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


async def test_a_user_cannot_retry_into_a_full_queue(world: World, developer: asyncpg.Connection) -> None:
    first = uuid.UUID((await call(developer, "enqueue_run", world.workflow))["run_id"])
    await call(developer, "cancel_run", first)
    await call(developer, "enqueue_run", world.workflow)
    await world.db.execute("update ops_private.control set max_queued_runs = 1")
    assert (await call(developer, "retry_run", first))["code"] == "queue_full"
    assert (await call(world.db, "retry_run", first))["success"]


async def test_two_with_one_key_at_the_same_time_get_one_run(world: World, connect: Connect) -> None:
    one, two = [await sign_in(world, connect, "developer") for _ in range(2)]
    transaction = one.transaction()
    await transaction.start()
    first = await call(one, "enqueue_run", world.workflow, p_idempotency_key="k")
    waiting = asyncio.create_task(call(two, "enqueue_run", world.workflow, p_idempotency_key="k"))
    await until_blocked(world.db, two)
    await transaction.commit()
    assert await waiting == {**first, "created": False}


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_metadata": "[]"},
        {"p_metadata": '{"a": ' + "[" * 33 + "]" * 33 + "}"},
        {"p_metadata": json.dumps({"a": "x" * 2**18})},
        {"p_metadata": "null"},
        {"p_idempotency_key": ""},
        {"p_idempotency_key": "k" * 201},
        {"p_idempotency_key": "ß" * 101},
        {"p_scheduled_at": "infinity"},
    ],
    ids=str,
)
async def test_a_request_that_makes_no_sense_is_refused(world: World, wrong: dict[str, str]) -> None:
    (name, value), *_ = wrong.items()
    kind = {"p_metadata": "jsonb", "p_idempotency_key": "text", "p_scheduled_at": "timestamptz"}[name]
    text = await world.db.fetchval(f"select ops.enqueue_run($1, {name} => $2::text::{kind})", world.workflow, value)
    answer = json.loads(text)
    assert answer["code"] == "bad_argument"
    assert answer["error"].startswith(f"the {name.removeprefix('p_')} must ")
    assert await run_ids(world) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("update ops.workflows set enabled = false", "workflow_disabled"),
        ("update ops.projects set status = 'archived'", "project_archived"),
    ],
)
async def test_what_no_worker_would_execute_is_not_queued(world: World, change: str, code: str) -> None:
    ended = await world.run_in("failed")
    await world.db.execute(change)
    assert (await call(world.db, "enqueue_run", world.workflow))["code"] == code
    assert (await call(world.db, "retry_run", ended))["code"] == code
    assert await run_ids(world) == [ended]


async def test_a_run_of_a_machine_is_nobodys(world: World, connect: Connect) -> None:
    service = await connect(role="service_role")
    answer = await call(service, "enqueue_run", world.workflow, p_idempotency_key="k")
    assert answer["created"]
    assert (await world.row(uuid.UUID(answer["run_id"])))["created_by"] is None


# Retry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
async def test_what_has_ended_can_be_retried(world: World, state: str) -> None:
    run = await world.run_in(state)
    answer = await call(world.db, "retry_run", run)
    assert answer["success"] == (state in FINAL)
    assert answer.get("code") == (None if state in FINAL else "not_final")
    assert len(await run_ids(world)) == (2 if state in FINAL else 1)


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
    assert (after["retry_of"], after["attempt"], after["scheduled_at"]) == (old, 2, None)
    me = await admin.fetchval("select ops.current_user_id()")
    assert after["created_by"] == me
    assert await world.events(old, "info") == [
        {"actor": "postgres"}, {"actor": str(me), "retry_run_id": answer["run_id"]}
    ]  # fmt: skip

    await world.set_status(after["id"], "canceled")
    assert (await call(admin, "retry_run", after["id"]))["attempt"] == 3


async def test_who_asks_twice_gets_one_retry_until_that_has_ended(world: World, connect: Connect) -> None:
    run = await world.run_in("failed")
    one, two = [await sign_in(world, connect, "admin") for _ in range(2)]
    transaction = one.transaction()
    await transaction.start()
    first = await call(one, "retry_run", run)
    waiting = asyncio.create_task(call(two, "retry_run", run))
    await until_blocked(world.db, two)
    await transaction.commit()
    assert await waiting == {**first, "created": False}
    await world.set_status(uuid.UUID(first["run_id"]), "canceled")
    assert (await call(two, "retry_run", run))["created"]


async def test_a_worker_queues_the_retry_of_what_it_completes(world: World, connect: Connect) -> None:
    """As ``complete_workflow_run`` may do it, with the owner's rights on behalf of a host that may not insert."""
    await world.db.execute(
        """create role queue_retry_test_host login in role ops_worker;
           create function public.retry(p_run_id uuid) returns uuid language sql security definer
           return ops_private.queue_retry(p_run_id, interval '1 minute')"""
    )
    owner = uuid.uuid4()
    run = await world.queue(created_by=owner)
    host = await connect(user="queue_retry_test_host")
    retry = await world.row(await host.fetchval("select public.retry($1)", run))
    assert (retry["retry_of"], retry["attempt"], retry["created_by"]) == (run, 2, owner)
    assert retry["scheduled_at"] - retry["created_at"] > timedelta(seconds=59)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await host.execute("insert into ops.runs (project_id, workflow_id) values ($1, $2)", run, run)
    assert await host.fetchval("select public.retry($1)", uuid.uuid4()) is None


@pytest.mark.parametrize("function", ["enqueue_run", "retry_run"])
async def test_queueing_by_function_locks_the_project_then_the_counter_then_runs(
    world: World, connect: Connect, function: str
) -> None:
    run = await world.run_in("failed")
    argument = run if function == "retry_run" else world.workflow
    waiter = await connect()
    async with world.db.transaction():
        await world.db.execute("select from ops.projects for update")
        waiting = asyncio.create_task(call(waiter, function, argument))
        await until_blocked(world.db, waiter)
        await world.db.execute("select from ops_private.run_counters for update nowait")
        await world.db.execute("select from ops.runs for update nowait")
    assert (await asyncio.wait_for(waiting, 10))["created"]


# Search -----------------------------------------------------------------------------------------------------


async def logged(world: World, run: uuid.UUID, *messages: str, since: str = "2026-01-01") -> None:
    """Lines of that run, a second apart."""
    await world.db.execute(
        """insert into ops.run_logs (run_id, project_id, seq, log_level, message, "timestamp")
           select $1, $2, n, 'info', m, $4::timestamptz + n * interval '1 second'
           from unnest($3::text[]) with ordinality as u (m, n)""",
        run, world.project, list(messages), await world.db.fetchval("select $1::text::timestamptz", since),
    )  # fmt: skip


async def search(db: asyncpg.Connection, query: str, **named: object) -> list[asyncpg.Record]:
    places = "".join(f", {name} => ${n}" for n, name in enumerate(named, 2))
    rows: list[asyncpg.Record] = await db.fetch(
        f"select * from ops.search_run_logs($1{places})", query, *named.values()
    )
    return rows


async def test_a_search_finds_words_in_one_run_or_one_project(world: World, developer: asyncpg.Connection) -> None:
    first, second = await world.queue(), await world.queue()
    await logged(world, first, "module sale loaded", "module stock failed", "done")
    await logged(world, second, "Module SALE failed", since="2026-01-02")
    found = await search(developer, "module failed", p_project_id=world.project)
    assert [(row["run_id"], row["run_number"], row["seq"], row["message"]) for row in found] == [
        (second, 2, 1, "Module SALE failed"), (first, 1, 2, "module stock failed")
    ]  # fmt: skip
    assert [row["seq"] for row in await search(developer, "module", p_run_id=first)] == [2, 1]
    assert [row["seq"] for row in await search(developer, '"sale loaded" or done', p_run_id=first)] == [3, 1]
    assert [row["seq"] for row in await search(developer, "module -stock", p_run_id=first)] == [1]
    assert await search(developer, "nothing", p_project_id=world.project) == []


@pytest.mark.parametrize("where", ["p_project_id", "p_run_id"])
async def test_pages_give_every_line_once(world: World, developer: asyncpg.Connection, where: str) -> None:
    runs = [await world.queue() for _ in range(3 if where == "p_project_id" else 1)]
    for run in runs:
        await logged(world, run, *(["word"] * 5))
    await world.db.execute("""update ops.run_logs set "timestamp" = '2026-01-01' where seq between 2 and 4""")
    scope = {where: world.project if where == "p_project_id" else runs[0]}
    whole = await search(developer, "word", **scope)
    assert len(whole) == 5 * len(runs)
    assert whole == sorted(whole, key=lambda row: (row["timestamp"], row["run_id"], row["seq"]), reverse=True)
    pages: list[asyncpg.Record] = []
    after: dict[str, object] = {}
    while page := await search(developer, "word", p_limit=2, **scope, **after):
        pages += page
        last = page[-1]
        after = {
            "p_before": last["timestamp"], "p_before_run_id": last["run_id"], "p_before_seq": last["seq"]
        }  # fmt: skip
    assert pages == whole


async def test_to_a_stranger_there_is_nothing_to_find(world: World, connect: Connect) -> None:
    run = await world.queue()
    await logged(world, run, "word")
    stranger = await sign_in(world, connect, "owner", await new_project(world.db, "elsewhere"))
    for scope in ({"p_project_id": world.project}, {"p_run_id": run}, {"p_run_id": uuid.uuid4()}):
        assert await search(stranger, "word", **scope) == []
    assert len(await search(await sign_in(world, connect, "viewer"), "word", p_run_id=run)) == 1
    assert len(await search(await connect(role="service_role"), "word", p_project_id=world.project)) == 1


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ({}, "either a project_id or a run_id"),
        ({"p_project_id": uuid.uuid4(), "p_run_id": uuid.uuid4()}, "either a project_id or a run_id"),
        ({"p_run_id": uuid.uuid4(), "p_limit": 0}, "1 to 1000"),
        ({"p_run_id": uuid.uuid4(), "p_limit": 1001}, "1 to 1000"),
        ({"p_run_id": uuid.uuid4(), "p_limit": None}, "1 to 1000"),
        ({"p_run_id": uuid.uuid4(), "p_before_seq": 1}, "before_run_id and before_seq go together"),
    ],
)
async def test_a_search_that_makes_no_sense_is_an_error(
    developer: asyncpg.Connection, named: dict[str, object], complaint: str
) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match=complaint):
        await search(developer, "word", **named)


@pytest.mark.parametrize("query", ["", " ", "-", '""', "!&|()", None])
async def test_a_search_without_a_word_is_an_error(developer: asyncpg.Connection, query: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="needs a word"):
        await search(developer, query, p_run_id=uuid.uuid4())


async def test_a_search_reads_the_full_text_index(world: World, connect: Connect) -> None:
    """As a member: with row policies the planner would have to look at every line first."""
    run = await world.queue()
    await logged(world, run, *(f"line {n}" for n in range(3000)))
    await world.db.execute("analyze ops.run_logs")
    member = await sign_in(world, connect, "viewer")
    await world.db.execute("select pg_stat_force_next_flush(), pg_stat_reset()")
    found = await search(member, "2718", p_project_id=world.project)
    assert len(found) == 1
    await member.execute("select pg_stat_force_next_flush()")
    await member.close()
    scans = "select idx_scan from pg_stat_user_indexes where indexrelname = 'run_logs_message_idx'"
    async with asyncio.timeout(10):
        while not await world.db.fetchval(scans):
            await asyncio.sleep(0.02)
    assert await world.db.fetchval("select seq_scan from pg_stat_user_tables where relname = 'run_logs'") == 0


# Advisories -------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def advisories(world: World) -> None:
    steps = [
        ("16.0", "17.0"), ("17.0", "18.0"), ("18.0", "19.0"), ("17.0", "19.0"), ("9.0", "10.0"), ("10.0", "11.0"),
        ("18", "18.0"), ("19.0", "18.0"), ("saas-17.2", "saas-17.4"), ("17.0", ""),
    ]  # fmt: skip
    await world.db.executemany(
        "insert into ops.upgrade_advisories (from_version, to_version, severity, title) values ($1, $2, 'low', 'x')",
        steps,
    )


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("17.0", "18.0", ["17.0 18.0", "18 18.0"]),
        ("17.0", "19.0", ["17.0 18.0", "17.0 19.0", "18 18.0", "18.0 19.0"]),
        ("17", "19.0.0", ["17.0 18.0", "17.0 19.0", "18 18.0", "18.0 19.0"]),
        ("16.0", "18.0", ["16.0 17.0", "17.0 18.0", "18 18.0"]),
        ("9.0", "11.0", ["9.0 10.0", "10.0 11.0"]),  # as text, 9.0 comes after 11.0
        ("10.0", "9.0", []),
        ("19.0", "19.0", []),
        ("8.0", "9.0", []),
    ],
)
async def test_an_upgrade_over_several_versions_has_the_advisories_of_each_step(
    advisories: None, connect: Connect, start: str, end: str, expected: list[str]
) -> None:
    user = await connect(role="authenticated")
    rows = await user.fetch("select from_version, to_version from ops.applicable_advisories($1, $2)", start, end)
    assert [" ".join(row.values()) for row in rows] == expected


async def test_the_gravest_advisory_of_a_step_comes_first(world: World) -> None:
    await world.db.execute(
        """insert into ops.upgrade_advisories (from_version, to_version, severity, title)
           select '1', '2', s, s from unnest('{low,critical,medium,high}'::text[]) as s"""
    )
    rows = await world.db.fetch("select * from ops.applicable_advisories('1', '2')")
    assert [row["severity"] for row in rows] == ["critical", "high", "medium", "low"]


@pytest.mark.parametrize("wrong", ["", "seventeen", "17.", "saas-17.2", "17.0; drop", "9" * 10, None])
async def test_a_version_that_is_none_is_an_error(world: World, wrong: str) -> None:
    for versions in ((wrong, "19.0"), ("17.0", wrong)):
        with pytest.raises(asyncpg.InvalidParameterValueError, match=r"17\.0 and 19\.0"):
            await world.db.fetch("select * from ops.applicable_advisories($1, $2)", *versions)


async def test_a_column_that_is_added_later_does_no_harm(world: World, advisories: None) -> None:
    await world.db.execute("alter table ops.upgrade_advisories add column more text")
    assert len(await world.db.fetch("select * from ops.applicable_advisories('17.0', '18.0')")) == 2
