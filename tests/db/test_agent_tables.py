"""The way of an older database with agent tables up and back, as docs/upgrading-agent-tables.md tells it.

Beside the migration a client writes: a client that knows both names, as the changed edge functions do, and one that
knows the old names only. What was acknowledged to either must be there in the end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import AGENT_TABLES
from tests.support.docker import PATIENCE, ROOT
from tests.support.scripts import script
from worker.database import catalog, migrations

GUIDE = (ROOT / "docs" / "upgrading-agent-tables.md").read_text()


@dataclass
class Writer:
    """Inserts a run and its line, or a line only; which run was acknowledged, and under which names."""

    db: asyncpg.Connection
    prefixes: tuple[str, ...]
    run: int | None = None
    acknowledged: list[tuple[int, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    async def write(self) -> None:
        for prefix in self.prefixes:
            try:
                async with self.db.transaction():
                    number = self.run or await self.db.fetchval(
                        f"insert into ops.{prefix}runs (agent) values (gen_random_uuid()::text) returning id"
                    )
                    await self.db.execute(f"insert into ops.{prefix}run_logs (run_id, line) values ($1, 'x')", number)
            except asyncpg.PostgresError as error:  # a name that is not there now, or a table that is not the agents'
                self.refused.append(type(error).__name__)
            else:
                self.acknowledged.append((number, prefix))
                return

    async def until(self, prefix: str) -> None:
        """Waits until it wrote under names with that prefix from now on."""
        seen = len(self.acknowledged)
        async with asyncio.timeout(PATIENCE):
            while not any(name == prefix for _, name in self.acknowledged[seen:]):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def writing(*writers: Writer) -> AsyncIterator[None]:
    """These at work until the end of the block."""
    stopping = asyncio.Event()

    async def on(writer: Writer) -> None:
        while not stopping.is_set():  # never cancelled: a commit whose answer is lost would not be counted
            await writer.write()

    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(on(writer))
        try:
            yield
        finally:
            stopping.set()


async def contents(db: asyncpg.Connection, prefix: str) -> tuple[set[asyncpg.Record], set[asyncpg.Record]]:
    return (
        set(await db.fetch(f"select * from ops.{prefix}runs")),
        set(await db.fetch(f"select * from ops.{prefix}run_logs")),
    )


@pytest.mark.parametrize("way", ["migrate", "script"])
async def test_a_client_that_knows_both_names_loses_nothing_up_and_back(
    empty_db_url: str, connect: Connect, way: str
) -> None:
    db = await connect(empty_db_url)
    await db.execute(AGENT_TABLES)
    old_runs, old_logs = await contents(db, "")

    both = Writer(await connect(empty_db_url), ("agent_", ""))
    lines = Writer(await connect(empty_db_url), ("agent_", ""), run=1)

    async def until_all_write(prefix: str) -> None:
        await asyncio.gather(both.until(prefix), lines.until(prefix))

    async with writing(both, lines):
        await until_all_write("")
        if way == "migrate":
            ours = await migrations.migrate(db)
        else:
            ours = migrations.read_migrations()
            done = await asyncio.to_thread(script, "setup_ops_schema.sh", DATABASE_URL=empty_db_url)
            assert done.returncode == 0, done.stderr
        await until_all_write("agent_")
        assert await catalog.verify(db) == []
        await migrations.rollback(db, ours[0].version)
        await until_all_write("")
        await migrations.migrate(db)
        await until_all_write("agent_")

    assert "DeadlockDetectedError" not in both.refused + lines.refused
    runs, logs = await contents(db, "agent_")
    assert old_runs <= runs
    assert old_logs <= logs
    assert {row["id"] for row in runs - old_runs} == {number for number, _ in both.acknowledged}
    acknowledged = [number for writer in (both, lines) for number, _ in writer.acknowledged]
    assert sorted(row["run_id"] for row in logs - old_logs) == sorted(acknowledged)
    assert await contents(db, "agent_") == (
        set(await db.fetch("table ops.agent_runs_v")), set(await db.fetch("table ops.agent_run_logs_v")),
    )  # fmt: skip
    assert await db.fetchval("select count(*) from ops.runs") == 0


async def test_a_client_that_knows_the_old_names_only_is_refused_and_writes_nothing_into_our_tables(
    empty_db_url: str, connect: Connect
) -> None:
    db = await connect(empty_db_url)
    await db.execute(AGENT_TABLES)
    writer = Writer(await connect(empty_db_url), ("",))
    await writer.write()
    await migrations.migrate(db)
    await writer.write()
    await db.execute("alter table ops.agent_run_logs add column message text")
    for statement in (
        "insert into ops.runs (status) values ('queued')",  # with columns that ours has too
        "insert into ops.run_logs (run_id, message) values (gen_random_uuid(), 'x')",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await db.execute(statement)
    assert len(writer.acknowledged) == 1
    assert writer.refused == ["UndefinedColumnError"]
    assert await db.fetchval("select count(*) from ops.runs") == 0
    assert await db.fetchval("select count(*) from ops.run_logs") == 0


async def test_the_guide_s_queries_find_what_is_renamed_and_who_hides_a_name(
    empty_db_url: str, connect: Connect
) -> None:
    db = await connect(empty_db_url)
    await db.execute(AGENT_TABLES)
    await db.execute(
        "create function public.by_string() returns bigint language plpgsql as"
        " $$ declare n bigint; begin execute format('select count(*) from ops.%I', 'runs') into n; return n; end $$;"
        "create function public.by_name() returns bigint language sql as $$ select count(*) from ops.runs $$;"
    )
    english, tables, strings = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)[1:4]
    assert "english" in english
    assert [str(row[0]) for row in await db.fetch(tables)] == ["run_logs", "runs"]
    assert [str(row[0]) for row in await db.fetch(strings)] == ["by_string()"]

    counts = re.findall(r'-c "(select count[^"]*)"', GUIDE)
    counted = await db.fetch(counts[0])
    await migrations.migrate(db)
    assert await db.fetch(tables) == []
    assert await db.fetch(counts[1]) == counted
    renamed = await db.fetch(re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)[0])
    assert ("relation", "runs", "agent_runs") in [(row["kind"], row["former"], row["name"]) for row in renamed]
    assert await db.fetchval("select public.by_name()") == 50
