"""The services of a run: created before it, started and healthy before it starts, watched, and removed after it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import AWAY, CONTAINER, DATABASE, NAME, RUN_ID, DaemonWorld, World, service_state, until
from tests.unit.journal import frame
from worker.errors import EngineError, LeaseLost
from worker.model.container import ContainerState, RunNetwork, Secret
from worker.model.outcome import Stop
from worker.model.spec import Bound, HostPolicy
from worker.model.volume import Mount, ProjectVolume, engine_name
from worker.run.secrets import SecretsFolder
from worker.run.services import KEPT_CHARACTERS, KEPT_LINES

DB: dict[str, Any] = {"name": "db", "image": "postgres:16", "env": {"A": "1"}, "secrets": ["token"]}
CACHE = {"name": "cache", "image": "redis:7"}
CONFIG: dict[str, Any] = {"services": [DB, CACHE]}
HEALTHY, STARTING, UNHEALTHY = (service_state(health) for health in ("healthy", "starting", "unhealthy"))
SAID = b"".join(frame(2, f"line {n} of hunter22\n".encode()) for n in range(200))


@pytest.fixture
def world(world: World, tmp_path: Path) -> World:
    (tmp_path / "token").write_bytes(b"hunter22\n")
    world.set(secrets=SecretsFolder(tmp_path))
    return world


def steps(world: World, *more: str) -> list[str]:
    """What was done to containers and network, in order."""
    names = ("network", "db", "cache", "beside")
    return [step for step in world.story if step in ("create", "start", "remove", *more) or step.endswith(names)]


@pytest.mark.parametrize(("network", "internal"), [("bridge", False), ("none", True)])
async def test_run_starts_when_its_services_are_healthy_and_all_is_removed_after_it(
    world: World,
    network: str,
    internal: bool,  # noqa: FBT001 - a table's column
) -> None:
    world.engine.service("db").states = [STARTING, STARTING, HEALTHY]
    seen = []

    async def note() -> None:
        seen.append(world.engine.network)

    world.queue.storing = note
    assert await world.execute(config=CONFIG | {"network": network}) == "succeeded"
    assert steps(world, "complete") == [
        "create network", "create db", "create cache", "create", "start db", "start cache",
        "inspect db", "inspect cache", "inspect db", "inspect db", "start",
        *steps(world, "complete")[11:],
    ]  # fmt: skip
    assert steps(world, "complete")[-3:] == ["complete", "remove", "remove beside"]
    assert seen[0] == RunNetwork(NAME, internal)
    made = world.engine.service("db").created
    assert made is not None
    assert (made[0].image, made[0].env, made[1]) == (
        "docker.io/library/postgres:16", {"A": "1"}, (Secret("token", b"hunter22\n"),),
    )  # fmt: skip
    [(_, _, facts)] = [event for event in world.queue.events if event[1] == "container created"]
    assert facts["services"].keys() == {"db", "cache"}
    assert facts["services"]["db"]["image_id"] == "sha256:1"


async def test_run_without_services_makes_no_call_for_them(world: World) -> None:
    assert await world.execute() == "succeeded"
    assert steps(world) == ["create", "start", "remove"]


FAILED: list[tuple[list[ContainerState | None], str]] = [
    ([service_state(exit_code=0)], "service 'db' ended with exit code 0"),
    ([STARTING, service_state(exit_code=127)], "service 'db' ended with exit code 127 (command not found)"),
    ([STARTING, UNHEALTHY], "service 'db' is unhealthy: its health check failed too often"),
    ([service_state(exit_code=137, oom_killed=True)],
     "service 'db' was out of memory: a process was killed at the limit of 2g; raise its resources.memory"),
    ([None], "service 'db' is gone from the engine"),
]  # fmt: skip


@pytest.mark.parametrize(("states", "message"), FAILED)
async def test_service_that_does_not_become_healthy_ends_the_run_before_it_starts(
    world: World, states: list[ContainerState | None], message: str
) -> None:
    world.engine.service("db").states = states
    assert await world.execute(config=CONFIG) == "failed"
    assert (*world.outcome, world.message) == ("service_failed", None, message)
    assert world.did("start") == []
    assert steps(world)[-2:] == ["remove", "remove beside"]


@pytest.mark.parametrize(("states", "message"), FAILED)
async def test_service_that_fails_beside_the_run_stops_it_with_the_last_lines_in_the_event(
    world: World, states: list[ContainerState | None], message: str
) -> None:
    world.engine.lasts = True
    world.engine.service("db").journal = SAID + frame(1, b"x" * 9_999)
    world.engine.service("db").states = [HEALTHY, HEALTHY, *states]
    assert await world.execute(config=CONFIG) == "failed"
    assert (*world.outcome, world.message) == ("service_failed", 143, message)
    assert world.engine.grace_seconds == 3
    assert world.queue.outcome is not None
    details = world.queue.outcome.details
    assert details["service"] == "db"
    if states != [None]:
        kept = [f"line {n} of ***" for n in range(200 - KEPT_LINES + 1, 200)]
        assert details["service_log"] == [*kept, "x" * KEPT_CHARACTERS]
    assert all("hunter22" not in line.message for line in world.queue.lines)


async def test_services_that_stay_unready_end_the_run_at_its_time_limit(world: World) -> None:
    world.engine.service("db").states = [STARTING]
    assert await world.execute(config=CONFIG | {"timeout_seconds": 0.05}) == "failed"
    assert world.outcome == ("service_failed", None)
    assert world.message == "service 'db' was not healthy within 0.05 s (timeout_seconds)"


@pytest.mark.parametrize(("why", "reason"), [(Stop.CANCEL, "canceled"), (Stop.DISK, "disk_full")])
async def test_stop_while_services_start_ends_the_run_for_that_reason(world: World, why: Stop, reason: str) -> None:
    world.engine.service("db").states = [STARTING]
    async with world.executing(config=CONFIG) as (run, _):
        await until(lambda: world.story.count("inspect db") > 3)
        run.stop(why)
    assert world.outcome == (reason, None)
    assert world.did("start") == []
    assert steps(world)[-1] == "remove beside"


async def test_service_that_cannot_be_started_is_named(world: World) -> None:
    world.engine.faults = {"start db": [EngineError(400, "exec: not found")]}
    assert await world.execute(config=CONFIG) == "failed"
    assert world.outcome == ("engine_error", None)
    assert "service 'db': exec: not found" in world.message


async def test_calls_for_services_outlast_an_absent_engine(world: World) -> None:
    calls = ("create network", "create db", "start db", "inspect db", "tail db", "remove beside")
    world.engine.faults, world.engine.lasts = {call: [AWAY] * 3 for call in calls}, True
    world.engine.service("db").states = [HEALTHY, service_state(exit_code=1, ago=60)]
    assert await world.execute(config=CONFIG) == "failed"
    assert world.outcome[0] == "service_failed"


async def test_run_over_its_quota_kills_its_services_too(world: World) -> None:
    world.engine.lasts = True
    async with world.executing(config=CONFIG) as (run, _):
        await until(lambda: "start" in world.story)
        run.quota.record(2**50)
    assert world.outcome[0] == "disk_limit"
    assert world.did("stop db", "stop cache") == ["stop db", "stop cache"]


# --- what ended while no worker looked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("db", "outcome"),
    [
        (HEALTHY, ("succeeded", 0)),
        (service_state(exit_code=0, ago=60.0), ("service_failed", None)),
        (service_state(exit_code=0, ago=-3600.0), ("succeeded", 0)),
        (None, ("service_failed", None)),
    ],
)
async def test_service_that_ended_before_an_adopted_run_did_ends_it(
    world: World, db: ContainerState | None, outcome: tuple[str, int | None]
) -> None:
    world.engine.earlier(ago=timedelta(minutes=5), **CONFIG)
    world.engine.finished_at = service_state(exit_code=0).finished_at
    world.engine.service("db").states = [db]
    await world.execute(config={"comand": 1}, status="running", container_id=CONTAINER)
    assert world.outcome == outcome
    assert world.did("create db", "start db", "create network") == []
    assert steps(world)[-2:] == ["remove", "remove beside"]


@pytest.mark.parametrize("status", ["created", "running"])
async def test_adopted_run_starts_services_only_before_itself(world: World, status: str) -> None:
    world.engine.earlier(status, **CONFIG)
    world.engine.started_at = None if status == "created" else world.engine.started_at
    async with world.executing(status="running", container_id=CONTAINER, config=CONFIG):
        await until(lambda: "inspect cache" in world.story)
        world.engine.become("exited")
    assert world.did("start db", "start cache") == (["start db", "start cache"] if status == "created" else [])
    assert world.did("create db", "create network") == []


async def test_values_that_only_a_service_holds_are_masked_after_an_adoption(world: World) -> None:
    world.engine.earlier(**CONFIG)
    world.engine.service("db").held = (Secret("token", b"former-value\n"),)
    world.engine.frames = [frame(1, b"hunter22 and former-value\n")]
    await world.execute(status="running", container_id=CONTAINER, config=CONFIG)
    assert world.said == [(1, "*** and ***")]


async def test_engine_that_stops_is_no_failure_of_a_service(world: World) -> None:
    world.engine.earlier(ago=timedelta(minutes=5), **CONFIG)
    world.engine.finished_at = service_state(exit_code=0).finished_at
    world.engine.exit_code = 172
    world.engine.service("db").states = [service_state(exit_code=0, ago=1.0)]
    await world.execute(status="running", container_id=CONTAINER)
    assert world.outcome == ("engine_lost", None)


@pytest.mark.parametrize("call", ["record_container", "append_logs", "complete"])
async def test_lost_lease_leaves_the_services(world: World, call: str) -> None:
    world.queue.faults = {call: [LeaseLost(RUN_ID)]}
    assert await world.execute(config=CONFIG) is None
    assert world.did("stop db", "remove beside", "remove") == []


async def test_leftover_services_of_a_run_that_is_over_are_removed(daemon_world: DaemonWorld) -> None:
    run_id = uuid.uuid4()
    daemon_world.engine.containers = {run_id}
    daemon_world.queue.adoptions[run_id] = "final"
    async with daemon_world.working():
        await until(lambda: "remove beside" in daemon_world.engine.story)
    assert daemon_world.engine.beside_removed == [(DATABASE, run_id)]


async def test_host_allows_so_many_services(world: World) -> None:
    world.set(policy=HostPolicy(max_services=1, memory=Bound(2**30)))
    assert await world.execute(config=CONFIG) == "failed"
    assert world.message == "services: 2 are more than this host allows, 1"
    assert world.did("create network", "image") == []


# --- volumes --------------------------------------------------------------------------------------------------------

MOUNTED = {"name": "data", "path": "/data"}


async def test_volumes_of_run_and_services_are_made_once_for_its_project(world: World) -> None:
    world.set(policy=HostPolicy(allowed_volumes=("acme/*",)))
    db = DB | {"volumes": [MOUNTED, {"name": "other", "path": "/o", "read_only": True}]}
    assert await world.execute(config={"volumes": [MOUNTED], "services": [db, CACHE]}) == "succeeded"
    project = uuid.UUID(int=1)
    names = {name: engine_name(DATABASE, project, name) for name in ("data", "other")}
    assert world.engine.volumes == [ProjectVolume(names[name], DATABASE, project, name) for name in ("data", "other")]
    created, made = world.engine.created, world.engine.service("db").created
    assert created is not None
    assert made is not None
    assert created[1].volumes == (Mount(names["data"], "/data", read_only=False),)
    assert made[0].volumes == (
        Mount(names["data"], "/data", read_only=False), Mount(names["other"], "/o", read_only=True),
    )  # fmt: skip
    assert world.story.index("create volume data") < world.story.index("create db")
    assert world.did("stop db", "stop cache", "complete") == ["stop db", "complete"], "before another run may use it"


async def test_volume_that_the_host_does_not_allow_is_not_made(world: World) -> None:
    assert await world.execute(config={"volumes": [MOUNTED]}) == "failed"
    assert world.outcome == ("invalid_config", None)
    assert world.engine.volumes == []
