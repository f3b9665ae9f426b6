"""``ops-worker prune``: what it deletes, what it leaves, and what happens when it dies on the way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import World, call, shift_clock, until_blocked
from tests.support.docker import ROOT
from tests.support.scripts import environ_of

HOST = "host-a"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def prune(url: str, store: Path, *flags: str, host: str = HOST) -> subprocess.CompletedProcess[str]:
    environ = environ_of(
        OPS_WORKER_DATABASE_URL=url, OPS_WORKER_ARTIFACT_STORE=store.as_uri(), OPS_WORKER_WORKER_ID=host
    )
    command = [sys.executable, "-m", "worker", "prune", *flags]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


async def artifact(
    world: World, run: uuid.UUID, store: Path, *, age_days: int, name: str = "a.txt", key: str | None = None
) -> Path:
    """An artifact of the run in the store that expired that many days ago; returns its file."""
    workspace = await world.db.fetchval("select workspace_key from ops.projects where id = $1", world.project)
    key = key or f"{workspace}/{run}/{name}"
    file = store / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name)
    checksum = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    await world.db.execute(
        "insert into ops.run_artifacts (run_id, artifact_key, artifact_url, size_bytes, checksum, expires_at)"
        " values ($1, $2, $3, $4, $5, now() - make_interval(days => $6))",
        run, key, file.as_uri(), len(name), checksum, age_days,
    )  # fmt: skip
    return file


async def ended(world: World, days_ago: int, lines: int = 3) -> uuid.UUID:
    """A run that ended that many days ago, with a log."""
    run = await world.running()
    for n in range(lines):
        await call(world.db, "append_run_log", run, "info", f"line {n}")
    await call(world.db, "complete_workflow_run", run, 0)
    await world.db.execute(
        "update ops.runs set finished_at = now() - make_interval(days => $2) where id = $1", run, days_ago
    )
    return run


async def count(world: World, table: str, run: uuid.UUID) -> int:
    found: int = await world.db.fetchval(f"select count(*) from ops.{table} where run_id = $1", run)
    return found


async def test_expired_artifacts_go_with_their_objects_and_nothing_else_does(
    world: World, db_url: str, store: Path
) -> None:
    run = await ended(world, 40)
    expired = await artifact(world, run, store, age_days=1)
    fresh = await artifact(world, run, store, age_days=-1, name="b.txt")
    rehearsal = prune(db_url, store, "--dry-run")
    assert rehearsal.stdout == "would be deleted: 1 expired artifacts (0.0 MiB), 0 log lines, 0 events\n"
    assert json.loads(prune(db_url, store, "--dry-run", "--json").stdout) == {
        "dry_run": True, "artifacts": 1, "bytes": expired.stat().st_size, "lines": 0, "events": 0, "volumes": [],
        "networks": [],
    }  # fmt: skip
    assert expired.exists()
    done = prune(db_url, store)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "deleted: 1 expired artifacts (0.0 MiB), 0 log lines, 0 events\n"
    assert (expired.exists(), fresh.exists()) == (False, True)
    assert await count(world, "run_artifacts", run) == 1
    assert await count(world, "run_logs", run) == 3, "logs are kept unless a setting says how long"
    assert await world.db.fetchval("select count(*) from ops_private.retired_artifacts") == 0


async def test_a_prune_that_died_leaves_no_dangling_record_and_the_next_one_goes_on(
    world: World, db_url: str, store: Path
) -> None:
    run = await ended(world, 1)
    files = [await artifact(world, run, store, age_days=1, name=f"{n}.txt") for n in range(3)]
    sql = "select * from ops_private.retire_artifacts($1, $2)"
    assert len(await world.db.fetch(sql, store.as_uri(), HOST)) == 3  # and here it died
    assert await count(world, "run_artifacts", run) == 0
    files[0].unlink()  # or here, after the first object
    done = prune(db_url, store)
    assert done.stdout.startswith("deleted: 3 expired artifacts")
    assert not any(file.exists() for file in files)
    assert await world.db.fetchval("select count(*) from ops_private.retired_artifacts") == 0


async def test_artifacts_of_a_project_that_was_renamed_expire_too(world: World, db_url: str, store: Path) -> None:
    file = await artifact(world, await ended(world, 1), store, age_days=1)
    await world.db.execute("update ops.projects set workspace_key = 'another' where id = $1", world.project)
    assert prune(db_url, store).stdout.startswith("deleted: 1 expired artifacts")
    assert not file.exists()


async def test_an_object_that_cannot_be_deleted_stays_on_the_list(world: World, db_url: str, store: Path) -> None:
    run = await ended(world, 1)
    file = await artifact(world, run, store, age_days=1)
    file.unlink()
    file.mkdir()  # unlink() fails on it, for root too
    (file / "x").touch()
    failed = prune(db_url, store)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("ops-worker: cannot delete")
    assert await world.db.fetchval("select count(*) from ops_private.retired_artifacts") == 1
    (file / "x").unlink()
    file.rmdir()
    assert prune(db_url, store).stdout.startswith("deleted: 1 expired artifacts")


async def test_other_stores_other_hosts_running_runs_and_forged_keys_are_left_alone(
    world: World, db_url: str, store: Path, tmp_path: Path
) -> None:
    run = await ended(world, 1)
    other = tmp_path / "other"
    victim = await artifact(world, run, store, age_days=-1, name="victim.txt")
    left = [
        await artifact(world, run, other, age_days=1),
        await artifact(world, await world.running(), store, age_days=1),
    ]
    forger = await ended(world, 1)
    await world.db.execute(
        "insert into ops.run_artifacts (run_id, artifact_key, artifact_url, expires_at)"
        " select $1, artifact_key, artifact_url, now() - interval '1 day' from ops.run_artifacts"
        " where run_id = $2 and artifact_key like '%victim.txt'",
        forger, run,
    )  # fmt: skip
    assert prune(db_url, store).stdout.startswith("deleted: 0 expired artifacts")
    for url, host in ((other, HOST), (store, "host-c")):
        await world.db.execute(
            "insert into ops_private.retired_artifacts values (gen_random_uuid(), 'k', $1, 1, $2)",
            f"{url.as_uri()}/k", host,
        )  # fmt: skip
    assert prune(db_url, store).stdout.startswith("deleted: 0 expired artifacts")
    mine = await artifact(world, run, store, age_days=1, name="mine.txt")
    assert prune(db_url, store, host="host-b").stdout.startswith("deleted: 0 expired artifacts")
    assert all(file.exists() for file in [victim, mine, *left])
    assert await world.db.fetchval("select count(*) from ops.run_artifacts") == 5, "nor is a record of them"
    assert await world.db.fetchval("select count(*) from ops_private.retired_artifacts") == 2


async def test_two_that_prune_at_once_retire_each_artifact_once(world: World, connect: Connect, store: Path) -> None:
    await artifact(world, await ended(world, 1), store, age_days=1)
    sql = "select * from ops_private.retire_artifacts($1, $2)"
    other = await connect()
    async with world.db.transaction():
        assert len(await world.db.fetch(sql, store.as_uri(), HOST)) == 1
        waiting = asyncio.create_task(other.fetch(sql, store.as_uri(), HOST))
        await until_blocked(world.db, other)
    assert len(await waiting) == 1


async def test_old_logs_and_events_go_only_when_a_setting_asks_for_it(world: World, db_url: str, store: Path) -> None:
    old, young = [await ended(world, 40) for _ in range(25)], await ended(world, 20)
    going = await world.running()
    await call(world.db, "append_run_log", going, "info", "still here")
    done = prune(db_url, store, "--keep-logs", "30", "--keep-events", "30")
    events = await world.db.fetchval("select count(*) from ops.run_events")
    assert done.stdout == f"deleted: 0 expired artifacts (0.0 MiB), 75 log lines, {25 * 4} events\n"
    assert [await count(world, "run_logs", run) for run in (old[0], young, going)] == [0, 3, 1]
    assert [await count(world, "run_events", run) for run in (old[0], young, going)] == [0, 4, 3]
    assert events == 7
    assert await world.db.fetchval("select count(*) from ops.runs") == 27, "runs stay: the audit trail"


MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
PARTITIONS = "select inhrelid::regclass::text from pg_inherits where inhparent = 'ops.run_logs'::regclass order by 1"


async def parts(world: World) -> list[str]:
    """The partitions of the log, without the default one."""
    names = [row[0].removeprefix("ops_private.run_logs_") for row in await world.db.fetch(PARTITIONS)]
    assert names.pop() == "other"
    return names


async def at(world: World, time: datetime) -> None:
    await shift_clock(world.db, (time - datetime.now(UTC)).total_seconds())


async def test_a_week_of_old_logs_is_dropped_at_once(world: World, db_url: str, store: Path) -> None:
    """But not the week that is still being kept, nor one with a run that goes on; and no run's lines are lost early."""
    day = timedelta(days=1)
    runs = {}
    for week in range(5):
        await at(world, MONDAY + week * 7 * day)
        await call(world.db, "reap")
        runs[week] = await world.running()
        await call(world.db, "append_run_log", runs[week], "info", "line")
        if week == 1:
            going = await world.running()
            await call(world.db, "append_run_log", going, "info", "still here")
            await world.db.execute("update ops_private.leases set expires_at = 'infinity' where run_id = $1", going)
        await call(world.db, "complete_workflow_run", runs[week], 0)
    assert await parts(world) == ["20260105", "20260112", "20260119", "20260126", "20260202", "20260209", "20260216"]

    async def pruned(before: datetime) -> tuple[str, set[int]]:
        days = (datetime.now(UTC) - before) // day
        printed = (await asyncio.to_thread(prune, db_url, store, "--keep-logs", str(days))).stdout
        return printed.split(", ")[1], {week for week, run in runs.items() if await count(world, "run_logs", run)}

    assert await pruned(MONDAY + 3 * 7 * day + 2 * day) == ("3 log lines", {3, 4})
    assert await parts(world) == ["20260112", "20260126", "20260202", "20260209", "20260216"], "the run that goes on"
    assert await count(world, "run_logs", going) == 1
    await world.db.execute("update ops.runs set finished_at = started_at, status = 'failed' where id = $1", going)
    assert await pruned(MONDAY + 5 * 7 * day) == ("3 log lines", set())
    assert await parts(world) == ["20260209", "20260216"]
    for table in ("log_blocks", "log_tails"):
        assert await world.db.fetchval(f"select count(*) from ops_private.{table}") == 0


async def test_a_reader_of_the_logs_delays_their_partitions_and_nothing_else(world: World, connect: Connect) -> None:
    await at(world, MONDAY)
    reader = await connect()
    async with reader.transaction():
        await reader.fetch("select * from ops.run_logs")
        assert "failed" in await call(world.db, "reap")
        assert await parts(world) == []
    async with reader.transaction():
        await call(reader, "reap")
        assert "failed" in await call(world.db, "reap"), "it leaves them to the other one"
    await call(world.db, "reap")
    assert await parts(world) == ["20260105", "20260112", "20260119"]
    async with reader.transaction():
        await reader.fetch("select * from ops.run_logs")
        assert await world.db.fetchval("select ops_private.drop_log_partitions(now())") == 0
        assert len(await parts(world)) == 3
    await world.db.fetchval("select ops_private.drop_log_partitions(now())")
    assert await parts(world) == []


async def test_the_lines_of_the_first_worker_s_first_run_are_in_their_week_s_partition(world: World) -> None:
    await at(world, MONDAY)
    assert (await call(world.db, "register_worker", "host-b", uuid.uuid4()))["success"]
    assert await parts(world) == ["20260105", "20260112", "20260119"]
    run = await world.running()
    await call(world.db, "append_run_log", run, "info", "line")
    assert await count(world, "run_logs", run) == 1
    assert not await world.db.fetch("select from ops_private.run_logs_other")


async def test_a_week_with_lines_has_no_partition_of_its_own(world: World) -> None:
    """Of an installation whose workers slept, or with a clock that was wrong."""
    await at(world, MONDAY + timedelta(days=9))
    run = await world.running()
    await call(world.db, "append_run_log", run, "info", "line")
    await at(world, MONDAY)
    await call(world.db, "reap")
    assert await parts(world) == ["20260119"]
    assert await count(world, "run_logs", run) == 1


async def test_projects_of_another_database_are_not_named_as_archived(world: World) -> None:
    archived = "select * from ops_private.archived_projects($1, $2)"
    identity = await world.db.fetchval("select ops_private.database_identity()")
    unknown = uuid.uuid4()
    projects = [world.project, unknown]
    assert [*map(tuple, await world.db.fetch(archived, identity, projects))] == [(unknown, None)]
    await world.db.execute("update ops.projects set status = 'archived'")
    named = {(world.project, "acme"), (unknown, None)}
    assert {*map(tuple, await world.db.fetch(archived, identity, projects))} == named
    assert await world.db.fetch(archived, uuid.uuid4(), projects) == []
    await world.db.execute("update ops_private.control set fingerprint = 'of the original'")
    assert await world.db.fetch(archived, identity, projects) == [], "this database is a copy"


async def test_a_worker_s_role_may_not_prune(db: asyncpg.Connection) -> None:
    for call_ in (
        "retire_artifacts('file:///x', null)", "forget_artifacts('{}')", "prune_run_logs(now())",
        "drop_log_partitions(now())",
        "prune_run_events(now())", "prunable('file:///x', null, now(), now())",
        "archived_projects(gen_random_uuid(), '{}')",
    ):  # fmt: skip
        async with db.transaction():
            await db.execute("set local role ops_worker")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with db.transaction():
                    await db.execute(f"select ops_private.{call_}")
