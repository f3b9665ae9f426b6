"""What ``ops-worker doctor`` makes of the facts."""

from __future__ import annotations

import pytest

from worker.cli import findings
from worker.cli.findings import Finding
from worker.database.catalog import Finding as SchemaFinding

SESSION = {"pid": 7, "role": "alice", "application": "psql", "state": "idle in transaction", "seconds": 60}
PREPARED = {"sees_all": True, "sessions": [], "prepared": [{"gid": "a'b", "role": "x", "seconds": 99}]}
LEASE = {"run": "acme#1", "status": "running", "worker_id": "host-a", "lease_seconds": 300, "seconds": 10}
ALIVE = {"worker_id": "host-a", "version": "1.0", "alive": True}
FREE = {"runs": 0, "labels": []}


def session(**more: object) -> dict[str, object]:
    return {"sees_all": True, "sessions": [SESSION | more], "prepared": []}


@pytest.mark.parametrize(
    ("found", "state", "says"),
    [
        (findings.server("18.1"), "ok", "PostgreSQL 18.1"), (findings.server("14.9 (Debian)"), "error", "too old"),
        (findings.migrations(["1", "2"], ["1", "2", "7"]), "ok", "all 2 are applied, the newest is 2"),
        (findings.migrations(["1", "2"], ["1"]), "error", "1 migration of this version of ops-worker not applied: 2"),
        (findings.clock(0.1, 0.2), "ok", "differ by at most 0.2 s"),
        (findings.clock(70, 0.1), "warn", "1m 10s ahead of"),
        (findings.clock(-70, 0.1), "warn", "1m 10s behind"), (findings.clock(6, 3), "ok", "at most 7.5 s"),
        (findings.pooler(direct=True, notified=True), "ok", "none, notifications arrive"),
        (findings.pooler(direct=False, notified=True), "ok", "a session pooler"),
        (findings.pooler(direct=False, notified=False), "warn", "a transaction pooler is between"),
        (findings.snapshots(session(seconds=59))[0], "ok", "no transaction has been open for 60 s"),
        (findings.snapshots(session())[0], "warn", "of alice (psql, idle in transaction) has been open for 1m 0s"),
        (findings.snapshots(session(seconds=600, application=""))[0], "error", "no application name"),
        (findings.snapshots({"sees_all": False, "sessions": [], "prepared": []})[0], "skipped", "does not see"),
        (findings.snapshots(PREPARED)[0], "warn", "a prepared transaction of x has been open for 1m 39s"),
        (findings.leases([])[0], "ok", "none has run out"),
        (findings.leases([LEASE])[0], "warn", "the lease of acme#1 (running) on host-a ran out 10s ago"),
        (findings.leases([LEASE | {"seconds": 421}])[0], "error", "7m 1s ago"),
        (findings.workers([])[0], "error", "no worker is alive"),
        (findings.workers([ALIVE])[0], "ok", "1 worker alive, version 1.0"),
        (findings.workers([ALIVE, ALIVE | {"version": "2.0"}])[0], "warn", "several versions: 1.0, 2.0"),
        (findings.workers([ALIVE, ALIVE | {"alive": False, "worker_id": "b"}])[1], "warn", "1 worker has expired: b"),
        (findings.workers([ALIVE], ["host-a"])[1], "warn", "1 worker drained, so that no run is claimed there: host-a"),
        (findings.queue(None, [], FREE)[0], "ok", "not paused"),
        (findings.queue({"by": "bob", "reason": "audit"}, [], FREE)[0], "warn", "for all projects by bob: audit"),
        (findings.queue(None, ["a", "b"], FREE)[0], "warn", "paused for 2 projects: a, b"),
        (findings.queue(None, [], {"runs": 2, "labels": ["gpu"]})[0], "warn", "no live worker offers gpu"),
        (findings.engine("19.03.1", filters_bridges=True)[0], "error", "too old"),
        (findings.engine("20.10.24", filters_bridges=False)[0], "warn", "nothing filters between"),
        (findings.engine("29.0.0", filters_bridges=True)[0], "ok", "version 29.0.0"),
    ],
)  # fmt: skip
def test_finding(found: Finding, state: str, says: str) -> None:
    assert (found.state, says in found.finding) == (state, True), found
    assert (found.advice != "") == (state != "ok")


def test_the_advice_names_the_command() -> None:
    [found] = findings.snapshots(session())
    assert found.advice.endswith("to end it: select pg_terminate_backend(7);")
    assert findings.snapshots(PREPARED)[0].advice.endswith("rollback prepared 'a''b';")


def test_problems_of_the_schema_and_overloads_are_apart() -> None:
    overload = SchemaFinding("function", "ops.claim_next_run(text)", None, "x")
    missing = [SchemaFinding("table", f"ops.t{n}", "x", None) for n in range(7)]
    assert [(it.check, it.state) for it in findings.schema([])] == [("schema", "ok"), ("overloads", "ok")]
    broken, foreign = findings.schema([*missing, overload])
    assert broken.finding == (
        "7 problems: missing table ops.t0, missing table ops.t1, missing table ops.t2, missing table ops.t3, "
        "missing table ops.t4 and 2 more"
    )
    assert (foreign.state, "ops.claim_next_run(text)" in foreign.finding) == ("error", True)
