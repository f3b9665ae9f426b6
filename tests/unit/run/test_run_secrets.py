"""A run with secrets between the scripted engine, queue and store: what it gets, and what it does not tell."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.claims import make_claim
from tests.unit.fakes import RUN_ID, World, made_with
from tests.unit.journal import frame
from worker.errors import ArtifactError, EngineError, EngineUnavailable
from worker.model.container import Secret
from worker.model.spec import HostPolicy
from worker.run.lifecycle import Run
from worker.run.secrets import SecretsFolder

CONFIG: dict[str, Any] = {"secrets": ["token"], "env": {"TOKEN": "workflow", "OTHER": "1"}}


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "token").write_bytes(b"hunter22\n")
    made = World()
    made.engine.frames = [frame(1, b"the token is hunter22\n"), frame(2, b'{"t": "aHVudGVyMjI="}\n')]
    return made


def run(world: World, folder: Path | None, policy: HostPolicy | None = None, **claim: Any) -> Run:
    plain = world.context()
    context = dataclasses.replace(plain, secrets=SecretsFolder(folder), policy=policy or plain.policy)
    return Run(make_claim(RUN_ID, config=CONFIG, **claim), context)


def told(world: World) -> str:
    """Everything that the control plane was told."""
    return repr((world.queue.lines, world.queue.events, world.queue.artifacts, world.queue.outcome))


async def test_a_run_gets_its_secrets_as_files_only(world: World, tmp_path: Path) -> None:
    assert await world.execute(run(world, tmp_path)) == "succeeded"
    assert world.engine.created is not None
    _, spec, secrets = world.engine.created
    assert secrets == (Secret("token", b"hunter22\n"),)
    assert {**spec.env, **CONFIG["env"]} == spec.env
    assert world.said == [(1, "the token is ***"), (2, '{"t": "***="}')]
    assert world.store.redact("hunter22.txt") == "***.txt", "names of artifacts are masked with the same secrets"


async def test_where_the_host_allows_it_they_are_variables_too(world: World, tmp_path: Path) -> None:
    (tmp_path / "token").rename(tmp_path / "ops_run_id")
    (tmp_path / "token").write_bytes(b"hunter22\n")
    policy = HostPolicy(secrets_as_env=True)
    made = run(world, tmp_path, policy)
    config = {"secrets": ["token", "ops_run_id"], "env": CONFIG["env"]}
    made.claim = make_claim(RUN_ID, config=config)
    assert await world.execute(made) == "succeeded"
    assert world.engine.created is not None
    env = world.engine.created[1].env
    assert (env["TOKEN"], env["OTHER"], env["OPS_RUN_ID"]) == ("hunter22", "1", str(RUN_ID))


async def test_a_missing_secret_fails_the_run_before_the_engine_is_asked_for_anything(world: World) -> None:
    assert await world.execute(run(world, None)) == "failed"
    assert world.outcome == ("secret_missing", None)
    assert "secret 'token' is missing" in world.message
    assert world.did("image", "pull", "create", "start") == []


@pytest.mark.parametrize(
    "fault",
    [
        {"create": [EngineError(400, "invalid: hunter22")]},
        {"start": [ValueError("hunter22")]},
        {"start": [EngineError(400, "exec aHVudGVyMjI: not found")]},
    ],
)
async def test_no_message_of_a_failure_has_a_secret(
    world: World, tmp_path: Path, fault: dict[str, list[Exception]]
) -> None:
    world.engine.faults = fault
    with capture_logs() as logged:
        assert await world.execute(run(world, tmp_path)) == "failed"
    assert "***" in world.message
    assert [line["error_message"] for line in logged if line["event"] == "run finished"] == [world.message]
    assert "hunter22" not in told(world)
    assert "aHVudGVyMj" not in told(world)


async def test_no_warning_and_no_detail_has_a_secret(world: World, tmp_path: Path) -> None:
    world.store.warns = ["artifact 'hunter22' refused"]
    world.store.errors = [ArtifactError("cannot store hunter22.txt")]
    world.engine.exit_code = 1
    assert await world.execute(run(world, tmp_path)) == "failed"
    assert world.queue.outcome is not None
    assert world.queue.outcome.details["artifacts_error"] == "cannot store ***.txt"
    assert "hunter22" not in told(world)


@pytest.mark.parametrize("on_host", ["hunter22", "rotated-since", None])
async def test_an_adopted_run_is_redacted_by_what_its_container_got_and_by_what_the_host_has(
    world: World, tmp_path: Path, on_host: str | None
) -> None:
    world.engine.become("exited")
    world.engine.started_at = datetime.now(UTC)
    world.engine.labels = made_with(**CONFIG)
    world.engine.held = (Secret("token", b"hunter22\n"),)
    world.engine.frames = [frame(1, b"hunter22 rotated-since\n")]
    (tmp_path / "token").unlink() if on_host is None else (tmp_path / "token").write_text(on_host)
    assert await world.execute(run(world, tmp_path, status="running")) == "succeeded"
    assert world.said == [(1, "*** ***" if on_host == "rotated-since" else "*** rotated-since")]
    assert world.did("image", "create") == []


async def test_an_adopted_run_asks_again_for_what_its_container_holds(world: World, tmp_path: Path) -> None:
    world.engine.become("exited")
    world.engine.started_at = datetime.now(UTC)
    world.engine.labels = made_with(**CONFIG)
    world.engine.held = (Secret("token", b"hunter22\n"),)
    world.engine.faults = {"secrets": [EngineUnavailable("away")] * 4}
    (tmp_path / "token").unlink()
    assert await world.execute(run(world, tmp_path, status="running")) == "succeeded"
    assert "hunter22" not in told(world)


async def test_an_adopted_run_without_secrets_is_not_asked_for_any(world: World) -> None:
    world.engine.become("exited")
    world.engine.started_at = datetime.now(UTC)
    world.engine.held = (Secret("token", b"planted by the program"),)
    assert await world.execute(status="running") == "succeeded"
    assert world.did("secrets") == []


async def test_a_container_that_was_not_started_yet_is_made_again_with_the_secrets_of_now(
    world: World, tmp_path: Path
) -> None:
    world.engine.become("created")
    assert await world.execute(run(world, tmp_path, status="running")) == "succeeded"
    assert world.engine.created is not None
    assert world.engine.created[2] == (Secret("token", b"hunter22\n"),)
    assert [event[1] for event in world.queue.events] == ["container created"]
