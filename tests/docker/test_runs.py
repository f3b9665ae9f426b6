"""The whole path of a run on a real engine: how it ends, and what it leaves in the database."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.docker import HOST_PASSWORD, Plane, docker
from worker.database.roles import login_url


@pytest.mark.parametrize(
    ("script", "status", "exit_code", "reason"),
    [
        ("true", "succeeded", 0, "succeeded"),
        ("exit 1", "failed", 1, "exit_code"),
        ("exit 255", "failed", 255, "exit_code"),
        ("kill -KILL $$", "failed", 137, "signal"),
        ("exit 137", "failed", 137, "signal"),
        ("kill -SEGV $$", "failed", 139, "signal"),
    ],
)
async def test_exit_code_becomes_the_run_s(plane: Plane, script: str, status: str, exit_code: int, reason: str) -> None:
    run_id = await plane.shell(script)
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["exit_code"], run["reason"]) == (status, exit_code, reason)
    assert (run["error_message"] is None) == (status == "succeeded")
    assert await plane.containers() == []


async def test_a_run_is_told_from_its_first_to_its_last_state(plane: Plane) -> None:
    run_id = await plane.shell("echo done; echo x > /artifacts/x")
    await plane.work()
    run = await plane.run(run_id)
    events = await plane.events(run_id, "state_change")
    steps = [(e["payload"]["previous_status"], e["payload"]["new_status"]) for e in events]
    assert steps == [("queued", "claimed"), ("claimed", "running"), ("running", "succeeded")]
    assert run["claimed_at"] <= run["started_at"] <= run["finished_at"]
    [line] = await plane.log(run_id)
    [artifact] = (await plane.artifacts(run_id)).values()
    assert max(line["created_at"], artifact["created_at"]) <= run["finished_at"], "completed before it was all there"
    [created] = [e["payload"] for e in await plane.events(run_id, "info") if e["message"] == "container created"]
    assert created["image_id"] == docker("image", "inspect", "-f", "{{.Id}}", plane.image).strip()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"timeout_seconds": "soon"}, "workflow config, timeout_seconds"),
        ({"comand": ["true"]}, "comand: unknown key; did you mean command?"),
        ({"resources": {"memory": "lots"}}, "workflow config, resources.memory"),
        ({"env": {"OPS_RUN_ID": "1"}}, "OPS_"),
        ({"network": "host"}, "network 'host' is not one of this host's: bridge, none"),
        ({"artifacts": [{"path": "../etc"}]}, "artifacts.0.path"),
    ],
)
async def test_a_bad_configuration_fails_the_run_and_names_the_field(
    plane: Plane, config: dict[str, Any], says: str
) -> None:
    run_id = await plane.queue(await plane.workflow(config))
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"], run["exit_code"]) == ("failed", "invalid_config", None)
    assert says in run["error_message"]
    [error] = await plane.events(run_id, "error")
    assert error["payload"]["reason"] == "invalid_config"


@pytest.mark.parametrize("metadata", [{"git_commit": "HEAD"}, {"args": [1]}, {"git_ref": "--x"}])
async def test_metadata_that_makes_no_sense_fails_the_run(plane: Plane, metadata: dict[str, Any]) -> None:
    run_id = await plane.queue(await plane.workflow({"command": ["true"]}), metadata)
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "invalid_config")
    assert next(iter(metadata)) in run["error_message"]


async def test_env_and_args_of_the_run_reach_the_program(plane: Plane) -> None:
    workflow = await plane.workflow({"command": ["sh", "-c", 'echo "$A $B $1"', "sh"],
                                     "env": {"A": "1", "B": "2"}, "run_env": ["B"]})  # fmt: skip
    run_id = await plane.queue(workflow, {"env": {"B": "3"}, "args": ["arg"], "asked_by": "a note of the caller's"})
    await plane.work()
    assert await plane.messages(run_id) == ["1 3 arg"]


async def test_the_program_sees_the_run_and_nothing_of_the_worker_s_environment(plane: Plane) -> None:
    workflow = await plane.workflow({"command": ["env", "-0"]}, git_ref="main", git_commit="abc123", name="nightly")
    run_id = await plane.queue(workflow)
    await plane.work(SECRET_OF_THE_HOST="hunter22")
    text = "\n".join(await plane.messages(run_id)).rstrip("�")
    seen = dict(entry.split("=", 1) for entry in text.split("�"))
    assert {key: value for key, value in seen.items() if key not in ("PATH", "HOME", "HOSTNAME")} == {
        "OPS_RUN_ID": str(run_id),
        "OPS_RUN_NUMBER": "1",
        "OPS_PROJECT": plane.name,
        "OPS_WORKSPACE_KEY": plane.name,
        "OPS_WORKFLOW_TYPE": "build",
        "OPS_WORKFLOW_NAME": "nightly",
        "OPS_ODOO_VERSION": "19.0",
        "OPS_GIT_REF": "main",
        "OPS_GIT_COMMIT": "abc123",
        "OPS_ARTIFACTS_DIR": "/artifacts",
    }


async def test_a_tool_that_is_not_registered(plane: Plane) -> None:
    run_id = await plane.queue(await plane.workflow({"tool": "flask"}))
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "tool_missing")
    assert "ops.tools has no flask 19.0" in run["error_message"]


async def test_an_image_that_cannot_be_had(plane: Plane) -> None:
    await plane.db.execute("update ops.tools set docker_image = '127.0.0.1:9/nowhere:1'")
    run_id = await plane.shell("true")
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "image_missing")
    assert "127.0.0.1:9/nowhere:1" in run["error_message"]


async def test_an_image_that_the_host_does_not_allow(plane: Plane) -> None:
    run_id = await plane.shell("true")
    await plane.work("--allowed-images", "registry.example/*, odoo:*")
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "image_not_allowed")


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("update ops.workflows set enabled = false", "workflow_disabled"),
        ("update ops.projects set status = 'archived'", "project_archived"),
    ],
)
async def test_what_was_switched_off_after_queueing_fails(plane: Plane, sql: str, reason: str) -> None:
    run_id = await plane.shell("true")
    await plane.db.execute(sql)
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", reason)


async def test_a_program_that_the_image_does_not_have(plane: Plane) -> None:
    run_id = await plane.queue(await plane.workflow({"command": ["/no/such/program"]}))
    await plane.work()
    run = await plane.run(run_id)
    assert run["status"] == "failed"
    assert "/no/such/program" in (run["error_message"] + "".join(await plane.messages(run_id)))
    assert await plane.containers() == []


async def test_a_command_that_the_workflow_does_not_give_is_its_type(plane: Plane) -> None:
    docker("tag", plane.image, f"{plane.name}:latest")
    try:
        await plane.db.execute("update ops.tools set docker_image = $1", f"{plane.name}:latest")
        run_id = await plane.queue(await plane.workflow(workflow_type="backup"))
        await plane.work()
    finally:
        docker("rmi", f"{plane.name}:latest")
    # The image has no entry point, so the type itself is looked for as a program.
    said = (await plane.run(run_id))["error_message"] + "".join(await plane.messages(run_id))
    assert "backup" in said


async def test_a_tool_s_configuration_is_the_ground_that_the_workflow_builds_on(plane: Plane) -> None:
    base = {"env": {"A": "tool", "B": "tool"}, "command": ["sh", "-c", "echo $A $B"]}
    await plane.db.execute("update ops.tools set config = $1", json.dumps(base))
    run_id = await plane.queue(await plane.workflow({"env": {"B": "workflow"}}))
    await plane.work()
    assert await plane.messages(run_id) == ["tool workflow"]


async def test_memory_beyond_the_limit_is_told_from_a_plain_kill(plane: Plane) -> None:
    run_id = await plane.python("x = bytearray(400 * 2**20)", resources={"memory": "64m"})
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"], run["exit_code"]) == ("failed", "out_of_memory", 137)
    assert "64 MiB" in run["error_message"]


async def test_a_child_killed_for_memory_fails_a_program_that_exits_zero(plane: Plane) -> None:
    child = "python3 -c 'x = bytearray(400 * 2**20)'"
    run_id = await plane.shell(f"{child} || true; exit 0", resources={"memory": "64m"})
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "out_of_memory")


async def test_no_row_of_the_database_stops_the_worker_or_the_queue(plane: Plane) -> None:
    endless = await plane.workflow({"command": ["true"]})
    huge = '{"note": 1e5000, "deep": ' + "[" * 30 + "]" * 30 + "}"
    bad = [await plane.queue(endless)]
    config = {"concurrency_key": "".join(f"{n:x}" for n in range(5000))}  # queued with that, the database refuses it
    await plane.db.execute("update ops.workflows set config = $2 where id = $1", endless, json.dumps(config))
    workflow = await plane.workflow({"command": ["true"]})
    numbers = await plane.queue(workflow)
    await plane.db.execute("update ops.runs set metadata = $2::text::jsonb where id = $1", numbers, huge)
    await plane.db.execute("insert into ops.tools (tool_name, version, docker_image) values ('blank', '1', 'A/B')")
    bad.append(await plane.queue(await plane.workflow({"tool": "blank", "version": "1"})))
    last = await plane.queue(workflow)
    await plane.work()
    assert [(await plane.run(run_id))["status"] for run_id in bad] == ["failed", "failed"]
    assert [(await plane.run(run_id))["status"] for run_id in (numbers, last)] == ["succeeded", "succeeded"]


async def test_the_worker_is_nobody_but_the_role_of_its_host(plane: Plane) -> None:
    run_id = await plane.shell("echo hello; echo kept > /artifacts/a.txt")
    await plane.work()
    assert (await plane.run(run_id))["status"] == "succeeded"
    actors = {event["payload"]["actor"] for event in await plane.events(run_id, "state_change")}
    assert actors == {f"{plane.name}_host"}


async def test_a_worker_may_still_be_service_role(plane: Plane) -> None:
    role = f"{plane.name}_service"
    await plane.db.execute(f"create role {role} login in role service_role")
    run_id = await plane.shell("echo hello; echo kept > /artifacts/a.txt")
    await plane.work(OPS_WORKER_DATABASE_URL=login_url(plane.url, "postgres", role, HOST_PASSWORD))
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert await plane.messages(run_id) == ["hello"]
    assert list(await plane.artifacts(run_id)) == ["a.txt"]
    assert {event["payload"]["actor"] for event in await plane.events(run_id, "state_change")} == {role}
