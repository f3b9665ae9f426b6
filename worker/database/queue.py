"""The queue in PostgreSQL: one method per ``ops.*`` function, and the only SQL of the daemon.

After a passing fault (connection cut, server restarting, failover, too many connections, deadlock) a call is repeated
until it succeeds. That is safe: the functions recognise a repeated call of the same instance, so an answer that was
lost after the commit changes nothing. There are two exceptions: a repeated event may be stored twice, and a claim whose
answer was lost is in the next heartbeat.

The queue has at most three connections: two in the pool for the work of all runs, and one that listens and renews the
leases, so that a renewal never waits for a batch of log lines.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from typing import Any, Self, TypeVar

import anyio
import asyncpg
import structlog

from worker.concurrency import retrying
from worker.database.connection import acquire, connect, is_transient, open_pool, prepare_statements
from worker.database.outbox import Outbox, accepted
from worker.database.words import words_of_blocks
from worker.errors import LeaseLost, Refused, UnreadableRun
from worker.model.claim import (
    Adoption,
    Artifact,
    Claim,
    DiskSpace,
    Heartbeat,
    LogLines,
    NextRun,
    NotAdopted,
    WorkerIdentity,
)
from worker.model.outcome import Outcome, Reason
from worker.model.report import CaseCounts
from worker.model.serve import SERVE_LABEL
from worker.telemetry import Metrics

T = TypeVar("T")

_LINES_WITH_WORDS = 500
"""Smaller batches get no words, since the blocks of a batch with words begin and end with it."""
log = structlog.get_logger()

_LOST = frozenset({"not_owner", "not_running", "not_claimed", "final", "not_found"})


class Queue:
    """The calls of one worker instance to the control plane."""

    def __init__(
        self,
        dsn: str,
        pool: asyncpg.Pool,
        identity: WorkerIdentity,
        lease_seconds: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._dsn = dsn
        self._pool = pool
        self._me = identity
        self._lease_seconds = lease_seconds
        self._control: asyncpg.Connection | None = None
        self._subscribed: asyncpg.Connection | None = None
        self._prepares = False
        self._control_lock = anyio.Lock()
        self._connected_at, self._renewed = time.monotonic(), False

    @classmethod
    async def connected(
        cls, dsn: str, identity: WorkerIdentity, *, lease_seconds: int, metrics: Metrics | None = None
    ) -> Self:
        """Tries once to connect. Raises ``DatabaseUnavailable``, or ``ConfigurationError`` if the login is refused."""
        pool = await open_pool(dsn, application_name=_name(identity), size=2)
        return cls(dsn, pool, identity, lease_seconds, metrics)

    async def close(self) -> None:
        """Closes the connections; waits at most 2 s for the server."""
        for connection in (self._control, self._pool):
            if connection is not None:
                with anyio.move_on_after(2, shield=True) as closing:
                    await connection.close()
                if closing.cancelled_caught:
                    connection.terminate()

    def outbox(self) -> Outbox:
        """The calls by which this instance delivers messages."""
        return Outbox(self._call, self._me)

    # --- the worker -------------------------------------------------------------------------------------------------

    async def register(self, *, takeover: bool) -> uuid.UUID:
        """Makes this instance the holder of its worker id; returns the identity of the database.

        Raises ``Refused`` with code ``worker_id_taken`` while another live instance holds the id.
        """
        me = self._me
        answer = await self._call(
            "select ops.register_worker($1, $2, $3, $4, $5, $6, $7, $8)",
            me.worker_id,
            me.instance_id,
            me.host_id,
            me.engine_id,
            me.version,
            list(me.labels),
            self._lease_seconds,
            takeover,
        )
        return uuid.UUID(accepted(answer)["database_id"])

    async def unregister(self) -> None:
        """Unregisters the worker id, so that its next instance need not wait."""
        await self._call("select ops.unregister_worker($1, $2)", self._me.worker_id, self._me.instance_id)

    async def heartbeat(self, disk: DiskSpace | None = None) -> Heartbeat:
        """Tries once to renew the leases of all runs of this instance, in one statement on the control connection.

        Tells the database what ``disk``, the fullest of the engine's, has left.
        """
        async with self._controlling() as connection:
            value = await connection.fetchval(
                "select ops.heartbeat($1, $2, $3, $4, $5)",
                self._me.worker_id,
                self._me.instance_id,
                self._lease_seconds,
                disk and disk.free,
                disk and disk.total,
            )
            self._renewed = True
        return Heartbeat.from_payload(accepted(_parsed(value)))

    async def reap(self) -> dict[str, Any] | None:
        """Tries once to end or requeue the runs of dead workers, and to wake scheduled runs that are due.

        Does nothing and returns None until this worker has renewed its own leases and has been connected for lease/3:
        after an outage every worker needs time to renew before another worker may count it as dead.
        """
        async with self._controlling() as connection:
            if not self._renewed or time.monotonic() - self._connected_at < self._lease_seconds / 3:
                return None
            swept: dict[str, Any] = json.loads(await connection.fetchval("select ops.reap()"))
            return swept

    # --- one run ----------------------------------------------------------------------------------------------------

    async def claim(self, *, served: bool = True) -> NextRun:
        """Claims the next run for this worker, if one can be claimed now: a served one only if that is wanted.

        Raises ``Refused`` with code ``worker_id_taken`` if another instance has registered this worker's id. Raises
        ``UnreadableRun`` if the run cannot be read: it is then claimed, and in the next heartbeat.
        """
        me = self._me
        faults: list[Exception] = []
        began = time.monotonic()
        text = await self._ask(
            "select ops.claim_next_run($1, $2, $3, $4, $5)",
            me.worker_id,
            me.instance_id,
            [label for label in me.labels if served or label != SERVE_LABEL],
            self._lease_seconds,
            me.engine_id,
            note=faults.append,
        )
        self._metrics.claim_seconds.observe(time.monotonic() - began)
        repeated = bool(faults)
        with _readable():
            answer = _parsed(text)
            if answer.get("run_id") is not None:
                return NextRun(Claim.from_payload(answer), waiting=False, repeated=repeated)
        if "code" in answer:
            raise Refused(answer["code"], answer["message"])
        return NextRun(None, bool(answer["waiting"]), repeated, bool(answer.get("draining")))

    async def unclaimable(self) -> tuple[int, list[str]]:
        """Counts the queued runs whose labels this worker does not offer; returns up to 20 of those labels, too."""
        answer = accepted(await self._call("select ops.unclaimable_runs($1)", list(self._me.labels)))
        return int(answer["runs"]), answer["labels"]

    async def adopt(self, run_id: uuid.UUID) -> Adoption:
        """Adopts a run whose worker is gone.

        Raises ``UnreadableRun`` if the run cannot be read: this instance then holds it.
        """
        me = self._me
        text = await self._ask(
            "select ops.adopt_run($1, $2, $3, $4, $5)",
            run_id,
            me.worker_id,
            me.instance_id,
            me.engine_id,
            self._lease_seconds,
        )
        with _readable():
            answer = _parsed(text)
            if answer.get("success"):
                return Adoption(Claim.from_payload(answer))
        if answer["code"] in NotAdopted.__members__.values():
            return Adoption(why_not=NotAdopted(answer["code"]))
        raise Refused(answer["code"], answer["error"])

    async def adoptable(self) -> set[uuid.UUID]:
        """Lists the runs that :meth:`adopt` may adopt, with or without a container."""
        me = self._me
        answer = await self._call("select ops.adoptable_runs($1, $2, $3)", me.worker_id, me.instance_id, me.engine_id)
        return {uuid.UUID(run_id) for run_id in accepted(answer)["runs"]}

    async def release(self, run_id: uuid.UUID) -> None:
        """Returns a claimed run that was never started to the queue."""
        await self._owned("select ops.release_run($1, $2, $3)", run_id)

    async def start(self, run_id: uuid.UUID) -> None:
        """Moves a run from claimed to running. Raises ``LeaseLost`` if this instance no longer holds the run."""
        await self._owned("select ops.start_workflow_run($1, $2, $3)", run_id)

    async def complete(self, run_id: uuid.UUID, outcome: Outcome) -> str:
        """Moves a run from running to its final status, and returns that. Raises ``LeaseLost``."""
        answer = await self._owned(
            "select ops.complete_workflow_run($1, $4, $5, $2, $3, $6, $7::jsonb)",
            run_id,
            outcome.exit_code,
            outcome.message,
            outcome.reason,
            outcome.details,
        )
        status: str = answer["status"]
        return status

    async def record_container(self, run_id: uuid.UUID, container_id: str, details: dict[str, Any]) -> None:
        """Records the container of a run and its details, before it starts. Raises ``LeaseLost``."""
        await self._owned("select ops.record_container($1, $2, $3, $4, $5::jsonb)", run_id, container_id, details)

    async def mark_ready(self, run_id: uuid.UUID, url: str) -> None:
        """Records that a served run can be used at that URL. Raises ``LeaseLost``."""
        await self._owned("select ops.mark_ready($1, $2, $3, $4)", run_id, url)

    async def append_logs(self, run_id: uuid.UUID, lines: LogLines) -> None:
        """Stores a batch of journal lines; skips those that are stored already. Raises ``LeaseLost``."""
        text = "\n".join(lines.messages)
        await self._owned(
            "select ops.append_run_logs($1, $2, $3, $4, $5, $6, $7::text::timestamptz[], $8)",
            run_id,
            lines.first_seq,
            text,
            lines.marks,
            "{" + ",".join(lines.timestamps) + "}",  # the driver takes 0.6 µs for each item of a list
            words_of_blocks(lines.messages) if len(lines) >= _LINES_WITH_WORDS else None,
        )
        size = len(text) if text.isascii() else len(text.encode(errors="replace"))
        self._metrics.stored_lines(len(lines), size - len(lines) + 1, lines.timestamps[0])

    async def add_artifact(self, run_id: uuid.UUID, artifact: Artifact) -> None:
        """Records an artifact that is already stored. Raises ``LeaseLost``."""
        await self._owned(
            "select ops.add_run_artifact($1, $4, $5, $6, $7, $8, $9, $10::jsonb, $2, $3)",
            run_id,
            artifact.key,
            artifact.url,
            artifact.content_type,
            artifact.size_bytes,
            artifact.checksum,
            artifact.expires_at,
            {"path": artifact.path},
        )
        self._metrics.artifact_bytes.inc(artifact.size_bytes)

    async def record_report(self, run_id: uuid.UUID, tests: CaseCounts | None, summary: str | None) -> None:
        """Records the tests and the summary of the run; again replaces them. Raises ``LeaseLost``."""
        counts = None if tests is None else asdict(tests)
        await self._owned("select ops.record_report($1, $2, $3, $4::jsonb, $5)", run_id, counts, summary)

    async def add_event(self, run_id: uuid.UUID, event_type: str, message: str, payload: dict[str, Any]) -> None:
        """Adds an ``info``, ``warning`` or ``error`` event. Raises ``LeaseLost``."""
        await self._owned(
            "select ops.add_run_event($1, $4, $5, $6::jsonb, $2, $3)",
            run_id,
            event_type,
            message,
            payload,
        )

    # --- waking up --------------------------------------------------------------------------------------------------

    async def listen(self, on_queue: Callable[[], None], on_cancel: Callable[[uuid.UUID], None]) -> bool:
        """Subscribes the control connection. Returns False if no notification arrives, as through a transaction pooler.

        It sends itself a notification as a probe, because a pooler accepts LISTEN and then delivers nothing. The probe
        uses another connection: on the same one, such a pooler may use the same session twice and deliver the probe.
        If it arrives, each connection is one session, so the pool keeps its statements prepared.
        """
        heard = anyio.Event()
        probe = f"ops_probe_{self._me.instance_id.hex}"
        async with self._controlling() as connection:
            for channel in ("ops_queue", _channel(self._me)):
                await connection.add_listener(channel, lambda *_: on_queue())
            await connection.add_listener("ops_cancel", lambda *args: _with_id(on_cancel, args[3]))
            await connection.add_listener(probe, lambda *_: heard.set())
            self._subscribed = connection
        await self._pool.execute("select pg_notify($1, '')", probe)
        with anyio.move_on_after(3):
            await heard.wait()
        if self._prepares != heard.is_set():
            self._prepares = heard.is_set()
            await prepare_statements(self._pool, self._dsn, application_name=_name(self._me), prepare=self._prepares)
        return heard.is_set()

    @property
    def listening(self) -> bool:
        """Whether the connection that :meth:`listen` subscribed is still open."""
        return self._subscribed is not None and not self._subscribed.is_closed()

    @asynccontextmanager
    async def _controlling(self) -> AsyncIterator[asyncpg.Connection]:
        """Yields the control connection for one use; closes it after a fault, since it may be half-open.

        Held for at most lease/3, so a stalled sweep cannot delay renewals.
        """
        async with self._control_lock:
            with anyio.fail_after(self._lease_seconds / 3):
                if self._control is None or self._control.is_closed():
                    self._control = await connect(self._dsn, application_name=f"{_name(self._me)} control")
                    self._connected_at, self._renewed = time.monotonic(), False
                connection = self._control
                try:
                    yield connection
                except BaseException:
                    connection.terminate()
                    raise

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _owned(self, sql: str, run_id: uuid.UUID, *args: object) -> dict[str, Any]:
        """Makes a call about one run of this instance. Arguments: $1 run, $2 worker, $3 instance, then ``args``."""
        answer = await self._call(sql, run_id, self._me.worker_id, self._me.instance_id, *args)
        if not answer["success"] and answer.get("code") in _LOST:
            raise LeaseLost(run_id)
        return accepted(answer)

    async def _call(self, sql: str, *args: object) -> dict[str, Any]:
        return _parsed(await self._ask(sql, *args))

    async def _ask(self, sql: str, *args: object, note: Callable[[Exception], object] = lambda _: None) -> str:
        """Executes one statement and returns its answer as text. Raises ``Refused`` with the SQLSTATE.

        ``note`` is called with each passing fault, before the statement is repeated.
        """
        storable = [_storable(arg) for arg in args]

        def on_fault(error: Exception) -> None:
            self._metrics.database_retries.inc()
            note(error)

        async def once() -> str:
            async with acquire(self._pool) as connection:
                try:
                    value: str = await connection.fetchval(sql, *storable)
                except (TimeoutError, asyncpg.ReadOnlySQLTransactionError):
                    # The connection is half-open, or its server stays read-only. The next attempt needs another
                    # connection, and the pool would wait again for this one.
                    connection.terminate()
                    raise
                return value

        try:
            return await _persist(once, on_fault)
        except asyncpg.PostgresError as error:
            raise Refused(error.sqlstate, str(error)) from error


def _name(identity: WorkerIdentity) -> str:
    """The name of the worker's connections, as operators see it in ``pg_stat_activity``."""
    return f"ops-worker {identity.worker_id}"


def _channel(identity: WorkerIdentity) -> str:
    """Where this instance alone is notified (``ops_private.channel_of``)."""
    return f"ops_queue_{hashlib.sha256(str(identity.instance_id).encode()).hexdigest()[:16]}"


async def _persist(once: Callable[[], Awaitable[T]], note: Callable[[Exception], object]) -> T:
    """Repeats ``once`` after passing faults until it succeeds or the caller is cancelled."""
    attempts = 0
    logged = ""

    def on_fault(error: Exception, attempt: int) -> None:
        # A new cause is logged again: the first may only be that the server ended the connection.
        nonlocal attempts, logged
        attempts = attempt + 1
        note(error)
        if (cause := str(error) or type(error).__name__) != logged:
            log.warning("database unavailable, retrying", error=cause)
            logged = cause

    value = await retrying(once, transient=lambda error, _: is_transient(error), on_fault=on_fault)
    if attempts:
        log.info("database back", attempts=attempts)
    return value


@contextmanager
def _readable() -> Iterator[None]:
    """Converts an error while a run is read into ``UnreadableRun``: the cause is the run, not the worker."""
    try:
        yield
    except RecursionError:
        message = "the configuration or the metadata of the run nests too deeply"
        raise UnreadableRun(Reason.INVALID_CONFIG, message) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"what the control plane says of the run cannot be read: {repr(error)[:200]}"
        raise UnreadableRun(Reason.WORKER_ERROR, message) from error


def _storable(arg: object) -> object:
    """Converts an argument for the database, objects to JSON. Replaces NUL and lone surrogates, which it refuses."""
    if isinstance(arg, str):
        return _text(arg)
    if isinstance(arg, Mapping):
        return json.dumps(_json(arg))
    if isinstance(arg, list) and arg and isinstance(arg[0], str):
        return [_text(item) for item in arg]
    return arg


def _json(value: object) -> object:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {_text(str(key)): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return value


def _text(text: str) -> str:
    if text.isascii():
        return text.replace("\0", "\ufffd")
    return _REFUSED.sub("\ufffd", text)


_REFUSED = re.compile("[\0\ud800-\udfff]")


def _with_id(call: Callable[[uuid.UUID], None], payload: str) -> None:
    """Makes the call with the id in a notification; ignores other texts, since every login can send a notification."""
    with suppress(ValueError):
        call(uuid.UUID(payload))


def _parsed(text: str) -> dict[str, Any]:
    # jsonb has numbers of any length, and Python refuses to read the longest as int.
    answer: dict[str, Any] = json.loads(text, parse_int=lambda digits: (int if len(digits) < 20 else float)(digits))  # noqa: PLR2004
    return answer
