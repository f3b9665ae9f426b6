"""One run between a scripted engine, queue and store: what it does in which order, and how it ends."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from anyio.lowlevel import checkpoint
from structlog.testing import capture_logs

from tests.unit.claims import IMAGE, make_claim
from tests.unit.fakes import AWAY, CONTAINER, LINES, RUN_ID, SAID, World
from tests.unit.journal import frame
from worker.errors import EngineError, ImageMissing, LeaseLost, Refused
from worker.model.config import ArtifactRule
from worker.model.container import LABEL_TERMS
from worker.model.outcome import Outcome, Stop
from worker.model.spec import HostPolicy, RunTerms, resolve
from worker.run.engine_retry import ENGINE_REFUSALS


async def test_log_and_artifacts_are_stored_before_complete_and_the_container_is_removed_after_it(world: World) -> None:
    assert await world.execute() == "succeeded"
    assert world.outcome == ("succeeded", 0)
    assert world.said == SAID
    assert [artifact.path for artifact in world.queue.artifacts] == ["a.txt"]
    steps = [
        "claim→running", "create", "record_container", "start", "append_logs", "add_artifact", "complete", "remove",
    ]  # fmt: skip
    assert world.did(*steps) == steps
    assert [(kind, message) for kind, message, _ in world.queue.events] == [("info", "container created")]
    assert world.engine.status is None


@pytest.mark.parametrize(
    ("frames", "said"), [([], []), ([frame(1, b"one\n"), frame(2, b"two")], [(1, "one"), (2, "two")])]
)
async def test_log_may_be_empty_or_end_without_a_newline(
    world: World, frames: list[bytes], said: list[tuple[int, str]]
) -> None:
    world.engine.frames = frames
    assert await world.execute() == "succeeded"
    assert world.said == said
    assert bool(world.did("append_logs")) == bool(said)


@pytest.mark.parametrize(
    ("exit_code", "why", "error", "said"),
    [
        (0, None, None, ("info", "succeeded", "succeeded", 0, None)),
        (3, None, None, ("warning", "failed", "exit_code", 3, "exit code 3")),
        (0, Stop.CANCEL, None, ("warning", "canceled", "canceled", None, "canceled on request")),
        (0, None, EngineError(400, "bad"), ("error", "failed", "engine_error", None, "the container engine says: bad")),
    ],
)
async def test_end_of_a_run_is_logged_with_its_outcome_and_a_level(
    world: World, exit_code: int, why: Stop | None, error: Exception | None, said: tuple[object, ...]
) -> None:
    world.engine.exit_code = exit_code
    world.engine.faults = {"start": [error]} if error else {}
    run = world.run(run_number=17, started_at=(datetime.now(UTC) - timedelta(minutes=1)).isoformat())
    if why is not None:
        world.engine.become("exited")
        run.stop(why)
    with capture_logs() as logged:
        await world.execute(run)
    [line] = [line for line in logged if line["event"] == "run finished"]
    assert said == tuple(line[key] for key in ("log_level", "status", "reason", "exit_code", "error_message"))
    named = ("run_id", "run_number", "project", "workflow")
    assert tuple(line[key] for key in named) == (str(RUN_ID), 17, "acme", "nightly")
    assert 60 <= line["duration_seconds"] < 120


# --- the image ------------------------------------------------------------------------------------------------------


async def test_missing_image_is_pulled_after_an_event(world: World) -> None:
    world.engine.here = False
    assert await world.execute() == "succeeded"
    steps = ["image", "add_event", "pull", "image", "add_event", "create"]
    assert world.did("image", "add_event", "pull", "create")[:6] == steps
    said = [message for _, message, _ in world.queue.events]
    assert said[0] == "pulling image docker.io/library/tool:1"
    assert said[1].startswith("pulled image docker.io/library/tool:1: 0m in ")


async def test_image_is_missing_when_the_pull_did_not_bring_it(world: World) -> None:
    async def bring_nothing() -> None:
        world.engine.here = False

    world.engine.here, world.engine.pulls = False, bring_nothing
    assert await world.execute() == "failed"
    assert world.outcome == ("image_missing", None)


async def test_cancel_during_pull_ends_the_run(world: World) -> None:
    world.engine.here, world.engine.pulls = False, anyio.sleep_forever
    async with world.executing() as (run, result):
        assert world.story[-1] == "pull"
        run.stop(Stop.CANCEL)
    assert result == ["canceled"]
    assert world.did("create") == []


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ("pull", ImageMissing(IMAGE, "no such tag"), "image_missing"),
        ("create", ImageMissing(IMAGE, "removed meanwhile"), "image_missing"),
        ("create", EngineError(400, "invalid mount"), "engine_error"),
        ("start", EngineError(400, "exec: not found"), "engine_error"),
        ("create", EngineError(500, "write: no space left on device"), "disk_full"),
        ("create", KeyError("Id"), "worker_error"),
        ("start", ValueError("a bug"), "worker_error"),
        ("follow", RuntimeError("a bug"), "worker_error"),
        ("last_entry", RuntimeError("a bug"), "worker_error"),
    ],
)
async def test_failure_ends_the_run_with_a_reason_and_removes_its_container(
    world: World, call: str, error: Exception, reason: str
) -> None:
    world.engine.here = call != "pull"
    world.engine.faults = {call: [error] * (ENGINE_REFUSALS + 1)}
    assert await world.execute() == "failed"
    assert world.outcome == (reason, None)
    assert str(error) in world.message
    assert world.engine.status is None
    assert world.story[-1] == "remove"


async def test_invalid_config_never_reaches_the_engine(world: World) -> None:
    assert await world.execute(config={"comand": ["true"]}) == "failed"
    assert world.outcome == ("invalid_config", None)
    assert "comand" in world.message
    assert world.did("image", "create") == []


async def test_refused_outcome_fails_the_run(world: World) -> None:
    world.queue.faults = {"complete": [Refused("22P05", "untranslatable character")]}
    assert await world.execute() == "failed"
    assert world.outcome == ("worker_error", None)
    assert world.message == "the database refused the outcome succeeded: 22P05"
    assert world.did("complete", "remove") == ["complete", "complete", "remove"]


@pytest.mark.parametrize("error", [AWAY, EngineError(500, "busy")])
async def test_container_that_cannot_be_removed_does_not_block_the_run(world: World, error: Exception) -> None:
    world.set(cleanup=0.05)
    world.engine.faults = {"remove": [error] * 1_000_000}
    assert await world.execute() == "succeeded"


# --- lease lost, detach, adoption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["claim→running", "record_container", "append_logs", "add_artifact", "complete"])
async def test_lost_lease_ends_the_work_at_that_call_and_leaves_the_container(world: World, call: str) -> None:
    world.queue.faults = {call: [LeaseLost(RUN_ID)]}
    assert await world.execute() is None
    assert world.queue.outcome is None
    assert world.did("stop", "remove") == []
    assert world.did("claim→running", "record_container", "append_logs", "add_artifact", "complete")[-1] == call


@pytest.mark.parametrize("how", ["lost", "detached"])
async def test_lost_or_detached_run_leaves_its_container_running(world: World, how: str) -> None:
    world.engine.lasts = True
    with anyio.CancelScope() as scope:
        async with world.executing() as (run, result):
            run.lose() if how == "lost" else scope.cancel()
    assert result == ([None] if how == "lost" else [])
    assert world.engine.status == "running"
    assert world.did("stop", "remove", "complete", "add_artifact") == []


async def test_heartbeat_without_the_lease_of_a_run_that_has_just_ended_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, complete = world.run(), world.queue.complete

    async def completed_before_the_answer(run_id: uuid.UUID, outcome: Outcome) -> str:
        status = await complete(run_id, outcome)
        run.lose()
        await checkpoint()
        return status

    monkeypatch.setattr(world.queue, "complete", completed_before_the_answer)
    assert await world.execute(run) == "succeeded"
    assert world.engine.status is None


async def test_run_lost_before_it_begins_does_nothing(world: World) -> None:
    run = world.run()
    run.lose()
    assert await world.execute(run) is None
    assert world.did("create", "start", "complete") == []


@pytest.mark.parametrize("position", range(len(LINES) + 1))
async def test_adopted_run_continues_after_the_last_stored_line(world: World, position: int) -> None:
    world.engine.earlier()
    assert await world.execute(status="running", log_position=position, container_id=CONTAINER) == "succeeded"
    assert world.said == SAID[position:]
    assert world.did("claim→running") == []
    assert world.queue.events == [], "the event of its container is stored already"


async def test_adopted_run_keeps_its_terms_when_its_config_changes(world: World) -> None:
    world.engine.lasts = True
    config = {"timeout_seconds": 5, "artifacts": [{"path": "a.*"}], "resources": {"output": "10k"}}
    with anyio.CancelScope() as scope:
        async with world.executing(config=config):
            scope.cancel()
    world.engine.become("exited")
    world.queue.lines.clear()  # some may be stored already; the database would skip those
    assert await world.execute(status="running", container_id=CONTAINER, config={"comand": 1}) == "succeeded"
    assert world.said == SAID
    assert world.store.rules == (ArtifactRule(path="a.*"),)
    kept = RunTerms.model_validate_json(world.engine.labels[LABEL_TERMS])
    assert (kept.timeout_seconds, kept.output_bytes, kept.memory_bytes) == (5, 10_240, 2 * 2**30)


def test_terms_of_a_newer_worker_may_have_more_fields() -> None:
    kept = resolve(make_claim(), HostPolicy()).terms
    assert RunTerms.model_validate_json(kept.model_dump_json().replace("{", '{"colour":"red",', 1)) == kept


async def test_container_that_is_gone_is_not_created_again(world: World) -> None:
    world.engine.faults = {"follow": [EngineError(404, "No such container")]}
    assert await world.execute(status="running", container_id=CONTAINER) == "failed"
    assert world.outcome == ("engine_lost", None)
    assert world.did("create") == []
