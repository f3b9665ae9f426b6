"""The queue turns answers of the database into results and errors; tests/db covers the SQL itself."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import asyncpg
import pytest

from tests.unit.claims import make_claim
from tests.unit.fakes import RUN_ID, SILENCE, Raw, ScriptedConnection, ScriptedPool
from worker.database import queue as module
from worker.database.connection import is_transient
from worker.database.queue import Queue, _channel
from worker.errors import LeaseLost, Refused, UnreadableRun
from worker.model.claim import Adoption, Artifact, DiskSpace, LogLines, NextRun, NotAdopted, WorkerIdentity
from worker.model.outcome import Outcome, Reason
from worker.model.report import CaseCounts
from worker.telemetry import Metrics

ME = WorkerIdentity("host-a", uuid.UUID(int=1), "boot", "engine-1", "0", ("big",))
LEASE = 300
PASSING: list[Exception] = [
    ConnectionResetError("connection reset"), OSError("no route to host"), TimeoutError(),
    asyncpg.InterfaceError("connection is closed"), asyncpg.InternalClientError("unknown protocol state"),
    asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
    asyncpg.TooManyConnectionsError("too many clients"), asyncpg.DiskFullError("no space left"),
    asyncpg.AdminShutdownError("terminating"), asyncpg.CrashShutdownError("crash of another process"),
    asyncpg.CannotConnectNowError("starting up"), asyncpg.QueryCanceledError("statement timeout"),
    asyncpg.SerializationError("could not serialize"), asyncpg.DeadlockDetectedError("deadlock"),
    asyncpg.ReadOnlySQLTransactionError("after a failover"), asyncpg.LockNotAvailableError("lock timeout"),
    asyncpg.PostgresIOError("could not read block"), asyncpg.InvalidSQLStatementNameError("no such statement"),
    asyncpg.DuplicatePreparedStatementError("already prepared"),
]  # fmt: skip
LASTING: list[Exception] = [
    asyncpg.UndefinedFunctionError("no such function"), asyncpg.InsufficientPrivilegeError("permission denied"),
    asyncpg.CheckViolationError("violates check"), asyncpg.RaiseError("raised"),
]  # fmt: skip


class UnsendableError(asyncpg.InterfaceError, ValueError):  # type: ignore[misc]  # asyncpg has no type hints
    """As the driver's own, which is not exported, for a value that it cannot send."""


UNSENDABLE = UnsendableError("invalid input for query argument $1")


def name(error: object) -> str:
    return type(error).__name__


def queue_on(*script: object, lease: float = LEASE) -> tuple[Queue, ScriptedPool]:
    pool = ScriptedPool(*script)
    return Queue("postgresql://unused", cast("Any", pool), ME, cast("int", lease)), pool


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No waiting between attempts; the attempts that were waited after."""
    attempts: list[int] = []

    def none(attempt: int, **_: float) -> float:
        attempts.append(attempt)
        return 0.0

    monkeypatch.setattr("worker.concurrency.backoff", none)
    return attempts


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedConnection]:
    """The control connections in the order in which they will be made; those made are taken off."""
    ahead: list[ScriptedConnection] = []

    async def connect(dsn: str, *, application_name: str) -> ScriptedConnection:
        return ahead.pop(0)

    monkeypatch.setattr(module, "connect", connect)
    return ahead


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", PASSING, ids=name)
async def test_transient_fault_is_retried_with_backoff(error: Exception, waits: list[int]) -> None:
    queue, pool = queue_on(error, error, error, {"success": True, "status": "succeeded"})
    assert await queue.complete(RUN_ID, Outcome(0, Reason.SUCCEEDED)) == "succeeded"
    assert len(set(map(str, pool.statements))) == 1  # the same call each time
    assert len(pool.statements) == 4
    assert waits == [0, 1, 2]
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=name)
async def test_lasting_error_is_refused_at_once(error: asyncpg.PostgresError) -> None:
    queue, pool = queue_on(error)
    with pytest.raises(Refused) as refused:
        await queue.start(RUN_ID)
    assert refused.value.code == error.sqlstate
    assert str(error) in str(refused.value)
    assert len(pool.statements) == 1
    assert not is_transient(error)


async def test_error_of_the_worker_is_not_retried() -> None:
    queue, _ = queue_on(UNSENDABLE)
    with pytest.raises(ValueError, match="invalid input"):
        await queue.release(RUN_ID)
    queue, pool = queue_on(KeyError("oops"))
    with pytest.raises(KeyError):
        await queue.start(RUN_ID)
    assert len(pool.statements) == 1


async def test_backoff_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 3600.0)
    queue, _ = queue_on(OSError("away"))
    with anyio.move_on_after(0.01) as scope:
        await queue.start(RUN_ID)
    assert scope.cancelled_caught


# --- answers about one run ------------------------------------------------------------------------------------------

LINES = LogLines(7, ["hello", ""], "iE", ["2026-11-23T10:11:12.123456Z", "2026-11-23T10:11:13+00:00"])
ARTIFACT = Artifact("a.txt", "k/a.txt", "file:///k/a.txt", "text/plain", 1, "sha256:00", None)
OWNED: dict[str, Callable[[Queue], Awaitable[object]]] = {
    "release": lambda queue: queue.release(RUN_ID),
    "start": lambda queue: queue.start(RUN_ID),
    "complete": lambda queue: queue.complete(RUN_ID, Outcome(0, Reason.SUCCEEDED)),
    "append_logs": lambda queue: queue.append_logs(RUN_ID, LINES),
    "add_artifact": lambda queue: queue.add_artifact(RUN_ID, ARTIFACT),
    "record_report": lambda queue: queue.record_report(RUN_ID, CaseCounts(1), "fine"),
    "mark_ready": lambda queue: queue.mark_ready(RUN_ID, "http://127.0.0.1:8069"),
    "record_container": lambda queue: queue.record_container(RUN_ID, "c0ffee", {}),
    "add_event": lambda queue: queue.add_event(RUN_ID, "info", "said", {}),
}


@pytest.mark.parametrize("code", ["not_owner", "not_running", "not_claimed", "final", "not_found"])
@pytest.mark.parametrize("method", OWNED)
async def test_run_of_another_instance_is_a_lost_lease(method: str, code: str) -> None:
    queue, pool = queue_on({"success": False, "error": "no", "code": code})
    with pytest.raises(LeaseLost) as lost:
        await OWNED[method](queue)
    assert lost.value.run_id == RUN_ID
    assert len(pool.statements) == 1


@pytest.mark.parametrize("method", OWNED)
async def test_other_refusal_keeps_its_code_and_message(method: str) -> None:
    queue, _ = queue_on({"success": False, "error": "bad level", "code": "bad_level"})
    with pytest.raises(Refused, match="bad level") as refused:
        await OWNED[method](queue)
    assert refused.value.code == "bad_level"


@pytest.mark.parametrize("method", OWNED)
async def test_call_names_run_worker_and_instance(method: str) -> None:
    queue, pool = queue_on({"success": True, "status": "succeeded"})
    await OWNED[method](queue)
    ((_, args),) = pool.statements
    assert args[:3] == (RUN_ID, ME.worker_id, ME.instance_id)


async def test_text_that_the_database_refuses_is_replaced() -> None:
    queue, pool = queue_on({"success": True}, {"success": True})
    await queue.add_event(RUN_ID, "info", "a\0b \ud800 ü", {"k\0": ["\udfff", 1]})
    await queue.append_logs(RUN_ID, dataclasses.replace(LINES, messages=["\0", "\ud800"]))
    (_, said), (_, logged) = pool.statements
    assert said[-2:] == ("a\ufffdb \ufffd ü", json.dumps({"k\ufffd": ["\ufffd", 1]}))
    assert logged[3:] == (7, "\ufffd\n\ufffd", "iE", "{2026-11-23T10:11:12.123456Z,2026-11-23T10:11:13+00:00}", None)


async def test_empty_claim_says_whether_a_run_is_scheduled() -> None:
    queue, _ = queue_on(
        {"run_id": None, "message": "m", "waiting": True}, {"run_id": None, "message": "m", "waiting": False}
    )
    assert await queue.claim() == NextRun(None, waiting=True)
    assert await queue.claim() == NextRun(None, waiting=False)


@pytest.mark.parametrize("faults", [[], [OSError()]])
async def test_claim_tells_whether_an_earlier_answer_may_be_lost(faults: list[Exception]) -> None:
    queue, _ = queue_on(*faults, {"run_id": None, "message": "m", "waiting": False})
    assert await queue.claim() == NextRun(None, waiting=False, repeated=bool(faults))


async def test_claim_with_a_taken_worker_id_is_refused() -> None:
    queue, _ = queue_on({"run_id": None, "message": "taken", "code": "worker_id_taken"})
    with pytest.raises(Refused, match="taken") as refused:
        await queue.claim()
    assert refused.value.code == "worker_id_taken"


async def test_refused_adoption_returns_why_not() -> None:
    codes = [*NotAdopted, "bad_argument"]
    queue, _ = queue_on(*({"success": False, "error": "m", "code": code, "status": "running"} for code in codes))
    for why in NotAdopted:
        assert await queue.adopt(RUN_ID) == Adoption(why_not=why)
    with pytest.raises(Refused, match="m") as refused:
        await queue.adopt(RUN_ID)
    assert refused.value.code == "bad_argument"


async def test_number_beyond_the_limit_of_python_is_read() -> None:
    queue, _ = queue_on(Raw(f'{{"run_id": null, "waiting": false, "x": {"9" * 5000}}}'))
    assert await queue.claim() == NextRun(None, waiting=False)


CLAIMED = {"success": True, **dataclasses.asdict(make_claim(RUN_ID))}


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        ('{"run_id": "x", "a": ' + '{"a":' * 200_000 + "1" + "}" * 200_001, "invalid_config", "nests too deeply"),
        ({key: value for key, value in CLAIMED.items() if key != "tool"}, "worker_error", "KeyError('tool')"),
        (CLAIMED | {"workflow": None}, "worker_error", "TypeError"),
        (CLAIMED | {"claimed_at": "y" * 9999}, "worker_error", "ValueError"),
        ([], "worker_error", "AttributeError"),
        ('{"run_id": ', "worker_error", "JSONDecodeError"),
    ],
    ids=["too deep", "a missing key", "no object", "no time", "a list", "no JSON"],
)
@pytest.mark.parametrize("method", ["claim", "adopt"])
async def test_unreadable_run_is_an_error_with_a_reason(method: str, answer: object, reason: str, message: str) -> None:
    queue, _ = queue_on(Raw(answer if isinstance(answer, str) else json.dumps(answer, default=str)))
    with pytest.raises(UnreadableRun, match=re.escape(message)) as unreadable:
        await (queue.claim() if method == "claim" else queue.adopt(RUN_ID))
    assert unreadable.value.reason == reason
    assert len(str(unreadable.value)) < 300


# --- the control connection -----------------------------------------------------------------------------------------

ALIVE = {"success": True, "registered": True, "runs": []}
SWEPT: dict[str, Any] = {"requeued": [], "failed": [], "quarantined": [], "woken": 0}


async def test_heartbeat_is_tried_once_on_the_control_connection(control: list[ScriptedConnection]) -> None:
    broken, sound = ScriptedConnection(ConnectionResetError()), ScriptedConnection(ALIVE, ALIVE)
    control += [broken, sound]
    queue, pool = queue_on()
    with pytest.raises(ConnectionResetError):
        await queue.heartbeat()
    assert broken.closed  # it may be half-open
    await queue.heartbeat()
    await queue.heartbeat()
    assert control == []
    assert not sound.closed
    assert pool.statements == []


async def test_heartbeat_without_an_answer_closes_the_connection(control: list[ScriptedConnection]) -> None:
    silent = ScriptedConnection(SILENCE)
    control += [silent]
    queue, _ = queue_on()
    with pytest.raises(TimeoutError), anyio.fail_after(0.01):
        await queue.heartbeat()
    assert silent.closed


async def test_figures_count_stored_lines_claims_and_passing_faults() -> None:
    metrics, me = Metrics(), cast("Any", ME)
    script: list[object] = [ConnectionResetError(), {"success": True}, {"run_id": None, "waiting": False}]
    queue = Queue("postgresql://unused", cast("Any", ScriptedPool(*script)), me, LEASE, metrics)
    times = [f"{datetime.now(UTC) - timedelta(seconds=ago):%Y-%m-%dT%H:%M:%S.%f}123Z" for ago in (20, 0)]
    await queue.append_logs(RUN_ID, LogLines(1, ["fünf", "six"], "ii", times))
    await queue.claim()
    figures = ("log_lines_total", "log_bytes_total", "database_retries_total", "claim_duration_seconds_count")
    assert [metrics.registry.get_sample_value(f"ops_worker_{name}") for name in figures] == [2, 8, 1, 1]
    for most, batches in (("10.0", 0), ("300.0", 1)):
        assert metrics.registry.get_sample_value("ops_worker_log_lag_seconds_bucket", {"le": most}) == batches


async def test_heartbeat_returns_owned_and_canceled_runs(control: list[ScriptedConnection]) -> None:
    other = uuid.UUID(int=8)
    runs = [
        {"run_id": str(RUN_ID), "status": "running", "cancel_requested": True},
        {"run_id": str(other), "status": "claimed", "cancel_requested": False},
    ]
    control += [connection := ScriptedConnection({"success": True, "registered": False, "runs": runs})]
    answer = await queue_on()[0].heartbeat(DiskSpace(1, 2))
    assert connection.statements[0][1][2:] == (LEASE, 1, 2)
    assert answer.runs == {RUN_ID, other}
    assert answer.cancel_requested == {RUN_ID}
    assert not answer.registered


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def test_reap_waits_until_every_worker_could_renew(
    control: list[ScriptedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    scripts = [ALIVE, ALIVE, SWEPT], [ALIVE, SWEPT], [ALIVE, SWEPT]
    first, second, _ = control[:] = [ScriptedConnection(*script) for script in scripts]
    queue, _ = queue_on()

    await queue.heartbeat()
    assert await queue.reap() is None  # just connected
    clock.now += LEASE / 3 + 1
    await queue.heartbeat()
    assert await queue.reap() == SWEPT

    first.terminate()  # an outage
    clock.now += LEASE
    assert await queue.reap() is None  # connected again, but our own leases are not renewed
    clock.now += LEASE
    assert await queue.reap() is None
    await queue.heartbeat()
    assert await queue.reap() == SWEPT

    second.terminate()
    clock.now += LEASE
    await queue.heartbeat()
    assert await queue.reap() is None  # renewed at once, but the others may not be back yet
    clock.now += LEASE / 3 + 1
    assert await queue.reap() == SWEPT


async def test_reap_without_an_answer_does_not_delay_the_heartbeat(control: list[ScriptedConnection]) -> None:
    silent, sound = ScriptedConnection(ALIVE, SILENCE), ScriptedConnection(ALIVE)
    control += [silent, sound]
    queue, _ = queue_on(lease=0.3)
    await queue.heartbeat()
    await anyio.sleep(0.11)
    with anyio.fail_after(30), pytest.raises(TimeoutError):
        await queue.reap()
    assert silent.closed
    await queue.heartbeat()


async def test_read_only_or_silent_connection_does_not_return_to_the_pool(waits: list[int]) -> None:
    for error in (TimeoutError(), asyncpg.ReadOnlySQLTransactionError("a standby")):
        queue, pool = queue_on(error, {"success": True})
        await queue.start(RUN_ID)
        assert pool.closed, error


async def test_listen_probes_itself_and_passes_notifications_on(control: list[ScriptedConnection]) -> None:
    connection = ScriptedConnection()
    control += [connection]
    queue, pool = queue_on()
    pool.audience = connection
    heard: list[object] = []
    assert not queue.listening
    assert await queue.listen(lambda: heard.append("queue"), heard.append)
    assert queue.listening
    channels = {name for name in connection.listeners if name.startswith("ops_queue")}
    assert channels == {"ops_queue", _channel(queue._me)}, "not those of other workers"
    for channel in channels:
        connection.notify(channel, "")
    for payload in (str(RUN_ID), "", "no id", str(RUN_ID)[:-1]):
        connection.notify("ops_cancel", payload)
    assert heard == ["queue", "queue", RUN_ID]
    connection.terminate()
    assert not queue.listening


async def test_listen_detects_a_pooler_that_delivers_nothing(
    control: list[ScriptedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    control += [ScriptedConnection()]
    move_on_after = anyio.move_on_after
    monkeypatch.setattr(anyio, "move_on_after", lambda seconds: move_on_after(seconds / 1000))
    queue, pool = queue_on()
    assert not await queue.listen(lambda: None, lambda _: None)
    assert not pool.prepared


async def test_statements_stay_prepared_as_long_as_notifications_arrive(
    control: list[ScriptedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ScriptedConnection()
    control += [first, ScriptedConnection()]
    queue, pool = queue_on()
    pool.audience = first
    await queue.listen(lambda: None, lambda _: None)
    assert pool.prepared
    first.terminate()  # the address leads to a transaction pooler now
    move_on_after = anyio.move_on_after
    monkeypatch.setattr(anyio, "move_on_after", lambda seconds: move_on_after(seconds / 1000))
    await queue.listen(lambda: None, lambda _: None)
    assert not pool.prepared


async def test_heartbeat_before_listen_is_no_subscription(control: list[ScriptedConnection]) -> None:
    connection = ScriptedConnection(ALIVE)
    control += [connection]
    queue, pool = queue_on()
    pool.audience = connection
    await queue.heartbeat()
    assert not queue.listening
    await queue.listen(lambda: None, lambda _: None)
    assert queue.listening
    assert control == []  # the same connection serves both
