"""Several workers at once, each doing random things to the same runs; what they did is checked afterwards.

Triggers write down, within each transaction, who came to hold a run, what its status became, and who wrote what. Runs
are locked for all of these, so for each run the list is in the order in which things took effect.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from hypothesis import settings

from tests.conftest import Connect
from tests.db.model import ACTIVE, TRANSITIONS
from tests.db.world import call, freeze_clock, new_project, new_workflow

HISTORIES = settings().max_examples // 10  # more where hypothesis tries more
STEPS = 100  # of each task
LEASE = 60

# Process, and the engine it is on. One worker is two processes by mistake; the first process has two tasks.
PROCESSES = [("a", uuid.UUID(int=1), "e1")] * 2 + [
    ("a", uuid.UUID(int=2), "e1"), ("b", uuid.UUID(int=3), "e1"), ("c", uuid.UUID(int=4), "e2"),
    ("d", uuid.UUID(int=5), None),
]  # fmt: skip
OPERATIONS = {
    "queue": 3, "claim": 4, "start": 4, "append": 8, "remark": 2, "artifact": 2, "event": 2, "complete": 1,
    "release": 1, "heartbeat": 3, "adopt": 5, "reap": 1, "cancel": 1, "register": 1, "pass_time": 1,
}  # fmt: skip

WRITE_DOWN = """
create table public.history (
    n bigint generated always as identity, run_id uuid, what text, status text, held_key text, who text
);
grant update on public.clock to service_role;
create function public.write_down() returns trigger language plpgsql security definer as $$
begin
    case tg_table_name
    when 'runs' then
        insert into public.history (run_id, what, status, held_key)
        values (new.id, 'status', new.status, new.project_id || new.concurrency_key);
    when 'leases' then
        insert into public.history (run_id, what, who) values (
            coalesce(new.run_id, old.run_id), lower(tg_op), format('%s %s', new.worker_id, new.instance_id));
    else
        insert into public.history (run_id, what, who) values (
            new.run_id, 'write',
            case tg_table_name when 'run_events' then to_jsonb(new) -> 'payload' ->> 'who'
                when 'run_artifacts' then to_jsonb(new) ->> 'artifact_url' else to_jsonb(new) ->> 'message' end);
    end case;
    return null;
end $$;
create trigger zz after insert or update of status on ops.runs for each row execute function public.write_down();
create trigger zz after insert or delete or update of worker_id, instance_id on ops_private.leases
    for each row execute function public.write_down();
create trigger zz after insert on ops.run_logs for each row execute function public.write_down();
create trigger zz after insert or update on ops.run_artifacts for each row execute function public.write_down();
create trigger zz after insert on ops.run_events for each row when (new.payload ? 'who')
    execute function public.write_down();
"""
QUEUE = """
    insert into ops.runs (id, idempotency_key, project_id, workflow_id, priority, concurrency_key)
    select $1::uuid, $1::uuid, w.project_id, w.id, $3, $4 from ops.workflows as w where w.name = $2
    on conflict (idempotency_key) do nothing
"""


class Shared:
    """What the tasks share: the ids of all runs, and the claims that were answered."""

    def __init__(self) -> None:
        self.runs: list[uuid.UUID] = []
        self.claims: Counter[tuple[uuid.UUID, str]] = Counter()


class Task:
    """One task of a worker's process, with a connection of its own."""

    def __init__(
        self, db: asyncpg.Connection, process: tuple[str, uuid.UUID, str | None], shared: Shared, dice: random.Random
    ) -> None:
        self.db = db
        self.worker, self.instance, self.engine = process
        self.who = f"{self.worker} {self.instance}"
        self.shared = shared
        self.dice = dice
        self.positions: dict[uuid.UUID, int] = {}  # of the runs that it believes it holds

    async def work(self) -> None:
        names, weights = list(OPERATIONS), list(OPERATIONS.values())
        for _ in range(STEPS):
            await getattr(self, self.dice.choices(names, weights)[0])()

    async def send(self, function: str, **named: object) -> dict[str, Any]:
        """The answer that arrives; before it the call may be undone, or be done without an answer."""
        fate = self.dice.random()
        if fate < 0.1:
            transaction = self.db.transaction()
            await transaction.start()
            await self.ask(function, **named)
            await transaction.rollback()
        elif fate < 0.3:
            self.count(function, await self.ask(function, **named))
        answer = await self.ask(function, **named)
        self.count(function, answer)
        return answer

    async def ask(self, function: str, **named: object) -> dict[str, Any]:
        return await call(self.db, function, p_worker_id=self.worker, p_instance_id=self.instance, **named)

    def count(self, function: str, answer: dict[str, Any]) -> None:
        if function == "claim_next_run" and answer["run_id"]:
            self.shared.claims[uuid.UUID(answer["run_id"]), self.who] += 1

    async def to_run(self, function: str, **named: object) -> dict[str, Any] | None:
        """The same for a run, mostly one that it holds; None after a refusal, which ends the client's work on it."""
        if not self.positions:
            await self.claim()
        stranger = not self.positions or self.dice.random() < 0.1
        run = self.dice.choice(self.shared.runs if stranger else list(self.positions))
        if function == "append_run_logs":
            named |= self.batch(run)
        answer = await self.send(function, p_run_id=run, **named)
        if not answer.get("success", answer.get("run_id")):
            self.positions.pop(run, None)
            return None
        self.positions[run] = answer.get("position", answer.get("log_position", self.positions.get(run, 0)))
        return answer | {"run": run}

    def batch(self, run: uuid.UUID) -> dict[str, object]:
        """The next lines of the journal, and some that it may have sent before."""
        first = max(1, self.positions.get(run, 0) + 1 - self.dice.randrange(4))
        seqs = range(first, first + self.dice.randrange(1, 6))
        return {
            "p_first_seq": first, "p_messages": "\n".join([self.who] * len(seqs)), "p_marks": "i" * len(seqs),
            "p_timestamps": [datetime.now(UTC)] * len(seqs),
        }  # fmt: skip

    # The operations ------------------------------------------------------------------------------------------

    async def queue(self) -> None:
        run = uuid.uuid4()
        values = (run, self.dice.choice(["acme", "beta"]), self.dice.randrange(3), self.dice.choice([None, "x", "y"]))
        if self.dice.random() < 0.3:
            transaction = self.db.transaction()
            await transaction.start()
            await self.db.execute(QUEUE, *values)
            await transaction.rollback()
        for _ in range(self.dice.randrange(1, 3)):
            await self.db.execute(QUEUE, *values)
        self.shared.runs.append(run)

    async def claim(self) -> None:
        answer = await self.send("claim_next_run", p_engine_id=self.engine, p_lease_seconds=LEASE)
        if answer["run_id"]:
            self.positions[uuid.UUID(answer["run_id"])] = answer["log_position"]

    async def start(self) -> None:
        await self.to_run("start_workflow_run")

    async def append(self) -> None:
        await self.to_run("append_run_logs")

    async def remark(self) -> None:
        await self.to_run("append_run_log", p_level="info", p_message=self.who)

    async def artifact(self) -> None:
        await self.to_run("add_run_artifact", p_artifact_key=self.dice.choice("xyz"), p_artifact_url=self.who)

    async def event(self) -> None:
        payload = json.dumps({"who": self.who})
        await self.to_run("add_run_event", p_event_type="info", p_message="m", p_payload=payload)

    async def complete(self) -> None:
        reason = self.dice.choice([None, "canceled"])
        answer = await self.to_run("complete_workflow_run", p_exit_code=self.dice.randrange(2), p_reason=reason)
        if answer:
            del self.positions[answer["run"]]

    async def release(self) -> None:
        answer = await self.to_run("release_run")
        if answer:
            del self.positions[answer["run"]]

    async def heartbeat(self) -> None:
        answer = await self.send("heartbeat", p_lease_seconds=LEASE)
        held = {uuid.UUID(run["run_id"]) for run in answer["runs"]}
        self.positions = {run: self.positions.get(run, 0) for run in held}

    async def adopt(self) -> None:
        run = self.dice.choice(self.shared.runs[-6:])  # those before have mostly ended
        answer = await self.send("adopt_run", p_run_id=run, p_engine_id=self.engine, p_lease_seconds=LEASE)
        if answer["success"]:
            self.positions[run] = answer["log_position"]

    async def reap(self) -> None:
        await call(self.db, "reap")

    async def cancel(self) -> None:
        await call(self.db, "cancel_run", self.dice.choice(self.shared.runs[-6:]))

    async def register(self) -> None:
        await self.send("register_worker", p_host_id="h", p_lease_seconds=LEASE, p_takeover=self.dice.random() < 0.5)

    async def pass_time(self) -> None:
        seconds = self.dice.choice([1, LEASE // 2, LEASE])
        await self.db.execute("update public.clock set now = now + make_interval(secs => $1)", seconds)


def check_history(rows: Sequence[asyncpg.Record]) -> None:
    """Each change of status is allowed, one run per concurrency key is active, and only its holder writes to a run."""
    status: dict[uuid.UUID, str] = {}
    holder: dict[uuid.UUID, str | None] = {}
    active: dict[str, uuid.UUID] = {}
    for row in rows:
        run = row["run_id"]
        if row["what"] == "status":
            assert run not in status or (status[run], row["status"]) in TRANSITIONS, row
            status[run] = row["status"]
            if row["held_key"] and row["status"] in ACTIVE:
                assert active.setdefault(row["held_key"], run) == run, row
            elif row["held_key"] and active.get(row["held_key"]) == run:
                del active[row["held_key"]]
        elif row["what"] == "insert":
            assert holder.get(run) is None, row
            holder[run] = row["who"]
        elif row["what"] == "update":
            assert holder[run] is not None, row
            holder[run] = row["who"]
        elif row["what"] == "delete":
            holder[run] = None
        else:
            assert (holder[run], status[run] in ACTIVE) == (row["who"], True), row


@pytest.mark.parametrize("turn", range(HISTORIES))
async def test_whatever_they_do_at_once_each_run_has_one_owner_and_one_story(
    db: asyncpg.Connection, connect: Connect, turn: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    await freeze_clock(db, datetime(2030, 1, 1, tzinfo=UTC))
    for project in ("acme", "beta"):
        await new_workflow(db, await new_project(db, project), project)
    await db.execute(WRITE_DOWN)
    shared = Shared()
    options = {"server_settings": {"deadlock_timeout": "10ms", "role": "service_role"}}
    tasks = [
        Task(await connect(**options), process, shared, random.Random(seed + n)) for n, process in enumerate(PROCESSES)
    ]
    for _ in range(4):
        await tasks[0].queue()
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task.work())

    rows = await db.fetch("select * from public.history order by n")
    check_history(rows)
    claimed = Counter((row["run_id"], row["who"]) for row in rows if row["what"] == "insert")
    assert claimed == shared.claims
    numbers = defaultdict(list)
    for row in await db.fetch("select project_id, run_number from ops.runs order by run_number"):
        numbers[row["project_id"]].append(row["run_number"])
    assert all(taken == list(range(1, len(taken) + 1)) for taken in numbers.values())
    for row in await db.fetch(
        "select count(*) as lines, max(seq) as last from ops.run_logs where stream is not null group by run_id"
    ):
        assert row["lines"] == row["last"]
