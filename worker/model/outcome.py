"""How a run ended, decided from what is known of its container. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from worker.errors import EngineError, RunFailure
from worker.model.container import ContainerState
from worker.model.sizes import rounded_size, shown_size
from worker.model.spec import RunTerms, ServiceTerms

ENGINE_STOP_SIGNAL = 44
"""Sent to a container by an engine that is being stopped, and by ``docker stop``: SIGRTMIN + 10, which no program takes
for a request to end well, as many do SIGTERM, and exit 0 (Odoo does). Nor does anything else send it."""

FORGOTTEN_EXIT_CODE = 255
"""What Docker 26 and 28 give to a container that ended while the engine was away (live-restore)."""


class Stop(StrEnum):
    """Why the worker ended a container."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    OUTPUT = "output"
    DISK = "disk"
    DISK_LIMIT = "disk_limit"
    SERVICE = "service"
    TTL = "ttl"
    NOT_READY = "not_ready"


class Reason(StrEnum):
    """The one word for how a run ended; ``ops.runs.reason`` and ``payload.reason`` of its events.

    The database itself adds ``worker_lost``, ``poison`` and ``database_copied``.
    """

    SUCCEEDED = "succeeded"
    TTL = "ttl"
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    CANCELED = "canceled"
    WORKFLOW_DISABLED = "workflow_disabled"
    PROJECT_ARCHIVED = "project_archived"
    TOOL_MISSING = "tool_missing"
    INVALID_CONFIG = "invalid_config"
    SECRET_MISSING = "secret_missing"  # noqa: S105 - a word
    IMAGE_NOT_ALLOWED = "image_not_allowed"
    IMAGE_MISSING = "image_missing"
    SERVICE_FAILED = "service_failed"
    NOT_READY = "not_ready"
    SERVE_ENDED = "serve_ended"
    ARTIFACTS_FAILED = "artifacts_failed"
    DISK_FULL = "disk_full"
    ENGINE_ERROR = "engine_error"
    ENGINE_LOST = "engine_lost"
    WORKER_ERROR = "worker_error"


HOST_FAULTS = frozenset(
    {Reason.ARTIFACTS_FAILED, Reason.DISK_FULL, Reason.ENGINE_ERROR, Reason.ENGINE_LOST, Reason.WORKER_ERROR}
)
"""The reasons for which the host, its engine or the worker failed, and not the program or its configuration."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is reported to the database.

    ``exit_code`` 0 means succeeded, and nothing else does; None stands where no process's exit code tells the
    outcome.
    """

    exit_code: int | None
    reason: Reason
    message: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, failure: RunFailure) -> Self:
        """The outcome of a run that fails for that."""
        return cls(None, Reason(failure.reason), str(failure), failure.details)

    @property
    def log_level(self) -> str:
        """Its level in the worker's own log: a failure of the host is an error, one of the program is a warning."""
        if self.reason in HOST_FAULTS:
            return "error"
        return "info" if self.reason in (Reason.SUCCEEDED, Reason.TTL) else "warning"


@dataclass(frozen=True, slots=True)
class ServiceFailure:
    """Which service ended the run, why, and the last lines of its output."""

    service: str
    why: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExitFacts:
    """What the worker knows of a container that has ended, beside its state."""

    written_bytes: int
    """What the container held on the engine's disk when it was stopped for that, and what was left of the disk."""
    left_bytes: int
    artifacts_error: str | None
    engine_restarted: bool
    """Whether the engine was started again while the container ran."""
    service: ServiceFailure | None = None
    said: tuple[str, ...] = ()
    """The last lines of a served run that was not ready in time."""


def service_fault(state: ContainerState | None, terms: ServiceTerms) -> str | None:
    """What is wrong with a service that was started; None if nothing is."""
    if state is None:
        return "is gone from the engine"
    if state.oom_killed:
        limit = shown_size(terms.memory_bytes)
        return f"was out of memory: a process was killed at the limit of {limit}; raise its resources.memory"
    if not state.running:
        why = f": {state.error}" if state.error else _EXIT_CODES.get(state.exit_code, "")
        return f"ended with exit code {state.exit_code}{why}"
    return "is unhealthy: its health check failed too often" if state.health == "unhealthy" else None


def decide(state: ContainerState, terms: RunTerms, facts: ExitFacts, stop: Stop | None) -> Outcome:
    """The first of these that holds: stopped, out of memory, engine, exit code, artifacts, success.

    A container that ended by itself just before a request to stop reached it counts as stopped: a run that was
    canceled must not be found succeeded.
    """
    details: dict[str, Any] = {"container_exit_code": state.exit_code}
    if facts.artifacts_error is not None:
        details["artifacts_error"] = facts.artifacts_error
    code = state.exit_code or None
    # An engine that stops ends the services as well, and one of them may be seen first.
    if stop is not None and not (stop is Stop.SERVICE and _engine_ended(code, facts)):
        return _stopped(code, terms, facts, stop, details)
    if state.oom_killed:
        # The kernel may kill a child while the main process goes on to exit 0 (docs/odooops-sh/RUN_LIFECYCLE.md).
        details["memory_bytes"] = terms.memory_bytes
        limit = f"{terms.memory_bytes / 2**20:.12g} MiB"
        message = f"out of memory: a process was killed at the limit of {limit}; raise resources.memory"
        return Outcome(code or 137, Reason.OUT_OF_MEMORY, message, details)
    if state.error:
        failure = _engine_failure(EngineError(0, state.error))
        return Outcome(None, Reason(failure.reason), str(failure), {**details, **failure.details})
    if (how := _engine_ended(code, facts)) is not None:
        return Outcome(None, Reason.ENGINE_LOST, how, details)
    if code is not None:
        return _exited(code, details)
    if terms.serve is not None:
        message = "the program of this served run ended by itself, with exit code 0"
        return Outcome(None, Reason.SERVE_ENDED, message, details)
    return _well_ended(Reason.SUCCEEDED, facts, details)


def _well_ended(reason: Reason, facts: ExitFacts, details: Mapping[str, Any]) -> Outcome:
    """Success, unless the artifacts could not be stored."""
    if facts.artifacts_error is None:
        return Outcome(0, reason)
    reason = Reason.DISK_FULL if _disk_full(facts.artifacts_error) else Reason.ARTIFACTS_FAILED
    message = f"the program succeeded, but its artifacts could not be stored: {facts.artifacts_error}"
    return Outcome(None, reason, message, details)


def _engine_ended(code: int | None, facts: ExitFacts) -> str | None:
    """How the engine ended the container; None if the engine did not."""
    if code == FORGOTTEN_EXIT_CODE and facts.engine_restarted:
        return "the engine was restarted while the container ran, and does not know its exit code"
    if code == 128 + ENGINE_STOP_SIGNAL:
        return "the engine ended the container: the engine was stopped or restarted, or docker stop was called"
    return None


def failure_of(error: Exception) -> RunFailure | None:
    """The failure of a run that such an error ends; None for an error that the worker does not expect."""
    if isinstance(error, RunFailure):
        return error
    return _engine_failure(error) if isinstance(error, EngineError) else None


def _engine_failure(error: EngineError) -> RunFailure:
    reason = Reason.DISK_FULL if _disk_full(str(error)) else Reason.ENGINE_ERROR
    return RunFailure(reason, f"the container engine says: {error}", {"status": error.status})


def _stopped(code: int | None, terms: RunTerms, facts: ExitFacts, stop: Stop, details: dict[str, Any]) -> Outcome:
    if stop is Stop.CANCEL:
        return Outcome(code, Reason.CANCELED, "canceled on request", details)
    if stop is Stop.TIMEOUT:
        message = f"ran beyond its time limit of {terms.timeout_seconds:.12g} s (timeout_seconds)"
        return Outcome(code, Reason.TIMEOUT, message, details)
    if stop is Stop.OUTPUT:
        message = f"stopped: it printed more than {shown_size(terms.output_bytes)} (resources.output)"
        return Outcome(code, Reason.OUTPUT_LIMIT, message, details)
    if stop is Stop.TTL:  # whatever the exit code: the worker ended the program when its time was over
        return _well_ended(Reason.TTL, facts, details)
    if stop is Stop.NOT_READY and terms.serve is not None:
        asked, seconds = terms.serve.path, terms.serve.ready_timeout_seconds
        message = f"{asked} did not answer 2xx or 3xx within {seconds:.12g} s (serve.ready_timeout_seconds)"
        return Outcome(code, Reason.NOT_READY, message, {**details, "log": list(facts.said)})
    if stop is Stop.SERVICE and facts.service is not None:
        failure = facts.service
        details |= {"service": failure.service, "service_log": list(failure.lines)}
        return Outcome(code, Reason.SERVICE_FAILED, f"service {failure.service!r} {failure.why}", details)
    details["written_bytes"] = facts.written_bytes
    written = rounded_size(facts.written_bytes)
    if stop is Stop.DISK_LIMIT:
        message = f"stopped: it wrote {written} to the disk, more than {shown_size(terms.disk_bytes)} (resources.disk)"
        return Outcome(code, Reason.DISK_LIMIT, message, details)
    details["left_bytes"] = facts.left_bytes
    left = rounded_size(facts.left_bytes)
    message = (
        f"stopped: the disk of its host was nearly full, {left} left, and of all runs it had written most, {written}"
    )
    return Outcome(code, Reason.DISK_FULL, message, details)


def _exited(code: int, details: Mapping[str, Any]) -> Outcome:
    """The outcome of a program that ended with an error. Shells and the engine say 128 + n for an end by signal n."""
    if (name := _signal(code - 128)) is not None:
        hint = ", from outside: the host ran out of memory, or kill was called" if name == "SIGKILL" else ""
        message = f"ended by signal {name} (exit code {code}){hint}"
        return Outcome(code, Reason.SIGNAL, message, {**details, "signal": name})
    return Outcome(code, Reason.EXIT_CODE, f"exit code {code}{_EXIT_CODES.get(code, '')}", details)


_EXIT_CODES = {126: " (the command could not be executed)", 127: " (command not found)"}


def _signal(number: int) -> str | None:
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def _disk_full(said: str) -> bool:
    return "no space left on device" in said.lower()
