"""Each line of the journal is stored once, however often its stream breaks."""

from __future__ import annotations

import anyio
import pytest

from tests.unit.fakes import AWAY, END, FRAMES, JOURNAL, QUIET, SAID, Step, World, until
from tests.unit.journal import header
from worker.errors import EngineError, EngineUnavailable
from worker.run.engine_retry import ENGINE_REFUSALS


@pytest.mark.parametrize("end", [AWAY, END], ids=["broken", "clean but short"])
async def test_stream_cut_at_any_byte_loses_and_doubles_no_line(end: Step, world: World) -> None:
    for cut in range(len(JOURNAL)):
        world.__init__()  # type: ignore[misc]
        world.engine.readings = [[JOURNAL[:cut], end]] if cut else [[end]]
        assert await world.execute() == "succeeded"
        assert world.said == SAID, cut
        assert world.engine.follows == 2, cut


@pytest.mark.parametrize(
    "readings",
    [
        [[JOURNAL[:cut], AWAY] for cut in (100, 30, 150, 150)],
        [[JOURNAL, AWAY]],
        [[JOURNAL[:100], QUIET]],
        [[FRAMES[0], EngineError(500, "restarting")]] * (2 * ENGINE_REFUSALS),
    ],
    ids=["cut again and again", "broken after its last byte", "quiet after the end", "refused between lines"],
)
async def test_broken_stream_is_read_again_until_it_is_whole(world: World, readings: list[list[Step]]) -> None:
    world.engine.readings = [list(reading) for reading in readings]
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    assert world.engine.follows == len(readings) + 1


@pytest.mark.parametrize("restarted", [True, False])
async def test_restart_of_the_engine_is_a_warning_since_lines_may_be_lost(world: World, *, restarted: bool) -> None:
    world.engine.restarted = restarted
    world.engine.exit_code = 255
    world.engine.readings = [[JOURNAL[:50], EngineUnavailable("gone")]]
    assert await world.execute() == "failed"
    assert world.said == SAID
    assert [reason for reason, _ in world.warnings] == (["log_damaged"] if restarted else [])
    assert world.outcome == (("engine_lost", None) if restarted else ("exit_code", 255))


async def test_engine_that_was_never_away_is_not_asked_for_a_restart(world: World) -> None:
    world.engine.restarted = True
    await world.execute()
    assert world.did("started_after") == []


async def test_journal_of_an_ended_container_is_read_without_follow(world: World) -> None:
    world.engine.follows_short = True
    assert await world.execute() == "succeeded"
    assert (world.said, world.engine.follows) == (SAID, 2)


async def test_readings_that_end_at_turns_at_two_places_come_no_further(world: World) -> None:
    world.engine.readings = [[*FRAMES[: 2 - n % 2], END] for n in range(50)]
    assert await world.execute() == "succeeded"
    assert world.engine.follows < 10
    assert world.said == SAID[:2]


@pytest.mark.parametrize("end", [END, QUIET], ids=["ends", "stays open"])
async def test_journal_that_never_comes_to_its_end_is_stored_as_far_as_it_was_read(end: Step, world: World) -> None:
    further = [[*FRAMES[: n // 4], end] for n in range(4, 12)]  # each place is reached four times
    world.engine.readings = [*further, *([FRAMES[0], FRAMES[1], end] for _ in range(50))]
    assert await world.execute() == "succeeded"
    assert world.said == SAID[:2]
    assert world.engine.follows == len(further) + 2
    said = "the log may be incomplete: 5 readings of it ended at the same place before its end"
    assert world.warnings == [("log_damaged", said)]


@pytest.mark.parametrize(
    "readings",
    [[[FRAMES[0], END], [FRAMES[0], FRAMES[1], AWAY]], [[*FRAMES, END]]],
    ids=["cut", "whole"],  # whole: as when the engine restarts and its containers live on
)
async def test_end_of_a_stream_is_not_the_end_of_a_running_container(world: World, readings: list[list[Step]]) -> None:
    world.engine.lasts = True
    world.engine.readings = [list(reading) for reading in readings]
    async with world.executing() as (_, result):
        assert result == []
        assert world.engine.follows == len(readings) + 1
        world.engine.become("exited")
    assert result == ["succeeded"]
    assert world.said == SAID


async def test_readings_before_the_end_of_the_container_do_not_count_as_stalled(world: World) -> None:
    world.engine.lasts = True
    gate = anyio.Event()
    world.engine.readings = [[FRAMES[0], END] for _ in range(10)]
    world.engine.readings.append([FRAMES[0], gate, END])
    async with world.executing():
        await until(lambda: world.engine.follows == 11)
        world.engine.become("exited")
        gate.set()
    assert (world.said, world.warnings) == (SAID, [])


async def test_engine_that_keeps_refusing_the_journal_ends_the_run(world: World) -> None:
    world.engine.faults = {"follow": [EngineError(500, "no such log driver")] * 50}
    assert await world.execute() == "failed"
    assert world.outcome == ("engine_error", None)
    assert "no such log driver" in world.message


async def test_failed_look_at_the_last_entry_costs_no_second_reading(world: World) -> None:
    world.engine.faults = {"last_entry": [AWAY] * 4}
    assert await world.execute() == "succeeded"
    assert world.engine.follows == 1


async def test_quiet_stream_of_a_running_container_is_kept(world: World) -> None:
    world.engine.lasts = True
    gate = anyio.Event()
    world.engine.readings = [[FRAMES[0], gate, *FRAMES[1:]]]
    async with world.executing():
        await until(lambda: len(world.did("inspect")) >= 5)
        gate.set()
        await until(lambda: len(world.queue.lines) == len(SAID))
        assert world.engine.follows == 1
        world.engine.become("exited")
    assert world.said == SAID


async def test_damaged_journal_is_a_warning_and_is_not_read_for_ever(world: World) -> None:
    broken = header(3, 23) + b"error reading log file\n"
    world.engine.readings = [[FRAMES[0], broken, END] for _ in range(50)]
    assert await world.execute() == "succeeded"
    assert world.engine.follows == 1, "reading it again brings the same"
    [(reason, message)] = world.warnings
    assert reason == "log_damaged"
    assert "error reading log file" in message


@pytest.mark.parametrize("end", [END, AWAY, QUIET])
async def test_container_that_vanished_ends_the_run_with_what_was_read(world: World, end: Step) -> None:
    world.engine.lasts = True
    gate = anyio.Event()
    world.engine.readings = [[gate, JOURNAL[:100], end]]
    async with world.executing() as (_, result):
        world.engine.become(None)
        gate.set()
    assert result == ["failed"]
    assert world.outcome == ("engine_lost", None)
    assert (world.said, world.warnings, world.queue.artifacts) == (SAID[:2], [], [])


async def test_log_beyond_its_limit_is_cut_and_a_warning_counts_the_lines(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.logs.lines.TAIL_BYTES", 80)  # one line
    world.set(max_log_bytes=80)
    assert await world.execute() == "succeeded"
    assert [seq for seq, _ in world.said] == [1, 2, len(SAID)]
    assert "left out here" in world.said[1][1]
    left_out = f"{len(SAID) - 2} of {len(SAID)} lines are left out in its middle"
    assert world.warnings == [("log_cut", f"the log is cut: {left_out}")]
    assert world.queue.events[-1][2] | {"omitted_lines": len(SAID) - 2, "lines": len(SAID)} == world.queue.events[-1][2]
