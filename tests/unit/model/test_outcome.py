"""How an ended container becomes an outcome: one word, one exit code, one sentence to act on."""

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
from worker.model.outcome import ExitFacts, Outcome, Reason, Stop, decide, failure_of
from worker.model.spec import RunTerms

STATE = ContainerState("exited", 0, False, "", None, None, {})
TERMS = RunTerms(
    timeout_seconds=60.0, memory_bytes=512 * 2**20, output_bytes=2**20, disk_bytes=2**30, artifacts=(), secrets=()
)
FACTS = ExitFacts(written_bytes=0, left_bytes=0, artifacts_error=None, engine_restarted=False)


def ended(stop: Stop | None = None, **known: Any) -> Outcome:
    """The outcome of a container that ended well but for what is known of it."""

    def of(names: Iterable[str]) -> dict[str, Any]:
        return {name: known[name] for name in names if name in known}

    state = dataclasses.replace(STATE, **of(ContainerState.__slots__))
    facts = dataclasses.replace(FACTS, **of(ExitFacts.__slots__))
    return decide(state, TERMS.model_copy(update=of(RunTerms.model_fields)), facts, stop)


def test_exit_code_zero_is_success_and_says_nothing() -> None:
    assert ended() == Outcome(0, Reason.SUCCEEDED)


@pytest.mark.parametrize(
    ("known", "exit_code", "reason", "message"),
    [
        ({"exit_code": 1}, 1, "exit_code", "exit code 1"),
        ({"exit_code": 255}, 255, "exit_code", "exit code 255"),
        ({"exit_code": 3, "engine_restarted": True}, 3, "exit_code", "exit code 3"),
        (
            {"exit_code": 255, "engine_restarted": True},
            None,
            "engine_lost",
            "the engine was restarted while the container ran, and does not know its exit code",
        ),
        ({"exit_code": 126}, 126, "exit_code", "exit code 126 (the command could not be executed)"),
        ({"exit_code": 127}, 127, "exit_code", "exit code 127 (command not found)"),
        ({"exit_code": 128}, 128, "exit_code", "exit code 128"),
        ({"exit_code": 161}, 161, "exit_code", "exit code 161"),
        ({"exit_code": 130}, 130, "signal", "ended by signal SIGINT (exit code 130)"),
        ({"exit_code": 139}, 139, "signal", "ended by signal SIGSEGV (exit code 139)"),
        ({"exit_code": 143}, 143, "signal", "ended by signal SIGTERM (exit code 143)"),
        (
            {"exit_code": 137},
            137,
            "signal",
            "ended by signal SIGKILL (exit code 137), from outside: the host ran out of memory, or kill was called",
        ),
        (
            {"exit_code": 172},
            None,
            "engine_lost",
            "the engine ended the container: the engine was stopped or restarted, or docker stop was called",
        ),
        (
            {"exit_code": 137, "oom_killed": True},
            137,
            "out_of_memory",
            "out of memory: a process was killed at the limit of 512 MiB; raise resources.memory",
        ),
        (
            {"exit_code": 1, "oom_killed": True, "memory_bytes": 3 * 2**29},
            1,
            "out_of_memory",
            "out of memory: a process was killed at the limit of 1536 MiB; raise resources.memory",
        ),
        (
            {"exit_code": 127, "error": 'exec: "nope": executable file not found in $PATH'},
            None,
            "engine_error",
            'the container engine says: exec: "nope": executable file not found in $PATH',
        ),
        (
            {"exit_code": 128, "error": "mkdir /x: No space left on device"},
            None,
            "disk_full",
            "the container engine says: mkdir /x: No space left on device",
        ),
        (
            {"artifacts_error": "bucket unreachable"},
            None,
            "artifacts_failed",
            "the program succeeded, but its artifacts could not be stored: bucket unreachable",
        ),
        (
            {"artifacts_error": "write: no space left on device"},
            None,
            "disk_full",
            "the program succeeded, but its artifacts could not be stored: write: no space left on device",
        ),
    ],
)
def test_each_ending_has_its_word_and_its_sentence(
    known: dict[str, Any], exit_code: int | None, reason: str, message: str
) -> None:
    outcome = ended(**known)
    assert (outcome.exit_code, outcome.reason, outcome.message) == (exit_code, reason, message)
    assert outcome.details["container_exit_code"] == known.get("exit_code", 0)


def test_a_child_killed_for_memory_fails_a_program_that_exits_zero() -> None:
    outcome = ended(oom_killed=True)
    assert (outcome.exit_code, outcome.reason) == (137, Reason.OUT_OF_MEMORY)
    assert outcome.details == {"container_exit_code": 0, "memory_bytes": 512 * 2**20}


@pytest.mark.parametrize("exit_code", [0, 1, 137, 143])
@pytest.mark.parametrize("oom_killed", [False, True])
def test_what_the_worker_stopped_ended_by_that(exit_code: int, *, oom_killed: bool) -> None:
    canceled = ended(Stop.CANCEL, exit_code=exit_code, oom_killed=oom_killed)
    assert (canceled.exit_code, canceled.reason, canceled.message) == (
        exit_code or None,
        "canceled",
        "canceled on request",
    )
    late = ended(Stop.TIMEOUT, exit_code=exit_code, oom_killed=oom_killed, timeout_seconds=3600.0)
    assert (late.exit_code, late.reason) == (exit_code or None, "timeout")
    assert late.message == "ran beyond its time limit of 3600 s (timeout_seconds)"
    loud = ended(Stop.OUTPUT, exit_code=exit_code, oom_killed=oom_killed, output_bytes=2 * 2**30)
    assert (loud.exit_code, loud.reason) == (exit_code or None, "output_limit")
    assert loud.message == "stopped: it printed more than 2g (resources.output)"
    greedy = ended(Stop.DISK_LIMIT, exit_code=exit_code, oom_killed=oom_killed, written_bytes=1500 * 2**20)
    assert (greedy.exit_code, greedy.reason) == (exit_code or None, "disk_limit")
    assert greedy.message == "stopped: it wrote 1,500m to the disk, more than 1g (resources.disk)"
    assert greedy.details["written_bytes"] == 1500 * 2**20


def test_a_run_that_had_to_give_way_says_how_much_it_wrote_and_what_was_left() -> None:
    outcome = ended(Stop.DISK, exit_code=137, written_bytes=37 * 2**30, left_bytes=900 * 2**20)
    assert (outcome.exit_code, outcome.reason) == (137, Reason.DISK_FULL)
    assert outcome.message == (
        "stopped: the disk of its host was nearly full, 900m left, and of all runs it had written most, 37,888m"
    )
    assert outcome.details == {"container_exit_code": 137, "written_bytes": 37 * 2**30, "left_bytes": 900 * 2**20}


def test_artifacts_that_were_lost_too_are_in_the_details() -> None:
    outcome = ended(exit_code=2, artifacts_error="bucket unreachable")
    assert (outcome.reason, outcome.details["artifacts_error"]) == (Reason.EXIT_CODE, "bucket unreachable")


def test_the_engine_s_status_is_in_the_details() -> None:
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
def test_only_success_is_completed_with_exit_code_zero(stop: Stop | None, **known: Any) -> None:
    outcome = ended(stop, **known)
    assert (outcome.exit_code == 0) == (outcome.reason is Reason.SUCCEEDED) == (outcome.message is None)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_a_word_that_the_database_takes(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]{0,62}", reason)
