"""An image's pull breaks off, is canceled, or loses its worker."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.scene import Job, Scene
from tests.support.docker import FINAL, PATIENCE, until
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


async def test_canceled_pulls_of_a_silent_registry_leave_no_connection_behind(pulling: Pulling) -> None:
    plane, registry = pulling.scene.plane, pulling.registry
    registry.silent = True
    registry.flowing.clear()
    run_id, held = pulling.job.run_id, list[int]()
    async with pulling.scene.worker("--concurrency", "1", **pulling.environ) as worker:
        for _ in range(10):
            await pulling.until_halfway()
            held.append(sockets(worker.process.pid))
            await plane.cancel(run_id)
            assert (await plane.until(run_id, *FINAL))["status"] == "canceled"
            run_id = await plane.queue(await plane.workflow({"command": INIT}))
        await pulling.until_halfway()
        await until(lambda: sockets(worker.process.pid) < held[0] + 5)  # the pools of the worker grow by less
        registry.silent = False
        registry.flowing.set()
        assert (await plane.until(run_id, *FINAL))["status"] == "succeeded"
        await plane.until_containers(0)


def sockets(pid: int) -> int:
    """How many sockets that process has."""
    count = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            count += file.readlink().name.startswith("socket:")
    return count


async def test_a_registry_that_says_nothing_ends_the_run_at_the_idle_limit(pulling: Pulling) -> None:
    pulling.registry.silent = True
    pulling.registry.flowing.clear()
    async with pulling.scene.worker("--pull-idle-timeout", "1", **pulling.environ):
        await pulling.scene.until_final(pulling.job)
    await pulling.scene.holds(pulling.job, "failed", "image_missing", ran=False)
    assert "pull_idle_timeout" in (await pulling.scene.plane.run(pulling.job.run_id))["error_message"]


async def test_runs_that_wait_for_one_image_share_its_pull_and_no_other_run_waits(pulling: Pulling) -> None:
    plane = pulling.scene.plane
    pulling.registry.flowing.clear()
    waiting = [pulling.job.run_id, *[await plane.queue(await plane.workflow({"command": INIT})) for _ in range(2)]]
    async with pulling.scene.worker("--concurrency", "4", **pulling.environ):
        await pulling.until_halfway()
        pulls = "select count(*) from ops.run_events where message like 'pulling image %'"
        assert await until(lambda: plane.db.fetchval(f"{pulls} having count(*) >= {len(waiting)}")) == len(waiting)
        other = {"command": ["true"], "version": await plane.tool(plane.image)}
        assert (await plane.until(await plane.queue(await plane.workflow(other)), *FINAL))["status"] == "succeeded"
        await plane.cancel(waiting[1])
        assert (await plane.until(waiting[1], *FINAL))["status"] == "canceled"
        pulling.registry.flowing.set()
        for run_id in (waiting[0], waiting[2]):
            assert (await plane.until(run_id, *FINAL))["status"] == "succeeded"
            said = [event["message"] for event in await plane.events(run_id, "info") if "image" in event["message"]]
            assert said[0].startswith("pulling image ")
            assert re.search(r"^pulled image .*: 1m in [0-9.]+ s$", said[-1])
        await plane.until_containers(0)
    [layer] = pulling.registry.layers
    assert sum(path.endswith(f"/blobs/{layer}") for path in pulling.registry.served) == 1


async def test_the_next_worker_repeats_the_pull_of_a_killed_one(pulling: Pulling) -> None:
    pulling.registry.flowing.clear()
    async with pulling.scene.worker(**pulling.environ):
        await pulling.until_halfway()
    pulling.registry.flowing.set()
    async with pulling.scene.worker("--until-idle", **pulling.environ) as worker:
        assert await worker.wait() == 0
    await pulling.succeeded()
    assert await pulling.scene.adoptions(pulling.job) == ["a"]
