"""Caches of projects on a real engine: who finds what, what is kept, and what is removed."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.support.docker import FINAL, WAITS, Plane, docker, new_tenant

WHEELS = {"name": "wheels", "path": "/var/cache/wheels"}
ADDS = "ls /var/cache/wheels; echo x > /var/cache/wheels/$OPS_RUN_NUMBER"


def docker_mark(plane: Plane) -> str:
    """A mark of a volume that is not there, as a worker leaves it that dies between two removals."""
    gone = f"ops-cache-{uuid.uuid4()}"
    labels = {"database-id": plane.identity, "cache-kept": gone, "cache-kept-at": "1.0"}
    words = [f"--label=ops-worker.{key}={value}" for key, value in labels.items()]
    return docker("volume", "create", *words, f"{gone}-kept").strip()


async def lines_of(plane: Plane, script: str, **config: Any) -> list[str]:
    """What a run prints that has the cache, whatever its exit code."""
    run = await plane.finished(script, cache=[WHEELS], **config)
    assert run["reason"] in ("succeeded", "exit_code", "timeout"), run["error_message"]
    return await plane.messages(run["id"])


@pytest.mark.parametrize("config", [{}, {"user": "1234:5678"}], ids=["root", "user"])
async def test_a_run_finds_what_the_last_successful_run_left(served: Plane, config: dict[str, Any]) -> None:
    makes = (
        "cd /var/cache/wheels && mkdir -p deep/er && head -c 3000000 /dev/urandom > deep/er/file"
        " && chmod 640 deep/er/file && ln -s deep/er/file link && ln deep/er/file hard"
        " && touch -d @1000000000 deep && md5sum < hard"
    )
    looks = "cd /var/cache/wheels && stat -c '%n %a %u %g %Y' deep && stat -c '%n %a %u %g %h' deep/er/file"
    [made] = await lines_of(served, makes, **config)
    ids = "1234 5678" if config else "0 0"
    for _ in range(2):
        seen = await lines_of(served, f"{looks} && readlink link && md5sum < hard && touch more", **config)
        assert seen == [f"deep 755 {ids} 1000000000", f"deep/er/file 640 {ids} 2", "deep/er/file", made]
    await served.until_containers(0)


async def test_a_run_that_does_not_succeed_changes_nothing_for_the_next_one(served: Plane) -> None:
    assert await lines_of(served, ADDS) == []
    await lines_of(served, f"rm -f /var/cache/wheels/*; {ADDS}; exit 3")
    await lines_of(served, f"rm -f /var/cache/wheels/*; {ADDS}; sleep 60", timeout_seconds=1)
    canceled = await served.shell(f"rm -f /var/cache/wheels/*; {WAITS}", cache=[WHEELS])
    await served.until_logged(canceled, "up")
    await served.cancel(canceled)
    await served.until(canceled, *FINAL)
    assert await lines_of(served, ADDS) == ["1"]
    assert await lines_of(served, ADDS) == ["1", "5"]
    other = await new_tenant(served, served.db)
    assert await lines_of(other, ADDS) == [], "a cache of another project"


async def test_runs_at_the_same_time_have_a_copy_each_and_only_the_newest_stays(plane: Plane) -> None:
    async with plane.worker("--concurrency", "3") as worker:
        begun = await plane.shell(f"echo x > /var/cache/wheels/begun; {WAITS}; exit 1", cache=[WHEELS])
        await plane.until_logged(begun, "up")
        assert await lines_of(plane, ADDS) == [], "what a run has only begun is no cache"
        await plane.release(begun)
        await plane.until(begun, "failed")
        first, second = [await plane.shell(f"{WAITS}; {ADDS}", cache=[WHEELS]) for _ in range(2)]
        for run_id in (first, second):
            await plane.until_logged(run_id, "up")
        for run_id in (second, first):
            await plane.release(run_id)
            await plane.until(run_id, "succeeded")
            assert await plane.messages(run_id) == ["up", "down", "2"]
        assert await lines_of(plane, ADDS) == ["2", "3"], "that of the run that succeeded last"
        worker.process.terminate()
        assert await worker.wait() == 0
    assert len(plane.caches()) == 1
    assert plane.kept_caches() == set(plane.caches())


async def test_caches_beyond_the_bound_of_the_host_go_the_oldest_first_and_none_in_use(plane: Plane) -> None:
    fill = "head -c 3000000 /dev/zero > /var/cache/wheels/file; ls /var/cache/wheels"
    oldest, middle, newest = [plane, *[await new_tenant(plane, plane.db) for _ in range(2)]]
    stale = docker_mark(plane)
    async with plane.worker("--max-cache", "7m", "--concurrency", "2") as worker:
        for tenant in (oldest, middle):
            assert await lines_of(tenant, fill) == ["file"]
        held = await oldest.shell(f"{WAITS}; ls /var/cache/wheels; exit 1", cache=[WHEELS])
        await oldest.until_logged(held, "up")
        assert await lines_of(newest, fill) == ["file"]
        await oldest.release(held)
        await oldest.until(held, *FINAL)
        assert await oldest.messages(held) == ["up", "down", "file"], "its own copy is not evicted"
        for tenant, found in ((oldest, []), (middle, ["file"]), (newest, ["file"])):
            assert await lines_of(tenant, "ls /var/cache/wheels; exit 1") == found
        worker.process.terminate()
        assert await worker.wait() == 0
    assert len(plane.caches()) == 2
    assert stale not in docker("volume", "ls", "-q").split(), "the mark of a volume that is gone"
