"""What a run leaves: log lines, a report, artifacts. Its events are in test_run_events.py."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import ENGINE, INSTANCE, NOW, WORKER, World, adopt, blocked, call, new_project, sign_in
from worker.database.queue import Queue
from worker.model.claim import Artifact, LogLines, WorkerIdentity
from worker.model.outcome import Outcome, Reason

FIRST = 2**40
CHECKSUM = "sha256:" + "0123456789abcdef" * 4


async def append(
    db: asyncpg.Connection, run: uuid.UUID, first: int, count: int, **wrong: object
) -> dict[str, Any]:  # fmt: skip
    """Send journal lines ``first`` and following as the owner does."""
    lines: dict[str, object] = {
        "p_first_seq": first,
        "p_messages": "\n".join(f"line {n}" for n in range(first, first + count)),
        "p_marks": "".join("I" if n % 2 else "i" for n in range(count)),
        "p_timestamps": [NOW + timedelta(milliseconds=n) for n in range(count)],
    }
    return await call(db, "append_run_logs", run, WORKER, INSTANCE, **(lines | wrong))


async def journal(world: World, run: uuid.UUID) -> list[tuple[int, str]]:
    rows = await world.db.fetch("select seq, message from ops.run_logs where run_id = $1 order by seq", run)
    return [(row["seq"], row["message"]) for row in rows]


# Log lines --------------------------------------------------------------------------------------------------


async def test_a_line_of_each_level_is_stored(world: World) -> None:
    run = await world.running()
    for level in ("debug", "info", "warn", "error"):
        answer = await call(world.db, "append_run_log", run, level, "hello", '{"a": 1}')
        row = await world.db.fetchrow("select *, to_jsonb(timestamp) #>> '{}' as told from ops.run_logs")
        assert row is not None
        assert answer == {"success": True, "timestamp": row["told"]}
        assert (row["run_id"], row["project_id"], row["log_level"]) == (run, world.project, level)
        assert (row["message"], row["metadata"], row["stream"]) == ("hello", '{"a": 1}', None)
        await world.db.execute("delete from ops.run_logs")


WRONG_LINES: list[tuple[str | None, str | None, str, str]] = [
    # level, message, metadata; the argument that is named
    *((level, "hello", "{}", "level") for level in ("warning", "INFO", "", None)),
    *(("info", message, "{}", "message") for message in (None, "x" * 65_601, "ä" * 32_801)),
    ("info", "", "[]", "metadata"),
]


async def test_a_line_with_a_wrong_argument_is_refused_and_the_longest_is_stored(world: World) -> None:
    run = await world.running()
    for level, message, metadata, name in WRONG_LINES:
        answer = await call(world.db, "append_run_log", run, level, message, metadata)
        assert (answer["success"], answer["code"]) == (False, "bad_level" if name == "level" else "bad_argument")
        assert answer["error"].startswith(f"the {name}")
    assert await journal(world, run) == []
    assert (await call(world.db, "append_run_log", run, "info", "x" * 65_600))["success"]
    assert (await append(world.db, run, 1, 1, p_messages="y" * 65_600))["success"]


async def test_a_batch_is_stored_as_it_was_written(world: World) -> None:
    run = await world.running()
    assert await append(world.db, run, 1, 3) == {"success": True, "stored": 3, "position": 3}
    rows = await world.db.fetch("select * from ops.run_logs order by seq")
    assert [(row["seq"], row["message"], row["stream"], row["timestamp"]) for row in rows] == [
        (1, "line 1", "stdout", NOW),
        (2, "line 2", "stderr", NOW + timedelta(milliseconds=1)),
        (3, "line 3", "stdout", NOW + timedelta(milliseconds=2)),
    ]
    assert {row["project_id"] for row in rows} == {world.project}


async def test_a_batch_sent_twice_changes_nothing(world: World) -> None:
    run = await world.running()
    await append(world.db, run, 1, 5)
    before = await world.db.fetch("select * from ops.run_logs order by seq")
    assert await append(world.db, run, 1, 5) == {"success": True, "stored": 0, "position": 5}
    assert await append(world.db, run, 3, 0) == {"success": True, "stored": 0, "position": 5}
    assert await world.db.fetch("select * from ops.run_logs order by seq") == before
    assert await append(world.db, run, 4, 3) == {"success": True, "stored": 1 + 0, "position": 6}
    assert await journal(world, run) == [(n, f"line {n}") for n in range(1, 7)]


async def test_single_lines_never_meet_the_journal(world: World) -> None:
    run = await world.running()
    await append(world.db, run, 1, 1)
    await call(world.db, "append_run_log", run, "info", "a remark")
    assert await append(world.db, run, 2, 1) == {"success": True, "stored": 1, "position": 2}
    lines = await journal(world, run)
    assert [message for _, message in lines] == ["line 1", "line 2", "a remark"]
    assert lines[2][0] >= FIRST
    assert (await adopt(world, run, instance=INSTANCE))["log_position"] == 2


WRONG_BATCHES: dict[str, tuple[object, ...]] = {
    "first_seq": (0, None, FIRST - 2, 2**63 - 1),
    "messages": (None, "", "a\nb", "a\nb\nc\nd", f"a\n{'x' * 65_601}\nc"),
    "marks": (None, "ixi", "i i"),
    "words": ("x" * 2047, "word " * 60_000, "a\nb", "a\n"),
    "timestamps": (None, [], [NOW], [NOW] * 4, [NOW, None, NOW], [[NOW], [NOW], [NOW]]),
}


async def test_a_batch_with_a_wrong_argument_is_refused_as_a_whole(world: World) -> None:
    run = await world.running()
    for name, value in ((name, value) for name, values in WRONG_BATCHES.items() for value in values):
        answer = await append(world.db, run, 1, 3, **{f"p_{name}": value})
        code = "bad_level" if name == "marks" and value else "bad_argument"
        assert (name, value, answer["success"], answer.get("code")) == (name, value, False, code)
        assert name in answer["error"]
    assert await journal(world, run) == []


async def test_each_mark_stands_for_a_level_and_a_stream(world: World) -> None:
    run = await world.running()
    assert (await append(world.db, run, 1, 8, p_messages="\n" * 7, p_marks="diweDIWE"))["stored"] == 8
    assert (await append(world.db, run, 9, 1, p_messages=""))["stored"] == 1
    rows = await world.db.fetch("select log_level, stream, message from ops.run_logs order by seq limit 8")
    levels = ("debug", "info", "warn", "error")
    assert [tuple(row) for row in rows] == [(level, name, "") for name in ("stdout", "stderr") for level in levels]


@pytest.mark.parametrize("first", [1, 2])
async def test_two_appends_to_one_log_take_turns(world: World, connect: Connect, first: int) -> None:
    """So a worker's second try, while its first one is under way, stores no line again."""
    run = await world.running()
    one, two = await connect(), await connect()
    async with one.transaction():
        await append(one, run, 1, 2)
        waiting = await blocked(world.db, two, append(two, run, first, 2))
    assert await waiting == {"success": True, "stored": first - 1, "position": first + 1}
    assert await journal(world, run) == [(n, f"line {n}") for n in range(1, first + 2)]


async def test_a_renewal_does_not_wait_for_an_append(world: World, connect: Connect) -> None:
    run = await world.running()
    other = await connect()
    async with other.transaction():
        await append(other, run, 1, 1)
        assert (await asyncio.wait_for(call(world.db, "heartbeat", WORKER, INSTANCE), 10))["success"]


async def test_an_append_waits_for_another_for_three_seconds(world: World, connect: Connect) -> None:
    run = await world.running()
    other = await connect()
    async with other.transaction():
        await append(other, run, 1, 1)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await append(world.db, run, 2, 1)


async def test_a_line_has_a_run_that_exists(world: World, connect: Connect) -> None:
    """Without a foreign key: the cost of one per line would be that of all else."""
    run, nowhere = await world.running(), uuid.uuid4()
    await append(world.db, run, 1, 3)
    for sql in (
        "insert into ops.run_logs (run_id, log_level, message) values ($1, 'info', 'x')",
        "update ops.run_logs set run_id = $1",
    ):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match=f"there is no run {nowhere}"):
            await (await connect(role="service_role")).execute(sql, nowhere)
    writer, deleter = await connect(), await connect()
    async with writer.transaction():
        await writer.execute("insert into ops.run_logs (run_id, log_level, message) values ($1, 'info', 'x')", run)
        deleting = await blocked(world.db, deleter, deleter.execute("delete from ops.runs where id = $1", run))
    await deleting
    assert await world.db.fetchval("select count(*) from ops.run_logs") == 0


async def test_a_plain_insert_gets_its_number_and_the_project_of_its_run(world: World, connect: Connect) -> None:
    run, other = await world.run_in("failed"), await new_project(world.db, "other")
    for role in ("service_role", "postgres"):
        connection = await connect(role=role)
        insert = (
            "insert into ops.run_logs (run_id, log_level, message) values ($1, 'info', 'x') returning seq, project_id"
        )
        row = await connection.fetchrow(insert, run)
        assert (row["seq"] >= FIRST, row["project_id"]) == (True, world.project)
    for table, columns, values in (
        ("run_artifacts", "artifact_key, artifact_url", "'k', 'u'"),
        ("run_events", "event_type, message", "'info', 'by hand'"),
    ):
        sql = f"insert into ops.{table} (run_id, project_id, {columns}) values ($1, $2, {values}) returning project_id"
        assert await world.db.fetchval(sql, run, other) == world.project


async def test_a_run_and_its_lines_are_related_for_an_api(world: World, connect: Connect) -> None:
    """PostgREST finds these functions where there is no foreign key."""
    run = await world.running()
    await append(world.db, run, 1, 2)
    there = "select r.run_number from ops.run_logs as g cross join ops.runs(g) as r where g.seq = 2"
    back = "select g.message from ops.runs as r cross join ops.run_logs(r) as g where r.run_number = 1 and g.seq = 2"
    member = await sign_in(world, connect, "viewer")
    assert [await member.fetchval(sql) for sql in (there, back)] == [1, "line 2"]
    stranger = await sign_in(world, connect, "owner", await new_project(world.db, "elsewhere"))
    values = await world.db.fetchval("select r::text from ops.runs as r")
    assert await stranger.fetch(f"select * from ops.run_logs($${values}$$::ops.runs)") == []


async def test_the_guide_s_search_reads_the_lines_of_one_run(world: World) -> None:
    run = await world.running()
    await append(world.db, run, 1, 3, p_messages="module sale loaded\nmodule stock failed\ndone")
    query = (
        f"select message from ops.run_logs where run_id = '{run}'"
        " and to_tsvector('english', message) @@ plainto_tsquery('english', 'failing modules')"
    )
    assert await world.db.fetchval(query) == "module stock failed"
    async with world.db.transaction():
        await world.db.execute("set local enable_seqscan = off")
        assert "run_logs_other_pkey" in "\n".join(row[0] for row in await world.db.fetch(f"explain {query}"))


# Report -----------------------------------------------------------------------------------------------------


async def test_an_ended_run_knows_its_warnings_and_errors(world: World) -> None:
    for status in ("succeeded", "canceled"):
        run = await world.running()
        await append(world.db, run, 1, 4, p_marks="iwWE")
        await append(world.db, run, 3, 4, p_marks="WEdw")  # two of them again
        await append(world.db, run, 7, 1000, p_marks="e" * 10 + "i" * 990)
        await call(world.db, "append_run_log", run, "warn", "single")
        await call(world.db, "append_run_log", run, "info", "single")
        await world.db.execute("update ops.runs set status = $2 where id = $1", run, status)
        row = await world.row(run)
        assert (row["warnings"], row["errors"]) == (4, 11)
    assert (await world.row(await world.run_in("succeeded")))["warnings"] == 0


async def test_a_report_is_kept_with_the_run(world: World, connect: Connect) -> None:
    run = await world.running()
    tests = {"passed": 3, "failed": 1, "skipped": 0, "failing": ["test_a"]}
    for summary in ("# first", "x" * 2**20, None, "# last"):
        answer = await call(
            world.db, "record_report", run, WORKER, INSTANCE, p_tests=json.dumps(tests), p_summary=summary
        )
        assert answer["success"]
        assert await world.db.fetchval("select ops.run_summary($1)", run) == summary
    assert json.loads((await world.row(run))["tests"]) == tests
    member = await sign_in(world, connect, "viewer")
    stranger = await sign_in(world, connect, "owner", await new_project(world.db, "elsewhere"))
    assert await member.fetchval("select ops.run_summary($1)", run) == "# last"
    assert await stranger.fetchval("select ops.run_summary($1)", run) is None


async def test_a_wrong_report_is_refused_by_field(world: World) -> None:
    run = await world.running()
    good = {"passed": 0, "failed": 0, "skipped": 0, "failing": []}
    for wrong, field in (
        ([], "tests"), (good | {"more": 1}, "tests"), (good | {"passed": -1}, "tests.passed"),
        (good | {"failed": "1"}, "tests.failed"), ({"passed": 1, "failed": 1, "failing": []}, "tests.skipped"),
        (good | {"failing": [1]}, "tests.failing"), (good | {"failing": ["x" * 70_000]}, "tests.failing"),
        (good | {"failing": None}, "tests.failing"),
    ):  # fmt: skip
        answer = await call(world.db, "record_report", run, WORKER, INSTANCE, p_tests=json.dumps(wrong))
        assert (wrong, answer.get("code")) == (wrong, "bad_argument")
        assert answer["error"].startswith(f"the {field} must")
    answer = await call(world.db, "record_report", run, WORKER, INSTANCE, p_summary="x" * (2**20 + 1))
    assert answer["error"].startswith("the summary must")


# Artifacts --------------------------------------------------------------------------------------------------


async def test_an_artifact_is_recorded_and_the_same_key_again_updates(world: World) -> None:
    run = await world.running()
    given = ("application/zip", 3, CHECKSUM, NOW, '{"a": 1}')
    first = await call(world.db, "add_run_artifact", run, "out/a.zip", "s3://b/a.zip", *given)
    row = await world.db.fetchrow("select * from ops.run_artifacts")
    assert row is not None
    assert first == {"success": True, "artifact_id": str(row["id"])}
    assert (row["run_id"], row["project_id"], row["artifact_key"]) == (run, world.project, "out/a.zip")
    assert tuple(row[name] for name in ("content_type", "size_bytes", "checksum", "expires_at", "metadata")) == given
    assert await call(world.db, "add_run_artifact", run, "out/a.zip", "file:///new", p_size_bytes=2) == first
    (row,) = await world.db.fetch("select * from ops.run_artifacts")
    assert (row["artifact_url"], row["size_bytes"], row["checksum"]) == ("file:///new", 2, None)
    events = await world.db.fetch("select * from ops.run_events where message like 'Artifact added: %'")
    assert [(event["event_type"], event["message"]) for event in events] == [("info", "Artifact added: out/a.zip")]


async def test_keys_and_checksums_of_other_clients_that_are_allowed(world: World) -> None:
    run = await world.running()
    for key in ("a", "a/b.txt", ".hidden", "a..b", "...", "ä ö/ü", "x" * 1024):
        assert (key, await call(world.db, "add_run_artifact", run, key, "file:///x"))[1]["success"]
    for checksum in ("sha256:abc123", "md5:1", "0" * 64):
        assert (await call(world.db, "add_run_artifact", run, "a", "file:///a", p_checksum=checksum))["success"]
        stored = "select checksum from ops.run_artifacts where artifact_key = 'a'"
        assert await world.db.fetchval(stored) == checksum


BAD_KEYS = ("/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "./a")


async def test_an_artifact_with_a_wrong_argument_is_refused(world: World) -> None:
    run = await world.running()
    right: dict[str, object] = {"p_artifact_key": "a", "p_artifact_url": "file:///a"}
    right |= {"p_worker_id": WORKER, "p_instance_id": INSTANCE}
    wrong: dict[str, tuple[object, ...]] = {
        "p_artifact_key": ("", None, *BAD_KEYS, "a\nb", "x" * 1025),
        "p_artifact_url": ("", None, "x" * 8193),
        "p_content_type": ("x" * 256,),
        "p_size_bytes": (-1,),
        "p_checksum": ("sha256:abc123", "0" * 64, CHECKSUM[:-1], CHECKSUM[:-1] + "G", CHECKSUM + "\n"),
        "p_metadata": ("[]",),
    }
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        answer = await call(world.db, "add_run_artifact", p_run_id=run, **(right | {name: value}))
        assert (name, value, answer.get("code")) == (name, value, "bad_argument")
        assert not answer["success"]
        assert name.removeprefix("p_") in answer["error"]
    assert await world.db.fetchval("select count(*) from ops.run_artifacts") == 0


async def test_what_the_database_refuses_in_texts_is_replaced_by_the_worker(world: World, db_url: str) -> None:
    run = await world.running()
    queue = await Queue.connected(db_url, WorkerIdentity(WORKER, INSTANCE, "host", ENGINE, "0", ()), lease_seconds=300)
    odd, told = "a\0b\ud800c\udcffü", "a\ufffdb\ufffdc\ufffdü"
    try:
        await queue.append_logs(run, LogLines(1, [odd, "x\0"], "ii", [NOW.isoformat()] * 2))
        await queue.add_artifact(run, Artifact(odd, odd, f"file:///{odd}", "text/plain", 1, CHECKSUM, None))
        await queue.add_event(run, "warning", odd, {odd: [odd, {"n": 1.5}]})
        assert await queue.complete(run, Outcome(1, Reason.EXIT_CODE, odd, {"field": odd})) == "failed"
    finally:
        await queue.close()
    assert await journal(world, run) == [(1, told), (2, "x\ufffd")]
    artifact = await world.db.fetchrow("select artifact_key, metadata from ops.run_artifacts")
    assert (artifact["artifact_key"], json.loads(artifact["metadata"])) == (told, {"path": told})
    (warning,) = await world.events(run, "warning")
    assert warning == {told: [told, {"n": 1.5}]}
    (error,) = await world.events(run, "error")
    assert error["field"] == told
    assert (await world.row(run))["error_message"] == told
