"""``deploy/compose.yaml`` for real: a PostgreSQL, the migrations, and three workers on one queue."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from tests.conftest import Connect
from tests.console.browser import AS_BROWSER, SECRET, bearer
from tests.db.forges import body, headers, opened_shop
from tests.db.world import World, call, new_project
from tests.docker.images import postgres_image, worker_image
from tests.support.docker import FINAL, PATIENCE, ROOT, docker, new_plane
from tests.support.postgres import free_port

pytestmark = [
    pytest.mark.xdist_group("deployment"),  # one process builds the images
    pytest.mark.timeout(900),  # and that takes its time where no layer is cached
]

WORKERS = 3
RUNS = 30
SOCKET = "/var/run/docker.sock"
ASKED = ("POSTGRES_PASSWORD", "WORKER_PASSWORD", "DOCKER_GID")


@cache
def compose_command() -> list[str]:
    """Compose as the engine's plug-in or as a program, version 1 or 2; root installs Debian's where there is none."""
    if not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        return ["docker", "compose"]
    if not shutil.which("docker-compose") and os.geteuid() == 0 and shutil.which("apt-get"):
        install = f". {ROOT}/scripts/common.sh; apt_install docker-compose"
        subprocess.run(["bash", "-c", install], check=False, capture_output=True)
    if not shutil.which("docker-compose"):
        pytest.skip("no docker compose here, and no way to install one")
    return ["docker-compose"]


@dataclass(frozen=True)
class Site:
    """One start of the compose file under a name of its own."""

    name: str
    files: tuple[Path, ...]
    password: str

    def __call__(self, *words: str) -> str:
        """What compose prints."""
        files = [word for file in self.files for word in ("--file", str(file))]
        environ = {
            "POSTGRES_PASSWORD": self.password,
            "WORKER_PASSWORD": self.password[::-1],
            "DOCKER_GID": str(Path(SOCKET).stat().st_gid),
            "CONSOLE_PASSWORD": self.password.upper(),
            "JWT_SECRET": SECRET,
            "CONSOLE_PORT": str(free_port()),
            "COMPOSE_PROJECT_NAME": self.name,
        }
        command = [*compose_command(), *files, *words]
        done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        labels = (f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}")
        return docker("ps", "-aq", *(word for label in labels for word in ("--filter", f"label={label}"))).split()

    def address(self, service: str) -> str:
        (container,) = self.containers(service)
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return docker("inspect", "--format", template, container).strip()

    @property
    def database_url(self) -> str:
        return f"postgresql://postgres:{self.password}@{self.address('postgres')}:5432/postgres"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The compose file with the images of this checkout; afterwards all of it is gone."""
    compose_command()
    images = {"postgres": postgres_image(), **dict.fromkeys(("migrate", "worker", "console"), worker_image())}
    override = tmp_path / "images.yaml"  # YAML takes JSON
    override.write_text(json.dumps({"services": {name: {"image": image} for name, image in images.items()}}))
    name = f"ops-worker-test-{secrets.token_hex(5)}"
    made = Site(name, (ROOT / "deploy" / "compose.yaml", override), secrets.token_hex(24))
    try:
        yield made
    finally:
        made("--profile", "console", "down", "--volumes", "--remove-orphans", "--timeout", "5")


async def test_three_workers_share_the_queue_and_stop_in_order(site: Site, connect: Connect, image: str) -> None:
    await asyncio.to_thread(site, "up", "--detach", "--scale", f"worker={WORKERS}")
    db = await connect(site.database_url)
    plane = await new_plane(db, site.database_url, image, Path("unused"))
    # Runs last long enough that each worker gets some.
    workflow = await plane.workflow(
        {"command": ["sh", "-c", "echo $OPS_RUN_NUMBER | tee /artifacts/number; sleep 0.5"]}
    )
    try:
        runs = [await plane.queue(workflow) for _ in range(RUNS)]
        ended = [await plane.until(run_id, *FINAL) for run_id in runs]
        assert {run["status"] for run in ended} == {"succeeded"}, {run["error_message"] for run in ended}
        assert len({run["claimed_by"] for run in ended}) == WORKERS
        actors = "select distinct payload ->> 'actor' from ops.run_events where message = 'queued -> claimed'"
        assert await db.fetchval(actors) == "compose_host"

        said = "select run_number, message from ops.runs r join ops.run_logs l on l.run_id = r.id order by 1"
        assert [tuple(row) for row in await db.fetch(said)] == [(n, str(n)) for n in range(1, RUNS + 1)]
        created = "select count(*) from ops.run_events where message = 'container created'"
        assert await db.fetchval(created) == RUNS

        key = (await plane.artifacts(runs[-1]))["number"]["artifact_key"]
        workers = site.containers("worker")
        assert docker("exec", workers[0], "cat", f"/var/lib/ops-worker/artifacts/{key}") == f"{RUNS}\n"

        await asyncio.to_thread(site, "stop", "--timeout", "60", "worker")
        codes = docker("inspect", "--format", "{{.State.ExitCode}}", *workers).split()
        assert codes == ["0"] * WORKERS
        assert await db.fetchval("select count(*) from ops_private.workers") == 0
    finally:
        if left := await plane.containers():
            docker("rm", "-fv", *left)


async def test_starting_again_keeps_the_database_and_migrates_nothing(site: Site, connect: Connect) -> None:
    await asyncio.to_thread(site, "up", "--detach")
    db = await connect(site.database_url)
    identity = await db.fetchval("select ops_private.database_identity()")
    unnamed = docker("inspect", "--format", "{{len .Mounts}}", *site.containers("migrate"))
    assert unnamed == "0\n", "a volume that `down` would leave behind"
    await asyncio.to_thread(site, "down", "--timeout", "30")
    await asyncio.to_thread(site, "up", "--detach")
    db = await connect(site.database_url)
    assert await db.fetchval("select database_id from ops_private.control") == identity
    (migrate,) = site.containers("migrate")
    assert "nothing to do" in docker("logs", migrate)


async def test_the_console_signs_users_in_and_receives_webhooks(site: Site, connect: Connect) -> None:
    await asyncio.to_thread(site, "--profile", "console", "up", "--detach")
    world = World(db := await connect(site.database_url), await new_project(db, "acme"), uuid.uuid4())
    user, content = uuid.uuid4(), body("github_push")
    await call(db, "set_member", world.project, user, "viewer")
    await opened_shop(world)
    async with httpx.AsyncClient(base_url=f"http://{site.address('console')}:8090") as client:
        client.headers["Host"] = "localhost:8090"
        await asyncio.to_thread(answering, f"{client.base_url}")
        done = await client.get("/projects/acme", headers=AS_BROWSER | bearer(user))
        assert done.status_code == HTTPStatus.OK, done.text
        hook = await client.post(f"/hooks/{world.project}", content=content, headers=headers("github", content))
        assert hook.status_code == HTTPStatus.ACCEPTED, hook.text
    (console,) = site.containers("console")
    await asyncio.to_thread(docker, "stop", console)
    assert docker("inspect", "--format", "{{.State.ExitCode}} {{len .Mounts}}", console) == "0 0\n"


def answering(url: str) -> None:
    """Waits until the console answers."""
    for _ in range(int(PATIENCE) * 2):
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", headers={"Host": "localhost"}).status_code == HTTPStatus.OK:
                return
        time.sleep(0.5)
    raise TimeoutError


def test_compose_asks_for_what_it_cannot_know(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ASKED}
    command = [*compose_command(), "--file", str(ROOT / "deploy" / "compose.yaml"), "config"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert any(f"set {name}" in done.stderr for name in ASKED)
