"""A small world for the tests of the SQL: one project, one workflow, and short ways to move runs along."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg

from tests.conftest import Connect

T = TypeVar("T")

STATES = ("queued", "claimed", "running", "succeeded", "failed", "canceled")
FINAL = ("succeeded", "failed", "canceled")
WORKER = "host-a"
INSTANCE = uuid.UUID("00000000-0000-4000-8000-00000000000a")
OTHER_INSTANCE = uuid.UUID("00000000-0000-4000-8000-00000000000b")
ENGINE = "engine-1"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LIFE: dict[str, dict[str, Any]] = {
    "start_workflow_run": {},
    "complete_workflow_run": {"p_exit_code": 0},
    "release_run": {},
    "append_run_log": {"p_level": "info", "p_message": "hello"},
    "append_run_logs": {"p_first_seq": 1, "p_messages": "hello", "p_marks": "i", "p_timestamps": [NOW]},
    "add_run_artifact": {"p_artifact_key": "a.txt", "p_artifact_url": "file:///a.txt"},
    "add_run_event": {"p_event_type": "info", "p_message": "hello"},
    "record_container": {"p_container_id": "c"},
    "record_report": {"p_summary": "fine"},
    "mark_ready": {"p_url": "http://127.0.0.1:8069"},
}  # fmt: skip
"""Every function that a worker calls for one run, with arguments that are right."""

_PATHS: dict[str, tuple[str, ...]] = {
    "queued": (),
    "claimed": ("claimed",),
    "running": ("claimed", "running"),
    "succeeded": ("claimed", "running", "succeeded"),
    "failed": ("claimed", "running", "failed"),
    "canceled": ("canceled",),
}


AGENT_TABLES = """
create schema ops;
create type ops.agent_state as enum ('new', 'done');
create table ops.runs (
    id bigserial primary key,
    agent text not null unique,
    state ops.agent_state not null default 'new',
    status text,
    created_at timestamptz not null default now()
);
create index runs_status_idx on ops.runs (status);
create table ops.run_logs (
    id uuid primary key default gen_random_uuid(),
    run_id bigint not null references ops.runs (id) on delete cascade,
    line text not null check (line <> '')
);
create index run_logs_run_id_idx on ops.run_logs (run_id);
create view ops.latest as
    select r.agent, l.line from ops.runs as r join ops.run_logs as l on l.run_id = r.id;
create role agent_reader;
grant select on ops.runs, ops.run_logs to agent_reader;
insert into ops.runs (agent, status) select 'agent ' || i, 'ok' from generate_series(1, 50) as i;
insert into ops.run_logs (run_id, line) select 1 + i % 50, 'line ' || i from generate_series(1, 500) as i;
"""
"""A schema ``ops`` of an older program, whose tables have the names of ours."""


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


async def use(
    db: asyncpg.Connection, function: str, run: uuid.UUID, worker: str | None = WORKER,
    instance: uuid.UUID | None = INSTANCE, **named: object,
) -> dict[str, Any]:  # fmt: skip
    """The answer of a function of ``LIFE``, for that worker."""
    return await call(db, function, p_run_id=run, p_worker_id=worker, p_instance_id=instance, **LIFE[function] | named)


async def everything(db: asyncpg.Connection) -> list[Any]:
    """All that the database holds of runs."""
    return [
        await db.fetch(f"select * from {table} order by 1, 2")
        for table in ("ops.runs", "ops.run_events", "ops.run_logs", "ops.run_artifacts", "ops_private.leases")
    ]


async def heard(connect: Connect, channel: str) -> asyncio.Queue[str]:
    """The payloads of the notifications on that channel from now on."""
    payloads: asyncio.Queue[str] = asyncio.Queue()
    await (await connect()).add_listener(channel, lambda *args: payloads.put_nowait(args[3]))
    return payloads


async def woken(connect: Connect, instances: Sequence[uuid.UUID]) -> asyncio.Queue[uuid.UUID | None]:
    """Which of these instances are told of a run from now on; None stands for all workers at once."""
    told: asyncio.Queue[uuid.UUID | None] = asyncio.Queue()
    listener = await connect()
    await listener.add_listener("ops_queue", lambda *_: told.put_nowait(None))
    for one in instances:
        channel = await listener.fetchval("select ops_private.channel_of($1)", one)
        await listener.add_listener(channel, lambda *_, one=one: told.put_nowait(one))
    return told


async def next_of(queue: asyncio.Queue[T]) -> T:
    """The next of them."""
    return await asyncio.wait_for(queue.get(), 10)


async def blocked(
    db: asyncpg.Connection, waiting: asyncpg.Connection, calling: Coroutine[Any, Any, Any]
) -> asyncio.Task[Any]:
    """The call on the connection ``waiting``, which by now waits for a lock."""
    task = asyncio.create_task(calling)
    await until_blocked(db, waiting)
    return task


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


async def adopt(
    world: World, run: uuid.UUID, worker: str = WORKER, instance: uuid.UUID = OTHER_INSTANCE,
    engine: str | None = ENGINE,
) -> dict[str, Any]:  # fmt: skip
    """The answer of ``adopt_run``, for the next instance of the worker unless another one is named."""
    return await call(world.db, "adopt_run", run, worker, instance, engine)


async def reap(world: World) -> dict[str, Any]:
    return await call(world.db, "reap")


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
