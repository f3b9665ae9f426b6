"""The log store: what a line costs to store, to read, to find and to delete."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial

import asyncpg
import docker
from docker.types import LogConfig

from tests.bench.harness import (
    BATCH,
    SUCCEEDED,
    Bench,
    append,
    log_lines,
    queues,
    seconds,
    settled,
    started,
    table_bytes,
    wal_position,
)
from tests.bench.report import Figure, Mark
from tests.db.world import shift_clock
from tests.support import policies
from tests.support.docker import Plane
from worker.artifacts.store import ArtifactStore
from worker.database import retention
from worker.database.queue import Queue
from worker.engine.networks import NETWORK, ensure_network
from worker.model.claim import LogLines

COLUMNS = ["run_id", "project_id", "seq", "stream", "log_level", "message", "timestamp"]
HEAP = """
    create schema if not exists bare;
    create table bare.lines (run_id uuid, project_id uuid, seq bigint, stream text, log_level text, message text,
        metadata jsonb default '{}', "timestamp" timestamptz, created_at timestamptz default now())
"""
"""The columns of ops.run_logs, without indexes, constraints and triggers."""

COPY = "COPY into a bare heap"
PAGE = "select * from ops.run_logs where run_id = $1 order by seq desc limit 50"
FOLLOW = "select * from ops.run_logs where run_id = $1 and seq > $2 order by seq limit 100"
READS = 200
"""Pages in a round; each takes well below a millisecond."""

TIME_LIMIT_MS = 8000
"""Of a search: Supabase's own limit for a signed-in user."""

RARE = "unmistakable"


def heap_rows(run_id: uuid.UUID, project_id: uuid.UUID, lines: LogLines) -> list[tuple[object, ...]]:
    """The lines as rows of the bare heap."""
    return [
        (run_id, project_id, seq, "stderr", "info", message, datetime.fromisoformat(told))
        for seq, (message, told) in enumerate(zip(lines.messages, lines.timestamps, strict=True), lines.first_seq)
    ]


async def copy(db: asyncpg.Connection, rows: list[tuple[object, ...]]) -> None:
    """Stores rows in the bare heap, a batch in a transaction."""
    for at in range(0, len(rows), BATCH):
        await db.copy_records_to_table("lines", schema_name="bare", columns=COLUMNS, records=rows[at : at + BATCH])


async def appending(bench: Bench) -> list[Figure]:
    """Lines stored in batches, by one run and by four at once; and their bytes of the write-ahead log."""
    count = bench.size(100_000, 1000)
    lines, wal, copied_wal = log_lines(count), list[float](), list[float]()
    async with bench.plane() as plane, queues(plane, 4) as workers:
        await plane.db.execute(HEAP)
        workflow = await plane.workflow()

        async def by_copy() -> float:
            await plane.db.execute("truncate bare.lines")
            rows = heap_rows(uuid.uuid4(), plane.project_id, lines)
            before = await wal_position(plane.db)
            rate = count / await seconds(copy(plane.db, rows))
            copied_wal.append((await wal_position(plane.db) - before) / count)
            return rate

        async def by_runs(some: list[Queue], each: LogLines) -> float:
            runs = [await started(plane, queue, workflow) for queue in some]
            before = await wal_position(plane.db)

            async def one(queue: Queue, run_id: uuid.UUID) -> None:
                await append(queue, run_id, each)
                await queue.complete(run_id, SUCCEEDED)

            async def together() -> None:
                await asyncio.gather(*(one(*pair) for pair in zip(some, runs, strict=True)))

            rate = len(each) * len(some) / await seconds(together())
            if len(some) == 1:
                wal.append((await wal_position(plane.db) - before) / count)
            return rate

        copied, single, four = await bench.alternate(
            by_copy,
            lambda: by_runs(workers[:1], lines),
            lambda: by_runs(workers, lines.part(0, max(count // 4, 1))),
        )
    return [
        Figure("lines stored by one run", "lines/s", single, COPY, copied, Mark("≥", 0.25)),
        Figure("lines stored by 4 runs at once", "lines/s", four, "one run", single, Mark("≥", 1.0)),
        Figure("WAL of a line", "bytes", wal, COPY, copied_wal, Mark("≤", 330, "value")),
    ]


async def storage(bench: Bench) -> list[Figure]:
    """What a line takes on the disk while its run goes on, and after that."""
    count = bench.size(100_000, 5000)
    lines = log_lines(count)
    async with bench.plane() as plane, queues(plane) as [queue]:
        await plane.db.execute(HEAP)
        await copy(plane.db, heap_rows(uuid.uuid4(), plane.project_id, lines))
        bare = await plane.db.fetchval("select pg_total_relation_size('bare.lines')") / count
        workflow = await plane.workflow()
        run_id = await started(plane, queue, workflow)
        await settled(plane)
        before = await table_bytes(plane.db)
        await append(queue, run_id, lines)
        live = (await table_bytes(plane.db) - before) / count
        await queue.complete(run_id, SUCCEEDED)
        await settled(plane)
        finished = (await table_bytes(plane.db) - before) / count
    return [
        Figure("heap and indexes of a line while its run goes on", "bytes", [live], COPY, [bare]),
        Figure(
            "heap and indexes of a line of a finished run", "bytes", [finished], COPY, [bare], Mark("≤", 60, "value")
        ),
    ]


# --- from the container -----------------------------------------------------------------------------------------------


def printing(count: int) -> str:
    """A program that prints lines as Odoo does."""
    text = log_lines(1).messages[0].rpartition(" ")[0]
    return f"import sys; sys.stderr.writelines('{text} %d\\n' % n for n in range({count}))"


def read_journal(image: str, program: str) -> tuple[float, float]:
    """Seconds and CPU seconds for a container, whose log the SDK reads and discards."""
    client = docker.APIClient(version="auto")
    host = client.create_host_config(
        network_mode=NETWORK, cap_drop=["ALL"], security_opt=["no-new-privileges"], nano_cpus=2_000_000_000,
        mem_limit="256m", memswap_limit="256m", pids_limit=1024, init=True, log_config=LogConfig(type="json-file"),
    )  # fmt: skip
    container = client.create_container(image, ["python3", "-c", program], host_config=host)["Id"]
    began, cpu = time.perf_counter(), time.process_time()
    client.start(container)
    for _ in client.logs(container, stream=True, follow=True, timestamps=True):
        pass
    client.wait(container)
    spent = time.perf_counter() - began, time.process_time() - cpu
    client.remove_container(container, v=True, force=True)
    return spent


async def work_once(plane: Plane, *flags: str) -> float:
    """Runs a worker until the queue is empty; returns the seconds of CPU that it used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    await plane.work(*flags)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def journal(bench: Bench) -> list[Figure]:
    """A container's lines on the whole way to the table, without and with three secrets to look for."""
    count = bench.size(100_000, 1000)
    program = printing(count)
    names = ["first", "second", "third"]
    cpu, masked_cpu, bare_cpu, masked = list[float](), list[float](), list[float](), list[float]()
    await asyncio.to_thread(ensure_network, docker.APIClient(version="auto"))
    async with bench.plane(docker=True) as plane:
        secrets = plane.folder / "secrets"
        secrets.mkdir()
        for name in names:
            (secrets / name).write_bytes(os.urandom(24).hex().encode())
        idle = await work_once(plane, "--secrets-dir", str(secrets))

        async def by_worker(spent: list[float], **config: object) -> float:
            run_id = await plane.python(program, artifacts=[], **config)
            used = await work_once(plane, "--secrets-dir", str(secrets))
            spent.append(max(used - idle, 0.0) * 1e6 / count)
            run = await plane.run(run_id)
            assert run["status"] == "succeeded", run["error_message"]
            return float((run["finished_at"] - run["started_at"]).total_seconds())

        async def by_sdk() -> float:
            wall, used = await asyncio.to_thread(read_journal, plane.image, program)
            bare_cpu.append(used * 1e6 / count)
            return wall

        bare, ours, masked = await bench.alternate(
            by_sdk, lambda: by_worker(cpu), lambda: by_worker(masked_cpu, secrets=names)
        )
    sdk = "the SDK reads and discards them"
    return [
        Figure(f"{count:,} lines, from the container to the table", "s", ours, sdk, bare, Mark("≤", 1.4)),
        Figure(f"{count:,} lines, with three secrets to mask", "s", masked, sdk, bare),
        Figure("CPU of the worker for 1,000,000 lines", "s", cpu, sdk, bare_cpu, Mark("≤", 5, "value")),
        Figure("CPU of the worker, with three secrets to mask", "s", masked_cpu, sdk, bare_cpu, Mark("≤", 5, "value")),
    ]


# --- search and pages -------------------------------------------------------------------------------------------------


async def milliseconds(work: Callable[[], Awaitable[object]], repeats: int) -> float:
    """The median time of a call; a call that reaches the time limit counts as long as the limit."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        with suppress(asyncpg.QueryCanceledError):
            await work()
        times.append((time.perf_counter() - began) * 1000)
        if sum(times) > TIME_LIMIT_MS:
            break
    return sorted(times)[len(times) // 2]


async def filled(bench: Bench, plane: Plane, queue: Queue, runs: int, lines: LogLines) -> list[uuid.UUID]:
    """A workflow's runs with these lines each; all but the last run are finished. One line of the first is rare."""
    workflow = await plane.workflow()
    ids = []
    for number in range(runs):
        bench.say(f"lines of run {number + 1} of {runs}")
        ids.append(await started(plane, queue, workflow))
        own = lines
        if number == 0:
            middle = len(lines) // 2
            rare = [*lines.messages[:middle], f"an {RARE} line", *lines.messages[middle + 1 :]]
            own = replace(lines, messages=rare)
        await append(queue, ids[-1], own)
        if number < runs - 1:
            await queue.complete(ids[-1], SUCCEEDED)
    bench.say("vacuum")
    await settled(plane)
    return ids


async def reading(bench: Bench) -> list[Figure]:
    """Searches of one run and of a whole project; pages and new lines as owner and as member."""
    each, runs = bench.size(100_000, 2000), 21
    lines = log_lines(each)
    some = lines.messages[each // 3].split()
    words = {"a rare word": RARE, "a frequent word": "loading", "two words": f"{some[-3]} {some[-1]}", "no line": "zzz"}
    async with bench.plane() as plane, queues(plane) as [queue]:
        ids = await filled(bench, plane, queue, runs, lines)
        await plane.db.execute(HEAP)
        await plane.db.execute(
            f"insert into bare.lines ({', '.join(COLUMNS)}) select {', '.join(COLUMNS)} from ops.run_logs"
        )
        figures = await searches(bench, plane, ids, words, each)
        bench.say("the baseline's primary key")
        await plane.db.execute("alter table bare.lines add primary key (run_id, seq); analyze bare.lines")
        return [*figures, *await pages(bench, plane, ids, each)]


async def searches(bench: Bench, plane: Plane, ids: list[uuid.UUID], words: dict[str, str], each: int) -> list[Figure]:
    figures = []
    await plane.db.execute(f"set statement_timeout = {TIME_LIMIT_MS}")
    places = (
        (f"search of a run of {each:,} lines", "p_run_id", "run_id", ids[0], 100),
        (f"search of a project of {each * len(ids):,} lines", "p_project_id", "project_id", plane.project_id, 300),
    )
    for place, argument, column, value, limit in places:
        for kind, query in words.items():
            found = f"select * from ops.search_run_logs($1, {argument} => $2)"
            likes = " and ".join(f"strpos(message, '{word}') > 0" for word in query.split())
            scan = f'select * from bare.lines where {column} = $1 and {likes} order by "timestamp" desc limit 100'
            ours, bare = list[float](), list[float]()
            for number in range(bench.rounds):
                bench.say(f"{place}: {kind}, round {number + 1}")
                bare.append(await milliseconds(partial(plane.db.fetch, scan, value), 1))
                ours.append(await milliseconds(partial(plane.db.fetch, found, query, value), 3))
                if sum(ours) > TIME_LIMIT_MS:
                    break
            mark = Mark("≤", limit, "value")
            figures.append(Figure(f"{place}: {kind}", "ms", ours, "scan of a bare heap", bare, mark))
    await plane.db.execute("reset statement_timeout")
    return figures


async def page_time(db: asyncpg.Connection, query: str, *args: object) -> float:
    """Milliseconds for one read."""
    began = time.perf_counter()
    for _ in range(READS):
        assert await db.fetch(query, *args)
    return (time.perf_counter() - began) * 1000 / READS


async def pages(bench: Bench, plane: Plane, ids: list[uuid.UUID], each: int) -> list[Figure]:
    """A page of a finished run, and the lines after a known one of the live run."""
    await plane.db.execute(
        "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, 'developer')",
        plane.project_id,
        policies.MEMBER,
    )
    member = await asyncpg.connect(plane.url)
    await member.execute(f"set role authenticated; set request.jwt.claim.sub = '{policies.MEMBER}'")
    figures = []
    cases = (("the last 50 lines of a finished run", PAGE, (ids[0],)),
        ("the next 100 lines of a live run", FOLLOW, (ids[-1], each - 100)))  # fmt: skip
    for what, query, args in cases:
        plain = query.replace("ops.run_logs", "bare.lines")
        bare, owner, user = await bench.alternate(
            partial(page_time, plane.db, plain, *args),
            partial(page_time, plane.db, query, *args),
            partial(page_time, member, query, *args),
        )
        table = "a bare table with the same key"
        for who, values in (("owner", owner), ("member", user)):
            figures.append(Figure(f"{what}, as {who}", "ms", values, table, bare, Mark("≤", 0.3, "value")))
    await member.close()
    return figures


# --- retention --------------------------------------------------------------------------------------------------------


async def pruning(bench: Bench) -> list[Figure]:
    """Deletes ten runs that ended long ago: per run the time, and in all the bytes of WAL and of the tables."""
    each, runs = bench.size(120_000, 1000), 10
    lines = log_lines(each)
    async with bench.plane() as plane, queues(plane) as [queue]:
        for days in (67, 60):  # the lines go to the partition that the week before has made
            await shift_clock(plane.db, -days * 86400)
            await plane.db.execute("select ops.reap()")
        await plane.db.execute(HEAP)
        workflow = await plane.workflow()
        before = await table_bytes(plane.db)
        for number in range(runs):
            bench.say(f"lines of run {number + 1} of {runs}")
            run_id = await started(plane, queue, workflow)
            await append(queue, run_id, lines)
            await queue.complete(run_id, SUCCEEDED)
        await shift_clock(plane.db, 0)
        await plane.db.execute(
            f"insert into bare.lines ({', '.join(COLUMNS)}) select {', '.join(COLUMNS)} from ops.run_logs;"
            "alter table bare.lines add primary key (run_id, seq)"
        )
        await settled(plane)
        full = await table_bytes(plane.db) - before
        bench.say("delete")
        bare = await seconds(plane.db.execute("delete from bare.lines"))
        written = await wal_position(plane.db)
        store = ArtifactStore.from_url(plane.store.as_uri())
        kept = retention.Retention(logs=30, events=None)
        with redirect_stdout(io.StringIO()):
            ours = await seconds(retention.prune(plane.url, store, "bench", kept, dry_run=False))
        written = await wal_position(plane.db) - written
        left = max(await table_bytes(plane.db) - before, 0)
        assert not await plane.db.fetchval("select count(*) from ops.run_logs"), "prune left lines"
    return [
        Figure(
            f"retention, each of {runs} sets of {each:,} lines", "ms", [ours * 1000 / runs], "DELETE from a bare table",
            [bare * 1000 / runs], Mark("≤", 100, "value"),
        ),
        Figure(f"WAL of the retention of {runs * each:,} lines", "MB", [written / 1e6]),
        Figure("room that the deleted lines still take", "of 1", [left / full], mark=Mark("≤", 0.1, "value")),
    ]  # fmt: skip


CASES = (appending, storage, journal, reading, pruning)
