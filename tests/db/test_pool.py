"""The worker's pool: how many statements a call takes, and what it leaves in the session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest_asyncio

from tests.db.world import ENGINE, INSTANCE, WORKER, World
from worker.database.connection import acquire, open_pool
from worker.database.queue import Queue
from worker.model.claim import Artifact, LogLines, WorkerIdentity
from worker.model.outcome import Outcome, Reason

LEFT = """
    select (select array_agg(name) from pg_settings where source = 'session' and name <> 'jit') as settings,
        (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks,
        (select count(*) from pg_listening_channels()) as channels,
        (select array_agg(statement) from pg_cursors where statement !~ 'pg_cursors') as cursors,
        (select array_agg(name) from pg_prepared_statements) as statements,
        pg_my_temp_schema()::int as temporary
"""
"""What a session holds beyond its calls. The driver sets ``jit`` while it reads a type, once, and sets it back."""
TYPES = "select null::bigint[], null::text[], null::timestamptz[]"
"""Makes the driver read the types that the calls need, as it does once in each connection."""


@pytest_asyncio.fixture
async def pool(db_url: str, world: World) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(db_url, application_name="test", size=1)
    yield pool
    pool.terminate()


async def test_each_call_is_one_statement_and_leaves_nothing_in_the_session(world: World, pool: asyncpg.Pool) -> None:
    queue = Queue("unused", pool, WorkerIdentity(WORKER, INSTANCE, "boot", ENGINE, "0", ()), 60)
    said: list[Any] = []
    async with acquire(pool) as connection:
        pid = connection.get_server_pid()
        await connection.fetchrow(TYPES)
        connection.add_query_logger(said.append)
    released, completed = [await world.queue() for _ in range(2)]
    artifact = Artifact("a", "k/a", "file:///k/a", "text/plain", 1, f"sha256:{0:064}", None)
    calls = [
        queue.register(takeover=False), queue.claim(), queue.release(released), queue.claim(), queue.claim(),
        queue.start(released), queue.start(completed), queue.record_container(completed, "c", {"image": "i"}),
        queue.append_logs(completed, LogLines(1, ["hello"], "i", [datetime.now(UTC).isoformat()])),
        queue.add_event(completed, "info", "hello", {"a": 1}), queue.add_artifact(completed, artifact),
        queue.complete(completed, Outcome(0, Reason.SUCCEEDED)), queue.adopt(completed), queue.adoptable(),
        queue.unclaimable(), queue.unregister(),
    ]  # fmt: skip
    for call in calls:
        await call
    assert len(said) == len(calls), "\n".join(each.query for each in said)
    assert await world.status(completed) == "succeeded"
    async with acquire(pool) as connection:
        assert connection.get_server_pid() == pid, "all of it was one session"
        assert not any((left := await connection.fetchrow(LEFT)).values()), left


async def test_a_transaction_left_open_is_rolled_back(world: World, pool: asyncpg.Pool) -> None:
    run = await world.queue()
    async with acquire(pool) as connection:
        pid = connection.get_server_pid()
        await connection.execute("begin")
        await connection.execute("update ops.runs set priority = 9 where id = $1", run)
        connection._con._loop.set_exception_handler(lambda *_: None)  # where the driver reports it
    async with acquire(pool) as connection:
        assert connection.get_server_pid() == pid
        assert not connection.is_in_transaction()
        assert await connection.fetchval("select priority from ops.runs where id = $1", run) == 0


async def test_calls_are_prepared_once_where_notifications_arrive(
    db_url: str, world: World, pool: asyncpg.Pool
) -> None:
    queue = Queue(db_url, pool, WorkerIdentity(WORKER, INSTANCE, "boot", ENGINE, "0", ()), 60)
    assert await queue.listen(lambda: None, lambda _: None)
    for _ in range(2):
        await world.queue()
        await queue.claim()
    async with acquire(pool) as connection:
        kept = await connection.fetch("select statement, generic_plans + custom_plans from pg_prepared_statements")
    assert ["claim_next_run" in statement and calls for statement, calls in kept if "ops." in statement] == [2]
    await queue.close()
