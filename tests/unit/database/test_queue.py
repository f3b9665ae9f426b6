"""What the queue makes of the database's answers and faults; the SQL itself is tested where a database is."""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import asyncpg
import pytest

from tests.unit.claims import make_claim
from worker.concurrency import backoff
from worker.database import queue as module
from worker.database.connection import is_transient
from worker.database.queue import Queue
from worker.errors import LeaseLost, Refused, UnreadableRun
from worker.model.claim import Adoption, Artifact, LogLine, NextRun, NotAdopted, WorkerIdentity
from worker.model.outcome import Outcome, Reason

RUN = uuid.UUID(int=7)
ME = WorkerIdentity("host-a", uuid.UUID(int=1), "boot", "engine-1", "0", ("big",))
LEASE = 300
PASSING: list[Exception] = [
    ConnectionResetError("connection reset"),
    OSError("no route to host"),
    TimeoutError(),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("got result for unknown protocol state"),
    asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
    asyncpg.TooManyConnectionsError("too many clients"),
    asyncpg.DiskFullError("no space left"),
    asyncpg.AdminShutdownError("terminating"),
    asyncpg.CrashShutdownError("crash of another process"),
    asyncpg.CannotConnectNowError("starting up"),
    asyncpg.QueryCanceledError("statement timeout"),
    asyncpg.SerializationError("could not serialize"),
    asyncpg.DeadlockDetectedError("deadlock"),
    asyncpg.ReadOnlySQLTransactionError("after a failover"),
    asyncpg.LockNotAvailableError("lock timeout"),
    asyncpg.PostgresIOError("could not read block"),
]
LASTING: list[Exception] = [
    asyncpg.UndefinedFunctionError("no such function"),
    asyncpg.InsufficientPrivilegeError("permission denied"),
    asyncpg.CheckViolationError("violates check"),
    asyncpg.RaiseError("raised"),
]


class UnsendableError(asyncpg.InterfaceError, ValueError):  # type: ignore[misc]  # asyncpg has no type hints
    """As the driver's own, which is not exported, for a value that it cannot send."""


UNSENDABLE = UnsendableError("invalid input for query argument $1")


def name(error: object) -> str:
    return type(error).__name__


class Raw(str):
    """An answer as it is."""

    __slots__ = ()


SILENCE = object()
"""No answer, ever."""


class Connection:
    """Answers each statement with what the script holds next; an exception is raised."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.statements: list[tuple[str, tuple[object, ...]]] = []
        self.listeners: dict[str, Callable[..., None]] = {}
        self.closed = False

    async def fetchval(self, sql: str, *args: object) -> object:
        self.statements.append((sql, args))
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is SILENCE:
            await anyio.sleep_forever()
        return answer if isinstance(answer, Raw) else json.dumps(answer)

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        self.listeners[channel] = callback

    def notify(self, channel: str, payload: str) -> None:
        self.listeners[channel](self, 1, channel, payload)

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True


class Pool(Connection):
    """A pool whose connections all follow one script; what they notify reaches ``audience``."""

    audience: Connection | None = None

    async def execute(self, sql: str, *args: object) -> None:
        if self.audience is not None:
            self.audience.notify(cast("str", args[0]), "")

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator[Connection]:  # noqa: ASYNC109 - asyncpg's
        yield self


def queue_on(*script: object, lease: float = LEASE) -> tuple[Queue, Pool]:
    pool = Pool(*script)
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
def control(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The control connections in the order in which they will be made; those made are taken off."""
    ahead: list[Connection] = []

    async def connect(dsn: str, *, application_name: str) -> Connection:
        return ahead.pop(0)

    monkeypatch.setattr(module, "connect", connect)
    return ahead


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", PASSING, ids=name)
async def test_a_passing_fault_is_waited_out(error: Exception, waits: list[int]) -> None:
    queue, pool = queue_on(error, error, error, {"success": True, "status": "succeeded"})
    assert await queue.complete(RUN, Outcome(0, Reason.SUCCEEDED)) == "succeeded"
    assert len(set(map(str, pool.statements))) == 1  # the same call each time
    assert len(pool.statements) == 4
    assert waits == [0, 1, 2]
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=name)
async def test_an_error_that_waiting_does_not_mend_is_told_at_once(error: asyncpg.PostgresError) -> None:
    queue, pool = queue_on(error)
    with pytest.raises(Refused) as told:
        await queue.start(RUN)
    assert told.value.code == error.sqlstate
    assert str(error) in str(told.value)
    assert len(pool.statements) == 1
    assert not is_transient(error)


async def test_a_mistake_in_the_worker_is_no_fault_of_the_database() -> None:
    queue, _ = queue_on(UNSENDABLE)
    with pytest.raises(ValueError, match="invalid input"):
        await queue.release(RUN)
    queue, pool = queue_on(KeyError("oops"))
    with pytest.raises(KeyError):
        await queue.start(RUN)
    assert len(pool.statements) == 1


async def test_waiting_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 3600.0)
    queue, _ = queue_on(OSError("away"))
    with anyio.move_on_after(0.01) as scope:
        await queue.start(RUN)
    assert scope.cancelled_caught


@pytest.mark.parametrize(("first", "cap"), [(0.1, 5.0), (1.0, 30.0)])
def test_backoff_grows_to_its_cap_and_varies(first: float, cap: float) -> None:
    seen = {attempt: [backoff(attempt, first=first, cap=cap) for _ in range(200)] for attempt in [*range(20), 10**9]}
    assert all(first / 2 <= seconds <= cap for values in seen.values() for seconds in values)
    assert all(len(set(values)) > 100 for values in list(seen.values())[1:])
    assert max(seen[0]) <= first
    assert max(seen[1]) <= 2 * first
    assert max(seen[10**9]) > cap / 2


# --- answers about one run ------------------------------------------------------------------------------------------

LINE = LogLine(1, "stdout", "info", "hello", datetime.now(UTC))
ARTIFACT = Artifact("a.txt", "k/a.txt", "file:///k/a.txt", "text/plain", 1, "sha256:00", None)
OWNED: dict[str, Callable[[Queue], Awaitable[object]]] = {
    "release": lambda queue: queue.release(RUN),
    "start": lambda queue: queue.start(RUN),
    "complete": lambda queue: queue.complete(RUN, Outcome(0, Reason.SUCCEEDED)),
    "append_logs": lambda queue: queue.append_logs(RUN, [LINE]),
    "add_artifact": lambda queue: queue.add_artifact(RUN, ARTIFACT),
    "record_container": lambda queue: queue.record_container(RUN, "c0ffee", {}),
    "add_event": lambda queue: queue.add_event(RUN, "info", "said", {}),
}


@pytest.mark.parametrize("code", ["not_owner", "not_running", "not_claimed", "final", "not_found"])
@pytest.mark.parametrize("method", OWNED)
async def test_a_run_that_is_no_longer_ours_is_a_lost_lease(method: str, code: str) -> None:
    queue, pool = queue_on({"success": False, "error": "no", "code": code})
    with pytest.raises(LeaseLost) as lost:
        await OWNED[method](queue)
    assert lost.value.run_id == RUN
    assert len(pool.statements) == 1


@pytest.mark.parametrize("method", OWNED)
async def test_any_other_refusal_keeps_its_code_and_words(method: str) -> None:
    queue, _ = queue_on({"success": False, "error": "bad level", "code": "bad_level"})
    with pytest.raises(Refused, match="bad level") as refused:
        await OWNED[method](queue)
    assert refused.value.code == "bad_level"


@pytest.mark.parametrize("method", OWNED)
async def test_each_call_names_the_run_the_worker_and_the_instance(method: str) -> None:
    queue, pool = queue_on({"success": True, "status": "succeeded"})
    await OWNED[method](queue)
    ((_, args),) = pool.statements
    assert args[:3] == (RUN, ME.worker_id, ME.instance_id)


async def test_no_run_to_claim_says_whether_one_may_become_due() -> None:
    queue, _ = queue_on(
        {"run_id": None, "message": "m", "waiting": True}, {"run_id": None, "message": "m", "waiting": False}
    )
    assert await queue.claim() == NextRun(None, waiting=True)
    assert await queue.claim() == NextRun(None, waiting=False)


async def test_a_claim_for_a_worker_id_that_another_holds_is_refused() -> None:
    queue, _ = queue_on({"run_id": None, "message": "taken", "code": "worker_id_taken"})
    with pytest.raises(Refused, match="taken") as refused:
        await queue.claim()
    assert refused.value.code == "worker_id_taken"


async def test_a_run_that_cannot_be_adopted_says_why() -> None:
    codes = [*NotAdopted, "bad_argument"]
    queue, _ = queue_on(*({"success": False, "error": "m", "code": code, "status": "running"} for code in codes))
    for why in NotAdopted:
        assert await queue.adopt(RUN) == Adoption(why_not=why)
    with pytest.raises(Refused, match="m") as refused:
        await queue.adopt(RUN)
    assert refused.value.code == "bad_argument"


async def test_a_number_longer_than_python_reads_does_not_stop_a_claim() -> None:
    queue, _ = queue_on(Raw(f'{{"run_id": null, "waiting": false, "x": {"9" * 5000}}}'))
    assert await queue.claim() == NextRun(None, waiting=False)


CLAIMED = {"success": True, **dataclasses.asdict(make_claim(RUN))}


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
async def test_a_run_that_cannot_be_read_is_an_error_with_a_reason(
    method: str, answer: object, reason: str, message: str
) -> None:
    queue, _ = queue_on(Raw(answer if isinstance(answer, str) else json.dumps(answer, default=str)))
    with pytest.raises(UnreadableRun, match=re.escape(message)) as unreadable:
        await (queue.claim() if method == "claim" else queue.adopt(RUN))
    assert unreadable.value.reason == reason
    assert len(str(unreadable.value)) < 300


# --- the control connection -----------------------------------------------------------------------------------------

ALIVE = {"success": True, "registered": True, "runs": []}
SWEPT: dict[str, Any] = {"requeued": [], "failed": [], "set_aside": [], "woken": 0}


async def test_a_renewal_is_tried_once_on_a_connection_of_its_own(control: list[Connection]) -> None:
    broken, sound = Connection(ConnectionResetError()), Connection(ALIVE, ALIVE)
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


async def test_a_renewal_that_takes_too_long_gives_the_connection_up(control: list[Connection]) -> None:
    silent = Connection(SILENCE)
    control += [silent]
    queue, _ = queue_on()
    with pytest.raises(TimeoutError), anyio.fail_after(0.01):
        await queue.heartbeat()
    assert silent.closed


async def test_a_renewal_tells_what_is_still_ours_and_what_is_to_end(control: list[Connection]) -> None:
    other = uuid.UUID(int=8)
    runs = [
        {"run_id": str(RUN), "status": "running", "cancel_requested": True},
        {"run_id": str(other), "status": "claimed", "cancel_requested": False},
    ]
    control += [Connection({"success": True, "registered": False, "runs": runs})]
    answer = await queue_on()[0].heartbeat()
    assert answer.runs == {RUN, other}
    assert answer.cancel_requested == {RUN}
    assert not answer.registered


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def test_nobody_is_declared_dead_before_all_had_the_time_to_renew(
    control: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    first, second, third = Connection(ALIVE, ALIVE, SWEPT), Connection(ALIVE, SWEPT), Connection(ALIVE, SWEPT)
    control += [first, second, third]
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


async def test_a_sweep_without_an_answer_keeps_no_renewal_waiting(control: list[Connection]) -> None:
    silent, sound = Connection(ALIVE, SILENCE), Connection(ALIVE)
    control += [silent, sound]
    queue, _ = queue_on(lease=0.3)
    await queue.heartbeat()
    await anyio.sleep(0.11)
    with anyio.fail_after(30), pytest.raises(TimeoutError):
        await queue.reap()
    assert silent.closed
    await queue.heartbeat()


async def test_a_connection_that_only_reads_or_does_not_answer_does_not_go_back(waits: list[int]) -> None:
    for error in (TimeoutError(), asyncpg.ReadOnlySQLTransactionError("a standby")):
        queue, pool = queue_on(error, {"success": True})
        await queue.start(RUN)
        assert pool.closed, error


async def test_a_subscription_proves_itself_and_passes_notifications_on(control: list[Connection]) -> None:
    connection = Connection()
    control += [connection]
    queue, pool = queue_on()
    pool.audience = connection
    heard: list[object] = []
    assert not queue.listening
    assert await queue.listen(lambda: heard.append("queue"), heard.append)
    assert queue.listening
    connection.notify("ops_queue", "")
    for payload in (str(RUN), "", "no id", str(RUN)[:-1]):
        connection.notify("ops_cancel", payload)
    assert heard == ["queue", RUN]
    connection.terminate()
    assert not queue.listening


async def test_a_pooler_that_delivers_nothing_is_found_out(
    control: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    control += [Connection()]
    move_on_after = anyio.move_on_after
    monkeypatch.setattr(anyio, "move_on_after", lambda seconds: move_on_after(seconds / 1000))
    assert not await queue_on()[0].listen(lambda: None, lambda _: None)


async def test_a_renewal_before_the_subscription_does_not_pass_for_one(control: list[Connection]) -> None:
    connection = Connection(ALIVE)
    control += [connection]
    queue, pool = queue_on()
    pool.audience = connection
    await queue.heartbeat()
    assert not queue.listening
    await queue.listen(lambda: None, lambda _: None)
    assert queue.listening
    assert control == []  # the same connection serves both
