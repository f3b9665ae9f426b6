"""A push, as a CI system does it with ``scripts/odooops``, with a real worker on a real engine."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from tests.docker.test_serving import READY_SERVER, SERVE, fetched
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


async def test_an_environment_is_created_waited_for_and_destroyed(plane: Plane) -> None:
    serving = {"command": ["python3", "-c", READY_SERVER], "serve": SERVE}
    await plane.workflow(serving, name="preview", workflow_type="deploy")
    run_id = (
        await call(plane, "env_create.sh", plane.name, "deploy", "feature/x", "4f2a91c", "preview")
    ).stdout.strip()
    async with plane.worker():
        ready = await call(plane, "env_wait_ready.sh", run_id, "60", "1")
        assert ready.returncode == 0, ready.stderr
        assert await fetched(ready.stdout.strip()) == "hello"
        assert (await call(plane, "env_destroy.sh", run_id, "--reason", "merged")).stdout == "running\n"
        stopped = await call(plane, "env_wait_ready.sh", run_id, "60", "1")
    assert (stopped.returncode, stopped.stdout) == (3, "")
    assert await fetched(ready.stdout.strip()) == "nothing"
