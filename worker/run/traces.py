"""Traces of runs in OpenTelemetry's conventions for CI/CD (``cicd.pipeline.*``); off unless there is an endpoint.

Each run is one trace. Its id is the id of the run, and the ids of its first span and of the container's are made of
the run's, so a worker that adopts a run continues its trace. A span is handed over when it has ended, and a thread of
the SDK sends it: nothing here waits for the collector, and nothing that it does fails a run.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import structlog

from worker.errors import ConfigurationError
from worker.model.claim import Claim
from worker.model.outcome import Outcome, Reason

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger()

SEND_SECONDS, EXPORT_SECONDS, CLOSE_SECONDS = 1.0, 5.0, 3.0
"""How often spans are sent, how long the collector may take for them, and what the worker waits when it stops."""

COMPLAINT_SECONDS = 60.0
"""The worker logs a failed delivery at most this often."""

PIPELINE, RUN = "pipeline", "run"
TASK_TYPES = frozenset({"build", "test", "deploy"})
"""The workflow types that the conventions have a word for."""

_RESULTS = {
    Reason.SUCCEEDED: "success",
    Reason.TTL: "success",
    Reason.CANCELED: "cancellation",
    Reason.TIMEOUT: "timeout",
}


class Traces:
    """Makes the traces of this worker's runs; without a provider none."""

    def __init__(self, provider: TracerProvider | None = None, worker_id: str = "") -> None:
        self._provider = provider
        self._worker_id = worker_id

    @classmethod
    def sent_to(cls, endpoint: str | None, worker_id: str, version: str) -> Traces:
        """Sends them to that URL of an OTLP/HTTP collector. Raises ``ConfigurationError`` without the extra."""
        if endpoint is None:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError("traces_endpoint", "needs the extra: pip install 'ops-worker[traces]'") from error
        provider = new_provider(version)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000 * SEND_SECONDS))
        return cls(provider, worker_id)

    def close(self) -> None:
        """Sends what is left, for ``CLOSE_SECONDS`` at most."""
        if self._provider is not None:
            closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)

    def of(self, claim: Claim) -> RunTrace:
        """The trace of one run."""
        return RunTrace(self._provider, claim, self._worker_id)


class RunTrace:
    """The trace of one run: the span of the pipeline, and below it a span for each part of the work."""

    def __init__(self, provider: TracerProvider | None, claim: Claim, worker_id: str) -> None:
        self._provider = provider
        self._claim = claim
        self._worker_id = worker_id

    @property
    def environment(self) -> dict[str, str]:
        """What the container gets, so that its program can continue the trace below the span ``run``."""
        if self._provider is None:
            return {}
        run_id = self._claim.run_id
        return {"TRACEPARENT": f"00-{run_id.int:032x}-{span_id(run_id, RUN):016x}-01"}

    def queued(self) -> None:
        """The span of the wait in the queue; of an adopted run it is in the trace already."""
        if self._claim.queued_at is not None and self._claim.claimed_at is not None:
            self.task("queue", self._claim.queued_at, self._claim.claimed_at)

    @contextmanager
    def measured(self, name: str, **attributes: str) -> Iterator[None]:
        """The span of the work in the block, which failed if it raises; of work that is cancelled there is none."""
        began = datetime.now(UTC)
        try:
            yield
        except Exception as error:
            self.task(name, began, datetime.now(UTC), "error", **{"error.type": type(error).__name__, **attributes})
            raise
        self.task(name, began, datetime.now(UTC), **attributes)

    def task(self, name: str, began: datetime, ended: datetime, result: str = "success", **attributes: str) -> None:
        """The span of one part of the run."""
        run_id, workflow_type = self._claim.run_id, self._claim.workflow.workflow_type
        facts = {"name": name, "run.id": f"{run_id}/{name}", "run.result": result}
        if name == RUN and workflow_type in TASK_TYPES:
            facts["type"] = workflow_type
        named = {f"cicd.pipeline.task.{key}": value for key, value in facts.items()} | attributes
        own = span_id(run_id, RUN) if name == RUN else None
        self._send(name, own, began, ended, result, named | self._worker)

    def ended(self, outcome: Outcome, began: datetime) -> None:
        """The span of the whole run, which every other span is below. Called once, when the run has ended."""
        claim, result = self._claim, result_of(outcome)
        name = f"{claim.project.slug}/{claim.workflow.name}"
        action = "BUILD" if claim.workflow.workflow_type == "build" else "RUN"
        facts = {"name": name, "run.id": str(claim.run_id), "action.name": action, "result": result}
        named = {f"cicd.pipeline.{key}": value for key, value in facts.items()}
        named |= {"ops.run.number": str(claim.run_number), "ops.workflow.type": claim.workflow.workflow_type}
        if result != "success":
            named["error.type"] = outcome.reason
        began = claim.queued_at or claim.claimed_at or began
        own = span_id(claim.run_id, PIPELINE)
        self._send(f"{action} {name}", own, began, datetime.now(UTC), result, named | self._worker, is_root=True)

    @property
    def _worker(self) -> dict[str, str]:
        return {"cicd.worker.id": self._worker_id, "cicd.worker.name": self._worker_id}

    def _send(
        self,
        name: str,
        own_id: int | None,
        began: datetime,
        ended: datetime,
        result: str,
        attributes: dict[str, str],
        *,
        is_root: bool = False,
    ) -> None:
        if self._provider is None:
            return
        from opentelemetry import trace  # noqa: PLC0415 - only with the extra
        from opentelemetry.context import Context  # noqa: PLC0415

        run_id = self._claim.run_id
        ids: Any = self._provider.id_generator
        ids.trace_id, ids.span_id = run_id.int, own_id
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        root = trace.SpanContext(run_id.int, span_id(run_id, PIPELINE), is_remote=True, trace_flags=flags)
        span = self._provider.get_tracer("ops-worker").start_span(
            name,
            context=Context() if is_root else trace.set_span_in_context(trace.NonRecordingSpan(root), Context()),
            kind=trace.SpanKind.SERVER if is_root else trace.SpanKind.INTERNAL,
            attributes=attributes,
            start_time=_nanoseconds(began),
        )
        if result in ("failure", "error", "timeout"):
            span.set_status(trace.StatusCode.ERROR)
        span.end(_nanoseconds(max(began, ended)))


def span_id(run_id: uuid.UUID, name: str) -> int:
    """The id of a span that every worker of the run must know."""
    return int.from_bytes(sha256(run_id.bytes + name.encode()).digest()[:8], "big") or 1


def result_of(outcome: Outcome) -> str:
    """The word of the conventions for an outcome: ``error`` if host, engine or worker failed."""
    return _RESULTS.get(outcome.reason, "error" if outcome.log_level == "error" else "failure")


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6) * 1000


def new_provider(version: str) -> TracerProvider:
    """A provider that sends nothing yet, whose ids are those that :class:`RunTrace` sets. It needs the extra."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

    class Ids(RandomIdGenerator):
        """Gives the ids that were set before; else a random one."""

        trace_id: int
        span_id: int | None

        def generate_trace_id(self) -> int:
            return self.trace_id

        def generate_span_id(self) -> int:
            return self.span_id or super().generate_span_id()

    heard = logging.getLogger("opentelemetry")
    heard.handlers, heard.propagate = [_Complaints()], False
    resource = Resource.create({"service.name": "ops-worker", "service.version": version})
    return TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=Ids(), shutdown_on_exit=False)


class _Complaints(logging.Handler):
    """Writes what the SDK says of failed deliveries into the worker's own log, once in a while."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + COMPLAINT_SECONDS
            log.warning("traces are not delivered", error=record.getMessage()[:500])
