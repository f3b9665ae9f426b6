"""The composition root: settings → resources → daemon, and the other verbs.

Exit codes: 0 done; 1 something could not be reached or went wrong; 2 a setting is wrong or the login is refused, and
trying again is useless (the systemd unit does not).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import structlog

from worker import __version__
from worker.artifacts.store import ArtifactStore
from worker.cli import database as database_cli
from worker.cli.settings import GENERAL_URL, Settings, flag, load
from worker.concurrency import retrying, task_group
from worker.daemon import Daemon, DaemonOptions
from worker.database.queue import Queue
from worker.database.retention import Retention, prune
from worker.engine.engine import Engine
from worker.errors import (
    ArtifactError,
    ConfigurationError,
    DatabaseUnavailable,
    EngineError,
    EngineUnavailable,
    OpsError,
    Refused,
    UsageError,
)
from worker.model.claim import WorkerIdentity
from worker.model.spec import HostPolicy
from worker.run.disk import Disk
from worker.run.ports import RunContext
from worker.run.secrets import SecretsFolder
from worker.telemetry import Metrics, configure_logging, keep_systemd_informed, notify_systemd

T = TypeVar("T")
log = structlog.get_logger()

TAKEN_RETRY_SECONDS = 5.0
"""How often a worker asks again whose id another live worker holds."""

NO_SCHEMA = frozenset({"3F000", "42883", "42P01"})
"""SQLSTATEs of a database that lacks our functions."""

UNREGISTER_SECONDS = 5.0
"""How long a worker that leaves tries to give its id up; otherwise its registration runs out by itself."""


def main() -> None:
    """The entry point of the command ``ops-worker``."""
    try:
        _leave(_status(sys.argv[1:]))
    except UsageError as error:
        for problem in error.problems:
            print(f"ops-worker: {problem}", file=sys.stderr)
        _leave(2)
    except ConfigurationError as error:
        name = flag(error.field) if error.field in Settings.model_fields else error.field
        print(f"ops-worker: {name}: {error.problem}", file=sys.stderr)
        _leave(2)
    except OpsError as error:
        print(f"ops-worker: {error}", file=sys.stderr)
        _leave(1)


def _status(argv: list[str]) -> int:
    settings = load(argv)
    if settings.version:
        print(f"ops-worker {__version__}")
        return 0
    configure_logging(settings.log_level, settings.log_format)
    for number in (signal.SIGTERM, signal.SIGINT):  # until the daemon takes them: process 1 of a container
        signal.signal(number, lambda n, _: _leave(128 + n if settings.verb else 0))  # would not die of them
    return anyio.run(_carry_out, settings)


def _leave(status: int) -> NoReturn:
    """Ends the process without waiting for threads, and without Python's own finalisation.

    A thread may wait minutes for an engine that does not answer. One of the object store's that takes the interpreter
    lock while Python finalises aborts the process (seen on Python 3.11: exit code -6 instead of 1).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, RuntimeError):  # nobody reads it any more; or the signal came within a write
            stream.flush()
    os._exit(status)


async def _carry_out(settings: Settings) -> int:
    if settings.database_url is None:
        raise ConfigurationError("database_url", f"required; {GENERAL_URL} counts too")
    dsn = settings.database_url.get_secret_value()
    if settings.verb[:1] == ("prune",):
        store = ArtifactStore.from_url(settings.artifact_store)
        kept = Retention(settings.keep_logs, settings.keep_events)
        return await prune(dsn, store, settings.worker_id, kept, dry_run=settings.dry_run)
    if settings.verb:
        return await database_cli.run(dsn, settings.verb, yes=settings.yes)
    async with task_group() as background:
        background.start_soon(keep_systemd_informed)
        status = await work(settings, dsn)
        background.cancel_scope.cancel()
    return status


async def work(settings: Settings, dsn: str) -> int:
    """Works until it has drained or, with ``--until-idle``, until the queue holds nothing for this worker."""
    _raise_file_limit()
    metrics = Metrics()
    if settings.metrics_address is not None:
        try:
            metrics.serve(*settings.metrics_address)
        except OSError as error:
            raise OpsError(f"{flag('metrics_address')}: cannot listen: {error}") from error
    store = ArtifactStore.from_url(settings.artifact_store)
    try:
        await store.check()
    except ArtifactError as error:
        raise OpsError(f"{flag('artifact_store')}: {error}") from error
    secrets = SecretsFolder(settings.secrets_dir)

    async with AsyncExitStack() as resources:
        engine = Engine(settings.docker_host, streams=settings.concurrency)
        resources.callback(engine.close)
        facts = await _patiently("the container engine", engine.info, settings)
        alone = resources.enter_context(_only_one_of(settings.worker_id, dsn))
        identity = WorkerIdentity(
            worker_id=settings.worker_id,
            instance_id=uuid.uuid4(),
            host_id=_host_id(),
            engine_id=facts.engine_id,
            version=__version__,
            labels=settings.labels,
        )
        connect = partial(Queue.connected, dsn, identity, lease_seconds=settings.lease)
        queue = await _patiently("the database", connect, settings)
        resources.push_async_callback(queue.close)
        database_id = await _register(queue, takeover=alone)
        log.info(
            "worker started",
            worker_id=identity.worker_id,
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
        context = RunContext(
            queue=queue,
            engine=engine,
            store=store,
            policy=_policy(settings),
            worker_id=identity.worker_id,
            database_id=database_id,
            stop_grace_seconds=settings.stop_grace,
            pull_seconds=settings.pull_timeout,
            max_log_bytes=settings.max_log,
            secrets=secrets,
        )
        disk = Disk(engine.local_folders(facts, settings.containerd_root), store.folder, settings.min_free_disk)
        await Daemon(context, queue, engine, metrics, _options(settings), disk).run()
        with anyio.move_on_after(UNREGISTER_SECONDS):
            await queue.unregister()
            if settings.until_idle:
                await _say_what_is_left(queue)
    log.info("worker stopped")
    return 0


async def _patiently(what: str, call: Callable[[], Awaitable[T]], settings: Settings) -> T:
    """Waits for a resource that is not there yet; with ``--until-idle`` its absence is an error at once."""
    notify_systemd(f"STATUS=connecting to {what}")

    def on_fault(error: Exception, _attempt: int) -> None:
        log.warning("cannot be reached, trying again", what=what, error=str(error))
        _patient(f"waiting for {what}: {error}")

    def transient(error: Exception, _attempt: int) -> bool:
        unavailable = isinstance(error, (DatabaseUnavailable, EngineUnavailable, EngineError))
        return unavailable and not settings.until_idle

    return await retrying(call, transient=transient, on_fault=on_fault, first=1, cap=30)


async def _say_what_is_left(queue: Queue) -> None:
    """Warns of queued runs that this worker can never claim, since the queue of an idle worker need not be empty."""
    runs, labels = await queue.unclaimable()
    if runs:
        log.warning("runs are left that ask for labels this worker lacks (--labels)", runs=runs, labels=labels)


def _patient(status: str) -> None:
    """Tells systemd what the worker waits for, and that it has started: a waiting service must not hold up a boot."""
    notify_systemd("READY=1", f"STATUS={' '.join(status.split())}")


async def _register(queue: Queue, *, takeover: bool) -> uuid.UUID:
    """Takes the worker id; waits, saying so, while another live worker holds it."""
    while True:
        try:
            return await queue.register(takeover=takeover)
        except Refused as error:
            if error.code in NO_SCHEMA:
                raise DatabaseUnavailable(f"{error}: run `ops-worker db migrate` on this database first") from error
            if error.code != "worker_id_taken":
                raise
            log.warning("waiting: another worker works under this id (--worker-id)", error=str(error))
            _patient("waiting: another worker has this worker id")
            await anyio.sleep(TAKEN_RETRY_SECONDS)


def _name_of(worker_id: str, dsn: str) -> str:
    """A name for the worker id and the database: of the URL only host, port, database and user.

    All processes of the host can read the names, so a password in one could be guessed.
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


@contextmanager
def _only_one_of(worker_id: str, dsn: str) -> Iterator[bool]:
    """Whether this is the only process on this host with that worker id and database.

    It binds a name that the kernel frees when the process ends, however it ends: so the successor of a killed worker
    knows at once that its predecessor is gone, and need not wait for its registration to run out.
    """
    name = _name_of(worker_id, dsn)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(f"\0ops-worker/{name}")
        except OSError:
            yield False
        else:
            yield True


def _raise_file_limit() -> None:
    """Each run keeps a handful of sockets open; the usual soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _host_id() -> str:
    """The boot of this host, or of this container: within which the name above is unique."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/net').stat().st_ino}"


def _options(settings: Settings) -> DaemonOptions:
    return DaemonOptions(
        concurrency=settings.concurrency,
        until_idle=settings.until_idle,
        lease=settings.lease,
        poll=settings.poll_interval,
        drain=settings.drain_timeout,
    )


def _policy(settings: Settings) -> HostPolicy:
    return HostPolicy(
        allowed_images=settings.allowed_images,
        allowed_networks=settings.allowed_networks,
        read_only_root=settings.read_only_root,
        secrets_as_env=settings.secrets_as_env,
        default_cpus=settings.default_cpus,
        max_cpus=settings.max_cpus,
        default_memory=settings.default_memory,
        max_memory=settings.max_memory,
        default_pids=settings.default_pids,
        max_pids=settings.max_pids,
        default_nofile=settings.default_nofile,
        max_nofile=settings.max_nofile,
        default_timeout=settings.default_timeout,
        max_timeout=settings.max_timeout,
        default_output=settings.default_output,
        max_output=settings.max_output,
        default_disk=settings.default_disk,
        max_disk=settings.max_disk,
    )


if __name__ == "__main__":
    main()
