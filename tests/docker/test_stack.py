"""``deploy/stack.yaml`` on a swarm of one node, whose engine is the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.docker.images import worker_image
from tests.faults.engine import OwnEngine
from tests.support.docker import FINAL, ROOT, Plane, until

pytestmark = [
    pytest.mark.xdist_group("deployment"),  # one process builds the images
    pytest.mark.timeout(900),  # and that takes its time where no layer is cached
]

NODE = "{{.Description.Hostname}}"


@pytest.fixture(scope="module")
def swarm() -> Iterator[OwnEngine]:
    """An engine that is a swarm of its own and has the worker's image."""
    with OwnEngine() as engine:
        engine.bring_up_loopback()
        load = f"docker save {worker_image()} | docker --host unix://{engine.socket} load"
        subprocess.run(["bash", "-o", "pipefail", "-c", load], check=True, capture_output=True)
        engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:0")
        try:
            yield engine
        finally:
            engine.docker("swarm", "leave", "--force")


def deploy(engine: OwnEngine, override: Path) -> None:
    environ = {"WORKER_IMAGE": worker_image(), "DOCKER_GID": str(Path(engine.socket).stat().st_gid)}
    stack = override.with_name("stack.yaml")  # Docker 20.10 may take a mount of the override for a second one
    here = (ROOT / "deploy" / "stack.yaml").read_text().replace("/var/run/docker.sock:", f"{engine.socket}:")
    stack.write_text(here)
    files = (stack, override)
    words = ["stack", "deploy", *(word for file in files for word in ("--compose-file", str(file))), "workers"]
    command = ["docker", "--host", f"unix://{engine.socket}", *words]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_run_goes_through_on_a_swarm_and_an_update_drains(
    swarm: OwnEngine, plane: Plane, tmp_path: Path
) -> None:
    plane = replace(plane, engine=f"unix://{swarm.socket}", image=swarm.load_image(plane.image))
    await plane.db.execute("update ops.tools set docker_image = $1", plane.image)
    # The engine has no network, so the worker reaches the server by its socket, and the image is not pulled.
    url = plane.login(plane.url)
    folder = parse_qs(urlsplit(url).query)["host"][0]
    settings = tmp_path / "settings.env"
    settings.write_text(f"OPS_WORKER_DATABASE_URL={url.replace(folder, '/server')}\n")
    swarm.docker("secret", "create", "ops-worker-settings", str(settings))
    mounts = [f"{folder}/.s.PGSQL.5432:/server/.s.PGSQL.5432"]
    worker = {"environment": {"OPS_WORKER_ALLOWED_NETWORKS": "none"}, "volumes": mounts}
    override = tmp_path / "override.yaml"  # YAML takes JSON
    network = {"default": {"external": True, "name": "host"}}
    override.write_text(json.dumps({"version": "3.8", "services": {"worker": worker}, "networks": network}))
    await asyncio.to_thread(deploy, swarm, override)

    run_id = await plane.shell("echo up; while [ ! -e /artifacts/go ]; do sleep 0.1; done; echo down")
    await plane.until_logged(run_id, "up")
    assert (await plane.run(run_id))["claimed_by"] == swarm.docker("node", "inspect", "--format", NODE, "self").strip()
    [task] = swarm.docker("service", "ps", "--quiet", "workers_worker").split()
    state = ("inspect", "--format", "{{.Status.State}}", task)
    await until(lambda: swarm.docker(*state) == "running\n")  # only once its health check succeeds

    swarm.docker("service", "update", "--detach", "--force", "workers_worker")
    await until(lambda: swarm.docker("inspect", "--format", "{{.DesiredState}}", task) == "shutdown\n")
    plane.docker("exec", plane.container(run_id), "touch", "/artifacts/go")
    assert (await plane.until(run_id, *FINAL))["status"] == "succeeded"
    await until(lambda: swarm.docker(*state) in ("complete\n", "shutdown\n"))
    assert swarm.docker("inspect", "--format", "{{.Status.ContainerStatus.ExitCode}}", task) == "0\n"
    assert await plane.messages(run_id) == ["up", "down"]
    assert (await plane.finished("exit 0"))["status"] == "succeeded", "the next task works on"

    swarm.docker("stack", "rm", "workers")
    await until(lambda: plane.db.fetchval("select count(*) = 0 from ops_private.workers"))
