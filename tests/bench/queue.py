"""The queue: what a run costs the database, and what a claim costs whatever else is stored or waiting."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import asyncpg

from tests.bench.backlog import FIRST, behind, fill, queue_runs, together
from tests.bench.harness import (
    Bench,
    carried_out,
    connections,
    emptied,
    queues,
    seconds,
    wal_position,
)
from tests.bench.report import Figure, Mark
from tests.bench.simulated import listening
from tests.support import policies
from tests.support.docker import Plane, new_project
from worker.database.queue import Queue

PLAIN = Path(__file__).with_name("plain.sql")
PLAIN_SQL = "the same rows and events in plain SQL, on the schema of 2026-11-26"
CLIENTS = (1, 4, 8)
QUEUE = """
    with queued as (
        insert into plain.runs (project_id, workflow_id, run_number)
        select $1, $2, $3::integer + n from generate_series(1, $4::integer) as n returning *
    )
    insert into plain.run_events (run_id, project_id, event_type, message, payload)
    select q.id, q.project_id, 'info', 'queued', jsonb_build_object('actor', 'bench') from queued as q
"""
CLAIM = """
    with next as (
        select r.id from plain.runs as r
        where r.status = 'queued' and r.scheduled_at is null and r.labels <@ '{}'
        order by r.priority desc, r.created_at, r.run_number limit 1 for update of r skip locked
    ), claimed as (
        update plain.runs as r
        set status = 'claimed', claimed_by = $1, claimed_instance = $2, claimed_at = clock_timestamp(),
            claim_count = r.claim_count + 1, updated_at = clock_timestamp()
        from next where r.id = next.id returning r.*
    ), lease as (
        insert into plain.leases (run_id, worker_id, instance_id, db_role, engine_id, lease_seconds, expires_at)
        select c.id, $1, $2, 'bench', 'bench', 300, clock_timestamp() + interval '300 seconds' from claimed as c
    ), event as (
        insert into plain.run_events (run_id, project_id, event_type, message, payload)
        select c.id, c.project_id, 'state_change', 'queued -> claimed', jsonb_build_object('previous_status', 'queued',
            'new_status', 'claimed', 'actor', 'bench', 'worker_id', $1)
        from claimed as c
    )
    select c.* from claimed as c
"""
START = """
    with started as (
        update plain.runs as r set status = 'running', started_at = clock_timestamp(), updated_at = clock_timestamp()
        where r.id = $1 and r.claimed_instance = $2 returning r.*
    ), event as (
        insert into plain.run_events (run_id, project_id, event_type, message, payload)
        select s.id, s.project_id, 'state_change', 'claimed -> running', jsonb_build_object('previous_status',
            'claimed', 'new_status', 'running', 'actor', 'bench', 'worker_id', s.claimed_by)
        from started as s
    )
    select s.started_at from started as s
"""
COMPLETE = """
    with completed as (
        update plain.runs as r
        set status = 'succeeded', exit_code = 0, reason = 'succeeded', finished_at = clock_timestamp(),
            updated_at = clock_timestamp()
        where r.id = $1 and r.claimed_instance = $2 returning r.*
    ), lease as (
        delete from plain.leases as l using completed as c where l.run_id = c.id
    ), event as (
        insert into plain.run_events (run_id, project_id, event_type, message, payload)
        select c.id, c.project_id, 'state_change', 'running -> succeeded', jsonb_build_object('previous_status',
            'running', 'new_status', 'succeeded', 'actor', 'bench', 'worker_id', c.claimed_by, 'reason', c.reason,
            'exit_code', c.exit_code)
        from completed as c
    )
    select c.finished_at from completed as c
"""
"""The row changes and the events of each step, in one statement."""

UPDATES = """
    select sum(s.n_tup_upd)::bigint, sum(s.n_tup_hot_upd)::bigint
    from pg_stat_user_tables as s where s.schemaname in ('ops', 'ops_private')
"""


# --- one run's life ---------------------------------------------------------------------------------------------------


async def life(bench: Bench) -> list[Figure]:
    """Claim, start and complete by 1, 4 and 8 clients, against the same row changes and events in plain SQL."""
    figures, wal, hot = [], list[float](), list[float]()
    for clients in CLIENTS:
        async with bench.plane() as plane:
            ours, bare, written = await lives(bench, plane, clients)
            if clients == 1:
                wal = written
                updates, hot_updates = await plane.db.fetchrow(UPDATES)  # complete, since the workers are closed
                hot = [hot_updates / updates]
        figures.append(
            Figure(
                f"claim, start, complete, {clients} client{'s' * (clients > 1)}", "runs/s", ours,
                PLAIN_SQL, bare, Mark("≥", 0.9),
            )
        )  # fmt: skip
    return [
        *figures,
        Figure("WAL of claim, start and complete", "bytes", wal, mark=Mark("≤", 4600, "value")),
        Figure("updates that are HOT", "of 1", hot, mark=Mark("≥", 1.0, "value")),
    ]


async def lives(bench: Bench, plane: Plane, clients: int) -> tuple[list[float], list[float], list[float]]:
    """Runs per second by functions and in plain SQL, and bytes of WAL of a run."""
    each, wal = bench.size(240 // clients), list[float]()
    workflow = await plane.workflow()
    await plane.db.execute(PLAIN.read_text(encoding="utf-8"))
    async with queues(plane, clients) as workers, connections(plane, clients) as plain:

        async def by_functions() -> float:
            async def lane(queue: Queue) -> None:
                for _ in range(each):
                    await carried_out(queue)

            await fill(plane.db, workflow, each * clients)
            written = await wal_position(plane.db)
            rate = each * clients / await seconds(together(lane, workers))
            wal.append((await wal_position(plane.db) - written) / (each * clients))
            return rate

        async def by_plain_sql() -> float:
            async def lane(db: asyncpg.Connection) -> None:
                me = uuid.uuid4()
                for _ in range(each):
                    run = await db.fetchrow(CLAIM, "bench", me)
                    await db.fetchval(START, run["id"], me)
                    await db.fetchval(COMPLETE, run["id"], me)

            await plane.db.execute(
                QUEUE,
                plane.project_id,
                workflow,
                await plane.db.fetchval("select coalesce(max(run_number), 0) from plain.runs"),
                each * clients,
            )
            return each * clients / await seconds(together(lane, plain))

        bare, ours = await bench.alternate(by_plain_sql, by_functions)
    return ours, bare, wal


# --- inserts and lists ------------------------------------------------------------------------------------------------


async def inserts(bench: Bench) -> list[Figure]:
    """Runs that are queued in one statement, and one by one from 8 clients, against the same rows without triggers."""
    at_once, each, clients = bench.size(10_000, 100), bench.size(200, 2), 8
    number = 0

    def next_numbers(count: int) -> int:
        nonlocal number
        number += count
        return number - count

    async with bench.plane() as plane, connections(plane, clients) as lanes:
        workflow = await plane.workflow()
        # Plans that were made for an empty table stay slow, and would be all that this case shows.
        await fill(plane.db, workflow, FIRST)
        await plane.db.execute(PLAIN.read_text(encoding="utf-8"))
        await plane.db.execute(QUEUE, plane.project_id, workflow, next_numbers(FIRST), FIRST)
        await plane.db.execute("analyze")

        async def by_statement() -> float:
            return at_once / await seconds(queue_runs(plane.db, workflow, at_once))

        async def plain_statement() -> float:
            first = next_numbers(at_once)
            return at_once / await seconds(plane.db.execute(QUEUE, plane.project_id, workflow, first, at_once))

        async def one_by_one() -> float:
            async def lane(db: asyncpg.Connection) -> None:
                for _ in range(each):
                    await db.execute(
                        "insert into ops.runs (project_id, workflow_id) values ($1, $2)", plane.project_id, workflow
                    )

            return each * clients / await seconds(together(lane, lanes))

        async def plain_one_by_one() -> float:
            async def lane(db: asyncpg.Connection) -> None:
                for _ in range(each):
                    await db.execute(QUEUE, plane.project_id, workflow, next_numbers(1), 1)

            return each * clients / await seconds(together(lane, lanes))

        plain, ours, plain_single, single = await bench.alternate(
            plain_statement, by_statement, plain_one_by_one, one_by_one
        )
    return [
        Figure(f"insert of {at_once:,} runs in one statement", "runs/s", ours, PLAIN_SQL, plain, Mark("≥", 0.9)),
        Figure(f"insert one by one, {clients} clients", "runs/s", single, PLAIN_SQL, plain_single, Mark("≥", 0.5)),
    ]


async def listing(bench: Bench) -> list[Figure]:
    """The first 50 queued runs of many."""
    count = bench.size(100_000, 1000)
    async with bench.plane() as plane, connections(plane, 1) as [member]:
        workflow = await plane.workflow()
        bench.say("queued runs")
        await fill(plane.db, workflow, count)
        await plane.db.execute(
            "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, 'developer')",
            plane.project_id,
            policies.MEMBER,
        )
        await plane.db.execute("create schema plain; create table plain.runs as select * from ops.runs")
        await plane.db.execute("create index on plain.runs (priority desc, created_at, run_number)")
        await plane.db.execute("vacuum (analyze)")
        await member.execute(f"set role authenticated; set request.jwt.claim.sub = '{policies.MEMBER}'")
        names = await plane.db.fetchval(
            "select coalesce(proargnames, '{}') from pg_proc where oid = 'ops.list_queued_runs'::regproc"
        )
        limited = "p_limit => 50" if "p_limit" in names else ""

        async def read(db: asyncpg.Connection, sql: str) -> float:
            began = time.perf_counter()
            for _ in range(3):
                assert len(await db.fetch(sql)) == 50
            return (time.perf_counter() - began) * 1000 / 3

        ours = f"select * from ops.list_queued_runs({limited}) limit 50"
        plain = (
            "select * from plain.runs where status = 'queued' order by priority desc, created_at, run_number limit 50"
        )
        bare, owner, user = await bench.alternate(
            lambda: read(plane.db, plain), lambda: read(plane.db, ours), lambda: read(member, ours)
        )
    what = f"the first 50 of {count:,} queued runs"
    return [
        Figure(f"{what}, as {who}", "ms", values, "one index in that order", bare, Mark("≤", 5, "value"))
        for who, values in (("owner", owner), ("member", user))
    ]


# --- many workers, many projects --------------------------------------------------------------------------------------


async def waking(bench: Bench) -> list[Figure]:
    """One run is queued while many workers wait: how many ask for it, and after which time it is claimed."""
    crowd_size = bench.size(100, 5)
    async with bench.plane() as plane:
        log = await bench.statement_log(plane)
        workflow = await plane.workflow({"artifacts": []})

        async def enqueue() -> tuple[float, float]:
            """Milliseconds until the claim, and how many claims the workers tried."""
            began = log.size
            run = await plane.run(await plane.queue(workflow))
            ended = await plane.until(run["id"], "succeeded")
            await asyncio.sleep(1)
            claims = [one for _, one in log.since(began) if "claim" in one]
            return (ended["claimed_at"] - run["created_at"]).total_seconds() * 1000, len(claims)

        async def several(workers: int) -> tuple[list[float], list[float]]:
            async with listening(plane.login(plane.url), workers):
                bench.say(f"{workers} workers claim their first runs")
                await fill(plane.db, workflow, 10 * workers)  # a session plans its functions when it first claims a run
                await emptied(plane, 10 * workers)
                await asyncio.sleep(1)
                answers = []
                for number in range(bench.rounds):
                    bench.say(f"{workers} workers, round {number + 1} of {bench.rounds}")
                    answers.append(await enqueue())
            return [waited for waited, _ in answers], [asked for _, asked in answers]

        alone, _ = await several(1)
        crowded, asked = await several(crowd_size)
    return [
        Figure(f"{crowd_size} idle workers, one run: queries for it", "queries", asked, mark=Mark("≤", 5, "value")),
        Figure(
            f"{crowd_size} idle workers, one run: time to its claim", "ms", crowded, "one worker", alone, Mark("≤", 2)
        ),
    ]


async def fairness(bench: Bench) -> list[Figure]:
    """One project has queued many runs, and another queues one: how many claims come before it."""
    count, patience = bench.size(100_000, 500), 200
    async with bench.plane() as plane, queues(plane) as [queue]:
        bench.say("queued runs")
        await fill(plane.db, await plane.workflow(), count)
        other = await plane.workflow(project_id=await new_project(plane.db, "small"))
        project = await plane.db.fetchval("select project_id from ops.workflows where id = $1", other)
        run_id = await plane.db.fetchval(
            "insert into ops.runs (project_id, workflow_id) values ($1, $2) returning id", project, other
        )
        number = 1
        while number < patience and await carried_out(queue) != run_id:
            number += 1
    what = f"claims until the single run of a project starts, behind {count:,} of another (stops at {patience})"
    return [Figure(what, "claims", [number], "first in, first out", [count + 1], Mark("≤", 33, "value"))]


CASES = (life, behind, inserts, listing, waking, fairness)
