"""``ops-worker doctor`` against a real database, a real pooler and a real engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Connect
from tests.db.crowd import Crowd
from tests.db.persons import as_role
from tests.db.world import INSTANCE, OTHER_INSTANCE, World, call, shift_clock
from tests.support.command import ops_worker
from tests.support.pgbouncer import pooler
from tests.support.postgres import Cluster

NO_ENGINE = ("--docker-host", "unix:///no/such/docker.sock")


async def doctor(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """As a process, since the Docker SDK leaves sockets open after it could not connect."""
    return await asyncio.to_thread(ops_worker, "doctor", *words, OPS_WORKER_DATABASE_URL=url)


async def examined(url: str, *words: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by their check; the last one, if a check has several."""
    done = await doctor(url, "--json", *words)
    assert (done.returncode, done.stderr) == (status, "")
    return {row["check"]: row for row in json.loads(done.stdout)}


def states(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {check: row["state"] for check, row in found.items()}


HEALTHY = {
    "database": "ok", "clock": "ok", "schema": "ok", "overloads": "ok", "migrations": "ok", "snapshots": "ok",
    "leases": "ok", "workers": "ok", "queue": "ok", "pooler": "ok", "engine": "ok", "disk": "ok",
}  # fmt: skip


async def test_a_healthy_control_plane_has_no_finding(world: World, db_url: str, tmp_path: Path) -> None:
    await call(world.db, "register_worker", "host-a", INSTANCE)
    await world.queue()
    store = ("--artifact-store", (tmp_path / "store").as_uri(), "--min-free-disk", "1")
    found = await examined(db_url, *store)
    assert states(found) | {"engine": "ok"} == HEALTHY  # whether bridges are filtered depends on this host
    assert {row["advice"] for row in found.values() if row["state"] == "ok"} == {""}
    done = await doctor(db_url, *store)
    assert "\nok       workers     1 worker alive, version unknown\n" in done.stdout


async def test_each_problem_is_found_and_has_its_advice(world: World, db_url: str, connect: Connect) -> None:
    db = world.db
    await world.queue(labels=["gpu"])
    await call(db, "register_worker", "host-a", INSTANCE, p_version="1.0", p_lease_seconds=900)
    await call(db, "register_worker", "host-b", OTHER_INSTANCE, p_version="1.1", p_lease_seconds=900)
    await world.queue()
    await world.claim("host-c", uuid.uuid4(), p_lease_seconds=15)
    await call(db, "pause_queue", "audit")
    await db.execute("create function ops.cancel_run(text) returns void language sql as ''; drop function ops.health()")
    await db.execute("create function ops.health() returns jsonb language sql as 'select ops_private.health()'")
    await db.execute("delete from supabase_migrations.schema_migrations where version like '%000600'")
    await shift_clock(db, 300)

    found = await examined(db_url, *NO_ENGINE, status=1)

    says = {check: row["finding"] for check, row in found.items()}
    assert states(found) == {
        "database": "ok", "clock": "ok", "schema": "error", "overloads": "error", "migrations": "error",
        "snapshots": "ok", "leases": "error", "workers": "warn", "queue": "warn", "pooler": "ok", "engine": "error",
    }  # fmt: skip
    assert "different function ops.health()" in says["schema"]
    assert says["overloads"].endswith("ops.cancel_run(text)")
    assert says["migrations"] == "1 migration of this version of ops-worker not applied: 20260213000600"
    assert says["leases"].startswith("the lease of acme#2 (claimed) on host-c ran out 4m ")
    assert says["workers"] == "the 2 live workers have several versions: 1.0, 1.1"
    assert says["queue"] == "1 queued run cannot be claimed: no live worker offers gpu"
    assert all(row["advice"] for row in found.values() if row["state"] != "ok")
    done = await doctor(db_url, *NO_ENGINE)
    assert (done.returncode, "paused for all projects by postgres: audit" in done.stdout) == (1, True)


async def test_an_old_transaction_is_found(world: World, db_url: str, connect: Connect) -> None:
    await call(world.db, "register_worker", "host-a", INSTANCE)
    other = await connect(server_settings={"application_name": "a report"})
    async with other.transaction(isolation="repeatable_read"):
        await other.fetch("select from ops.runs")
        await world.db.execute(  # the clock of ops is not that of the server, so the test moves the start
            """create or replace function ops_private.open_snapshots() returns jsonb language sql stable as
               $$ select jsonb_build_object('sees_all', true, 'prepared', '[]'::jsonb, 'sessions', (
                   select jsonb_agg(jsonb_build_object('pid', a.pid, 'role', a.usename, 'state', a.state,
                       'application', a.application_name, 'seconds', 700))
                   from pg_stat_activity as a
                   where a.backend_xmin is not null and a.state = 'idle in transaction')) $$"""
        )
        found = (await examined(db_url, *NO_ENGINE, status=1))["snapshots"]
    assert found["state"] == "error"
    assert found["finding"].endswith("(a report, idle in transaction) has been open for 11m 40s")
    assert found["advice"].endswith(f"select pg_terminate_backend({other.get_server_pid()});")


async def test_the_snapshots_that_the_server_reports(world: World, connect: Connect) -> None:
    other = await connect()
    async with other.transaction(isolation="repeatable_read"):
        await other.fetch("select from ops.runs")
        facts = json.loads(await world.db.fetchval("select ops.health() -> 'snapshots'"))
        pid = other.get_server_pid()
        assert [it["pid"] for it in facts["sessions"] if it["pid"] == pid and it["seconds"] < 60] == [pid]
    facts = json.loads(await world.db.fetchval("select ops.health() -> 'snapshots'"))
    assert (facts["sees_all"], pid in [it["pid"] for it in facts["sessions"]]) == (True, False)


@pytest.mark.parametrize("who", ["viewer", "stranger"])
async def test_a_user_sees_the_checks_of_the_connection_only(crowd: Crowd, db_url: str, who: str) -> None:
    url = as_role(db_url, "authenticated", crowd.users[who])
    found = await examined(url, *NO_ENGINE, status=1)
    assert states(found) == {
        "database": "ok", "clock": "ok", "schema": "ok", "overloads": "ok", "operation": "skipped", "pooler": "ok",
        "engine": "error",
    }  # fmt: skip
    assert "permission denied for function health" in found["operation"]["finding"]


@pytest.mark.parametrize(
    ("mode", "state", "says"),
    [
        ("session", "ok", "a session pooler, notifications arrive"),
        ("transaction", "warn", "notifications do not arrive"),
    ],
)
async def test_a_pooler_is_recognised(world: World, cluster: Cluster, mode: Any, state: str, says: str) -> None:
    database = await world.db.fetchval("select current_database()")
    with pooler(cluster, mode, database=database, user="postgres") as url:
        found = (await examined(url, *NO_ENGINE, status=1))["pooler"]
    assert (found["state"], says in found["finding"]) == (state, True)


async def test_a_short_disk_is_an_error(db_url: str, tmp_path: Path) -> None:
    store = ("--artifact-store", tmp_path.as_uri(), "--min-free-disk", "1000t")
    found = (await examined(db_url, *store, status=1))["disk"]
    assert "left on the disk of" in found["finding"]
    assert "The worker claims nothing." in found["advice"]
