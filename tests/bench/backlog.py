"""Long queues: how they are filled, and what a claim costs behind and beside them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import asyncpg

from tests.bench.harness import (
    SUCCEEDED,
    Bench,
    claimed,
    connections,
    queues,
)
from tests.bench.report import Figure, Mark
from tests.support.docker import Plane, new_project
from worker.database.queue import Queue

T = TypeVar("T")

PROJECTS = 10
"""Among which a long queue is divided: a project may queue at most 100,000 runs."""

FIRST, STEP = 100, 10_000
"""Runs in the first statement and in each further one."""


async def together(work: Callable[[T], Awaitable[None]], over: Sequence[T]) -> None:
    await asyncio.gather(*(work(one) for one in over))


async def fill(db: asyncpg.Connection, workflow: uuid.UUID, count: int, columns: str = "", values: str = "") -> None:
    """Queues runs as a client does, many in a statement. The first statement is small: see ``inserts``."""
    await queue_runs(db, workflow, min(count, FIRST), columns, values)
    await db.execute("analyze ops.runs")
    for at in range(FIRST, count, STEP):
        await queue_runs(db, workflow, min(STEP, count - at), columns, values)


async def queue_runs(
    db: asyncpg.Connection, workflow: uuid.UUID, count: int, columns: str = "", values: str = ""
) -> None:
    """Queues runs in one statement."""
    await db.execute(
        f"insert into ops.runs (project_id, workflow_id{columns and f', {columns}'})"
        f" select w.project_id, w.id{values and f', {values}'}"
        f" from ops.workflows as w, generate_series(1, {count}) where w.id = $1",
        workflow,
    )


async def fill_projects(bench: Bench, plane: Plane, count: int, columns: str, values: str) -> list[uuid.UUID]:
    """Divides so many queued runs among new projects; returns their workflows."""
    projects = [await new_project(plane.db, f"crowd{number}") for number in range(PROJECTS)]
    workflows = [await plane.workflow(project_id=project) for project in projects]
    left = list(workflows)

    async def lane(db: asyncpg.Connection) -> None:
        await db.execute("set synchronous_commit = off")
        while left:
            bench.say(f"queued runs of {PROJECTS} projects, {len(left)} are left")
            await fill(db, left.pop(), count // PROJECTS, columns, values)

    async with connections(plane, 2) as lanes:
        await together(lane, lanes)
    bench.say("vacuum")
    await plane.db.execute("vacuum (analyze)")
    return workflows


@asynccontextmanager
async def crowd(bench: Bench, kind: str) -> AsyncIterator[tuple[Plane, int]]:
    """A database with many runs of that kind; yields how many."""
    count = bench.size({"labels": 900_000, "busy key": 900_000, "keys": 100_000}.get(kind, 1_000_000), 2000)
    async with bench.plane() as plane, queues(plane) as [holder]:
        if kind == "finished":
            bench.say("finished runs")
            await fill_finished(plane, count)
        elif kind == "not yet due":
            await fill_projects(bench, plane, count, "scheduled_at", "now() + interval '1 day'")
        elif kind == "labels":
            await fill_projects(bench, plane, count, "labels", "'{gpu}'")
        elif kind == "keys":
            await fill_projects(bench, plane, count, "concurrency_key", "gen_random_uuid()")
        else:
            workflows = await fill_projects(bench, plane, count, "concurrency_key", "'busy'")
            for _ in workflows:
                await holder.start((await claimed(holder)).run_id)
        yield plane, count


async def fill_finished(plane: Plane, count: int) -> None:
    """Stores finished runs without their events."""
    workflow = await plane.workflow()
    await plane.db.execute("set session_replication_role = replica; set synchronous_commit = off")
    await plane.db.execute(
        "insert into ops.runs (project_id, workflow_id, run_number, status, claimed_by, claimed_at, started_at,"
        " finished_at, exit_code, reason, claim_count) select $1, $2, n, 'succeeded', 'bench', now(), now(), now(), 0,"
        f" 'succeeded', 1 from generate_series(1, {count}) as n",
        plane.project_id,
        workflow,
    )
    await plane.db.execute(
        "insert into ops_private.run_counters (project_id, last) values ($1, $2)"
        " on conflict (project_id) do update set last = excluded.last",
        plane.project_id,
        count,
    )
    await plane.db.execute("reset session_replication_role; reset synchronous_commit")
    await plane.db.execute("vacuum (analyze)")


async def claim_time(plane: Plane, queue: Queue, workflow: uuid.UUID | None, repeats: int) -> float:
    """The median of a claim in milliseconds. Without a workflow the worker claims what waits."""
    times = []
    for _ in range(repeats):
        if workflow is not None:
            run_id = await plane.queue(workflow)
        began = time.perf_counter()
        claim = await claimed(queue)
        times.append((time.perf_counter() - began) * 1000)
        assert workflow is None or claim.run_id == run_id, "the claim took another run"
        await queue.start(claim.run_id)
        await queue.complete(claim.run_id, SUCCEEDED)
        if sum(times) > 5000:
            break
    return sorted(times)[len(times) // 2]


async def behind(bench: Bench) -> list[Figure]:
    """The claim of one run while many others are stored or wait, against the claim of an empty queue."""
    figures = []
    repeats = bench.size(20, 3)
    async with bench.plane() as empty, queues(empty) as [alone]:
        free = await empty.workflow()

        async def measure(what: str, plane: Plane, queue: Queue, workflow: uuid.UUID | None) -> None:
            await claim_time(plane, queue, workflow, 2)  # the first claim of a connection compiles the functions
            await claim_time(empty, alone, free, 2)
            bare, ours = await bench.alternate(
                lambda: claim_time(empty, alone, free, repeats), lambda: claim_time(plane, queue, workflow, repeats)
            )
            figures.append(Figure(what, "ms", ours, "claim of an empty queue", bare, Mark("≤", 3)))

        for kind, what in (
            ("labels", "a claim behind {:,} runs with other labels"),
            ("busy key", "a claim behind {:,} runs with a busy key"),
            ("finished", "a claim beside {:,} finished runs"),
            ("not yet due", "a claim beside {:,} runs that are not yet due"),
            ("keys", "a claim with {:,} runs to choose from, each with a key of its own"),
        ):
            async with crowd(bench, kind) as (plane, count), queues(plane) as [queue]:
                await measure(what.format(count), plane, queue, None if kind == "keys" else await plane.workflow())
                if kind == "labels":
                    async with queues(plane, labels=("gpu",)) as [able]:
                        await measure(f"a claim with {count:,} runs to choose from", plane, able, None)
    return figures
