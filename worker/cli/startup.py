"""How a worker starts: builds its resources from the settings, registers, runs the daemon, and unregisters."""

from __future__ import annotations

import resource
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import structlog

from worker import __version__
from worker.artifacts.store import ArtifactStore
from worker.cli.commands import Invocation
from worker.cli.settings import Settings, spelling
from worker.concurrency import retrying, task_group
from worker.daemon import Daemon, DaemonOptions
from worker.database.queue import Queue
from worker.engine.engine import Engine, EngineInfo
from worker.errors import (
    ArtifactError,
    ConfigurationError,
    DatabaseUnavailable,
    EngineError,
    EngineUnavailable,
    OpsError,
    Refused,
)
from worker.model.claim import WorkerIdentity
from worker.model.serve import SERVE_LABEL
from worker.outcomes import settings as outcomes
from worker.outcomes.deliver import Notifier
from worker.run.disk import Disk
from worker.run.ports import RunContext
from worker.run.pulls import PullLimits, Pulls
from worker.run.secrets import SecretsFolder
from worker.run.traces import Traces
from worker.telemetry import Metrics, keep_systemd_informed, notify_systemd

T = TypeVar("T")
log = structlog.get_logger()

TAKEN_RETRY_SECONDS = 5.0
"""Pause between two attempts to register while another live worker has the worker id."""

NO_SCHEMA = frozenset({"3F000", "42883", "42P01"})
"""SQLSTATEs of a database without the schema ``ops``."""

UNREGISTER_SECONDS = 5.0
"""Time limit of the last calls to the database. A registration that stays expires after its lease."""


async def work(call: Invocation) -> int:
    """Executes runs until the worker has drained or, with ``--until-idle``, until the queue holds none for it."""
    settings = call.settings
    dsn = settings.dsn
    async with task_group() as background:
        background.start_soon(keep_systemd_informed)
        await _work(settings, dsn)
        background.cancel_scope.cancel()
    return 0


async def _work(settings: Settings, dsn: str) -> None:
    """File limit, metrics, store, secrets, engine, worker id, database, registration, notifications, daemon."""
    _raise_file_limit()
    metrics = _metrics(settings)
    store = await _store(settings)
    secrets = SecretsFolder(settings.secrets_dir)
    notifications = _notifications(settings)
    traces = Traces.sent_to(settings.traces_endpoint, settings.worker_id, __version__)
    async with AsyncExitStack() as resources:
        resources.callback(traces.close)
        engine = Engine(settings.docker_host, streams=settings.concurrency + settings.max_served, metrics=metrics)
        resources.callback(engine.close)
        facts = await _wait_for("the container engine", engine.info, settings)
        alone = resources.enter_context(_worker_id_lock(settings.worker_id, dsn))
        identity = _identity(settings, facts.engine_id)
        connect = partial(Queue.connected, dsn, identity, lease_seconds=settings.lease, metrics=metrics)
        queue = await _wait_for("the database", connect, settings)
        resources.push_async_callback(queue.close)
        database_id = await _register(queue, takeover=alone)
        _log_start(settings, facts, database_id)
        limits = PullLimits(settings.pull_timeout, settings.pull_idle_timeout)
        if notifications is not None:
            await resources.enter_async_context(_notifying(queue, notifications, settings))
        pulls = await resources.enter_async_context(Pulls(engine, limits).opened())
        context = RunContext(
            queue=queue,
            engine=engine,
            store=store,
            policy=settings.policy,
            worker_id=identity.worker_id,
            database_id=database_id,
            stop_grace_seconds=settings.stop_grace,
            pulls=pulls,
            max_log_bytes=settings.max_log,
            secrets=secrets,
            traces=traces,
        )
        disk = Disk(engine.local_folders(facts, settings.containerd_root), store.folder, settings.min_free_disk)
        await Daemon(context, queue, engine, metrics, _options(settings), disk).run()
        with anyio.move_on_after(UNREGISTER_SECONDS):
            await queue.unregister()
            if settings.until_idle:
                await _warn_of_unclaimable(queue)
    log.info("worker stopped")


def _metrics(settings: Settings) -> Metrics:
    metrics = Metrics()
    if settings.metrics_address is not None:
        try:
            metrics.serve(*settings.metrics_address)
        except OSError as error:
            raise OpsError(f"{spelling('metrics_address')}: cannot listen: {error}") from error
    return metrics


async def _store(settings: Settings) -> ArtifactStore:
    store = ArtifactStore.from_url(settings.artifact_store)
    try:
        await store.check()
    except ArtifactError as error:
        raise OpsError(f"{spelling('artifact_store')}: {error}") from error
    return store


async def _wait_for(what: str, call: Callable[[], Awaitable[T]], settings: Settings) -> T:
    """Repeats the call until the resource is reachable; with ``--until-idle`` the first error is raised."""
    notify_systemd(f"STATUS=connecting to {what}")

    def transient(error: Exception, _attempt: int) -> bool:
        unavailable = isinstance(error, (DatabaseUnavailable, EngineUnavailable, EngineError))
        return unavailable and not settings.until_idle

    def on_fault(error: Exception, _attempt: int) -> None:
        log.warning("cannot be reached, trying again", what=what, error=str(error))
        _notify_waiting(f"waiting for {what}: {error}")

    return await retrying(call, transient=transient, on_fault=on_fault, first=1, cap=30)


async def _register(queue: Queue, *, takeover: bool) -> uuid.UUID:
    """Registers the worker id; logs and waits while another live worker has it."""
    while True:
        try:
            return await queue.register(takeover=takeover)
        except Refused as error:
            if error.code in NO_SCHEMA:
                raise DatabaseUnavailable(f"{error}: run `ops-worker db migrate` on this database first") from error
            if error.code != "worker_id_taken":
                raise
            log.warning("waiting: another worker works under this id (--worker-id)", error=str(error))
            _notify_waiting("waiting: another worker has this worker id")
            await anyio.sleep(TAKEN_RETRY_SECONDS)


def _notifications(settings: Settings) -> outcomes.Notifications | None:
    """The destinations of this host. Raises ``ConfigurationError``."""
    if settings.notify_file is None:
        return None
    return outcomes.load(settings.notify_file, outcomes.Secrets(settings.secrets_dir))


@asynccontextmanager
async def _notifying(queue: Queue, found: outcomes.Notifications, settings: Settings) -> AsyncIterator[None]:
    """Delivers messages while the block lasts. Raises ``ConfigurationError`` if this host may not."""
    notifier = Notifier(queue.outbox(), found, outcomes.Secrets(settings.secrets_dir))
    try:
        await notifier.register()
    except Refused as error:
        raise ConfigurationError("notify_file", str(error)) from error
    async with notifier.opened():
        yield


def _notify_waiting(status: str) -> None:
    """Tells systemd what the worker waits for, and ``READY=1``: a waiting service must not delay the boot."""
    notify_systemd("READY=1", f"STATUS={' '.join(status.split())}")


def _log_start(settings: Settings, facts: EngineInfo, database_id: uuid.UUID) -> None:
    log.info(
        "worker started",
        worker_id=settings.worker_id,
        version=__version__,
        concurrency=settings.concurrency,
        engine=facts.version,
        database_id=str(database_id),
    )
    if not facts.filters_bridges and "bridge" in settings.allowed_networks:
        log.warning(
            "containers of runs reach each other: nothing on the engine's host filters between them",
            mend="the kernel's net.bridge.bridge-nf-call-iptables=1, and no iptables=false in daemon.json",
        )


async def _warn_of_unclaimable(queue: Queue) -> None:
    """Warns of queued runs that this worker can never claim: with ``--until-idle`` they stay in the queue."""
    runs, labels = await queue.unclaimable()
    if runs:
        log.warning("runs are left that ask for labels this worker lacks (--labels)", runs=runs, labels=labels)


@contextmanager
def _worker_id_lock(worker_id: str, dsn: str) -> Iterator[bool]:
    """Yields whether this is the only process on this host with that worker id and database.

    The lock is the name of a socket. The kernel frees it at the end of the process, also after a kill, so the next
    worker does not wait until the registration of the killed one expires.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(f"\0ops-worker/{_lock_name(worker_id, dsn)}")
        except OSError:
            yield False
        else:
            yield True


def _lock_name(worker_id: str, dsn: str) -> str:
    """A name for the worker id and the database. It contains only host, port, database and user of the URL.

    Every process on the host can read such names and could guess a password from the hash.
    """
    url = urlsplit(dsn)
    user, _, place = url.netloc.rpartition("@")
    query = dict(parse_qsl(url.query))
    place = place or f"{query.get('host', '')}:{query.get('port', '')}".removesuffix(":")
    parts = (
        worker_id,
        place.lower().removesuffix(":5432"),
        unquote(user.partition(":")[0]) or query.get("user"),
        unquote(url.path.lstrip("/")) or query.get("dbname", query.get("database")),
    )
    return sha256(repr(parts).encode()).hexdigest()


def _identity(settings: Settings, engine_id: str) -> WorkerIdentity:
    return WorkerIdentity(
        worker_id=settings.worker_id,
        instance_id=uuid.uuid4(),
        host_id=_host_id(),
        engine_id=engine_id,
        version=__version__,
        labels=(*settings.labels, *([SERVE_LABEL] if settings.max_served else [])),
    )


def _host_id() -> str:
    """The boot of this host and its network namespace: inside of both the lock above is unique."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/net').stat().st_ino}"


def _raise_file_limit() -> None:
    """Raises the soft limit of open files to the hard limit: each run needs several sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _options(settings: Settings) -> DaemonOptions:
    return DaemonOptions(
        concurrency=settings.concurrency,
        max_served=settings.max_served,
        until_idle=settings.until_idle,
        lease=settings.lease,
        poll=settings.poll_interval,
        drain=settings.drain_timeout,
    )
