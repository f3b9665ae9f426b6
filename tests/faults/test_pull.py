"""An image's pull breaks off, is canceled, or loses its worker."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.scene import Job, Scene
from tests.support.docker import PATIENCE
from tests.support.registry import INIT, Registry, client_config, registry_with_images_removed

PASSWORD = "-".join(["of", "the", "registry"])


@pytest.fixture
def registry() -> Iterator[Registry]:
    with registry_with_images_removed(PASSWORD) as started:
        yield started


@pytest_asyncio.fixture
async def pulling(scene: Scene, registry: Registry, tmp_path: Path) -> Pulling:
    """A run whose image is in the registry, and not on the engine."""
    registry.push("team/image", "1", content=os.urandom(1 << 20))
    image = f"{registry.address}/team/image:1"
    await scene.plane.db.execute("update ops.tools set docker_image = $1", image)
    run_id = await scene.plane.queue(await scene.plane.workflow({"command": INIT}))
    environ = {"DOCKER_CONFIG": client_config(tmp_path / "docker", registry, PASSWORD)}
    return Pulling(scene, registry, Job(run_id, (), {}, 0, scene.plane.container(run_id)), environ)


@dataclass(frozen=True)
class Pulling:
    scene: Scene
    registry: Registry
    job: Job
    environ: dict[str, str]
    """What the worker needs to log in there."""

    async def until_halfway(self) -> None:
        assert await asyncio.to_thread(self.registry.halfway.acquire, timeout=PATIENCE)

    async def succeeded(self) -> None:
        [said] = await self.scene.plane.messages(self.job.run_id)
        assert said.startswith("tini version")
        await self.scene.holds(replace(self.job, lines=[said]))


async def test_a_pull_that_breaks_off_is_retried(pulling: Pulling) -> None:
    pulling.registry.breaking = 1
    async with pulling.scene.worker("--until-idle", **pulling.environ) as worker:
        assert await worker.wait() == 0
    assert pulling.registry.breaking == -1, "it broke off, and was asked for once more"
    await pulling.succeeded()


async def test_a_missing_layer_fails_the_run_with_the_registry_s_message(pulling: Pulling) -> None:
    [layer] = pulling.registry.layers
    del pulling.registry.blobs[layer]
    async with pulling.scene.worker("--until-idle", **pulling.environ) as worker:
        assert await worker.wait() == 0
    await pulling.scene.holds(pulling.job, "failed", "image_missing", ran=False)
    # "blob unknown" as the registry says it; where containerd stores the images, "not found" of its own
    assert re.search("unknown|not found", (await pulling.scene.plane.run(pulling.job.run_id))["error_message"])


async def test_a_cancel_during_a_pull_ends_the_run_at_once(pulling: Pulling) -> None:
    pulling.registry.flowing.clear()
    async with pulling.scene.worker("--until-idle", **pulling.environ) as worker:
        await pulling.until_halfway()
        await pulling.scene.cancel(pulling.job)
        await pulling.scene.until_final(pulling.job)
        pulling.registry.flowing.set()
        assert await worker.wait() == 0
    await pulling.scene.holds(pulling.job, "canceled", "canceled", ran=False)


@pytest.mark.parametrize("ending", ["canceled", "failed"])
async def test_a_pull_that_drips_bytes_frees_its_slot_and_is_aborted(pulling: Pulling, ending: str) -> None:
    pulling.registry.dripping = True
    pulling.registry.flowing.clear()
    limit = {"canceled": "3600", "failed": "2"}[ending]
    async with pulling.scene.worker("--pull-timeout", limit, **pulling.environ):
        await pulling.until_halfway()
        if ending == "canceled":
            await pulling.scene.cancel(pulling.job)
        await pulling.scene.until_final(pulling.job)
        assert await asyncio.to_thread(pulling.registry.abandoned.wait, PATIENCE)
    reason = {"canceled": "canceled", "failed": "image_missing"}[ending]
    await pulling.scene.holds(pulling.job, ending, reason, ran=False)


async def test_the_next_worker_repeats_the_pull_of_a_killed_one(pulling: Pulling) -> None:
    pulling.registry.flowing.clear()
    async with pulling.scene.worker(**pulling.environ):
        await pulling.until_halfway()
    pulling.registry.flowing.set()
    async with pulling.scene.worker("--until-idle", **pulling.environ) as worker:
        assert await worker.wait() == 0
    await pulling.succeeded()
    assert await pulling.scene.adoptions(pulling.job) == ["a"]
