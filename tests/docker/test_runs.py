"""The whole path of a run on a real engine: how it ends, and what it leaves in the database."""

from __future__ import annotations

import json
from typing import Any

from tests.support.docker import FINAL, HOST_PASSWORD, Plane, docker

TOO_MUCH = "python3 -c 'x = bytearray(400 * 2**20)'"
SMALL: dict[str, Any] = {"resources": {"memory": "64m"}}
ENDINGS: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "true": ({}, "succeeded", 0, "succeeded"),
    "exit 255": ({}, "failed", 255, "exit_code"),
    "kill -KILL $$": ({}, "failed", 137, "signal"),
    "kill -SEGV $$": ({}, "failed", 139, "signal"),
    f"exec {TOO_MUCH}": (SMALL, "failed", 137, "out_of_memory"),
    f"{TOO_MUCH} || true; exit 0": (SMALL, "failed", 137, "out_of_memory"),
}


async def test_exit_code_signal_and_memory_limit_become_the_outcome(served: Plane) -> None:
    runs = {script: await served.shell(script, **config) for script, (config, *_) in ENDINGS.items()}
    for script, (_, *expected) in ENDINGS.items():
        run = await served.until(runs[script], *FINAL)
        assert [run["status"], run["exit_code"], run["reason"]] == expected, script
        assert run["reason"] != "out_of_memory" or "64 MiB" in run["error_message"]


async def test_states_log_and_artifacts_are_stored_in_order_and_at_their_time(served: Plane) -> None:
    run = await served.finished("echo a; sleep 1; echo b; echo x > /artifacts/x")
    events = await served.events(run["id"], "state_change")
    steps = [(e["payload"]["previous_status"], e["payload"]["new_status"]) for e in events]
    assert steps == [("queued", "claimed"), ("claimed", "running"), ("running", "succeeded")]
    first, second = await served.log(run["id"])
    assert run["claimed_at"] <= run["started_at"] < first["timestamp"] < second["timestamp"] < run["finished_at"]
    assert (second["timestamp"] - first["timestamp"]).total_seconds() >= 0.9
    [artifact] = (await served.artifacts(run["id"])).values()
    stored = max(second["created_at"], artifact["created_at"])
    assert stored <= run["finished_at"], "the run was completed before all was stored"
    [created] = [e["payload"] for e in await served.events(run["id"], "info") if e["message"] == "container created"]
    assert created["image_id"] == docker("image", "inspect", "-f", "{{.Id}}", served.image).strip()


async def test_a_run_that_cannot_start_fails_and_the_next_one_is_claimed(served: Plane) -> None:
    nowhere = await served.tool("127.0.0.1:9/nowhere:1")
    endless_key = "".join(f"{n:x}" for n in range(5000))
    rows: list[tuple[dict[str, Any], str, str]] = [
        ({"comand": ["true"]}, "invalid_config", "comand: unknown key; did you mean command?"),
        ({"version": await served.tool("A/B")}, "invalid_config", "'A/B'"),
        ({"version": nowhere}, "image_missing", "127.0.0.1:9/nowhere:1"),
        ({"command": ["/no/such/program"]}, "", ""),
    ]
    runs = [await served.queue(await served.workflow(config)) for config, _, _ in rows]
    workflow = await served.workflow({"command": ["true"]})
    async with served.db.transaction():  # queued with that configuration, the database would refuse it
        runs.append(await served.queue(workflow))
        config = json.dumps({"concurrency_key": endless_key})
        await served.db.execute("update ops.workflows set config = config || $2 where id = $1", workflow, config)
    rows.append(({}, "invalid_config", "concurrency_key"))
    numbers = await served.shell("true")
    huge = '{"note": 1e5000, "deep": ' + "[" * 30 + "]" * 30 + "}"
    await served.db.execute("update ops.runs set metadata = $2::text::jsonb where id = $1", numbers, huge)
    for run_id, (_, reason, message) in zip(runs, rows, strict=True):
        run = await served.until(run_id, *FINAL)
        assert run["status"] == "failed"
        [error] = await served.events(run_id, "error")
        assert error["payload"]["reason"] == run["reason"]
        if reason:
            assert (run["reason"], run["exit_code"]) == (reason, None)
            assert message in run["error_message"]
        else:  # the engine's init or the engine itself says it
            assert "/no/such/program" in run["error_message"] + "".join(await served.messages(run_id))
    assert (await served.until(numbers, *FINAL))["status"] == "succeeded"


async def test_the_program_gets_its_arguments_and_environment_and_nothing_of_the_worker_s(served: Plane) -> None:
    config = {"command": ["sh", "-c", 'echo "$1"; env -0', "sh"], "env": {"A": "1", "B": "2"}, "run_env": ["B"]}
    workflow = await served.workflow(config, git_ref="main", git_commit="abc123", name="nightly")
    run_id = await served.queue(workflow, {"env": {"B": "3"}, "args": ["arg"], "asked_by": "a note of the caller's"})
    await served.until(run_id, "succeeded")
    argument, environment = await served.messages(run_id)
    seen = dict(entry.split("=", 1) for entry in environment.rstrip("�").split("�"))
    assert argument == "arg"
    assert HOST_PASSWORD not in environment
    assert {key: value for key, value in seen.items() if key not in ("PATH", "HOME", "HOSTNAME", "PWD")} == {
        "A": "1",
        "B": "3",
        "OPS_RUN_ID": str(run_id),
        "OPS_RUN_NUMBER": "1",
        "OPS_PROJECT": served.name,
        "OPS_WORKSPACE_KEY": served.name,
        "OPS_WORKFLOW_TYPE": "build",
        "OPS_WORKFLOW_NAME": "nightly",
        "OPS_ODOO_VERSION": "19.0",
        "OPS_GIT_REF": "main",
        "OPS_GIT_COMMIT": "abc123",
        "OPS_PARENT_RUN_ID": "",
        "OPS_ARTIFACTS_DIR": "/artifacts",
    }


async def test_the_flags_of_a_host_bind_its_runs(plane: Plane) -> None:
    """Which limits there are is decided in tests/unit/model; here each flag reaches its limit."""
    (plane.folder / "secrets").mkdir()
    (plane.folder / "secrets" / "token").write_text("correct-horse")
    limits = {"cpus": (4, 64.0), "memory": ("4g", "8g"), "pids": (2000, 9999), "nofile": (2000, 9999)}
    refused = {key: await plane.shell("true", resources={key: asked}) for key, (_, asked) in limits.items()}
    same = 'test "$TOKEN" = "$(cat /run/secrets/token)" && echo same; echo $TOKEN'
    secret = await plane.shell(same, secrets=["token"])
    labelled = await plane.shell("true", labels=["gpu", "big"])
    flags = [word for key, (limit, _) in limits.items() for word in (f"--max-{key}", str(limit))]
    secrets = ("--secrets-dir", str(plane.folder / "secrets"), "--secrets-as-env")
    worker = await plane.work(*flags, *secrets, "--labels", "gpu", "--concurrency", "4")
    for key, run_id in refused.items():
        run = await plane.run(run_id)
        assert run["reason"] == "invalid_config"
        assert f"resources.{key}" in run["error_message"]
    assert await plane.messages(secret) == ["same", "***"]
    assert (await plane.run(labelled))["status"] == "queued"
    left = await worker.until_said("runs are left that ask for labels this worker lacks (--labels)")
    assert (left["runs"], left["labels"]) == (1, ["big"])
