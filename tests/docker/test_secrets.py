"""Secrets on a real engine: who can read them, what is left of them, and where they do not show."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
from pathlib import Path

import pytest

from tests.support.docker import UNTIL_RELEASED, Plane, docker

TOKEN = "-".join(["correct", "horse", "battery"])
PEM = "\n".join(["-----BEGIN KEY-----", *(base64.b64encode(bytes(range(n, n + 48))).decode() for n in (0, 48, 96)), ""])


@pytest.fixture
def secrets(plane: Plane) -> Path:
    """A folder with a secret for everybody, one of this project, and one of another."""
    folder = plane.folder / "secrets"
    (folder / plane.name).mkdir(parents=True)
    (folder / "another").mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / plane.name / "key.pem").write_text(PEM)
    (folder / "another" / "theirs").write_text("of-another-project")
    return folder


async def everything(plane: Plane) -> str:
    """All that the control plane has stored."""
    tables = ("runs", "run_events", "run_logs", "run_artifacts")
    rows = [await plane.db.fetch(f"select t::text from ops.{table} as t") for table in tables]
    return "\n".join(row["t"] for found in rows for row in found)


@pytest.mark.parametrize(
    ("user", "read_only"), [(None, False), (None, True), ("nobody", False), ("nobody", True), ("1000:1000", False)]
)
async def test_only_the_run_s_user_can_read_a_secret(
    plane: Plane, secrets: Path, user: str | None, *, read_only: bool
) -> None:
    script = (
        "cd /run/secrets && ls && stat -c '%a %u' token key.pem && id -u && sha256sum < key.pem"
        " && (touch x 2>/dev/null || true) && env | grep -ci -e horse -e pem || true"
    )
    config = {"user": user} if user else {}
    run_id = await plane.shell(script, secrets=["token", "key.pem"], read_only=read_only, artifacts=[], **config)
    await plane.work("--secrets-dir", str(secrets))
    said = await plane.messages(run_id)
    uid = {None: "0", "nobody": "65534"}.get(user, "1000")
    assert said[:2] == ["key.pem", "token"]
    assert said[2:5] == [f"400 {uid}", f"400 {uid}", uid]
    assert said[5].split()[0] == hashlib.sha256(PEM.encode()).hexdigest()
    assert said[6] == "0", "a secret is in the environment"


async def test_nothing_shows_a_secret_and_nothing_is_left_of_it(plane: Plane, secrets: Path) -> None:
    script = (
        "cat /run/secrets/token; echo; base64 -w0 /run/secrets/token; echo; cat /run/secrets/key.pem >&2;"
        ' printf user:%s "$(cat /run/secrets/token)" | base64 -w0; echo;'
        " echo x > /artifacts/$(cat /run/secrets/token).txt; echo y > /artifacts/plain.txt; echo up; " + UNTIL_RELEASED
    )
    run_id = await plane.shell(script, secrets=["token", "key.pem"])
    async with plane.worker("--until-idle", "--secrets-dir", str(secrets)) as worker:
        await plane.until_logged(run_id, "up")
        name = plane.container(run_id)
        [facts] = json.loads(docker("inspect", name))
        in_use = docker("ps", "-aq", "--filter", f"name={name}").split()
        await plane.release(run_id)
        assert await worker.wait() == 0
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert in_use
    volumes = [mount["Name"] for mount in facts["Mounts"] if mount["Destination"] == "/run/secrets"]
    assert len(volumes) == 1
    for hidden in [TOKEN, base64.b64encode(TOKEN.encode()).decode()[:-4], *PEM.splitlines()]:
        assert hidden not in json.dumps(facts)
        assert hidden not in await everything(plane)
        assert hidden not in worker.output.read_text()
    assert volumes[0] not in docker("volume", "ls", "-q").split()
    assert sorted(await plane.messages(run_id)) == sorted(
        ["***", "***", *["***"] * len(PEM.splitlines()), "dXNlcjp***=", "up"]
    )
    assert list(await plane.artifacts(run_id)) == ["plain.txt"]
    [warning] = await plane.events(run_id, "warning")
    assert warning["message"] == "artifact '***.txt' refused: its name holds a secret"


@pytest.mark.parametrize("name", ["missing", "theirs", "another"])
async def test_a_missing_secret_fails_the_run_before_there_is_a_container(
    plane: Plane, secrets: Path, name: str
) -> None:
    run_id = await plane.shell("echo ran", secrets=["token", name])
    await plane.work("--secrets-dir", str(secrets))
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "secret_missing")
    assert f"secret '{name}' is missing" in run["error_message"]
    assert str(secrets) not in run["error_message"]
    assert [event["message"] for event in await plane.events(run_id, "info")] == ["queued"]
    assert await plane.log(run_id) == []


async def test_a_user_that_the_image_does_not_have_gets_no_secret(plane: Plane, secrets: Path) -> None:
    run_id = await plane.shell("echo ran", secrets=["token"], user="nobody-there")
    await plane.work("--secrets-dir", str(secrets))
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "engine_error")
    assert "nobody-there" in run["error_message"]
    assert await plane.containers() == []


async def test_as_environment_only_where_the_host_allows_it(plane: Plane, secrets: Path) -> None:
    script = 'test "$TOKEN" = "$(cat /run/secrets/token)" && echo same; echo $TOKEN'
    workflow = await plane.workflow({"command": ["sh", "-c", script], "secrets": ["token"]})
    plain, allowed = await plane.queue(workflow), None
    await plane.work("--secrets-dir", str(secrets))
    allowed = await plane.queue(workflow)
    await plane.work("--secrets-dir", str(secrets), "--secrets-as-env")
    assert await plane.messages(plain) == [""]
    assert await plane.messages(allowed) == ["same", "***"]


async def test_an_adopted_run_is_redacted_though_its_secret_was_changed_meanwhile(plane: Plane, secrets: Path) -> None:
    run_id = await plane.shell(f"echo up; {UNTIL_RELEASED}; cat /run/secrets/token; echo", secrets=["token"])
    async with plane.worker("--secrets-dir", str(secrets)) as worker:
        await plane.until_logged(run_id, "up")
        worker.signal(signal.SIGKILL)
        await worker.wait()
    (secrets / "token").write_text("another-value-by-now")
    await plane.release(run_id)
    await plane.work("--secrets-dir", str(secrets))
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert await plane.messages(run_id) == ["up", "***"]
    assert TOKEN not in await everything(plane)
