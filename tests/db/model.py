"""What the contract says of the queue, in plain Python: no SQL, no clock of its own, no I/O.

A method for each function of the schema ``ops``, with the same name, takes who calls and the arguments, changes the
model, and returns the answer: every key that a program may rely on, and no text that is for people. Times are whole
seconds since 1970.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Answer = dict[str, Any]
Reason = tuple[str, int | None]
"""Why a run waits, and the number of the run that it waits for."""

ACTIVE = ("claimed", "running")
FINAL = ("succeeded", "failed", "canceled")
TRANSITIONS = {
    ("queued", "claimed"), ("queued", "canceled"),
    ("claimed", "running"), ("claimed", "queued"), ("claimed", "canceled"),
    ("running", "succeeded"), ("running", "failed"), ("running", "canceled"),
}  # fmt: skip
TRUSTED = ("postgres", "service_role")
LEVELS = ("debug", "info", "warn", "error")
MAX_LOST = 5  # with more lost workers than this a run is quarantined
LOST_SECONDS = 60  # once the first was lost so long ago
DIRECT_LEASE = 300  # seconds, for a run that is claimed by an update


@dataclass(frozen=True, repr=False)
class Caller:
    """A worker's process as it names itself, where it runs, and the database role that it logged in as."""

    worker: str | None
    instance: uuid.UUID | None
    role: str
    host: str | None = field(default=None, compare=False)  # a lease does not hold it
    engine: str | None = None

    def __repr__(self) -> str:
        return f"<{self.worker} {self.instance and self.instance.int} as {self.role}>"

    @property
    def trusted(self) -> bool:
        return self.role in TRUSTED


@dataclass(frozen=True)
class Lease:
    holder: Caller
    seconds: int
    expires_at: int
    renewed: bool = False  # by its holder
    position: int = 0  # of the log when the holder took it
    lost: int = 0  # holders in a row before this one that made no progress
    lost_since: int | None = None  # when the first of them was found to be gone
    handed_over: bool = False  # its holder unregistered


@dataclass(frozen=True)
class Registration:
    holder: Caller
    expires_at: int
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Line:
    seq: int | None  # None: not one of the journal's
    level: str
    message: str


@dataclass(frozen=True)
class Event:
    run: uuid.UUID
    kind: str
    payload: dict[str, Any]


@dataclass
class Run:
    id: uuid.UUID
    project: str
    number: int
    created_at: int
    priority: int = 0
    labels: frozenset[str] = frozenset()
    key: str | None = None
    scheduled_at: int | None = None
    status: str = "queued"
    worker: str | None = None
    instance: uuid.UUID | None = None
    claimed_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    cancel_requested_at: int | None = None
    claim_count: int = 0
    exit_code: int | None = None
    reason: str | None = None
    container: str | None = None  # the one that was created
    lease: Lease | None = None
    journal: dict[int, Line] = field(default_factory=dict)
    remarks: list[Line] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def position(self) -> int:
        """The last line of the journal that is stored."""
        return max(self.journal, default=0)


class Refused(Exception):
    """The call changes nothing; ``code`` says why."""

    def __init__(self, code: str, **more: Any) -> None:
        super().__init__(code)
        self.code = code
        self.more = more


class Contract:
    """The queue, its runs and their workers."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.runs: dict[uuid.UUID, Run] = {}
        self.workers: dict[str, Registration] = {}
        self.owners: dict[str, str] = {}  # the role that registered a worker id first
        self.drained: set[str] = set()  # worker ids
        self.events: list[Event] = []
        self.turns: dict[str, int] = {}  # the last turn of each project

    def answer(self, function: str, who: Caller, **arguments: Any) -> Answer:
        """What the function must answer, refusals included."""
        try:
            answer: Answer = getattr(self, function)(who, **arguments)
        except Refused as refused:
            nothing: Answer = {"run_id": None} if function == "claim_next_run" else {"success": False}
            return nothing | {"code": refused.code} | refused.more
        return answer

    # Queueing ------------------------------------------------------------------------------------------------

    def queue(self, who: Caller, project: str, ids: Sequence[uuid.UUID], **columns: Any) -> Answer:
        """One insert of several runs; those that are there already, by their key, count nothing."""
        for one in ids:
            if one not in self.runs:
                number = 1 + sum(run.project == project for run in self.runs.values())
                self.runs[one] = Run(one, project, number, self.now, **columns)
                self._tell(one, "info", actor=who.role)
        return {}

    def claim_next_run(self, who: Caller, labels: Sequence[str], lease_seconds: int) -> Answer:
        if not who.worker:
            raise Refused("bad_argument")
        if self._is_taken(who):
            raise Refused("worker_id_taken")
        if who.worker in self.drained:
            return {"run_id": None, "waiting": False, "draining": True}
        run = self._first(labels)
        if run is None and self._wake():
            run = self._first(labels)
        if run is None:
            queued = (one for one in self.runs.values() if one.status == "queued")
            return {"run_id": None, "waiting": any(one.labels <= set(labels) for one in queued)}
        self._claim(run, who, lease_seconds)
        return self._payload(run)

    def _first(self, labels: Sequence[str]) -> Run | None:
        held = {(run.project, run.key) for run in self._active()}
        fitting = [
            run for run in self.runs.values()
            if run.status == "queued" and run.scheduled_at is None and run.labels <= set(labels)
            and (run.key is None or (run.project, run.key) not in held)
        ]  # fmt: skip
        active = Counter(run.project for run in self._active())
        first = min(
            fitting,
            key=lambda run: (
                active[run.project], self.turns.get(run.project, 0), -run.priority, run.created_at, run.number,
            ),
            default=None,
        )  # fmt: skip
        if first is not None:
            self.turns[first.project] = max(self.turns.values(), default=0) + 1
        return first

    def _wake(self) -> int:
        """Scheduled runs join the queue once they are due, and a worker reaps or finds nothing else to claim."""
        due = [
            run for run in self.runs.values()
            if run.status == "queued" and run.scheduled_at is not None and run.scheduled_at <= self.now
        ]  # fmt: skip
        for run in due:
            run.scheduled_at = None
        return len(due)

    def list_queued_runs(self) -> list[tuple[uuid.UUID, Reason | None]]:
        """Claimed runs, then queued ones as if each were claimed in turn and none ended; and why these wait."""
        claimed = [run for run in self.runs.values() if run.status == "claimed"]
        claimed.sort(key=lambda run: (-run.priority, run.created_at, run.number))
        queued = [run for run in self.runs.values() if run.status == "queued"]
        queued.sort(key=lambda run: (run.scheduled_at or 0, -run.priority, run.created_at, run.number))
        active = Counter(run.project for run in self._active())
        places: dict[uuid.UUID, int] = {}
        for run in queued:
            active[run.project] += 1
            places[run.id] = active[run.project]
        queued.sort(key=lambda run: (
            run.scheduled_at or 0, places[run.id], self.turns.get(run.project, 0), -run.priority, run.created_at,
            run.number,
        ))  # fmt: skip
        return [(run.id, None) for run in claimed] + [(run.id, self._why_waits(run)) for run in queued]

    def _why_waits(self, run: Run) -> Reason:
        """The first of: its time, the run that holds its key, that which goes before it for the key, its workers."""
        if run.scheduled_at is not None:
            return "time", None
        if run.key is not None:
            for other in self._active():
                if (other.project, other.key) == (run.project, run.key):
                    return "held", other.number
            rivals = [
                one for one in self.runs.values()
                if one.status == "queued" and (one.project, one.key) == (run.project, run.key)
            ]  # fmt: skip
            first = min(rivals, key=lambda one: (
                one.scheduled_at or 0, self._lacking(one.labels) is not None, -one.priority, one.created_at, one.number,
            ))  # fmt: skip
            if first is not run:
                return "after", first.number
        return self._lacking(run.labels) or "free", None

    def _lacking(self, labels: frozenset[str]) -> str | None:
        """Why no worker with these labels claims now."""
        able = [
            name for name, one in self.workers.items() if labels <= one.labels and one.expires_at > self.now
        ]  # fmt: skip
        if not able:
            return "labels"
        return "drained" if self.drained.issuperset(able) else None

    # One run's life ------------------------------------------------------------------------------------------

    def start_workflow_run(self, who: Caller, run_id: uuid.UUID) -> Answer:
        run = self._checked(who, run_id, ACTIVE)
        if run.status == "claimed":
            self._change(run, "running", who)
        elif who.instance is None:
            raise Refused("not_claimed")  # no call shows that it is a repetition
        return {"success": True, "started_at": run.started_at}

    def complete_workflow_run(
        self, who: Caller, run_id: uuid.UUID, exit_code: int | None, reason: str | None
    ) -> Answer:
        run = self.runs.get(run_id)
        if run is not None:
            asked = reason == "canceled" and run.cancel_requested_at is not None
            status = "canceled" if asked else "succeeded" if exit_code == 0 else "failed"
        try:
            run = self._checked(who, run_id, ("running",))
        except Refused as refused:
            if refused.code != "final" or run is None or not self._repeats(who, run, status, exit_code):
                raise
        else:
            self._change(run, status, who, reason, exit_code=exit_code)
            if status == "failed":
                self._tell(run.id, "error", reason=run.reason, exit_code=exit_code)
        return {
            "success": True, "status": run.status, "finished_at": run.finished_at, "exit_code": run.exit_code,
        }  # fmt: skip

    def _repeats(self, who: Caller, run: Run, status: str, exit_code: int | None) -> bool:
        """It ended by this very call, so its answer was lost. The role went with the lease."""
        return (
            run.started_at is not None
            and who.instance is not None and who.instance == run.instance
            and who.worker in (None, run.worker)
            and (run.status, run.exit_code) == (status, exit_code)
        )  # fmt: skip

    def release_run(self, who: Caller, run_id: uuid.UUID) -> Answer:
        run = self._checked(who, run_id, ("claimed",))
        run.claim_count -= 1
        self._change(run, "queued", who, "released")
        return {"success": True}

    def record_container(self, who: Caller, run_id: uuid.UUID, container_id: str) -> Answer:
        run = self._checked(who, run_id, ("running",))
        if run.container not in (None, container_id):
            raise Refused("other_container")
        if run.container is None:
            run.container = container_id
            self._tell(run.id, "info", container_id=container_id)
        return {"success": True}

    # What a run leaves ---------------------------------------------------------------------------------------

    def append_run_log(self, who: Caller, run_id: uuid.UUID, level: str, message: str) -> Answer:
        if level not in LEVELS:
            raise Refused("bad_level")
        run = self._checked(who, run_id, ("running",))
        run.remarks.append(Line(None, level, message))
        return {"success": True, "timestamp": self.now}

    def append_run_logs(self, who: Caller, run_id: uuid.UUID, lines: Sequence[Line]) -> Answer:
        run = self._checked(who, run_id, ("running",))
        if any(line.level not in LEVELS for line in lines):
            raise Refused("bad_level")
        if any(line.seq is None or line.seq < 1 for line in lines):
            raise Refused("bad_argument")
        position = run.position
        stored = {line.seq: line for line in lines if line.seq is not None and line.seq > position}
        run.journal |= stored
        return {"success": True, "stored": len(stored), "position": run.position}

    def add_run_artifact(self, who: Caller, run_id: uuid.UUID, artifact_key: str, artifact_url: str) -> Answer:
        run = self._checked(who, run_id, ("running",))
        if artifact_key not in run.artifacts:
            self._tell(run.id, "info", artifact_key=artifact_key)
        run.artifacts[artifact_key] = artifact_url
        return {"success": True}

    def add_run_event(
        self, who: Caller, run_id: uuid.UUID, event_type: str, message: str, payload: dict[str, Any]
    ) -> Answer:
        if event_type not in ("error", "warning", "info"):
            raise Refused("bad_argument")
        run = self._checked(who, run_id, ACTIVE)
        self._tell(run.id, event_type, **payload)
        return {"success": True}

    # Workers and leases --------------------------------------------------------------------------------------

    def register_worker(self, who: Caller, lease_seconds: int, *, takeover: bool, labels: Sequence[str]) -> Answer:
        if not who.worker or who.instance is None:
            raise Refused("bad_argument")
        if self._is_anothers(who):
            raise Refused("worker_id_taken")
        old = self.workers.get(who.worker)
        if old is not None and old.expires_at > self.now:
            same = old.holder.instance == who.instance
            allowed = old.holder.role == who.role or who.trusted
            successor = takeover and who.host is not None and who.host == old.holder.host
            if not allowed or not (same or successor):
                raise Refused("worker_id_taken", expires_at=old.expires_at)
        self.workers[who.worker] = Registration(who, self.now + lease_seconds, frozenset(labels))
        self.owners.setdefault(who.worker, who.role)
        return {"success": True}

    def unregister_worker(self, who: Caller) -> Answer:
        for run, lease in self._leases():
            same = (lease.holder.worker, lease.holder.instance) == (who.worker, who.instance)
            if who.instance is not None and same and self._owns(who, lease):
                run.lease = replace(lease, handed_over=True)
        if who.worker is not None and self._is_registered(who):
            del self.workers[who.worker]
        return {"success": True}

    def heartbeat(self, who: Caller, lease_seconds: int) -> Answer:
        expires_at = self.now + lease_seconds
        runs = []
        for run, lease in self._leases():
            if (
                who.instance is not None and (lease.holder.worker, lease.holder.instance) == (who.worker, who.instance)
                and self._owns(who, lease)
            ):  # fmt: skip
                run.lease = replace(lease, seconds=lease_seconds, expires_at=expires_at, renewed=True)
                runs.append({
                    "run_id": run.id, "status": run.status,
                    "cancel_requested": run.cancel_requested_at is not None,
                })  # fmt: skip
        registered = who.worker is not None and self._is_registered(who)
        drained = registered and who.worker in self.drained
        if who.worker is not None and registered:
            self.workers[who.worker] = replace(self.workers[who.worker], expires_at=expires_at)
        return {"success": True, "registered": registered, "draining": drained, "runs": runs}

    def drain_worker(self, who: Caller, *, drain: bool) -> Answer:
        """An operator names the worker, which stays drained when it starts again."""
        name = who.worker or ""
        if name not in self.owners:
            raise Refused("not_found")
        changed = (name in self.drained) != drain
        self.drained = self.drained | {name} if drain else self.drained - {name}
        runs = sum(lease.holder.worker == name for _, lease in self._leases())
        return {"success": True, "draining": drain, "changed": changed, "runs": runs}

    def adopt_run(self, who: Caller, run_id: uuid.UUID, lease_seconds: int) -> Answer:
        run = self.runs.get(run_id)
        if not who.worker or who.instance is None:
            raise Refused("bad_argument")
        if run is None:
            raise Refused("not_found")
        if run.lease is None:
            raise Refused("not_claimed" if run.status == "queued" else "final")
        holder = run.lease.holder
        if holder.role != who.role and not who.trusted:
            raise Refused("not_owner")
        if self._is_taken(who):
            raise Refused("worker_id_taken")
        if not self._may_adopt(who, run.lease):
            raise Refused("not_owner")
        old = run.lease
        run.lease = replace(old, holder=who, seconds=lease_seconds, expires_at=self.now + lease_seconds)
        if (holder.worker, holder.instance) != (who.worker, who.instance):
            progress = old.handed_over or run.position > old.position or (old.renewed and run.container is not None)
            lost = 0 if progress else old.lost + 1
            since = {0: None, 1: self.now}.get(lost, old.lost_since)
            if lost > MAX_LOST and since is not None and self.now - since >= LOST_SECONDS:
                self._quarantine(run, "failed" if run.status == "running" else "canceled", who, old)
                raise Refused("final")
            run.lease = replace(
                run.lease, renewed=False, handed_over=False, position=run.position, lost=lost, lost_since=since
            )
            run.worker, run.instance = who.worker, who.instance
            run.claim_count += 1
            self._tell(run.id, "info", actor=who.role, worker_id=who.worker, previous_worker_id=holder.worker)
        return {"success": True} | self._payload(run)

    def _may_adopt(self, who: Caller, lease: Lease) -> bool:
        holder = lease.holder
        if holder.worker == who.worker and (holder.instance == who.instance):
            return True
        if lease.expires_at <= self.now:
            return holder.worker == who.worker or (holder.engine is not None and holder.engine == who.engine)
        if holder.worker != who.worker or holder.instance is None:
            return False
        registration = self.workers.get(holder.worker or "")
        return (
            registration is None or registration.expires_at <= self.now
            or registration.holder.instance != holder.instance
        )  # fmt: skip

    def reap(self, who: Caller) -> Answer:
        requeued, failed, quarantined = [], [], []
        for run, lease in self._leases():
            grace = 0 if run.status == "claimed" or lease.holder.engine is None else lease.seconds
            if lease.expires_at + grace > self.now:
                continue
            if run.status == "running":
                self._change(run, "failed", who, "worker_lost")
                self._tell(run.id, "error", reason="worker_lost", worker_id=lease.holder.worker)
                failed.append(run.id)
            elif run.claim_count > MAX_LOST:
                self._quarantine(run, "canceled", who, lease)
                quarantined.append(run.id)
            else:
                self._change(run, "queued", who, "lease_expired")
                requeued.append(run.id)
        return {"requeued": requeued, "failed": failed, "quarantined": quarantined, "woken": self._wake()}

    def _quarantine(self, run: Run, status: str, who: Caller, lease: Lease) -> None:
        self._change(run, status, who, "poison")
        self._tell(run.id, "error", reason="poison", worker_id=lease.holder.worker)

    # Users and direct writes ---------------------------------------------------------------------------------

    def cancel_run(self, who: Caller, run_id: uuid.UUID, reason: str | None) -> Answer:
        run = self.runs.get(run_id)
        if run is None:
            raise Refused("not_found")
        if run.status in ("succeeded", "failed"):
            raise Refused("final")
        if run.status in ("queued", "claimed"):
            run.cancel_requested_at = self.now
            self._change(run, "canceled", who)
        elif run.status == "running" and run.cancel_requested_at is None:
            run.cancel_requested_at = self.now
            self._tell(run.id, "info", actor=who.role, reason=reason)
        return {"success": True, "status": run.status}

    def set_status(self, who: Caller, run_id: uuid.UUID, status: str) -> Answer:
        """An update of the column, which passes the same triggers."""
        run = self.runs.get(run_id)
        if run is None or run.status == status:
            return {}
        if (run.status, status) not in TRANSITIONS:
            raise Refused("OPS01")
        if status == "claimed" and run.key and (run.project, run.key) in {(a.project, a.key) for a in self._active()}:
            raise Refused("23505")
        if status == "claimed":
            self._claim(run, Caller(who.role, None, who.role), DIRECT_LEASE)
        else:
            self._change(run, status, who, exit_code=0 if status == "succeeded" else None)
        return {}

    # What the functions share --------------------------------------------------------------------------------

    def _active(self) -> Iterator[Run]:
        return (run for run in self.runs.values() if run.status in ACTIVE)

    def _leases(self) -> list[tuple[Run, Lease]]:
        return [(run, run.lease) for run in self.runs.values() if run.lease is not None]

    def _is_anothers(self, who: Caller) -> bool:
        """The worker id belongs to another role."""
        return not who.trusted and self.owners.get(who.worker or "", who.role) != who.role

    def _is_taken(self, who: Caller) -> bool:
        """Another live instance works under this worker id, or it belongs to another role."""
        if self._is_anothers(who):
            return True
        live = self.workers.get(who.worker or "")
        return (
            live is not None and who.instance is not None
            and live.holder.instance != who.instance and live.expires_at > self.now
        )  # fmt: skip

    def _is_registered(self, who: Caller) -> bool:
        live = self.workers.get(who.worker or "")
        return (
            live is not None and live.holder.instance == who.instance
            and (live.holder.role == who.role or who.trusted)
        )  # fmt: skip

    def _owns(self, who: Caller, lease: Lease) -> bool:
        """What the caller names is compared; the role always is."""
        holder = lease.holder
        return (
            (who.trusted or who.role == holder.role)
            and who.worker in (None, holder.worker)
            and who.instance in (None, holder.instance)
        )  # fmt: skip

    def _checked(self, who: Caller, run_id: uuid.UUID, statuses: tuple[str, ...]) -> Run:
        """The run, if it is in one of these states and the caller holds it."""
        run = self.runs.get(run_id)
        early = "not_claimed" if "claimed" in statuses else "not_running"
        if run is None:
            raise Refused("not_found")
        if run.status in FINAL:
            raise Refused("final")
        if run.lease is None:
            raise Refused(early)
        if not self._owns(who, run.lease):
            raise Refused("not_owner")
        if run.status not in statuses:
            raise Refused("not_claimed" if run.status == "running" else "not_running")
        return run

    def _claim(self, run: Run, who: Caller, lease_seconds: int) -> None:
        run.worker, run.instance, run.claimed_at = who.worker, who.instance, self.now
        run.scheduled_at = None
        run.claim_count += 1
        self._change(run, "claimed", who)
        run.lease = Lease(who, lease_seconds, self.now + lease_seconds)

    def _change(
        self, run: Run, status: str, who: Caller, reason: str | None = None, *, exit_code: int | None = None
    ) -> None:
        previous, worker = run.status, run.worker
        run.status = status
        run.reason = reason or (status if status in FINAL else None)
        if status == "queued":
            run.worker = run.instance = run.claimed_at = None
        elif status == "running":
            run.started_at = self.now
        elif status in FINAL:
            run.finished_at, run.exit_code = self.now, exit_code
        if status not in ACTIVE:
            run.lease = None
        self._tell(
            run.id, "state_change", previous_status=previous, new_status=status, actor=who.role, worker_id=worker,
            reason=run.reason, exit_code=run.exit_code,
        )  # fmt: skip

    def _tell(self, run: uuid.UUID, kind: str, **payload: Any) -> None:
        self.events.append(Event(run, kind, payload))

    def _payload(self, run: Run) -> Answer:
        return {
            "run_id": run.id, "run_number": run.number, "status": run.status, "claim_count": run.claim_count,
            "claimed_at": run.claimed_at, "started_at": run.started_at,
            "lease_expires_at": run.lease and run.lease.expires_at,
            "cancel_requested": run.cancel_requested_at is not None, "log_position": run.position,
        }  # fmt: skip
