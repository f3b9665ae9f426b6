"""A small world for the tests of the SQL: one project, one workflow, and short ways to move runs about."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

STATES = ("queued", "claimed", "running", "succeeded", "failed", "canceled")
FINAL = ("succeeded", "failed", "canceled")
WORKER = "host-a"
INSTANCE = uuid.UUID("00000000-0000-4000-8000-00000000000a")
OTHER_INSTANCE = uuid.UUID("00000000-0000-4000-8000-00000000000b")
ENGINE = "engine-1"

_PATHS: dict[str, tuple[str, ...]] = {
    "queued": (),
    "claimed": ("claimed",),
    "running": ("claimed", "running"),
    "succeeded": ("claimed", "running", "succeeded"),
    "failed": ("claimed", "running", "failed"),
    "canceled": ("canceled",),
}


async def call(db: asyncpg.Connection, function: str, *args: object, **named: object) -> dict[str, Any]:
    """The answer of ``ops.<function>``; ``named`` are parameters by name."""
    places = [f"${n}" for n in range(1, len(args) + 1)]
    places += [f"{name} => ${n}" for n, name in enumerate(named, len(args) + 1)]
    text = await db.fetchval(f"select ops.{function}({', '.join(places)})", *args, *named.values())
    answer: dict[str, Any] = json.loads(text)
    return answer


async def shift_clock(db: asyncpg.Connection, seconds: float) -> None:
    """Make the database's time that much later than it is, for everybody."""
    await db.execute(
        "create or replace function ops_private.current_time() returns timestamptz language sql volatile "
        f"return pg_catalog.clock_timestamp() + interval '{seconds} seconds'"
    )


async def freeze_clock(db: asyncpg.Connection, at: datetime) -> None:
    """Make the database's time stand still; ``update public.clock set now = …`` moves it, for everybody."""
    await db.execute("create table public.clock (now timestamptz not null)")
    await db.execute("insert into public.clock values ($1)", at)
    await db.execute(
        "grant select on public.clock to public; "
        "create or replace function ops_private.current_time() returns timestamptz language plpgsql volatile "
        "set search_path = pg_catalog, pg_temp as 'begin return (select c.now from public.clock as c); end'"
    )


async def until_blocked(db: asyncpg.Connection, waiting: asyncpg.Connection) -> None:
    """Return once that connection waits for a lock."""
    pid = waiting.get_server_pid()
    async with asyncio.timeout(10):
        while not await db.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid):
            pass


async def new_project(db: asyncpg.Connection, slug: str) -> uuid.UUID:
    """A project, inserted with the columns that a plain client gives."""
    project: uuid.UUID = await db.fetchval(
        "insert into ops.projects (workspace_key, slug, name, odoo_version) "
        "values ($1, $2, $3, '19.0') returning id",
        slug.replace("-", "_"), slug, slug.title(),
    )  # fmt: skip
    return project


async def new_workflow(
    db: asyncpg.Connection, project: uuid.UUID, name: str = "build", config: dict[str, object] | None = None
) -> uuid.UUID:
    """A workflow of that project."""
    workflow: uuid.UUID = await db.fetchval(
        "insert into ops.workflows (project_id, workflow_type, name, config) "
        "values ($1, 'build', $2, $3) returning id",
        project, name, json.dumps(config or {}),
    )  # fmt: skip
    return workflow


@dataclass(frozen=True)
class World:
    """One project, one workflow, and the superuser's connection."""

    db: asyncpg.Connection
    project: uuid.UUID
    workflow: uuid.UUID

    async def queue(self, **columns: object) -> uuid.UUID:
        """A queued run; ``columns`` beyond those of a plain client."""
        row = {"project_id": self.project, "workflow_id": self.workflow, "status": "queued"} | columns
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        run: uuid.UUID = await self.db.fetchval(
            f"insert into ops.runs ({', '.join(row)}) values ({places}) returning id", *row.values()
        )
        return run

    async def run_in(self, state: str) -> uuid.UUID:
        """A run that went to ``state`` by direct updates."""
        run = await self.queue()
        for status in _PATHS[state]:
            await self.set_status(run, status)
        return run

    async def set_status(self, run: uuid.UUID, status: str) -> None:
        """Change the status as service_role might: directly."""
        await self.db.execute("update ops.runs set status = $2 where id = $1", run, status)

    async def claim(
        self,
        worker: str = WORKER,
        instance: uuid.UUID | None = INSTANCE,
        engine: str | None = ENGINE,
        **named: object,
    ) -> dict[str, Any]:
        """The next run, for that worker."""
        return await call(self.db, "claim_next_run", worker, instance, p_engine_id=engine, **named)

    async def claimed(self, **named: Any) -> uuid.UUID:
        """A new run that the worker claimed."""
        run = await self.queue()
        assert (await self.claim(**named))["run_id"] == str(run)
        return run

    async def running(self, **named: Any) -> uuid.UUID:
        """A new run that the worker claimed and started."""
        run = await self.claimed(**named)
        started = await call(self.db, "start_workflow_run", run, named.get("worker", WORKER))
        assert started["success"]
        return run

    async def row(self, run: uuid.UUID) -> asyncpg.Record:
        """All columns of the run."""
        row = await self.db.fetchrow("select * from ops.runs where id = $1", run)
        assert row is not None
        return row

    async def status(self, run: uuid.UUID) -> str:
        """The run's status."""
        return str((await self.row(run))["status"])

    async def lease(self, run: uuid.UUID) -> asyncpg.Record | None:
        """The run's lease, if it has one."""
        return await self.db.fetchrow("select * from ops_private.leases where run_id = $1", run)

    async def expires_at(self, run: uuid.UUID) -> datetime:
        """When the run's lease runs out."""
        lease = await self.lease(run)
        assert lease is not None
        expires_at: datetime = lease["expires_at"]
        return expires_at

    async def events(self, run: uuid.UUID, event_type: str) -> list[dict[str, Any]]:
        """Payloads of the run's events of that type, oldest first."""
        rows = await self.db.fetch(
            "select payload from ops.run_events where run_id = $1 and event_type = $2 order by seq",
            run,
            event_type,
        )
        return [json.loads(row["payload"]) for row in rows]
