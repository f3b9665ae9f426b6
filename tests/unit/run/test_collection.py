"""The upload of artifacts: what it changes in the outcome, and its time limit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.unit.fakes import AWAY, RUN_ID, SAID, World
from worker.errors import ArtifactError, EngineError, EngineUnavailable
from worker.model.outcome import Stop
from worker.model.report import CaseCounts
from worker.run.engine_retry import ENGINE_REFUSALS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ArtifactError("access denied"), "artifacts_failed"),
        (EngineError(500, "cannot read the volume"), "artifacts_failed"),
        (ArtifactError("No space left on device"), "disk_full"),
        (RuntimeError("a bug"), "worker_error"),
    ],
)
async def test_success_with_lost_artifacts_fails(world: World, error: Exception, reason: str) -> None:
    world.store.errors = [error] * (ENGINE_REFUSALS + 1)
    assert await world.execute() == "failed"
    assert world.outcome == (reason, None)
    assert str(error) in world.message
    assert world.said == SAID


async def test_failure_with_lost_artifacts_keeps_its_own_reason(world: World) -> None:
    world.engine.exit_code = 3
    world.store.errors = [ArtifactError("access denied")]
    assert await world.execute() == "failed"
    assert (world.outcome, world.artifacts_error) == (("exit_code", 3), "access denied")


async def test_what_the_artifacts_say_is_recorded_before_the_end(world: World) -> None:
    world.store.files = {"junit.xml": b"<testsuite><testcase name='a'/></testsuite>", "summary.md": b"# fine"}
    world.store.errors = [EngineUnavailable("away")]
    assert await world.execute() == "succeeded"
    assert world.queue.report == (CaseCounts(1), "# fine")
    assert world.did("record_report", "complete") == ["record_report", "complete"]


async def test_no_artifact_rules_means_no_collection(world: World) -> None:
    assert await world.execute(config={"artifacts": []}) == "succeeded"
    assert world.did("archive") == []


@pytest.mark.parametrize(
    ("seen", "engine_says_nothing", "calls"),
    [
        (".", False, []),
        ("folder", True, ["archive"]),
        (None, True, ["left_nothing"]),
        (None, False, ["left_nothing", "archive"]),
    ],
)
async def test_archive_is_asked_for_unless_it_is_certain_that_nothing_was_left(
    world: World, tmp_path: Path, seen: str | None, engine_says_nothing: object, calls: list[str]
) -> None:
    world.engine.artifacts, world.engine.left_nothing = tmp_path / "volume", bool(engine_says_nothing)
    if seen is not None:
        (world.engine.artifacts / seen).mkdir(parents=True)
    assert await world.execute() == "succeeded"
    assert world.did("left_nothing", "archive") == calls


async def test_refused_artifact_is_a_warning(world: World) -> None:
    world.store.warns = ["../../etc/passwd: leads out of /artifacts"]
    assert await world.execute() == "succeeded"
    assert world.warnings == [("artifact_refused", world.store.warns[0])]
    assert world.store.prefix == f"acme/{RUN_ID}/"


async def test_eviction_during_the_collection_ends_it(world: World) -> None:
    world.store.waits = anyio.Event()
    async with world.executing() as (run, result):
        assert result == []
        run.quota.evict(2**30, left=2**20)
    assert world.outcome == ("disk_full", None)
    assert "not collected" in world.artifacts_error
    assert world.queue.artifacts == []


@pytest.mark.parametrize("cancel", ["before", "meanwhile", None])
async def test_slow_collection_is_given_up(world: World, cancel: str | None) -> None:
    world.set(collect=0.05 if cancel is None else 3600, canceled_collect=0.05)
    world.store.waits = anyio.Event()
    run = world.run(config={"timeout_seconds": 0.01 if cancel is None else 900})
    if cancel == "before":
        world.engine.earlier()
        run.stop(Stop.CANCEL)
    async with world.executing(run):
        if cancel == "meanwhile":
            run.stop(Stop.CANCEL)
    assert world.outcome == (("artifacts_failed" if cancel is None else "canceled"), None)
    took = "it took longer than 0.05 s" if cancel is None else "the run was canceled, and it took 0.05 s more"
    assert world.artifacts_error == f"the collection was given up: {took}"


async def test_collection_may_take_as_long_as_the_run(world: World) -> None:
    world.set(collect=0.01)
    world.store.waits = anyio.Event()
    async with world.executing() as (_, result):
        await anyio.sleep(0.05)
        assert result == []
        world.store.waits.set()
    assert result == ["succeeded"]


async def test_waiting_for_database_or_engine_does_not_count_as_collection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.set(collect=0.5)
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 0.6)
    world.queue.storing = partial(anyio.sleep, 0.8)
    world.engine.faults = {"archive": [AWAY]}
    assert await world.execute(config={"timeout_seconds": 0.1}) == "succeeded"
