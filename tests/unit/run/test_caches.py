"""The caches of a run: copied before its container is made, kept only if it succeeded."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.unit.fakes import AWAY, CONTAINER, DATABASE, NAME, RUN_ID, World
from worker.errors import EngineError
from worker.model.outcome import Stop
from worker.model.spec import HostPolicy
from worker.model.volume import Mount, cache_volume

CONFIG: dict[str, Any] = {"cache": [{"name": "wheels", "path": "/wheels"}, {"name": "db", "path": "/db"}]}
PROJECT = uuid.UUID(int=1)
WHEELS, DB = (cache_volume(DATABASE, PROJECT, RUN_ID, name, NAME) for name in ("wheels", "db"))


def test_volume_of_a_cache_belongs_to_one_run_of_one_project() -> None:
    a, b = uuid.UUID(int=1), uuid.UUID(int=2)
    made = {cache_volume(*ids, name, NAME).engine_name
            for ids in ((a, a, a), (b, a, a), (a, b, a), (a, a, b)) for name in ("x", "y")}  # fmt: skip
    assert len(made) == 8


async def test_caches_are_copied_before_the_run_is_made_and_kept_before_its_success_is_final(
    world: World,
) -> None:
    assert await world.execute(config=CONFIG) == "succeeded"
    steps = ("fill wheels", "fill db", "create", "keep wheels", "keep db", "complete", "remove", "remove beside")
    assert world.did(*steps, "trim to 10737418240") == [*steps, "trim to 10737418240"]
    assert world.engine.created is not None
    assert world.engine.created[1].volumes == (
        Mount(WHEELS.engine_name, "/wheels", read_only=False), Mount(DB.engine_name, "/db", read_only=False),
    )  # fmt: skip
    said = [message for kind, message, _ in world.queue.events if kind == "info"]
    assert [message for message in said if message.startswith("copied cache 'wheels': 1m in ")]


@pytest.mark.parametrize("how", ["exit code", "cancel", "artifacts"])
async def test_run_that_did_not_succeed_keeps_no_cache(world: World, how: str) -> None:
    world.engine.exit_code = 3 if how == "exit code" else 0
    world.store.errors = [EngineError(500, "no")] * 99 if how == "artifacts" else []
    run = world.run(config=CONFIG)
    if how == "cancel":
        run.stop(Stop.CANCEL)
    await world.execute(run)
    assert world.outcome[1] != 0
    assert world.did("keep wheels", "keep db") == []
    assert world.did("remove beside") == ["remove beside"]


async def test_adopted_run_keeps_the_caches_of_its_terms_and_copies_none(world: World) -> None:
    world.engine.earlier(**CONFIG)
    world.engine.caches = [WHEELS, DB]
    assert await world.execute(status="running", container_id=CONTAINER, config={"comand": 1}) == "succeeded"
    assert world.did("fill wheels", "keep wheels", "keep db") == ["keep wheels", "keep db"]


async def test_cache_that_cannot_be_copied_is_empty_and_does_not_end_the_run(world: World) -> None:
    world.engine.faults = {"fill db": [EngineError(409, "in use")], "keep wheels": [EngineError(400, "no")]}
    assert await world.execute(config=CONFIG) == "succeeded"
    assert world.did("fill db", "empty db") == ["fill db", "empty db"]
    assert world.warnings == [
        ("cache_failed", "cache 'db' could not be copied, the run begins with an empty one: in use")
    ]


async def test_calls_for_caches_outlast_an_absent_engine(world: World) -> None:
    calls = ("fill wheels", "keep wheels", "trim to 5")
    world.set(policy=HostPolicy(max_cache=5))
    world.engine.faults = {call: [AWAY] * 3 for call in calls}
    assert await world.execute(config=CONFIG) == "succeeded"
    assert {call: world.story.count(call) for call in calls} == dict.fromkeys(calls, 4)
