"""What the worker says about itself: structured log lines, and metrics for Prometheus."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
import structlog.tracebacks
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server


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
    # Neither shows local variables: they hold what nobody should read in a log.
    if console:
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]


class Metrics:
    """The worker's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = Counter(
            "ops_worker_runs",
            "Runs ended by this worker",
            ["workflow_type", "status"],
            registry=self.registry,
        )
        self.active = Gauge("ops_worker_active_runs", "Runs under way", registry=self.registry)
        self.disk_short = Gauge(
            "ops_worker_disk_short", "1 while nothing is claimed because the disk is short", registry=self.registry
        )
        self.heartbeat = Gauge(
            "ops_worker_last_heartbeat_timestamp_seconds",
            "When the leases were last renewed",
            registry=self.registry,
        )

    def finished(self, workflow_type: str, status: str, *, active: int) -> None:
        """Counts a run that this worker ended or let go."""
        self.runs.labels(workflow_type, status).inc()
        self.active.set(active)

    def serve(self, host: str, port: int) -> None:
        """Serves ``/metrics`` from a thread of its own. Raises ``OSError`` when the address cannot be had."""
        start_http_server(port, host, registry=self.registry)
