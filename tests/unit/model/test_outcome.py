"""An ended container becomes an outcome: a reason, an exit code and a message."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import EngineError
from worker.model.container import ContainerState
from worker.model.outcome import ExitFacts, Outcome, Reason, ServiceFailure, Stop, decide, failure_of
from worker.model.serve import ServeTerms
from worker.model.spec import RunTerms

STATE = ContainerState("exited", 0, False, "", None, None, {})
TERMS = RunTerms(
    timeout_seconds=60.0, memory_bytes=512 * 2**20, output_bytes=2**20, disk_bytes=2**30, artifacts=(), secrets=()
)
FACTS = ExitFacts(written_bytes=0, left_bytes=0, artifacts_error=None, engine_restarted=False)


def ended(stop: Stop | None = None, **known: Any) -> Outcome:
    """The outcome of a container that succeeded, except for these facts."""

    def of(names: Iterable[str]) -> dict[str, Any]:
        return {name: known[name] for name in names if name in known}

    state = dataclasses.replace(STATE, **of(ContainerState.__slots__))
    facts = dataclasses.replace(FACTS, **of(ExitFacts.__slots__))
    return decide(state, TERMS.model_copy(update=of(RunTerms.model_fields)), facts, stop)


def test_exit_code_zero_is_success_without_a_message() -> None:
    assert ended() == Outcome(0, Reason.SUCCEEDED)


NO_SPACE = "mkdir /x: No space left on device"
NOT_FOUND = 'exec: "nope": executable file not found in $PATH'
OOM = "out of memory: a process was killed at the limit of {} MiB; raise resources.memory"
LOST = "the program succeeded, but its artifacts could not be stored: {}"
SERVE = ServeTerms(port=80, path="/up", interval_seconds=2, ready_timeout_seconds=300, ttl_seconds=9)
SERVE_ENDED = "the program of this served run ended by itself, with exit code 0"
DECIDED: list[tuple[dict[str, Any], int | None, str, str]] = [
    ({"exit_code": 1}, 1, "exit_code", "exit code 1"),
    ({"exit_code": 255}, 255, "exit_code", "exit code 255"),
    ({"exit_code": 3, "engine_restarted": True}, 3, "exit_code", "exit code 3"),
    ({"exit_code": 255, "engine_restarted": True}, None, "engine_lost",
        "the engine was restarted while the container ran, and does not know its exit code"),
    ({"exit_code": 126}, 126, "exit_code", "exit code 126 (the command could not be executed)"),
    ({"exit_code": 127}, 127, "exit_code", "exit code 127 (command not found)"),
    ({"exit_code": 128}, 128, "exit_code", "exit code 128"),
    ({"exit_code": 161}, 161, "exit_code", "exit code 161"),
    ({"exit_code": 130}, 130, "signal", "ended by signal SIGINT (exit code 130)"),
    ({"exit_code": 139}, 139, "signal", "ended by signal SIGSEGV (exit code 139)"),
    ({"exit_code": 143}, 143, "signal", "ended by signal SIGTERM (exit code 143)"),
    ({"exit_code": 137}, 137, "signal",
        "ended by signal SIGKILL (exit code 137), from outside: the host ran out of memory, or kill was called"),
    ({"exit_code": 172}, None, "engine_lost",
        "the engine ended the container: the engine was stopped or restarted, or docker stop was called"),
    ({"exit_code": 137, "oom_killed": True}, 137, "out_of_memory", OOM.format(512)),
    ({"exit_code": 1, "oom_killed": True, "memory_bytes": 3 * 2**29}, 1, "out_of_memory", OOM.format(1536)),
    ({"oom_killed": True}, 137, "out_of_memory", OOM.format(512)),  # a child was killed, the program exits 0
    ({"exit_code": 127, "error": NOT_FOUND}, None, "engine_error", f"the container engine says: {NOT_FOUND}"),
    ({"exit_code": 128, "error": NO_SPACE}, None, "disk_full", f"the container engine says: {NO_SPACE}"),
    ({"artifacts_error": "bucket unreachable"}, None, "artifacts_failed", LOST.format("bucket unreachable")),
    ({"artifacts_error": NO_SPACE}, None, "disk_full", LOST.format(NO_SPACE)),
    ({"serve": SERVE, "artifacts_error": NO_SPACE}, None, "serve_ended", SERVE_ENDED),
]  # fmt: skip


@pytest.mark.parametrize(("known", "exit_code", "reason", "message"), DECIDED)
def test_exit_facts_decide_reason_and_message(
    known: dict[str, Any], exit_code: int | None, reason: str, message: str
) -> None:
    outcome = ended(**known)
    assert (outcome.exit_code, outcome.reason, outcome.message) == (exit_code, reason, message)
    assert outcome.details["container_exit_code"] == known.get("exit_code", 0)


STOPPED: list[tuple[Stop, dict[str, Any], str, str]] = [
    (Stop.CANCEL, {}, "canceled", "canceled on request"),
    (Stop.TIMEOUT, {"timeout_seconds": 3600.0}, "timeout", "ran beyond its time limit of 3600 s (timeout_seconds)"),
    (Stop.OUTPUT, {"output_bytes": 2**31}, "output_limit", "stopped: it printed more than 2g (resources.output)"),
    (Stop.DISK_LIMIT, {"written_bytes": 1500 * 2**20}, "disk_limit",
        "stopped: it wrote 1,500m to the disk, more than 1g (resources.disk)"),
    (Stop.DISK, {"written_bytes": 37 * 2**30, "left_bytes": 900 * 2**20}, "disk_full",
        "stopped: the disk of its host was nearly full, 900m left, and of all runs it had written most, 37,888m"),
    (Stop.NOT_READY, {"serve": SERVE, "said": ("bye",)}, "not_ready",
        "/up did not answer 2xx or 3xx within 300 s (serve.ready_timeout_seconds)"),
    (Stop.SERVICE, {"service": ServiceFailure("db", "ended", ("bye",))}, "service_failed", "service 'db' ended"),
]  # fmt: skip


@pytest.mark.parametrize(("stop", "known", "reason", "message"), STOPPED)
@pytest.mark.parametrize("exit_code", [0, 1, 137, 143])
@pytest.mark.parametrize("oom_killed", [False, True])
def test_stop_reason_decides_the_outcome(
    stop: Stop, known: dict[str, Any], reason: str, message: str, exit_code: int, *, oom_killed: bool
) -> None:
    outcome = ended(stop, exit_code=exit_code, oom_killed=oom_killed, **known)
    assert (outcome.exit_code, outcome.reason, outcome.message) == (exit_code or None, reason, message)
    more = {name: size for name, size in known.items() if stop in (Stop.DISK, Stop.DISK_LIMIT)}
    if stop is Stop.SERVICE:
        more = {"service": "db", "service_log": ["bye"]}
    if stop is Stop.NOT_READY:
        more = {"log": ["bye"]}
    assert outcome.details == {"container_exit_code": exit_code, **more}


@pytest.mark.parametrize("exit_code", [0, 1, 137, 143])
def test_end_of_the_time_of_serving_is_success_unless_artifacts_are_lost(exit_code: int) -> None:
    assert ended(Stop.TTL, serve=SERVE, exit_code=exit_code) == Outcome(0, Reason.TTL)
    lost = ended(Stop.TTL, serve=SERVE, exit_code=exit_code, artifacts_error="bucket unreachable")
    assert (lost.exit_code, lost.reason) == (None, Reason.ARTIFACTS_FAILED)


def test_engine_that_ended_the_run_s_container_ended_its_services_too() -> None:
    assert ended(Stop.SERVICE, exit_code=172).reason is Reason.ENGINE_LOST
    assert ended(Stop.SERVICE, exit_code=255, engine_restarted=True).reason is Reason.ENGINE_LOST


@pytest.mark.parametrize(("known", "details"), [
    ({"exit_code": 130}, {"signal": "SIGINT"}),
    ({"oom_killed": True}, {"memory_bytes": 512 * 2**20}),
    ({"exit_code": 128, "error": "no"}, {"status": 0}),
])  # fmt: skip
def test_details_of_an_outcome(known: dict[str, Any], details: dict[str, Any]) -> None:
    assert ended(**known).details == {"container_exit_code": known.get("exit_code", 0), **details}


@pytest.mark.parametrize("reason", Reason)
def test_host_faults_are_logged_as_errors(reason: Reason) -> None:
    faults = {"artifacts_failed", "disk_full", "engine_error", "engine_lost", "worker_error"}
    level = "error" if reason in faults else "info" if reason in ("succeeded", "ttl") else "warning"
    assert Outcome(None, reason).log_level == level


def test_artifacts_error_of_a_failure_is_in_the_details() -> None:
    outcome = ended(exit_code=2, artifacts_error="bucket unreachable")
    assert (outcome.reason, outcome.details["artifacts_error"]) == (Reason.EXIT_CODE, "bucket unreachable")


def test_status_of_the_engine_is_in_the_details() -> None:
    failure = failure_of(EngineError(500, "out of file handles"))
    assert failure is not None
    assert Outcome.of(failure) == Outcome(
        None, Reason.ENGINE_ERROR, "the container engine says: out of file handles", {"status": 500}
    )


@given(
    exit_code=st.integers(0, 255),
    oom_killed=st.booleans(),
    error=st.sampled_from(["", "exec format error"]),
    artifacts_error=st.sampled_from([None, "gone"]),
    stop=st.sampled_from([None, *Stop]),
)
def test_only_success_has_exit_code_zero(stop: Stop | None, **known: Any) -> None:
    outcome = ended(stop, **known)
    good = outcome.reason in (Reason.SUCCEEDED, Reason.TTL)
    assert (outcome.exit_code == 0) == good == (outcome.message is None)


@pytest.mark.parametrize("reason", Reason)
def test_reason_is_a_word_that_the_database_accepts(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]{0,62}", reason)
