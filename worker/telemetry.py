"""What the worker says about itself: structured log lines, metrics for Prometheus, and its state for systemd."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from socketserver import ThreadingMixIn
from typing import Any, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import anyio
import structlog
import structlog.tracebacks
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

MAX_CONNECTIONS = 8
"""How many connections to ``/metrics`` are open at once, each with a thread; one more ends the oldest."""

CONNECTION_SECONDS = 5.0
"""How long a connection to ``/metrics`` may last, whatever it does."""


def configure_logging(level: str, log_format: Literal["auto", "console", "json"]) -> None:
    """Lines for a person on a terminal, one JSON object a line elsewhere; both to stderr."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            stamp,
            *_renderers(console=console),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _renderers(*, console: bool) -> list[structlog.typing.Processor]:
    # Neither shows local variables: they may hold secrets.
    if console:
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]


def notify_systemd(*states: str) -> None:
    """Sends systemd states such as ``READY=1`` or ``STATUS=...``; does nothing where systemd did not start the worker.

    Never raises: a lost message is not worth a run.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(states).encode(), address)
    except OSError:
        pass


async def keep_systemd_informed() -> None:
    """Tells systemd that the event loop turns, for as long as this lasts; returns at once where it does not ask."""
    seconds = _watchdog_seconds()
    while seconds is not None:
        notify_systemd("WATCHDOG=1")
        await anyio.sleep(seconds / 3)


def _watchdog_seconds() -> float | None:
    """Within how many seconds systemd expects a ``WATCHDOG=1``; None when it does not watch this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC")
    return int(microseconds) / 1e6 if microseconds else None


RUN_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
WAIT_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 14400, 43200)
CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
LAG_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""The upper bounds of the histograms."""


class Metrics:
    """The worker's figures, in a registry of their own. docs/guide.md lists them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = self._counter("runs", "Runs ended by this worker", "workflow_type", "status")
        self.active = self._gauge("active_runs", "Runs under way")
        self.leases = self._gauge("leases", "Leases that the database renewed with the last heartbeat")
        self.run_seconds = self._histogram(
            "run_duration_seconds", "From the start of a run to its end", RUN_SECONDS, "workflow_type"
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "From the time when a run could be claimed to its claim", WAIT_SECONDS,
            "workflow_type",
        )  # fmt: skip
        self.claim_seconds = self._histogram(
            "claim_duration_seconds", "Until the database answered a claim, with or without a run", CALL_SECONDS
        )
        self.log_lines = self._counter("log_lines", "Log lines stored")
        self.log_bytes = self._counter("log_bytes", "UTF-8 bytes of the log lines stored")
        self.log_lag = self._histogram(
            "log_lag_seconds", "From the time of the first line of a batch until the batch is stored", LAG_SECONDS
        )
        self.artifact_bytes = self._counter("artifact_bytes", "Bytes of the artifacts recorded")
        self.engine_seconds = self._histogram(
            "engine_call_duration_seconds", "Until a call of the container engine ended", CALL_SECONDS, "call"
        )
        self.engine_errors = self._counter(
            "engine_errors", "Calls of the container engine that failed", "call", "error"
        )
        self.database_retries = self._counter("database_retries", "Passing faults of calls to the database")
        self.disk_short = self._gauge("disk_short", "1 while nothing is claimed because the disk is short")
        self.disk_free = self._gauge("disk_free_bytes", "Free bytes of the fullest disk of the engine")
        self.disk_size = self._gauge("disk_size_bytes", "All bytes of that disk")
        self.draining = self._gauge("draining", "1 while nothing is claimed because an operator drains this worker")
        self.heartbeat = self._gauge("last_heartbeat_timestamp_seconds", "When the leases were last renewed")

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"ops_worker_{name}", says, labels, registry=self.registry)

    def _gauge(self, name: str, says: str) -> Gauge:
        return Gauge(f"ops_worker_{name}", says, registry=self.registry)

    def _histogram(self, name: str, says: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"ops_worker_{name}", says, labels, registry=self.registry, buckets=bounds)

    def finished(self, workflow_type: str, status: str, *, active: int, seconds: float | None = None) -> None:
        """Counts a run that this worker ended, detached or lost. ``seconds``: how long one lasted that has ended."""
        self.runs.labels(workflow_type, status).inc()
        self.active.set(active)
        if seconds is not None:
            self.run_seconds.labels(workflow_type).observe(seconds)

    def stored_lines(self, lines: int, size: int, first: str) -> None:
        """Counts a batch of log lines, the first of which was written at ``first`` (ISO 8601)."""
        self.log_lines.inc(lines)
        self.log_bytes.inc(size)
        with suppress(ValueError):  # the engine wrote another form of the time
            self.log_lag.observe(max(0.0, time.time() - datetime.fromisoformat(first).timestamp()))

    def engine_call(self, call: str, seconds: float, error: str | None = None) -> None:
        """Counts a call of the engine; ``error``: how it failed."""
        self.engine_seconds.labels(call).observe(seconds)
        if error is not None:
            self.engine_errors.labels(call, error).inc()

    def serve(self, host: str, port: int) -> int:
        """Serves ``/metrics`` from a few threads and returns the port. Raises ``OSError`` when it cannot listen."""
        server = _MetricsServer(host, port)
        server.set_app(make_wsgi_app(self.registry))
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return server.server_port


class _MetricsServer(ThreadingMixIn, WSGIServer):
    """Bounds the number and the time of its connections, so that idle or slow ones cannot exhaust it."""

    daemon_threads = True
    request_queue_size = 128  # so that a flood does not hold up the connection of a scraper

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # with the time at which each began, the oldest first
        super().__init__((str(found[0][4][0]), port), _SilentHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self._end_oldest()
            if not self._free.acquire(timeout=1):
                self.shutdown_request(request)
                return
        with self._lock:
            self._open[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._ended(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._ended(request)

    def service_actions(self) -> None:
        """Ends the connections whose time is over; called twice a second."""
        with self._lock:
            late = [it for it, began in self._open.items() if time.monotonic() - began > CONNECTION_SECONDS]
        for connection in late:
            _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs nothing: a connection that broke, or that this server ended, needs no attention."""

    def _end_oldest(self) -> None:
        with self._lock:
            oldest = next(iter(self._open), None)
        if oldest is not None:
            _shut(oldest)

    def _ended(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)
        self._free.release()


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the base class gives it
        """Logs nothing: the worker's own log is for runs."""


def _shut(connection: socket.socket) -> None:
    """Ends a read or write that waits in the connection's thread, which then closes it."""
    with suppress(OSError):  # it has ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)
