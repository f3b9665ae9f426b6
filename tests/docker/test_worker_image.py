"""The worker in a container: built by the project's own script, given the engine's socket and a database over TCP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.docker.images import worker_image
from tests.support.docker import WAITS, Plane, docker, new_plane, printed, until
from tests.support.postgres import Cluster

pytestmark = [
    pytest.mark.xdist_group("deployment"),  # one process builds the images
    pytest.mark.timeout(900),  # and that takes its time where no layer is cached
]

SOCKET = "/var/run/docker.sock"
STORE = "/var/lib/ops-worker/artifacts"
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")  # noqa: S108
GRACE = 60
KILLED = 137


def socket_group() -> str:
    """The group that may use the engine, besides root."""
    return str(Path(SOCKET).stat().st_gid)


@dataclass(frozen=True)
class Container:
    """A worker in a container."""

    name: str

    @property
    def said(self) -> str:
        """What it wrote to both streams."""
        command = ["docker", "logs", self.name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout

    def fact(self, path: str) -> str:
        """A field of what the engine knows of it."""
        return docker("inspect", "--format", f"{{{{{path}}}}}", self.name).strip()

    async def stop(self, grace_seconds: int = GRACE) -> int:
        """``docker stop``; returns the exit code, 137 where the grace was not enough."""
        await asyncio.to_thread(docker, "stop", "--time", str(grace_seconds), self.name)
        return int(self.fact(".State.ExitCode"))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until that holds; the container must go on running."""

        def holds_or_ended() -> bool:
            held = holds()
            assert held or self.fact(".State.Status") == "running", self.said
            return held

        await until(lambda: asyncio.to_thread(holds_or_ended), pause=0.1)

    async def until_said(self, text: str) -> None:
        await self.until(lambda: text in self.said)


@dataclass(frozen=True)
class Site:
    """A network with a database server on its gateway's address."""

    network: str
    address: str
    cluster: Cluster
    image: str

    @asynccontextmanager
    async def worker(self, database_url: str, *flags: str, options: tuple[str, ...] = ()) -> AsyncIterator[Container]:
        """A worker in a container, removed with its volume at the end of the block."""
        name = f"ops-worker-test-{uuid.uuid4().hex[:10]}"
        await asyncio.to_thread(
            docker,
            "run", "--detach", "--name", name, "--network", self.network, *HARDENED,
            "--group-add", socket_group(), "--volume", f"{SOCKET}:{SOCKET}",
            "--env", f"OPS_WORKER_DATABASE_URL={database_url}", "--env", "OPS_WORKER_LOG_FORMAT=json",
            *options, self.image, *flags,
        )  # fmt: skip
        try:
            yield Container(name)
        finally:
            await asyncio.to_thread(docker, "rm", "--force", "--volumes", name)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The image, a network, and a server that listens there."""
    image = worker_image()
    network = f"ops-worker-test-{uuid.uuid4().hex[:10]}"
    docker("network", "create", network)
    try:
        address = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network).strip()
        with Cluster(listen=address) as cluster:
            yield Site(network, address, cluster, image)
    finally:
        docker("network", "rm", network)


@dataclass(frozen=True)
class Control:
    """A control plane on that server."""

    plane: Plane
    database_url: str


@pytest_asyncio.fixture
async def control(site: Site, connect: Connect, image: str, tmp_path: Path) -> AsyncIterator[Control]:
    cluster = site.cluster
    with cluster.database(cluster.template()) as name:
        db: asyncpg.Connection = await connect(cluster.url(name))
        plane = await new_plane(db, cluster.url(name), image, tmp_path)
        yield Control(plane, plane.login(cluster.url(name, host=site.address)))
        if left := await plane.containers():
            docker("rm", "-fv", *left)


async def test_a_run_goes_through_with_its_log_and_artifacts(site: Site, control: Control) -> None:
    plane = control.plane
    run_id = await plane.shell("seq 1 2000; echo warned >&2; seq 1 100000 > /artifacts/numbers.txt; exit 0")
    async with site.worker(control.database_url) as worker:
        run = await plane.until(run_id, "succeeded", "failed")
        assert (run["status"], run["exit_code"]) == ("succeeded", 0), run["error_message"]

        lines = await plane.log(run_id)
        by_stream = {
            stream: [line["message"] for line in lines if line["stream"] == stream] for stream in ("stdout", "stderr")
        }
        assert by_stream == {"stdout": [str(n) for n in range(1, 2001)], "stderr": ["warned"]}

        artifacts = await plane.artifacts(run_id)
        assert list(artifacts) == ["numbers.txt"]
        stored = docker("exec", worker.name, "cat", f"{STORE}/{artifacts['numbers.txt']['artifact_key']}")
        assert stored == "".join(f"{n}\n" for n in range(1, 100_001))
        assert artifacts["numbers.txt"]["checksum"] == f"sha256:{sha256(stored.encode()).hexdigest()}"
        await worker.until(lambda: not docker("ps", "-aq", "--filter", f"label=ops-worker.run-id={run_id}"))


async def test_docker_stop_drains_and_frees_the_worker_id(site: Site, control: Control) -> None:
    plane = control.plane
    first = await plane.shell(WAITS)
    async with site.worker(control.database_url, "--concurrency", "1") as worker:
        await plane.until_logged(first, "up")
        second = await plane.shell("true")
        stopping = asyncio.create_task(worker.stop())
        await worker.until_said("stopping: no more claims")
        await plane.release(first)
        assert await stopping == 0
    assert (await plane.run(first))["status"] == "succeeded"
    assert await plane.messages(first) == ["up", "down"]
    assert (await plane.run(second))["status"] == "queued"
    assert await plane.db.fetchval("select count(*) from ops_private.workers") == 0


async def test_a_worker_that_waits_for_its_database_can_be_stopped(site: Site, control: Control) -> None:
    # Process 1 of a container gets no signal that it has no handler for.
    unreachable = f"postgresql://worker:secret@{site.address}:9/ops"
    async with site.worker(unreachable) as worker:
        await worker.until_said("cannot be reached")
        assert await worker.stop(20) != KILLED


async def test_the_health_check_follows_the_heartbeat(site: Site, control: Control) -> None:
    options = ("--health-interval", "1s", "--health-start-period", "1ms")
    async with site.worker(control.database_url, options=options) as worker:
        await worker.until(lambda: worker.fact(".State.Health.Status") == "healthy")
        assert "last heartbeat" in worker.fact("json .State.Health.Log")
    unreachable = f"postgresql://worker:secret@{site.address}:9/ops"
    async with site.worker(unreachable, options=(*options, "--health-retries", "1")) as worker:
        # the first check may come before the worker listens
        await worker.until(lambda: "no heartbeat yet" in worker.fact("json .State.Health.Log"))
        assert worker.fact(".State.Health.Status") == "unhealthy"


def test_the_image_carries_the_schema_and_the_command(site: Site) -> None:
    run = ("--network", site.network, *HARDENED)
    with site.cluster.database() as name:
        environ = ("--env", f"OPS_WORKER_DATABASE_URL={site.cluster.url(name, host=site.address)}")
        assert "applied" in printed(*run, *environ, site.image, "db", "migrate")
        assert printed(*run, *environ, site.image, "db", "verify") == "the schema is complete\n"


def test_a_wrong_setting_ends_the_container_with_exit_code_two(site: Site) -> None:
    command = ["docker", "run", "--rm", "--env", "OPS_WORKER_CONCURENCY=2", site.image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "OPS_WORKER_CONCURRENCY" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_image_holds_an_ordinary_user_and_no_installer(site: Site) -> None:
    script = "import os; print(os.getuid(), os.access('/opt', os.W_OK), os.access('.', os.W_OK))"
    said = printed("--entrypoint", "python", site.image, "-c", script)
    assert said == "10001 False True\n"
    tools = "import importlib.util as u; print([n for n in ('pip', 'setuptools', 'wheel') if u.find_spec(n)])"
    assert printed("--entrypoint", "python", site.image, "-c", tools) == "[]\n"
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", site.image))
    assert config["User"] == "ops-worker"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert list(config["Volumes"]) == [STORE]
