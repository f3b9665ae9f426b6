"""What Docker Engine 29 changes, as its API shows it: by a relay before the engine that is here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import docker
import docker.errors
import pytest

from tests.faults.engine import small_disk
from tests.support.docker import ENGINE_SOCKET, UNTIL_RELEASED, Plane
from tests.support.engine_29 import Engine29, engine_29
from worker.engine.engine import Engine

ROOT = Path("/of/containerd")


@pytest.fixture
def newest(tmp_path: Path) -> Iterator[Engine29]:
    with engine_29(ENGINE_SOCKET, tmp_path) as started:
        yield started


async def test_a_run_on_an_engine_of_29(plane: Plane, newest: Engine29) -> None:
    script = f"ulimit -n; head -c 3000000 /dev/zero > /artifacts/a; echo up; {UNTIL_RELEASED}"
    run_id = await plane.shell(script)
    async with plane.worker("--until-idle", OPS_WORKER_DOCKER_HOST=newest.url) as worker:
        await plane.until_logged(run_id, "up")
        engine = Engine(newest.url, streams=1)
        try:
            facts = await engine.info()
            assert engine.local_folders(facts, ROOT) == (Path(facts.folder), ROOT)
            assert (await engine.written())[str(run_id)].size >= 3_000_000
            found = await engine.image(plane.image)
            assert found is not None
            assert found.user == ""
            assert not await engine.started_after(datetime.now(UTC))
        finally:
            engine.close()
        await plane.release(run_id)
        assert await worker.wait() == 0
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert await plane.messages(run_id) == ["16384", "up"]
    assert list(await plane.artifacts(run_id)) == ["a"]
    assert newest.refused == []


async def test_containerd_s_disk_is_watched_too(plane: Plane, newest: Engine29) -> None:
    with small_disk("8m") as disk:
        words = ("--containerd-root", str(disk), "--min-free-disk", "100m")
        async with plane.worker(*words, OPS_WORKER_DOCKER_HOST=newest.url) as worker:
            line = await worker.until_said("claiming nothing: the disk is short")
    assert f"on the disk of {disk}," in line["why"]


def test_an_api_version_that_engine_29_dropped_is_refused(newest: Engine29) -> None:
    with docker.APIClient(newest.url, version="1.43") as client, pytest.raises(docker.errors.APIError, match="too old"):
        client.info()
    assert newest.refused == ["/v1.43/info"]
