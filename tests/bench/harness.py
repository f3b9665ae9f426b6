"""What the cases share: databases, workers' connections, rounds, and log lines."""

from __future__ import annotations

import math
import re
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

import asyncpg

from tests.support.docker import Plane, base_image, new_plane, until
from tests.support.postgres import Cluster
from worker.database.queue import Queue
from worker.model.claim import Claim, LogLines, WorkerIdentity
from worker.model.outcome import Outcome, Reason

SETTINGS = {
    "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on", "max_connections": "500",
    "shared_buffers": "512MB", "max_wal_size": "4GB", "log_line_prefix": "%d %a ", "lc_messages": "C",
}  # fmt: skip
"""Of the server: durable, as in use."""

BATCH = 1_000
"""Lines that are stored in one call."""

LEASE = 3600
SUCCEEDED = Outcome(0, Reason.SUCCEEDED)
SIZES = """
    select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname in ('ops', 'ops_private') and c.relkind = 'r'
"""
"""The bytes of all tables, with their indexes and their long values."""


@dataclass
class Bench:
    """The server, the sizes and the rounds of one call."""

    cluster: Cluster
    folder: Path
    rounds: int
    scale: float
    deadline: float = math.inf
    """After this time of the monotonic clock, a case ends after its first round."""
    say: Callable[[str], None] = field(default=lambda _: None)
    """Shows how far the present case is."""

    def size(self, full: int, least: int = 1) -> int:
        """A number of lines or runs at the scale of this call."""
        return max(least, round(full * self.scale))

    @cached_property
    def image(self) -> str:
        """An image with a shell and Python."""
        return base_image("python3-minimal")

    @asynccontextmanager
    async def plane(self, *, docker: bool = False) -> AsyncIterator[Plane]:
        """A new database with one project and a worker's login."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with self.cluster.database(self.cluster.template()) as name:
            db = await asyncpg.connect(self.cluster.url(name))
            try:
                yield await new_plane(db, self.cluster.url(name), self.image if docker else "none", folder)
            finally:
                await db.close()

    async def statement_log(self, plane: Plane) -> StatementLog:
        """The server writes the statements of all new connections to this database into its log from now on."""
        database = await plane.db.fetchval("select current_database()")
        await plane.db.execute(f"alter database {database} set log_statement = 'all'")
        return StatementLog(self.cluster.directory / "log", database)

    async def alternate(self, *works: Callable[[], Awaitable[float]]) -> list[list[float]]:
        """What each of the works answers in each round; every second round takes them in the reverse order."""
        answers: list[list[float]] = [[] for _ in works]
        for number in range(self.rounds):
            if number and time.monotonic() > self.deadline:
                break
            self.say(f"round {number + 1} of {self.rounds}")
            order = list(zip(works, answers, strict=True))
            for work, values in order if number % 2 == 0 else reversed(order):
                values.append(await work())
        return answers


@dataclass(frozen=True, slots=True)
class StatementLog:
    """The server's log of the statements that workers send to one database."""

    path: Path
    database: str

    @property
    def size(self) -> int:
        """The end of the log, from which :meth:`since` may read later."""
        return self.path.stat().st_size

    def since(self, size: int) -> list[tuple[str, str]]:
        """The name of the connection and the text of each statement since then."""
        with self.path.open("rb") as log:
            log.seek(size)
            text = log.read().decode(errors="replace").replace("\n\t", " ")  # a statement may have several lines
        sent = re.compile(rf"{self.database} (ops-worker .*?) LOG:  (?:statement|execute [^:]*): (.*)")
        found = [match.groups() for match in map(sent.match, text.splitlines()) if match]
        return [(name, one.strip()) for name, several in found for one in several.split(";") if one.strip()]


@asynccontextmanager
async def sessions(login: str, count: int, labels: tuple[str, ...] = ()) -> AsyncIterator[list[Queue]]:
    """The connections of that many new workers."""
    async with AsyncExitStack() as stack:
        made = []
        for n in range(count):
            me = WorkerIdentity(f"bench-{uuid.uuid4().hex[:8]}-{n}", uuid.uuid4(), "bench", "bench", "0", labels)
            made.append(await Queue.connected(login, me, lease_seconds=LEASE))
            stack.push_async_callback(made[-1].close)
        yield made


@asynccontextmanager
async def queues(plane: Plane, count: int = 1, labels: tuple[str, ...] = ()) -> AsyncIterator[list[Queue]]:
    """The connections of that many workers, registered, and subscribed as before a first claim."""
    async with sessions(plane.login(plane.url), count, labels) as made:
        for queue in made:
            await queue.register(takeover=False)  # which also makes the partition of this week's lines
            assert await queue.listen(lambda: None, lambda _: None)
        yield made


@asynccontextmanager
async def connections(plane: Plane, count: int) -> AsyncIterator[list[asyncpg.Connection]]:
    """Connections of the database's owner."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(await asyncpg.connect(plane.url))
            stack.push_async_callback(made[-1].close)
        yield made


async def claimed(queue: Queue) -> Claim:
    """The next run of the queue."""
    claim = (await queue.claim()).claim
    assert claim is not None, "the queue has no run for this worker"
    return claim


async def started(plane: Plane, queue: Queue, workflow: uuid.UUID) -> uuid.UUID:
    """A new run that the worker has started."""
    await plane.queue(workflow)
    run_id = (await claimed(queue)).run_id
    await queue.start(run_id)
    return run_id


async def carried_out(queue: Queue) -> uuid.UUID:
    """Claims, starts and completes the next run."""
    run_id = (await claimed(queue)).run_id
    await queue.start(run_id)
    await queue.complete(run_id, SUCCEEDED)
    return run_id


async def seconds(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def wal_position(db: asyncpg.Connection) -> int:
    """The end of the write-ahead log, in bytes."""
    position: int = await db.fetchval("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
    return position


async def table_bytes(db: asyncpg.Connection) -> int:
    size: int = await db.fetchval(SIZES)
    return size


def log_lines(count: int, first: int = 1) -> LogLines:
    """Lines of about 100 bytes, as Odoo prints them.

    ``loading`` is in every line. ``p<n>`` repeats after 997 lines and ``i<n>`` after 1,009, so both are in nearly every
    thousand lines, and two of them together are rare.
    """
    began, seqs = datetime(2026, 1, 1, tzinfo=UTC), range(first, first + count)
    text = "2026-01-01 00:00:00,000 12 INFO demo odoo.modules.loading: loading"
    messages = [f"{text} partner p{n % 997} order i{n % 1009}" for n in seqs]
    return LogLines(first, messages, "I" * count, [(began + timedelta(microseconds=n)).isoformat() for n in seqs])


async def append(queue: Queue, run_id: uuid.UUID, lines: LogLines) -> None:
    """Stores the lines as the worker does, a batch at a time."""
    for at in range(0, len(lines), BATCH):
        await queue.append_logs(run_id, lines.part(at, at + BATCH))


async def emptied(plane: Plane, runs: int) -> None:
    """Waits until the workers have ended all runs; a minute and a tenth of a second for each run at most."""
    left = "select exists (select from ops_private.queued) or exists (select from ops_private.leases)"

    async def ended() -> bool:
        return not await plane.db.fetchval(left)

    await until(ended, 0.2, 60 + runs / 10)


async def settled(plane: Plane) -> None:
    """Lets the database do what it left for later, as the workers' sweeps and autovacuum do."""
    await plane.db.execute("select ops.reap()")
    await plane.db.execute("vacuum (analyze)")
