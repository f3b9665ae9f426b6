"""A push, as a CI system does it with ``scripts/odooops``: queue, wait, cancel; by a real worker on a real engine."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.docker import Plane
from tests.support.scripts import script


async def call(plane: Plane, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A script on the plane's database, while the worker works."""
    return await asyncio.to_thread(script, name, *words, SUPABASE_URL=plane.url)


def file_at(url: str) -> str:
    return Path(urlsplit(url).path).read_text()


async def test_a_push_is_queued_built_followed_and_its_artifact_found(plane: Plane) -> None:
    said = 'echo "building $OPS_GIT_REF at $OPS_GIT_COMMIT"; sleep 1; echo built; echo "$OPS_GIT_COMMIT" > /artifacts/c'
    await plane.workflow({"command": ["sh", "-c", said]}, name="nightly", git_ref="18.0", git_commit="0123456")
    created = await call(plane, "env_create.sh", plane.name, "build", "feature/x", "4f2a91c", "nightly")
    run_id = created.stdout.strip()
    async with plane.worker():
        waited = await call(plane, "env_wait_ready.sh", run_id, "60", "1")
    assert waited.returncode == 0, waited.stderr
    assert [line for line in waited.stderr.splitlines() if not line.startswith("env_wait_ready.sh: ")] == [
        "building feature/x at 4f2a91c", "built",
    ]  # fmt: skip
    assert waited.stderr.splitlines()[-1] == "env_wait_ready.sh: run #1 succeeded"
    assert file_at(waited.stdout.strip()) == "4f2a91c\n"


async def test_a_red_run_and_a_cancelled_one_are_told_apart(plane: Plane) -> None:
    red = await plane.shell("echo broken >&2; exit 3")
    async with plane.worker():
        waited = await call(plane, "env_wait_ready.sh", str(red), "--interval=1")
        assert (waited.returncode, waited.stdout) == (1, "")
        assert "broken" in waited.stderr.splitlines()
        assert waited.stderr.splitlines()[-1] == "env_wait_ready.sh: run #1 failed (exit_code): exit code 3"

        endless = await plane.shell("echo up; sleep 600")
        await plane.until_says(endless)
        asked = await call(plane, "env_destroy.sh", str(endless), "--reason", "the branch is gone")
        assert (asked.returncode, asked.stdout) == (0, "running\n")
        waited = await call(plane, "env_wait_ready.sh", str(endless), "--interval=1")
        assert (waited.returncode, waited.stdout) == (3, "")
    assert (await plane.run(endless))["status"] == "canceled"
    assert await plane.containers() == []


async def test_a_ref_that_a_run_may_not_name_fails_it(plane: Plane) -> None:
    await plane.workflow({"command": ["true"]})
    created = await call(plane, "env_create.sh", f"--project={plane.name}", "--type=build", "--ref=--upload-pack=x")
    await plane.work()
    waited = await call(plane, "env_wait_ready.sh", created.stdout.strip())
    assert waited.returncode == 1
    assert "run metadata, git_ref: expected the name of a branch" in waited.stderr
    assert (await plane.run(uuid.UUID(created.stdout.strip())))["reason"] == "invalid_config"
