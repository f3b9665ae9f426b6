"""What ``ops-worker doctor`` makes of the facts: findings, each with what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from worker.cli.render import shown_span
from worker.database.catalog import Finding as SchemaFinding

State = Literal["ok", "warn", "error", "skipped"]

OLDEST_SERVER = 15
OLDEST_ENGINE = (20, 10)
SKEW_SECONDS = 5.0
"""A host whose clock differs by more from the database's."""

OLD_TRANSACTION, VERY_OLD_TRANSACTION = 60, 600
"""Seconds after which an open transaction makes the queue slow, and very slow."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    state: State
    finding: str
    advice: str = ""

    def row(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


def server(version: str) -> Finding:
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) < OLDEST_SERVER:
        return Finding(
            "database", "error", f"PostgreSQL {version} is too old", f"Upgrade it to {OLDEST_SERVER} or newer."
        )
    return Finding("database", "ok", f"PostgreSQL {version}")


def migrations(known: Sequence[str], applied: Sequence[str]) -> Finding:
    """``known``: the versions that this program brings; ``applied``: those in the history, also of other programs."""
    pending = [version for version in known if version not in applied]
    if pending:
        said = f"{_counted(len(pending), 'migration')} of this version of ops-worker not applied: {_some(pending)}"
        return Finding("migrations", "error", said, "As the schema's owner: ops-worker db migrate.")
    return Finding("migrations", "ok", f"all {len(known)} are applied, the newest is {known[-1]}")


def schema(found: Sequence[SchemaFinding]) -> list[Finding]:
    """Objects that are missing or different, and functions of others with the names of ours."""
    wrong = [f"{it.problem} {it.kind} {it.name}" for it in found if it.problem != "ambiguous"]
    foreign = [it.name for it in found if it.problem == "ambiguous"]
    findings = []
    if wrong:
        said = f"{_counted(len(wrong), 'problem')}: {_some(wrong)}"
        findings.append(
            Finding("schema", "error", said, "ops-worker db verify lists them all; db migrate adds what is pending.")
        )
    else:
        findings.append(Finding("schema", "ok", "complete"))
    if foreign:
        said = f"functions of others have the names of ours, and a call may mean them: {_some(foreign)}"
        findings.append(Finding("overloads", "error", said, "Rename or drop them."))
    else:
        findings.append(Finding("overloads", "ok", "no function of others has the name of one of ours"))
    return findings


def clock(skew: float, trip: float) -> Finding:
    """``skew``: seconds by which this host is ahead of the database; ``trip``: how long the question took."""
    beyond = abs(skew) - trip / 2
    if beyond > SKEW_SECONDS:
        said = f"this host is {shown_span(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the database"
        return Finding(
            "clock", "warn", said, "Keep both clocks by NTP: times of log lines come from the hosts, all others from"
            " the database.",
        )  # fmt: skip
    return Finding("clock", "ok", f"this host and the database differ by at most {abs(skew) + trip / 2:.1f} s")


def pooler(*, direct: bool, notified: bool) -> Finding:
    """``direct``: the server itself answers; ``notified``: a notification arrived on another connection."""
    if not notified:
        return Finding(
            "pooler", "warn", "notifications do not arrive on this URL: a transaction pooler is between",
            "Workers poll instead: runs start up to --poll-interval later. Give workers the direct URL or a session"
            " pooler's.",
        )  # fmt: skip
    return Finding("pooler", "ok", "none, notifications arrive" if direct else "a session pooler, notifications arrive")


def snapshots(facts: Mapping[str, Any]) -> list[Finding]:
    """Transactions that have been open for long."""
    findings = []
    for it in facts["sessions"]:
        if it["seconds"] >= OLD_TRANSACTION:
            who = f"{it['role'] or 'a role'} ({it['application'] or 'no application name'}, {it['state']})"
            findings.append(_old(it["seconds"], f"a transaction of {who}", f"select pg_terminate_backend({it['pid']})"))
    for it in facts["prepared"]:
        if it["seconds"] >= OLD_TRANSACTION:
            gid = str(it["gid"]).replace("'", "''")
            findings.append(
                _old(it["seconds"], f"a prepared transaction of {it['role']}", f"rollback prepared '{gid}'")
            )
    if findings:
        return findings
    if not facts["sees_all"]:
        return [
            Finding(
                "snapshots", "skipped", "the schema's owner does not see the transactions of other roles",
                "As a superuser, grant pg_read_all_stats to the schema's owner.",
            )
        ]  # fmt: skip
    return [Finding("snapshots", "ok", f"no transaction has been open for {OLD_TRANSACTION} s")]


def _old(seconds: int, what: str, end: str) -> Finding:
    state: State = "error" if seconds >= VERY_OLD_TRANSACTION else "warn"
    advice = f"It slows the queue down more and more. Find out what keeps it open; to end it: {end};"
    return Finding("snapshots", state, f"{what} has been open for {shown_span(seconds)}", advice)


def leases(stale: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Leases that ran out; a worker ends them after the length of another lease."""
    if not stale:
        return [Finding("leases", "ok", "none has run out")]
    return [
        Finding(
            "leases", "error" if it["seconds"] > it["lease_seconds"] + 120 else "warn",
            f"the lease of {it['run']} ({it['status']}) on {it['worker_id']} ran out {shown_span(it['seconds'])} ago",
            "Every worker that is connected ends or requeues such a run after the length of another lease. Is one"
            " alive (ops-worker workers)? To do it now, as an operator: select ops.reap();",
        )
        for it in stale[:_SHOWN]
    ]  # fmt: skip


def workers(rows: Sequence[Mapping[str, Any]], drained: Sequence[str] = ()) -> list[Finding]:
    """Which workers are registered, alive, of which version, and which an operator drains."""
    alive = [row for row in rows if row["alive"]]
    gone = [row["worker_id"] for row in rows if not row["alive"]]
    findings = []
    if not alive:
        findings.append(Finding("workers", "error", "no worker is alive", "Start one: systemctl start ops-worker."))
    versions = sorted({row["version"] or "unknown" for row in alive})
    if len(versions) > 1:
        said = f"the {len(alive)} live workers have several versions: {_some(versions)}"
        findings.append(Finding("workers", "warn", said, "Upgrade the older ones; each adopts its own runs."))
    elif alive:
        findings.append(Finding("workers", "ok", f"{_counted(len(alive), 'worker')} alive, version {versions[0]}"))
    if drained:
        said = f"{_counted(len(drained), 'worker')} drained, so that no run is claimed there: {_some(drained)}"
        advice = "When the host is to work again: ops-worker drain WORKER --undo."
        findings.append(Finding("workers", "warn", said, advice))
    if gone:
        said = f"the registration of {_counted(len(gone), 'worker')} has expired: {_some(gone)}"
        advice = "If a host is gone for good, nothing needs to be done. Otherwise look at its worker's log."
        findings.append(Finding("workers", "warn", said, advice))
    return findings


def queue(paused: Mapping[str, Any] | None, projects: Sequence[str], unserved: Mapping[str, Any]) -> list[Finding]:
    """What keeps queued runs from being claimed."""
    findings = []
    if paused is not None:
        reason = f": {paused['reason']}" if paused["reason"] else ""
        findings.append(
            Finding("queue", "warn", f"paused for all projects by {paused['by']}{reason}", "ops-worker resume")
        )
    if projects:
        said = f"paused for {_counted(len(projects), 'project')}: {_some(projects)}"
        findings.append(Finding("queue", "warn", said, "ops-worker resume PROJECT"))
    if unserved["runs"]:
        why = f"no live worker offers {_some(unserved['labels'])}" if unserved["labels"] else "no worker is alive"
        said = f"{_counted(unserved['runs'], 'queued run')} cannot be claimed: {why}"
        advice = "Start a worker with these --labels, or correct labels in the workflow's config and queue them again."
        findings.append(Finding("queue", "warn", said, advice))
    return findings or [Finding("queue", "ok", "not paused, and every queued run has a live worker for its labels")]


def engine(version: str, *, filters_bridges: bool) -> list[Finding]:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_ENGINE:
        return [Finding("engine", "error", f"version {version} is too old", "Upgrade it to 20.10 or newer.")]
    if not filters_bridges:
        return [
            Finding(
                "engine", "warn", f"version {version}; nothing filters between the containers of runs",
                "Set net.bridge.bridge-nf-call-iptables=1 in the kernel, and no iptables=false in daemon.json.",
            )
        ]  # fmt: skip
    return [Finding("engine", "ok", f"version {version}")]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
