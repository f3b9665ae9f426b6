"""The functions and the model of their contract (``model.py``) do the same steps and must agree after each.

Hypothesis chooses the steps: workers with two hosts, two engines and two processes under one id; strangers who name
what is not theirs; a clock that only moves when told; and acknowledgements that are lost, after which the caller sends
the same again. ``--hypothesis-profile=long`` tries far more of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.db.frozen import HOST_A, HOST_B, PROJECTS, Database, frozen_database
from tests.db.model import ACTIVE, FINAL, LEVELS, Answer, Caller, Contract, Event, Line, Run
from tests.support.postgres import Cluster

MOST_RUNS = 12
UNKNOWN = uuid.UUID(int=0)

FIRST = Caller("a", uuid.UUID(int=1), HOST_A, host="h1", engine="e1")
PROCESSES = (
    FIRST,
    Caller("a", uuid.UUID(int=2), HOST_A, host="h1", engine="e1"),  # the next process of that worker
    Caller("a", uuid.UUID(int=3), HOST_B, host="h2", engine="e2"),  # started with that id elsewhere, by mistake
    Caller("a", uuid.UUID(int=4), HOST_A, host="h2", engine="e2"),  # the same, without a role of its own
    Caller("b", uuid.UUID(int=5), HOST_A, host="h1", engine="e1"),  # a neighbour on the engine
    Caller("c", uuid.UUID(int=6), HOST_B, host="h2", engine="e2"),
    Caller("d", uuid.UUID(int=7), "service_role"),  # on no engine
)
STRANGERS = (
    replace(FIRST, instance=None),
    replace(FIRST, role=HOST_B),
    replace(FIRST, worker="b"),
    replace(FIRST, worker=""),
    replace(FIRST, role="service_role"),
    Caller(None, None, HOST_A),
    Caller(None, None, "service_role"),
)
USER = Caller(None, None, "service_role")

# Sent again, these change nothing and answer the same; the second lot if the caller names its instance.
NEED_AN_INSTANCE = {"start_workflow_run", "complete_workflow_run"}
REPEATABLE = NEED_AN_INSTANCE | {
    "queue", "append_run_logs", "add_run_artifact", "heartbeat",
    "adopt_run", "register_worker", "unregister_worker", "cancel_run", "set_status",
}  # fmt: skip
SAID_DIFFERENTLY = {"stored": None, "message": None}  # but nothing is stored twice

callers = st.sampled_from([None] * 30 + [*PROCESSES, *STRANGERS])  # None: who holds the run
workers = st.sampled_from([*PROCESSES * 3, *STRANGERS])
choices = st.tuples(st.integers(0, 5), st.booleans() | st.just(True))  # the n-th run, of those in the right state
lost = st.booleans()
leases = st.sampled_from([60, 120, 300])
offers = st.sampled_from([["gpu", "big"], ["gpu"], []])
levels = st.sampled_from([*LEVELS, *LEVELS, "loud"])


def some(*statuses: str) -> Callable[[Queue], bool]:
    """There is a run in one of these states."""
    return lambda machine: any(run.status in statuses for run in machine.model.runs.values())


class Queue(RuleBasedStateMachine):
    """Each rule lets one caller do one thing, once or, when the acknowledgement is lost, twice."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.model = Contract(now=1_800_000_000)
        self.last: dict[uuid.UUID, Caller] = {}
        self.died = False
        self.histories: dict[uuid.UUID, list[str]] = {}
        database.forget(self.model.now)

    # The steps -----------------------------------------------------------------------------------------------

    @initialize(key=st.sampled_from([None, "prod"]), registered=st.booleans())
    def begin(self, *, key: str | None, registered: bool) -> None:
        """Four runs, three of them claimed and two of those started."""
        for project in PROJECTS:
            self.queue(project=project, count=2, priority=0, labels=frozenset(), key=key, delay=None, lost=False)
        if registered:
            self.register(who=FIRST, lease_seconds=120, takeover=False, labels=["gpu"], lost=False)
        for who in (FIRST, PROCESSES[4], PROCESSES[5]):
            self.claim(who=who, labels=["gpu"], lease_seconds=120, lost=False)
        for place in (0, 1):
            self.start(which=(place, True), who=None, lost=False)

    @precondition(lambda self: len(self.model.runs) < MOST_RUNS)
    @rule(
        project=st.sampled_from(PROJECTS), count=st.integers(1, 3), priority=st.sampled_from([0, 0, 5, -1]),
        labels=st.sampled_from([frozenset[str](), frozenset({"gpu"}), frozenset({"gpu", "big"})]),
        key=st.sampled_from([None, "prod", "test"]), delay=st.sampled_from([None, None, -5, 60, 300]), lost=lost,
    )  # fmt: skip
    def queue(
        self, *, project: str, count: int, priority: int, labels: frozenset[str], key: str | None, delay: int | None,
        lost: bool,
    ) -> None:  # fmt: skip
        first = len(self.model.runs) + 1
        self.do(
            "queue", replace(USER, role="postgres"), lost=lost, project=project,
            ids=[uuid.UUID(int=n) for n in range(first, first + count)],
            priority=priority, labels=labels, key=key, scheduled_at=None if delay is None else self.model.now + delay,
        )  # fmt: skip
        self.pass_time(1)  # so that no two projects' runs are equally old

    @rule(seconds=st.sampled_from([120, 300, 240, 60, 59, 1]))
    def pass_time(self, seconds: int) -> None:
        self.model.now += seconds
        self.database.set_clock(self.model.now)

    @rule(who=workers, lease_seconds=leases, takeover=st.booleans(), labels=offers, lost=lost)
    def register(self, *, who: Caller, lease_seconds: int, takeover: bool, labels: list[str], lost: bool) -> None:
        self.do("register_worker", who, lost=lost, lease_seconds=lease_seconds, takeover=takeover, labels=labels)

    @precondition(lambda self: bool(self.model.workers))
    @rule(who=workers, lost=lost)
    def unregister(self, *, who: Caller, lost: bool) -> None:
        self.do("unregister_worker", who, lost=lost)

    @precondition(lambda self: bool(self.model.owners))
    @rule(worker=st.sampled_from("abcd"), drain=st.booleans(), lost=lost)
    def drain(self, *, worker: str, drain: bool, lost: bool) -> None:
        self.do("drain_worker", replace(USER, worker=worker), lost=lost, drain=drain)

    @rule(which=choices, who=callers, lease_seconds=leases, lost=lost)
    def heartbeat(self, *, which: tuple[int, bool], who: Caller | None, lease_seconds: int, lost: bool) -> None:
        holder = self.last.get(self.pick(which, ACTIVE), FIRST)
        self.do("heartbeat", who or holder, lost=lost, lease_seconds=lease_seconds)

    @rule(who=workers, labels=offers, lease_seconds=leases, lost=lost)
    def claim(self, *, who: Caller, labels: list[str], lease_seconds: int, lost: bool) -> None:
        self.do("claim_next_run", who, lost=lost, labels=labels, lease_seconds=lease_seconds)

    @precondition(some("claimed"))
    @rule(which=choices, who=callers, lost=lost)
    def start(self, *, which: tuple[int, bool], who: Caller | None, lost: bool) -> None:
        self.do_to("start_workflow_run", which, ("claimed",), who, lost=lost)

    @precondition(some("running"))
    @rule(
        which=choices, who=callers, exit_code=st.sampled_from([0, 0, 1, 137, None]),
        reason=st.sampled_from(["canceled", None, "timeout"]), lost=lost,
    )  # fmt: skip
    def complete(
        self, *, which: tuple[int, bool], who: Caller | None, exit_code: int | None, reason: str | None, lost: bool
    ) -> None:
        self.do_to("complete_workflow_run", which, ("running",), who, lost=lost, exit_code=exit_code, reason=reason)

    @precondition(some("claimed"))
    @rule(which=choices, who=callers, lost=lost)
    def release(self, *, which: tuple[int, bool], who: Caller | None, lost: bool) -> None:
        self.do_to("release_run", which, ("claimed",), who, lost=lost)

    @precondition(some(*ACTIVE))
    @rule(which=choices, who=workers, lease_seconds=leases, lost=lost)
    def adopt(self, *, which: tuple[int, bool], who: Caller, lease_seconds: int, lost: bool) -> None:
        self.do_to("adopt_run", which, ACTIVE, who, lost=lost, lease_seconds=lease_seconds)

    @precondition(some("running"))
    @rule(
        which=choices, who=callers, back=st.integers(-2, 4), count=st.integers(0, 6), level=levels,
        word=st.sampled_from("xyz"), lost=lost,
    )  # fmt: skip
    def append_batch(
        self, *, which: tuple[int, bool], who: Caller | None, back: int, count: int, level: str, word: str, lost: bool
    ) -> None:
        run = self.model.runs.get(self.pick(which, ("running",)))
        first = (run.position if run else 0) + 1 - back  # an overlap, or a gap, or before the first line
        lines = [Line(n, level, f"{word}{n}") for n in range(first, first + count)]
        self.do_to("append_run_logs", which, ("running",), who, lost=lost, lines=lines)

    @precondition(some("running"))
    @rule(which=choices, who=callers, level=levels, message=st.sampled_from("xyz"), lost=lost)
    def append_line(self, *, which: tuple[int, bool], who: Caller | None, level: str, message: str, lost: bool) -> None:
        self.do_to("append_run_log", which, ("running",), who, lost=lost, level=level, message=message)

    @precondition(some("running"))
    @rule(which=choices, who=callers, key=st.sampled_from("xy"), url=st.sampled_from("12"), lost=lost)
    def add_artifact(self, *, which: tuple[int, bool], who: Caller | None, key: str, url: str, lost: bool) -> None:
        self.do_to("add_run_artifact", which, ("running",), who, lost=lost, artifact_key=key, artifact_url=url)

    @precondition(some(*ACTIVE))
    @rule(which=choices, who=callers, kind=st.sampled_from(["info", "warning", "error", "state_change"]), lost=lost)
    def add_event(self, *, which: tuple[int, bool], who: Caller | None, kind: str, lost: bool) -> None:
        self.do_to("add_run_event", which, ACTIVE, who, lost=lost, event_type=kind, message="m", payload={"a": "1"})

    @precondition(some(*ACTIVE))
    @rule(which=choices, who=callers, container_id=st.sampled_from("ab"), lost=lost)
    def record_container(self, *, which: tuple[int, bool], who: Caller | None, container_id: str, lost: bool) -> None:
        self.do_to("record_container", which, ("running",), who, lost=lost, container_id=container_id)

    @rule(who=workers, lost=lost)
    def reap(self, *, who: Caller, lost: bool) -> None:
        self.do("reap", who, lost=lost)

    @precondition(some(*ACTIVE))
    @rule(which=choices, seconds=st.sampled_from([300, 120, 119]), lost=lost)
    def come_back(self, *, which: tuple[int, bool], seconds: int, lost: bool) -> None:
        """A worker is heard of again, maybe after its leases ran out."""
        self.pass_time(seconds)
        self.heartbeat(which=which, who=None, lease_seconds=120, lost=lost)

    @precondition(lambda self: not self.died)
    @rule(times=st.sampled_from([6, 2]))
    def die_after_claim(self, *, times: int) -> None:
        """One worker after the other claims, and is never heard of again."""
        self.died = True
        for _ in range(times):
            self.claim(who=PROCESSES[4], labels=["gpu"], lease_seconds=120, lost=False)
            self.pass_time(120)
            self.reap(who=FIRST, lost=False)

    @precondition(some("running"))
    @rule(which=choices, reason=st.sampled_from([None, "no need"]), lost=lost)
    def cancel(self, *, which: tuple[int, bool], reason: str | None, lost: bool) -> None:
        self.do_to("cancel_run", which, ("running",), USER, lost=lost, reason=reason)

    @precondition(some("queued"))
    @rule(which=choices, status=st.sampled_from(["queued", *ACTIVE, *FINAL]), lost=lost)
    def set_status(self, *, which: tuple[int, bool], status: str, lost: bool) -> None:
        self.do_to("set_status", which, ("queued",), USER, lost=lost, status=status)

    # What holds after each -----------------------------------------------------------------------------------

    def pick(self, which: tuple[int, bool], statuses: Sequence[str]) -> uuid.UUID:
        """One run: one in these states if there is any, and if the choice is so, else any, or none."""
        place, fitting = which
        known = [*self.model.runs, UNKNOWN]
        right = [run.id for run in self.model.runs.values() if run.status in statuses] if fitting else []
        among = right or known
        return among[place % len(among)]

    def do_to(
        self, function: str, which: tuple[int, bool], statuses: Sequence[str], who: Caller | None, *, lost: bool,
        **arguments: Any,
    ) -> None:  # fmt: skip
        run = self.pick(which, statuses)
        self.do(function, who or self.last.get(run, FIRST), lost=lost, run_id=run, **arguments)

    def do(self, function: str, who: Caller, *, lost: bool, **arguments: Any) -> None:
        """Let SQL and model do it and compare; when the acknowledgement is lost, the caller sends the same again."""
        answer, runs = self.do_once(function, who, arguments)
        if not lost:
            return
        again, runs_after = self.do_once(function, who, arguments)
        if function in REPEATABLE and (who.instance is not None or function not in NEED_AN_INSTANCE):
            assert again | SAID_DIFFERENTLY == answer | SAID_DIFFERENTLY
            assert runs_after == runs

    def do_once(self, function: str, who: Caller, arguments: dict[str, Any]) -> tuple[Answer, dict[uuid.UUID, Run]]:
        told = len(self.model.events)
        expected = self.model.answer(function, who, **arguments)
        answer = self.database.ask(function, who, arguments)
        assert {key: answer.get(key, "missing") for key in expected} == expected
        events = self.database.new_events()
        self.compare_events(events, self.model.events[told:])
        runs = self.database.runs()
        assert runs == self.model.runs
        self.check_rules(runs, events)
        assert self.database.listed() == self.model.list_queued_runs()
        assert self.database.workers() == {
            name: (one.holder.instance, one.holder.role, one.holder.host, one.expires_at)
            for name, one in self.model.workers.items()
        }
        self.last |= {run.id: run.lease.holder for run in self.model.runs.values() if run.lease is not None}
        return answer, runs

    def compare_events(self, events: list[Event], expected: list[Event]) -> None:
        """The same events in the same order; their payloads may say more."""
        assert [(one.run, one.kind) for one in events] == [(one.run, one.kind) for one in expected]
        for event, wanted in zip(events, expected, strict=True):
            assert {key: event.payload.get(key) for key in wanted.payload} == wanted.payload

    def check_rules(self, runs: dict[uuid.UUID, Run], events: list[Event]) -> None:
        """What holds whatever the model says."""
        for event in events:
            if event.kind == "state_change":
                history = self.histories.setdefault(event.run, ["queued"])
                assert event.payload["previous_status"] == history[-1]
                history.append(event.payload["new_status"])
        for run in runs.values():
            assert (run.lease is not None) == (run.status in ACTIVE)
            assert (run.finished_at is not None) == (run.status in FINAL)
            assert run.status == self.histories.get(run.id, ["queued"])[-1]
        held = [(run.project, run.key) for run in runs.values() if run.key and run.status in ACTIVE]
        assert len(held) == len(set(held))
        for project in PROJECTS:
            numbers = sorted(run.number for run in runs.values() if run.project == project)
            assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.timeout(60 + 5 * settings().max_examples)  # to make a failure small takes up to 300 s
def test_the_functions_do_what_the_contract_says(cluster: Cluster) -> None:
    with frozen_database(cluster) as database:
        run_state_machine_as_test(
            lambda: Queue(database),  # type: ignore[arg-type]  # any factory will do
            settings=settings(stateful_step_count=40),
        )
