"""Volumes of projects on a real engine: what stays, whose it is, who may write, and what ``prune`` removes."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import Any

import asyncpg
import pytest

from tests.docker.test_services import CHECK, SERVER
from tests.support.docker import ROOT, Plane, docker, new_tenant


def mounted(name: str = "allowed", path: str = "/var/lib/data", **more: Any) -> dict[str, Any]:
    return {"name": name, "path": path, **more}


async def lines_of(plane: Plane, script: str, *volumes: dict[str, Any], **config: Any) -> list[str]:
    """What a run prints that has these volumes."""
    run = await plane.finished(script, volumes=list(volumes), **config)
    assert run["status"] == "succeeded", run["error_message"]
    return await plane.messages(run["id"])


WRITES = "echo one >> /var/lib/data/file; cat /var/lib/data/file"


@pytest.mark.parametrize(
    "config",
    [{}, {"user": "1234"}, {"user": "1234:5678"}, {"read_only": True}],
    ids=["root", "1234", "group", "read-only"],
)
async def test_what_a_run_writes_to_a_volume_is_there_for_the_next_one(served: Plane, config: dict[str, Any]) -> None:
    assert await lines_of(served, WRITES, mounted(), **config) == ["one"]
    assert await lines_of(served, WRITES, mounted(), **config) == ["one", "one"]
    again = "cat /mnt/a/file; touch /mnt/a/x 2>/dev/null || echo refused"
    assert await lines_of(served, again, mounted(path="/mnt/a", read_only=True), **config) == ["one", "one", "refused"]
    await served.until_containers(0)
    [facts] = json.loads(docker("volume", "inspect", served.volume("allowed")))
    assert facts["Labels"] == {
        "ops-worker.database-id": str(served.identity),
        "ops-worker.project-id": str(served.project_id),
        "ops-worker.volume": "allowed",
    }


async def test_owner_and_mode_that_a_run_sets_on_a_volume_stay(served: Plane) -> None:
    """Some programs, such as PostgreSQL, refuse a folder of theirs that others may write to."""
    assert await lines_of(served, "umask 077; mkdir /var/lib/data/pg; chmod 700 /var/lib/data", mounted()) == []
    stat = "stat -c '%a %u' /var/lib/data"
    assert await lines_of(served, stat, mounted()) == ["700 0"]
    assert await lines_of(served, stat, mounted(), user="1234") == ["700 0"]


async def test_a_volume_belongs_to_its_project(served: Plane, db: asyncpg.Connection) -> None:
    other = await new_tenant(served, served.db)
    assert await lines_of(served, WRITES, mounted()) == ["one"]
    for name in ("allowed", served.volume("allowed")):
        volume = mounted(name)
        run = await other.finished("ls /var/lib/data", volumes=[volume])
        if name == "allowed":
            assert (run["status"], await other.messages(run["id"])) == ("succeeded", []), "its own, which is empty"
        else:
            assert (run["status"], run["reason"]) == ("failed", "invalid_config")
    assert other.volume("allowed") != served.volume("allowed")


async def test_a_volume_that_the_host_does_not_allow_is_not_made(served: Plane) -> None:
    run = await served.finished("true", volumes=[mounted("secret")])
    assert (run["reason"], run["error_message"]) == (
        "invalid_config",
        f"volumes.0.name: volume {served.name}/secret matches none of this host's allowed volumes",
    )
    assert docker("volume", "ls", "-q", "--filter", f"name={served.volume('secret')}") == ""


async def test_a_volume_of_that_name_that_the_worker_did_not_make_is_refused(served: Plane) -> None:
    docker("volume", "create", served.volume("allowed"))
    run = await served.finished("true", volumes=[mounted()])
    await served.until_containers(0)
    docker("volume", "rm", served.volume("allowed"))
    assert run["reason"] == "engine_error"
    assert "was made by another program" in run["error_message"]


async def test_a_service_with_a_volume_is_stopped_before_its_run_is_final(served: Plane, image: str) -> None:
    """SIGTERM, not SIGKILL: what it writes then is there when the next run begins."""
    stops = (
        "import signal, sys\n"
        "def stop(*_):\n"
        "    with open('/data/end', 'a') as file: print('x', file=file)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)"
    )
    service = {
        "name": "db", "image": image, "command": ["python3", "-c", f"{stops}\n{SERVER}"],
        "health": {"command": CHECK, "interval_seconds": 0.2}, "volumes": [mounted(path="/data")],
    }  # fmt: skip
    config = {"services": [service]}
    assert await lines_of(served, "cat /var/lib/data/end 2>/dev/null; true", mounted(read_only=True), **config) == []
    assert await lines_of(served, "cat /var/lib/data/end", mounted(read_only=True), **config) == ["x"]


async def test_only_what_a_volume_grew_by_counts_for_the_run(served: Plane) -> None:
    fill = "head -c 150000000 /dev/zero > /var/lib/data/x"
    assert await lines_of(served, fill, mounted()) == []
    again = "sleep 12; echo up"
    assert await lines_of(served, again, mounted(), resources={"disk": "100m"}) == ["up"]
    run = await served.finished(
        "sleep 12; head -c 150000000 /dev/zero > /var/lib/data/y; sleep 60",
        volumes=[mounted()],
        resources={"disk": "100m"},
    )
    assert run["reason"] == "disk_limit"


# --- prune ----------------------------------------------------------------------------------------------------------


def prune(plane: Plane, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "worker", "prune", *flags]
    env = plane.environ | {"OPS_WORKER_DATABASE_URL": plane.url} | environ
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


async def test_prune_names_the_volumes_of_archived_projects_and_removes_them_on_request(plane: Plane) -> None:
    active, gone = await new_tenant(plane, plane.db), await new_tenant(plane, plane.db)
    plane.store.mkdir()
    async with plane.worker("--allowed-volumes", "*"):
        for each in (plane, active, gone):
            assert await lines_of(each, WRITES, mounted()) == ["one"]
        await plane.until_containers(0)
    foreign = f"ops-volume-{uuid.uuid4()}"
    labels = {"database-id": uuid.uuid4(), "project-id": plane.project_id, "volume": "allowed"}
    docker("volume", "create", *(f"--label=ops-worker.{key}={value}" for key, value in labels.items()), foreign)
    try:
        assert prune(plane).stdout.splitlines()[1:] == []
        await plane.db.execute("update ops.projects set status = 'archived' where id = $1", plane.project_id)
        await plane.db.execute("delete from ops.projects where id = $1", gone.project_id)
        named = {
            f"volume {plane.name}/allowed ({plane.volume('allowed')})",
            f"volume {gone.project_id}/allowed ({gone.volume('allowed')})",
        }
        for flags in ((), ("--dry-run", "--remove-volumes")):
            done = prune(plane, *flags)
            assert done.returncode == 0
            expected = {f"of an archived project: {name}; --remove-volumes removes it" for name in named}
            assert set(done.stdout.splitlines()[1:]) == expected
        user = docker("run", "-d", "-v", f"{plane.volume('allowed')}:/x", plane.image, "sleep", "600").strip()
        done = prune(plane, "--remove-volumes")
        docker("rm", "-f", user)
        assert (done.returncode, done.stdout.count("removed: ")) == (1, 1)
        assert "volume is in use" in done.stderr
        assert prune(plane, "--remove-volumes").returncode == 0
        left = docker("volume", "ls", "-q", "--filter", "label=ops-worker.volume").split()
        assert {plane.volume("allowed"), gone.volume("allowed")}.isdisjoint(left)
        assert {active.volume("allowed"), foreign} <= set(left)
    finally:
        docker("volume", "rm", foreign)


async def test_prune_without_an_engine_looks_at_no_volume(plane: Plane) -> None:
    plane.store.mkdir()
    for flags, code in (((), 0), (("--remove-volumes",), 1)):
        done = prune(plane, *flags, OPS_WORKER_DOCKER_HOST="unix:///nowhere.sock")
        assert (done.returncode, done.stderr.count("volumes are not looked at: ")) == (code, 1)
