"""Calls of an engine that is away, or that answers that it failed, are repeated."""

from __future__ import annotations

import pytest

from tests.unit.fakes import AWAY, SAID, World
from worker.errors import EngineError
from worker.model.outcome import Stop
from worker.run.engine_retry import ENGINE_REFUSALS

CALLS = ["image", "pull", "create", "start", "inspect", "follow", "last_entry", "archive", "remove"]


@pytest.mark.parametrize("fault", [AWAY, EngineError(500, "out of luck")], ids=["away", "failed once"])
@pytest.mark.parametrize("call", CALLS)
async def test_call_is_repeated_until_the_engine_answers(world: World, call: str, fault: Exception) -> None:
    times = ENGINE_REFUSALS + 3 if fault is AWAY else 1
    world.engine.here = call != "pull"
    world.engine.faults = {call: [fault] * times}
    assert await world.execute() == "succeeded"
    assert world.said == SAID
    assert len(world.did(call)) > times
    assert world.engine.faults == {call: []}
    assert len(world.queue.artifacts) == 1
    assert world.engine.status is None


async def test_lookup_of_a_pulled_image_is_repeated(world: World) -> None:
    async def go_away() -> None:
        world.engine.faults = {"image": [AWAY] * 4}

    world.engine.here, world.engine.pulls = False, go_away
    assert await world.execute() == "succeeded"
    assert (len(world.did("pull")), len(world.did("image"))) == (1, 6)


async def test_adoption_waits_for_the_engine(world: World) -> None:
    world.engine.earlier()
    world.engine.faults = {"inspect": [AWAY] * 4}
    assert await world.execute(status="running") == "succeeded"
    assert world.did("image", "create") == []


@pytest.mark.parametrize("why", [Stop.CANCEL, Stop.TIMEOUT])
async def test_stop_is_repeated(world: World, why: Stop) -> None:
    world.engine.lasts = True
    world.set(quiet=60.0)  # then only the stop inspects the container
    seconds = 900 if why is Stop.CANCEL else 0.3
    world.engine.faults = {"stop": [AWAY] * 4}
    async with world.executing(config={"timeout_seconds": seconds}) as (run, _):
        world.engine.faults["inspect"] = [AWAY] * 4
        if why is Stop.CANCEL:
            run.stop(why)
    assert world.outcome == ("canceled" if why is Stop.CANCEL else "timeout", 143)
    assert len(world.did("stop")) == 5
