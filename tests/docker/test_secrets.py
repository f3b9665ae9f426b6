"""Secrets on a real engine: who can read them, what is left of them, and where they do not show."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
from pathlib import Path

import pytest

from tests.support.docker import FINAL, UNTIL_RELEASED, Plane, docker

TOKEN = "-".join(["correct", "horse", "battery"])
PEM = "\n".join(["-----BEGIN KEY-----", *(base64.b64encode(bytes(range(n, n + 48))).decode() for n in (0, 48, 96)), ""])


def with_secrets(plane: Plane) -> Path:
    """The folder with a secret for every project, one of this project, and one of another."""
    folder = plane.folder / "secrets"
    for project in (plane.name, "another"):
        (folder / project).mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(TOKEN)
    (folder / plane.name / "key.pem").write_text(PEM)
    (folder / "another" / "theirs").write_text("of-another-project")
    return folder


@pytest.fixture
def tenant(served: Plane) -> Plane:
    with_secrets(served)
    return served


async def everything(plane: Plane) -> str:
    """All that the control plane has stored."""
    tables = ("runs", "run_events", "run_logs", "run_artifacts")
    rows = [await plane.db.fetch(f"select t::text from ops.{table} as t") for table in tables]
    return "\n".join(row["t"] for found in rows for row in found)


async def test_only_the_run_s_user_can_read_a_secret(tenant: Plane) -> None:
    script = (
        "cd /run/secrets && ls && stat -c '%a %u' token key.pem && id -u && sha256sum < key.pem"
        " && (touch x 2>/dev/null || true) && env | grep -ci -e horse -e pem || true"
    )
    users = [("0", {}), ("65534", {"user": "nobody"}), ("1000", {"user": "1000:1000"})]
    runs = [
        (uid, await tenant.shell(script, secrets=["token", "key.pem"], artifacts=[], read_only=read_only, **config))
        for uid, config in users
        for read_only in (False, True)
    ]
    for uid, run_id in runs:
        await tenant.until(run_id, *FINAL)
        *files, digest, in_environment = await tenant.messages(run_id)
        assert files == ["key.pem", "token", f"400 {uid}", f"400 {uid}", uid]
        assert digest.split()[0] == hashlib.sha256(PEM.encode()).hexdigest()
        assert in_environment == "0"


async def test_a_secret_shows_nowhere_and_nothing_is_left_of_it(tenant: Plane) -> None:
    script = (
        "cat /run/secrets/token; echo; base64 -w0 /run/secrets/token; echo; cat /run/secrets/key.pem >&2;"
        ' printf user:%s "$(cat /run/secrets/token)" | base64 -w0; echo;'
        " echo x > /artifacts/$(cat /run/secrets/token).txt; echo y > /artifacts/plain.txt; echo up; " + UNTIL_RELEASED
    )
    run_id = await tenant.shell(script, secrets=["token", "key.pem"])
    await tenant.until_logged(run_id, "up")
    name = tenant.container(run_id)
    [facts] = json.loads(docker("inspect", name))
    await tenant.release(run_id)
    assert (await tenant.until(run_id, *FINAL))["status"] == "succeeded"
    await tenant.until_containers(0)
    [volume] = [mount["Name"] for mount in facts["Mounts"] if mount["Destination"] == "/run/secrets"]
    assert volume not in docker("volume", "ls", "-q").split()
    for hidden in [TOKEN, base64.b64encode(TOKEN.encode()).decode()[:-4], *PEM.splitlines()]:
        assert hidden not in json.dumps(facts)
        assert hidden not in await everything(tenant)
        assert hidden not in tenant.shared_log.read_text()
    assert sorted(await tenant.messages(run_id)) == sorted(
        ["***", "***", *["***"] * len(PEM.splitlines()), "dXNlcjp***=", "up"]
    )
    assert list(await tenant.artifacts(run_id)) == ["plain.txt"]
    [warning] = await tenant.events(run_id, "warning")
    assert warning["message"] == "artifact '***.txt' refused: its name holds a secret"


async def test_a_secret_that_is_missing_or_has_no_reader_fails_the_run(tenant: Plane) -> None:
    missing = {name: await tenant.shell("echo ran", secrets=["token", name]) for name in ("theirs", "another")}
    unknown = await tenant.shell("echo ran", secrets=["token"], user="nobody-there")
    for name, run_id in missing.items():
        run = await tenant.until(run_id, *FINAL)
        assert (run["status"], run["reason"]) == ("failed", "secret_missing")
        assert f"secret '{name}' is missing" in run["error_message"]
        assert str(tenant.folder) not in run["error_message"]
        assert [event["message"] for event in await tenant.events(run_id, "info")] == ["queued"]
    run = await tenant.until(unknown, *FINAL)
    assert (run["status"], run["reason"]) == ("failed", "engine_error")
    assert "nobody-there" in run["error_message"]
    assert await tenant.log(unknown) == []


async def test_an_adopted_run_is_redacted_by_the_secret_that_its_container_has(plane: Plane) -> None:
    secrets = with_secrets(plane)
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
