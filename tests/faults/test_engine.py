"""The engine fails in every way: a container that survived is followed again, another fails its run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.faults.engine import IMAGE, OwnEngine, small_disk
from tests.faults.scene import Scene, new_scene
from tests.support.postgres import Cluster
from tests.support.relay import Fate, http_error
from worker.engine.networks import NETWORK, ensure_network
from worker.errors import EngineError

# --- an engine of our own, filled up --------------------------------------------------------------------------------


async def test_a_full_disk_fails_runs_and_a_nearly_full_one_stops_claims(
    cluster: Cluster, image: str, tmp_path: Path
) -> None:
    with small_disk("40m") as disk, OwnEngine(disk) as engine:
        engine.load_image(image)
        async with new_scene(cluster, IMAGE, tmp_path, engine.socket, own=True) as scene:
            ballast = disk / "ballast"
            await asyncio.to_thread(fill, ballast)
            os.truncate(ballast, ballast.stat().st_size - 8192)  # a worker claims nothing where nothing at all is left
            full = await scene.job(network="none")
            async with scene.worker("--min-free-disk", "1k"):
                await scene.until_final(full)
                await scene.until_gone()
            await scene.holds(full, "failed", "disk_full", ran=False)
            after = await scene.job(network="none")
            async with scene.worker("--min-free-disk", "1m") as worker:
                said = await worker.until_said("claiming nothing: the disk is short")
                assert str(disk) in said["why"]
                assert (await scene.plane.run(after.run_id))["status"] == "queued"
                ballast.unlink()
                await scene.until_final(after)
                await scene.until_gone()
            await scene.holds(after)


def fill(file: Path) -> None:
    """Makes it as large as its file system has room for."""
    with suppress(OSError), file.open("wb", buffering=0) as sink:
        while True:
            sink.write(bytes(1 << 16))


def test_workers_that_start_together_make_one_network() -> None:
    workers = 8
    with OwnEngine() as engine:
        together = threading.Barrier(workers)

        def begin() -> None:
            with closing(docker.APIClient(f"unix://{engine.socket}", version="auto")) as client:
                together.wait()
                ensure_network(client)

        with ThreadPoolExecutor(workers) as threads:
            for begun in [threads.submit(begin) for _ in range(workers)]:
                begun.result()
        assert engine.docker("network", "ls", "--format", "{{.Name}}").split().count(NETWORK) == 1


def test_a_network_on_which_containers_reach_each_other_is_refused() -> None:
    with OwnEngine() as engine:
        engine.docker("network", "create", NETWORK)
        with closing(docker.APIClient(f"unix://{engine.socket}", version="auto")) as client:
            with pytest.raises(EngineError, match="reach each other") as caught:
                ensure_network(client)
            assert f"docker network rm {NETWORK}" in str(caught.value)


# --- the connection to it -------------------------------------------------------------------------------------------


async def test_broken_connections_are_replaced(scene: Scene) -> None:
    jobs = {fault: await scene.job(5_000, waits=True, pause=0.3) for fault in ("cut", "half-open", "stalled")}
    patience = "worker.run.ports.TIMINGS.quiet=1,worker.engine.client.API_TIMEOUT=3"
    async with scene.worker("--until-idle", "--concurrency", "3", OPS_PATIENCE=patience) as worker:
        for fault, job in jobs.items():
            await scene.until_up(job)
            await scene.release(job)
            await scene.plane.until_logged(job.run_id, job.lines[500])
            if fault == "cut":
                scene.engine.cut()
            elif fault == "half-open":
                scene.engine.freeze()
            else:
                scene.engine.stall()
                scene.plane.docker("wait", job.container)
                scene.engine.flow()
        assert await worker.wait() == 0
    for job in jobs.values():
        await scene.holds(job)


CALLS = {
    "image": "GET /v[0-9.]+/images/.*/json",
    "create": "POST /v[0-9.]+/containers/create",
    "start": "POST /v[0-9.]+/containers/[^/]+/start",
    "inspect": "GET /v[0-9.]+/containers/[^/]+/json",
    "follow": "GET /v[0-9.]+/containers/[^/]+/logs.*follow=1",
    "last": "GET /v[0-9.]+/containers/[^/]+/logs.*tail=1",
    "archive": "GET /v[0-9.]+/containers/[^/]+/archive",
    "remove": "DELETE /v[0-9.]+/containers/",
    "networks": "GET /v[0-9.]+/networks",
    "list": "GET /v[0-9.]+/containers/json",
    "info": "GET /v[0-9.]+/info",
    "version": "GET /version",
}
SORTS = ["cut", "lost", "answered", "broken", "mute"]


@pytest.mark.parametrize("sort", SORTS)
async def test_every_call_may_fail_once(scene: Scene, sort: str) -> None:
    job = await scene.job(2_000, big=True)
    sorts: dict[str, dict[str, Any]] = {"answered": {"answer": http_error(500, "injected")}, "broken": {"passing": 60}}
    # Each way to call has its own time limit; a followed log has none.
    mute = sort == "mute"
    calls = {name: CALLS[name] for name in ("inspect", "last", "archive")} if mute else CALLS
    patience = {"OPS_PATIENCE": "worker.engine.client.API_TIMEOUT=3"} if mute else {}
    rules = [scene.engine.strike(request, Fate(sort), **sorts.get(sort, {})) for request in calls.values()]
    async with scene.worker(**patience) as worker:
        await scene.until_final(job)
        await scene.until_gone()
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    await scene.holds(job)
    missed = [name for name, rule in zip(calls, rules, strict=True) if not rule.struck]
    assert missed == [], sort


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder of the host with the secret ``token``."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "token").write_text("correct-horse-battery")
    return folder


CALLS_OF_A_CANCEL = {
    "secrets": "PUT /v[0-9.]+/containers/[^/]+/archive",
    "usage": "GET /v[0-9.]+/system/df",
    "kill": "POST /v[0-9.]+/containers/[^/]+/kill",
    "events": "GET /v[0-9.]+/events",
}
"""What is asked for beside ``CALLS`` when a run has secrets and is canceled."""


async def test_every_call_of_a_run_that_is_canceled_may_fail_once(scene: Scene, secrets: Path) -> None:
    flags = ("--stop-grace", "1", "--secrets-dir", str(secrets))
    jobs = []
    async with scene.worker(
        *flags, OPS_PATIENCE="worker.run.disk.ROOMY_PAUSE=0.5,worker.run.disk.ROOMY_SHARE=1"
    ) as worker:
        await worker.until_said("worker started")
        for sort in ("cut", "lost", "answered"):
            answer = {"answer": http_error(500, "injected")} if sort == "answered" else {}
            rules = {
                call: scene.engine.strike(request, Fate(sort), **answer) for call, request in CALLS_OF_A_CANCEL.items()
            }
            jobs.append(job := await scene.job(waits=True, secrets=["token"]))
            await scene.until_up(job)
            await rules["usage"].until_struck()
            await scene.cancel(job)
            await scene.until_final(job)
            await scene.until_gone()
            assert [call for call, rule in rules.items() if not rule.struck] == [], sort
    for job in jobs:
        await scene.holds(job, "canceled", "canceled", log="begun")


async def test_a_truncated_passwd_archive_is_requested_again(scene: Scene, secrets: Path) -> None:
    job = await scene.job(secrets=["token"], user="nobody")
    asked = scene.engine.strike(CALLS["archive"], Fate.BROKEN, passing=60)
    await scene.work("--secrets-dir", str(secrets))
    assert asked.struck
    await scene.holds(job)


async def test_an_engine_that_keeps_refusing_fails_the_run_with_its_message(scene: Scene) -> None:
    async with scene.worker():
        for call in ("create", "start"):
            refusal = scene.engine.strike(CALLS[call], Fate.ANSWERED, answer=http_error(500, f"no {call}"), times=100)
            job = await scene.job()
            await scene.until_final(job)
            refusal.times = 0
            await scene.until_gone()
            await scene.holds(job, "failed", "engine_error", log="begun", ran=False)
            assert f"no {call}" in (await scene.plane.run(job.run_id))["error_message"]
