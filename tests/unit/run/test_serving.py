"""A served run: when it is ready, what ends it, and what an adopting worker asks again."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.unit.claims import make_claim
from tests.unit.fakes import AWAY, CONTAINER, DATABASE, FRAMES, NAME, RUN_ID, SAID, World, service_state, until
from tests.unit.journal import frame
from worker.errors import EngineError, LeaseLost
from worker.model.container import LABEL_TERMS, Networks, ProjectNetwork, RunNetwork
from worker.model.outcome import Stop
from worker.model.spec import HostPolicy, RunTerms
from worker.run.lifecycle import Run
from worker.run.preparation import START_ATTEMPTS

SERVE: dict[str, Any] = {"port": 8069, "health": {"path": "/web/health", "interval_seconds": 0.1}}
URL = "http://127.0.0.1:40001"
READY_AT: dict[str, Any] = {"ready_at": "2026-01-01T00:00:00+00:00"}


class Probe:
    """Answers as the script says, then always well."""

    def __init__(self, *script: bool) -> None:
        self.script = list(script)
        self.asked: list[tuple[str, int, str]] = []

    async def __call__(self, host: str, port: int, path: str, seconds: float) -> bool:
        await anyio.lowlevel.checkpoint()
        assert seconds == 5
        self.asked.append((host, port, path))
        return self.script.pop(0) if self.script else True


def served(world: World, *script: bool, **serve: Any) -> dict[str, Any]:
    """The configuration of a served run whose container lasts."""
    world.engine.lasts = True
    world.set(probe=Probe(*script))
    return {"serve": SERVE | serve}


async def test_run_is_ready_at_the_first_good_answer_and_ends_by_a_cancel(world: World) -> None:
    config = served(world, False, False)
    async with world.executing(config=config) as (run, result):
        await until(lambda: world.queue.ready)
        assert run.served
        assert world.queue.outcome is None
        run.stop(Stop.CANCEL)
    assert world.queue.ready == [URL]
    assert result == ["canceled"]
    assert world.context.probe.asked == [("127.0.0.1", 40_001, "/web/health")] * 3  # type: ignore[attr-defined]
    assert world.said == SAID
    assert world.engine.grace_seconds == 3
    assert world.engine.created is not None
    spec = world.engine.created[1]
    assert (spec.serve_address, spec.journal_bytes) == ("127.0.0.1", 8 * 2**30)


async def test_run_succeeds_when_its_time_of_serving_is_over_though_its_timeout_was_shorter(world: World) -> None:
    config = served(world, ttl_seconds=0.3) | {"timeout_seconds": 0.01, "cache": [{"name": "a", "path": "/a"}]}
    assert await world.execute(config=config) == "succeeded"
    assert world.outcome == ("ttl", 0)
    assert world.queue.ready == [URL]
    assert world.did("stop", "keep a", "complete") == ["stop", "complete"], "it was ended, so its cache may be halfway"


async def test_time_of_serving_that_passed_while_no_worker_looked_ends_the_run(world: World) -> None:
    world.engine.earlier("running", ago=timedelta(hours=1), **served(world, ttl_seconds=60))
    assert await world.execute(status="running", container_id=CONTAINER, **READY_AT) == "succeeded"
    assert world.outcome == ("ttl", 0)


@pytest.mark.parametrize("ttl", [3600, 0.2])
async def test_run_that_is_not_ready_in_time_fails_with_its_last_lines(world: World, ttl: float) -> None:
    world.engine.tail = frame(2, b"cannot bind\n")
    config = served(world, *[False] * 1000, ready_timeout_seconds=0.2, ttl_seconds=ttl)
    assert await world.execute(config=config) == "failed"
    assert world.outcome == ("not_ready", 143)
    assert "/web/health did not answer 2xx or 3xx within 0.2 s" in world.message
    assert world.queue.ready == []
    if ttl > 1:
        assert world.queue.outcome is not None
        assert world.queue.outcome.details["log"] == ["cannot bind"]


@pytest.mark.parametrize(
    ("exit_code", "outcome"), [(0, ("serve_ended", None)), (3, ("exit_code", 3)), (139, ("signal", 139))]
)
@pytest.mark.parametrize("ready", [True, False])
async def test_run_that_dies_fails(
    world: World, exit_code: int, outcome: tuple[str, int | None], *, ready: bool
) -> None:
    config = served(world, *[ready] * 1000)
    async with world.executing(config=config):
        await until(lambda: world.queue.ready if ready else world.context.probe.asked)  # type: ignore[attr-defined]
        world.engine.exit_code = exit_code
        world.engine.become("exited")
    assert world.outcome == outcome


async def test_run_that_died_before_it_was_ready_keeps_its_own_reason(world: World) -> None:
    """Its log may take longer to store than it had to become ready."""
    world.engine.earlier(ago=timedelta(hours=1), **served(world))
    world.engine.exit_code = 3
    world.queue.storing = partial(until, lambda: world.story.count("inspect") > 4)
    await world.execute(status="running", container_id=CONTAINER)
    assert world.outcome == ("exit_code", 3)


async def test_answer_of_another_container_at_the_same_port_is_not_taken(world: World) -> None:
    config = served(world)

    async def dies(host: str, port: int, path: str, seconds: float) -> bool:
        world.engine.exit_code = 1
        world.engine.become("exited")
        return True

    world.set(probe=dies)
    assert await world.execute(config=config) == "failed"
    assert world.queue.ready == []


async def test_adopted_run_that_was_ready_is_not_asked_again(world: World) -> None:
    config = served(world, *[False] * 1000, ready_timeout_seconds=0.1)
    world.engine.earlier("running", ago=timedelta(minutes=5), **config)
    async with world.executing(status="running", container_id=CONTAINER, **READY_AT) as (run, _):
        await until(lambda: "follow" in world.story)
        await anyio.sleep(0.2)
        assert (run.served, world.did("stop")) == (True, [])
        run.stop(Stop.CANCEL)
    assert world.context.probe.asked == []  # type: ignore[attr-defined]
    assert world.outcome[0] == "canceled"


async def test_adopted_run_that_was_not_ready_is_asked_for_what_is_left_of_its_time(world: World) -> None:
    config = served(world, False)
    world.engine.earlier("running", ago=timedelta(seconds=10), **config)
    async with world.executing(status="running", container_id=CONTAINER) as (run, _):
        await until(lambda: world.queue.ready)
        run.stop(Stop.CANCEL)
    world.__init__()  # type: ignore[misc]
    world.engine.earlier("running", ago=timedelta(minutes=5), **served(world, *[False] * 1000))
    assert await world.execute(status="running", container_id=CONTAINER) == "failed"
    assert world.outcome[0] == "not_ready"


async def test_lost_lease_while_it_becomes_ready_leaves_the_container(world: World) -> None:
    world.queue.faults = {"mark_ready": [LeaseLost(RUN_ID)]}
    assert await world.execute(config=served(world)) is None
    assert world.engine.status == "running"
    assert world.did("stop", "remove", "complete") == []


async def test_calls_for_a_served_run_outlast_an_absent_engine(world: World) -> None:
    world.engine.faults = {call: [AWAY] * 3 for call in ("log_began", "tail", "inspect")}
    config = served(world, *[False] * 1000, ready_timeout_seconds=1)
    assert await world.execute(config=config) == "failed"
    assert world.outcome[0] == "not_ready"


async def test_services_of_a_served_run_have_its_time_to_become_ready(world: World) -> None:
    service = {"name": "db", "image": "postgres:16"}
    config = served(world, ready_timeout_seconds=0.1) | {"services": [service], "timeout_seconds": 3600}
    world.engine.service("db").states = [service_state("starting")]
    assert await world.execute(config=config) == "failed"
    assert world.message == "service 'db' was not healthy within 0.1 s (serve.ready_timeout_seconds)"


async def test_route_of_the_host_is_the_url_and_labels_of_the_container(world: World) -> None:
    world.set(policy=HostPolicy(serve_url="https://{slug}-{ref}.example"))
    async with world.executing(config=served(world), metadata={"git_ref": "main"}) as (run, _):
        await until(lambda: world.queue.ready)
        run.stop(Stop.CANCEL)
    assert world.queue.ready == ["https://acme-main.example"]
    assert world.engine.labels[f"traefik.http.routers.{NAME}.rule"] == "Host(`acme-main.example`)"
    terms = RunTerms.model_validate_json(world.engine.labels[LABEL_TERMS]).serve
    assert terms is not None
    assert terms.url == "https://acme-main.example"


# --- its log --------------------------------------------------------------------------------------------------------


async def test_output_beyond_its_limit_ends_no_served_run(world: World) -> None:
    world.set(max_log_bytes=1)
    config = served(world) | {"resources": {"output": "10"}}
    async with world.executing(config=config) as (run, _):
        await until(lambda: world.queue.ready)
        await until(lambda: run.quota.printed)
        run.stop(Stop.CANCEL)
    assert world.outcome[0] == "canceled"
    assert run.quota.printed == 10, "more than the engine keeps of it is not on the disk"


@pytest.mark.parametrize("dropped", [False, True])
async def test_log_whose_beginning_the_engine_dropped_goes_on_with_its_end(world: World, *, dropped: bool) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    world.engine.earlier(**served(world))
    world.engine.log_began = began + timedelta(microseconds=1) if dropped else began
    world.engine.frames = FRAMES[2:] if dropped else FRAMES
    world.engine.exit_code = 3
    claim: dict[str, Any] = {
        "status": "running",
        "container_id": CONTAINER,
        "log_position": 2,
        "log_began_at": began.isoformat(),
    }
    await world.execute(**claim)
    left_out = "[1 lines or more left out here: the engine no longer had all of them]"
    assert world.said == ([(3, left_out), *((n + 1, text) for n, text in SAID[2:])] if dropped else SAID[2:])
    assert [reason for reason, _ in world.warnings] == (["log_cut"] if dropped else [])


async def test_log_of_an_ordinary_run_is_never_taken_as_cut(world: World) -> None:
    await world.execute()
    assert world.did("log_began") == []


# --- the network of a project ---------------------------------------------------------------------------------------

PROJECT = ProjectNetwork(DATABASE, uuid.UUID(int=1))
NAMES = ("run-1.project", "nightly.project")


async def test_run_on_the_network_of_its_project_has_its_names_there(world: World) -> None:
    config = {"network": "project", "services": [{"name": "db", "image": "postgres:16"}]}
    assert await world.execute(config=config) == "succeeded"
    own = RunNetwork(NAME, internal=False)
    assert world.engine.networks == {
        "db": Networks(own, PROJECT, ("db.run-1.project", "db.nightly.project")), "": Networks(own, PROJECT, NAMES),
    }  # fmt: skip
    steps = ("create project network", "start db", "start", "complete", "remove", "trim project networks")
    assert world.did(*steps) == [
        "create project network", "start db", "create project network", "start", "complete", "remove",
        "trim project networks",
    ]  # fmt: skip
    assert world.engine.labels.items() >= PROJECT.labels.items()


async def test_a_workflow_takes_no_name_of_another_run(world: World) -> None:
    claim = make_claim(RUN_ID, config={"network": "project"})
    run = Run(replace(claim, workflow=replace(claim.workflow, name="Run 13")), world.context)
    assert await world.execute(run) == "succeeded"
    assert world.engine.networks[""].names == ("run-1.project",)


async def test_network_that_another_run_has_just_removed_is_made_again(world: World) -> None:
    gone = EngineError(404, "network ops-project-x not found")
    world.engine.faults = {"start": [gone, gone]}
    assert await world.execute(config={"network": "project"}) == "succeeded"
    assert world.story.count("create project network") == 3
    world.__init__()  # type: ignore[misc]
    world.engine.faults = {"start": [gone] * START_ATTEMPTS}
    assert await world.execute(config={"network": "project"}) == "failed"
    assert world.outcome[0] == "engine_error"


async def test_run_on_another_network_makes_no_call_for_that_of_its_project(world: World) -> None:
    assert await world.execute() == "succeeded"
    assert world.did("create project network", "trim project networks") == []
    assert world.engine.networks == {"": Networks()}
