"""A real database whose clock stands still, spoken to in the words of the model (``model.py``)."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg

from tests.db.model import Answer, Caller, Event, Lease, Line, Reason, Run
from tests.db.world import freeze_clock, new_project, new_workflow
from tests.support.postgres import Cluster

PROJECTS = ("acme", "beta")
HOST_A, HOST_B = "model_host_a", "model_host_b"  # database roles

# Which of a caller's traits a function takes; the rest take its worker and its instance.
TRAITS = {
    "claim_next_run": ("worker_id", "instance_id", "engine_id"),
    "adopt_run": ("worker_id", "instance_id", "engine_id"),
    "register_worker": ("worker_id", "instance_id", "host_id", "engine_id"),
    "drain_worker": ("worker_id",),
    "reap": (),
    "cancel_run": (),
}

REASONS = {
    r"time: due at ": "time",
    r"key: run #(\d+) holds ": "held",
    r"key: run #(\d+) goes before it for ": "after",
    r"labels: no worker has ": "labels",
    r"worker: each that has its labels is drained$": "drained",
    r"worker: the next one that is free$": "free",
}

RUNS = """
    select r.id, p.slug as project, r.run_number as number, r.created_at, r.priority, r.labels,
        r.concurrency_key as key, r.scheduled_at, r.status, r.claimed_by as worker, r.claimed_instance as instance,
        r.claimed_at, r.started_at, r.finished_at, r.cancel_requested_at, r.claim_count, r.exit_code, r.reason,
        r.container_id as container,
        to_jsonb(l) as lease,
        array(select (g.seq, g.stream, g.log_level, g.message) from ops.run_logs as g where g.run_id = r.id
            order by g.seq) as lines,
        array(select (a.artifact_key, a.artifact_url) from ops.run_artifacts as a where a.run_id = r.id) as artifacts
    from ops.runs as r
    join ops.projects as p on p.id = r.project_id
    left join ops_private.leases as l on l.run_id = r.id
    order by r.id
"""
QUEUE = """
    insert into ops.runs (id, idempotency_key, project_id, workflow_id, created_at, priority, labels, concurrency_key,
        scheduled_at)
    select u.id, u.id, w.project_id, w.id, c.now, $3, $4, $5, $6
    from ops.workflows as w, public.clock as c, unnest($2::uuid[]) with ordinality as u (id, place)
    where w.name = $1 order by u.place
    on conflict (idempotency_key) do nothing
"""
FORGET = """
    set session_replication_role = replica;
    truncate ops.runs, ops.run_events, ops.run_logs, ops.run_artifacts, ops_private.leases, ops_private.workers,
        ops_private.run_counters, ops_private.run_requests, ops_private.worker_ids, ops_private.pending_retries,
        ops_private.queued, ops_private.lanes, ops_private.log_tails, ops_private.log_blocks,
        ops_private.run_summaries, ops_private.outbox, ops_private.run_fingerprints,
        ops_private.idle_workers, ops_private.turns
        restart identity;
    reset session_replication_role
"""


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def seconds_of(moment: datetime | str | None) -> int | None:
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return None if moment is None else int(moment.timestamp())


def plain(value: Any, key: str = "") -> Any:
    """An answer as the model gives it: times in seconds, ids as ids."""
    if isinstance(value, dict):
        return {name: plain(one, name) for name, one in value.items()}
    if isinstance(value, list):
        listed = [plain(one, key) for one in value]
        return sorted(listed, key=lambda run: run["run_id"]) if key == "runs" else listed
    if key.endswith("_at") or key == "timestamp":
        return seconds_of(value)
    if value is not None and key in ("run_id", "requeued", "failed", "quarantined"):
        return uuid.UUID(value)
    return value


def parameters(function: str, who: Caller, arguments: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments as the function's."""
    traits = {
        "worker_id": who.worker, "instance_id": who.instance, "host_id": who.host, "engine_id": who.engine,
    }  # fmt: skip
    named: dict[str, Any] = {trait: traits[trait] for trait in TRAITS.get(function, ("worker_id", "instance_id"))}
    for name, value in arguments.items():
        if name == "lines":
            named["first_seq"] = value[0].seq if value else 1
            named["messages"] = "\n".join(line.message for line in value)
            named["marks"] = "".join(line.level[0] for line in value)
            named["timestamps"] = [at(0)] * len(value)
        else:
            named[name] = json.dumps(value) if name == "payload" else value
    return named


def run_of(row: asyncpg.Record) -> Run:
    """What the database holds of one run, as the model keeps it."""
    columns: dict[str, Any] = {
        name: seconds_of(value) if name.endswith("_at") else value for name, value in row.items()
    }
    lines = [Line(seq if stream else None, level, message) for seq, stream, level, message in columns.pop("lines")]
    lease = json.loads(columns["lease"] or "null")
    columns["lease"] = lease and Lease(
        Caller(lease["worker_id"], lease["instance_id"] and uuid.UUID(lease["instance_id"]), lease["db_role"],
            engine=lease["engine_id"]),
        lease["lease_seconds"], int(datetime.fromisoformat(lease["expires_at"]).timestamp()),
        lease["renewed"], lease["log_position"], lease["lost"],
        lease["lost_since"] and int(datetime.fromisoformat(lease["lost_since"]).timestamp()), lease["handed_over"],
    )  # fmt: skip
    columns["labels"] = frozenset(columns["labels"])
    columns["artifacts"] = dict(columns["artifacts"])
    columns["journal"] = {line.seq: line for line in lines if line.seq}
    columns["remarks"] = [line for line in lines if not line.seq]
    return Run(**columns)


def reason_of(text: str) -> Reason:
    """Why a run waits, as the model says it."""
    [(name, found)] = [(name, found) for pattern, name in REASONS.items() if (found := re.match(pattern, text))]
    return name, int(found[1]) if found.re.groups else None


class Database:
    """A real one, whose clock stands still, with a connection for callers and one that looks at what they did."""

    def __init__(self, runner: asyncio.Runner, caller: asyncpg.Connection, observer: asyncpg.Connection) -> None:
        self._run = runner.get_loop().run_until_complete
        self.caller = caller
        self.observer = observer
        self._seen = 0

    def forget(self, now: int) -> None:
        """Empty the queue and set the clock."""
        self._run(self.observer.execute(FORGET))
        self._seen = 0
        self.set_clock(now)

    def set_clock(self, now: int) -> None:
        self._run(self.observer.execute("update public.clock set now = $1", at(now)))

    def ask(self, function: str, who: Caller, arguments: dict[str, Any]) -> Answer:
        """The answer of that function, or of the statement that the model calls so, for that caller."""
        return self._run(self._ask(function, who, arguments))

    async def _ask(self, function: str, who: Caller, arguments: dict[str, Any]) -> Answer:
        await self.caller.fetchval("select set_config('role', $1, false)", who.role)
        try:
            if function == "queue":
                await self._queue(**arguments)
                return {}
            if function == "set_status":
                update = "update ops.runs set status = $2 where id = $1"
                await self.caller.execute(update, arguments["run_id"], arguments["status"])
                return {}
            named = parameters(function, who, arguments)
            places = ", ".join(f"p_{name} => ${n}" for n, name in enumerate(named, 1))
            text = await self.caller.fetchval(f"select ops.{function}({places})", *named.values())
        except asyncpg.PostgresError as error:
            return {"success": False, "code": error.sqlstate, "error": str(error)}
        answer: Answer = plain(json.loads(text))
        return answer

    async def _queue(
        self, project: str, ids: Sequence[uuid.UUID], *,
        priority: int, labels: frozenset[str], key: str | None, scheduled_at: int | None,
    ) -> None:  # fmt: skip
        due = None if scheduled_at is None else at(scheduled_at)
        await self.caller.execute("reset role")
        await self.caller.execute(QUEUE, project, ids, priority, sorted(labels), key, due)

    def runs(self) -> dict[uuid.UUID, Run]:
        """Every run with all that belongs to it, as the model keeps it."""
        return {row["id"]: run_of(row) for row in self._run(self.observer.fetch(RUNS))}

    def workers(self) -> dict[str, tuple[object, ...]]:
        rows = self._run(self.observer.fetch("select * from ops_private.workers"))
        return {
            row["worker_id"]: (row["instance_id"], row["db_role"], row["host_id"], seconds_of(row["expires_at"]))
            for row in rows
        }

    def listed(self) -> list[tuple[uuid.UUID, Reason | None]]:
        rows = self._run(self.observer.fetch("select run_id, waits_for from ops.list_queued_runs()"))
        return [(row["run_id"], row["waits_for"] and reason_of(row["waits_for"])) for row in rows]

    def new_events(self) -> list[Event]:
        """Events since this was asked last, oldest first."""
        rows = self._run(self.observer.fetch("select * from ops.run_events where seq > $1 order by seq", self._seen))
        self._seen = rows[-1]["seq"] if rows else self._seen
        return [Event(row["run_id"], row["event_type"], json.loads(row["payload"])) for row in rows]


@contextmanager
def frozen_database(cluster: Cluster) -> Iterator[Database]:
    """A migrated database of its own, with two projects and a role for each of two hosts."""

    async def set_up(url: str) -> tuple[asyncpg.Connection, asyncpg.Connection]:
        caller, observer = await asyncpg.connect(url), await asyncpg.connect(url)
        for role in (HOST_A, HOST_B):
            await observer.execute(f"create role {role} in role ops_worker")
        for project in PROJECTS:
            await new_workflow(observer, await new_project(observer, project), project)
        await freeze_clock(observer, at(0))
        return caller, observer

    with cluster.database(cluster.template()) as name, asyncio.Runner() as runner:
        caller, observer = runner.run(set_up(cluster.url(name)))
        try:
            yield Database(runner, caller, observer)
        finally:
            caller.terminate()
            observer.terminate()
