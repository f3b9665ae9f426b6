"""A run that writes to the engine's disk without end is ended; neither the disk nor its neighbour suffers."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.engine import IMAGE, OwnEngine, small_disk
from tests.faults.scene import Scene, new_scene
from tests.support.postgres import Cluster

FLOOR = 150 << 20

FLOOD = "mkdir -p {0}; while :; do head -c 2000000 /dev/zero; sleep 0.02; done > {0}/flood"
"""Slow enough that the disk cannot be full before it is looked at."""


async def test_runs_that_fill_the_disk_are_evicted_and_their_neighbour_continues(
    cluster: Cluster, image: str, tmp_path: Path
) -> None:
    with small_disk("360m") as disk, OwnEngine(disk) as engine:
        engine.load_image(image)
        before = free(disk)
        async with new_scene(cluster, IMAGE, tmp_path, engine.socket, own=True) as scene:
            quiet = await scene.job(waits=True, network="none", read_only=True)  # which brings a /tmp
            floods = [
                await scene.plane.shell(FLOOD.format(folder), network="none") for folder in ("/artifacts", "/var")
            ]
            async with scene.worker("--concurrency", "3", "--min-free-disk", str(FLOOR)):
                for run_id in floods:
                    run = await scene.plane.until(run_id, "succeeded", "failed")
                    assert (run["status"], run["reason"]) == ("failed", "disk_full")
                    assert "nearly full" in run["error_message"]
                    (event,) = await scene.plane.events(run_id, "error")
                    assert event["payload"]["written_bytes"] > 64 << 20
                    assert event["payload"]["left_bytes"] < FLOOR
                    assert await scene.plane.artifacts(run_id) == {}
                await scene.release(quiet)
                await scene.until_final(quiet)
                await scene.until_gone()
            await scene.holds(quiet)
            assert free(disk) > before - (10 << 20), "what they wrote went with their containers"


def free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


async def test_a_run_over_its_disk_quota_is_ended_and_its_neighbour_continues(scene: Scene) -> None:
    greedy = await scene.plane.shell(FLOOD.format("/artifacts"), resources={"disk": "20m"})
    modest = await scene.job(waits=True, resources={"disk": "20m"})
    async with scene.worker(OPS_PATIENCE="worker.run.disk.ROOMY_PAUSE=0.5,worker.run.disk.ROOMY_SHARE=1"):
        run = await scene.plane.until(greedy, "succeeded", "failed")
        assert (run["status"], run["reason"]) == ("failed", "disk_limit")
        assert run["error_message"].endswith("more than 20m (resources.disk)")
        assert await scene.plane.artifacts(greedy) == {}
        await scene.release(modest)
        await scene.until_final(modest)
        await scene.until_gone()
    await scene.holds(modest)
