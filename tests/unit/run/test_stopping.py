"""A cancel, a timeout or a limit stops the container; the first reason is the outcome."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.unit.fakes import CONTAINER, JOURNAL, SAID, ScriptedContainer, World
from worker.logs.lines import LineAssembler
from worker.logs.redact import Redactor
from worker.model.outcome import Stop


async def test_cancel_stops_the_container_and_keeps_log_and_artifacts(world: World) -> None:
    world.engine.lasts = True
    async with world.executing() as (run, result):
        run.stop(Stop.CANCEL)
    assert result == ["canceled"]
    assert world.outcome == ("canceled", 143)
    assert world.engine.grace_seconds == 3
    assert world.said == SAID
    assert len(world.queue.artifacts) == 1
    assert world.engine.status is None


async def test_cancel_before_the_container_is_created_starts_nothing(world: World) -> None:
    run = world.run()
    run.stop(Stop.CANCEL)
    assert await world.execute(run) == "canceled"
    assert world.did("start", "archive", "append_logs") == []
    assert world.engine.status is None


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [(Stop.CANCEL, Stop.TIMEOUT, "canceled"), (Stop.TIMEOUT, Stop.CANCEL, "timeout")],
)
async def test_first_stop_reason_wins(world: World, first: Stop, second: Stop, reason: str) -> None:
    world.engine.lasts = True
    async with world.executing() as (run, _):
        run.stop(first)
        run.stop(second)
    assert world.outcome[0] == reason
    assert len(world.did("stop")) == 1


# --- the time limit -------------------------------------------------------------------------------------------------


async def test_timeout_stops_the_container(world: World) -> None:
    world.engine.lasts = True
    assert await world.execute(config={"timeout_seconds": 0.05}) == "failed"
    assert world.outcome == ("timeout", 143)
    assert world.said == SAID


async def test_container_that_was_started_now_is_inspected_only_at_its_end(world: World) -> None:
    assert await world.execute() == "succeeded"
    assert world.did("start", "follow", "inspect") == ["start", "follow", "inspect"]


async def test_timeout_of_an_adopted_run_counts_from_its_start(world: World) -> None:
    world.engine.lasts = True
    world.engine.earlier("running", ago=timedelta(hours=2))
    assert await world.execute(status="running") == "failed"
    assert world.outcome == ("timeout", 143)


@pytest.mark.parametrize(("seconds", "reason"), [(3599, "signal"), (3600, "timeout")])
async def test_adopted_run_that_ended_after_its_time_limit_is_a_timeout(
    world: World, seconds: float, reason: str
) -> None:
    world.engine.earlier(ago=timedelta(hours=2))
    assert world.engine.started_at is not None
    world.engine.exit_code, world.engine.finished_at = 143, world.engine.started_at + timedelta(seconds=seconds)
    assert await world.execute(status="running", container_id=CONTAINER) == "failed"
    assert world.outcome == (reason, 143)
    assert world.did("stop") == []


async def test_slow_storing_of_the_log_is_no_timeout(world: World) -> None:
    world.queue.storing = partial(anyio.sleep, 0.2)
    assert await world.execute(config={"timeout_seconds": 0.05}) == "succeeded"
    assert world.did("stop") == []


# --- the output limit -----------------------------------------------------------------------------------------------


async def test_output_limit_kills_without_grace(world: World) -> None:
    world.engine.lasts = True
    world.limit_output(1)
    assert await world.execute() == "failed"
    assert world.outcome == ("output_limit", 143)
    assert world.engine.grace_seconds == 0
    assert world.said == SAID[:1], "the rest is not read"


async def test_output_up_to_the_limit_is_allowed_and_counted(world: World) -> None:
    lines = LineAssembler(0, 2**20, Redactor())
    lines.feed(JOURNAL)
    world.limit_output(lines.output)
    run = world.run()
    assert await world.execute(run) == "succeeded"
    assert run.quota.printed == lines.output, "it counts against the disk, too"


async def test_output_limit_waits_for_the_end_without_reading_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.engine.lasts = True
    world.limit_output(1)
    kill = ScriptedContainer.stop

    async def slow(container: ScriptedContainer, grace_seconds: float) -> None:
        looks = len(world.did("inspect"))
        while len(world.did("inspect")) < looks + 3:
            await checkpoint()
        await kill(container, grace_seconds)

    monkeypatch.setattr(ScriptedContainer, "stop", slow)
    assert await world.execute() == "failed"
    assert world.engine.follows == 1
