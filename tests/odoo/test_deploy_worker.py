"""A deploy by a real worker, which is killed: alone, with the container of the deploy, or with its whole host."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from tests.db.world import shift_clock
from tests.odoo.conftest import Bench
from tests.odoo.shop import Shop, new_control_plane, new_shop
from tests.odoo.test_deploy import DAMAGE, DATABASES, SOLD, Site, new_site, wait, write_version
from tests.support.docker import KILLED, Plane, docker
from tests.support.postgres import Cluster, run_sync

pytestmark = pytest.mark.timeout(1200)

UNTIL_RELEASED = DAMAGE.format(
    seconds=0, then="[time.sleep(0.1) for _ in iter(pathlib.Path(config['data_dir'], 'go').exists, True)]"
)
"""A migration that deletes all that was sold, and waits for the file ``go`` of the volume."""

MIGRATES, SWITCHED = "THE MIGRATION WORKS", "deploy: switching filestore and release"
LEASE = 300


@dataclass(frozen=True)
class Production:
    """A site that the workflow ``deploy`` of a shop deploys to."""

    shop: Shop
    site: Site
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    @property
    def plane(self) -> Plane:
        return self.shop.plane

    def push(self, migration: str = "") -> str:
        """A new version of the code; returns its name."""
        number = next(self.versions)
        write_version(self.shop.code, f"v{number}", migration, number=number)
        self.shop.push(f"v{number}")
        return f"v{number}"

    def enqueue(self) -> str:
        """Queues a deploy; returns the id of the run."""
        return str(self.shop.shown(self.shop.enqueue("deploy"))["run_id"])

    def settled(self, *bodies: str) -> str:
        """What visitors get when the deploy is over and what is left of it is deleted."""
        wait(lambda: "" if (self.site.data / "deploy" / "journal.json").exists() else "over")
        served = self.site.serves(*bodies)
        wait(lambda: "" if "prod__new" in self.site.sql(DATABASES, "postgres").split() else "tidy")
        return served

    def sell(self) -> str:
        """Some data of the users; returns what visitors get."""
        self.site.sql("delete from shop_note where name = 'sold'")
        self.site.sql(f"insert into shop_note (name) select 'sold' from generate_series(1, {SOLD})")
        return self.site.get()[1]

    def query(self, statement: str) -> Any:
        """The first value of the answer of the control plane."""

        async def asked() -> Any:
            db = await asyncpg.connect(self.plane.url)
            try:
                return await db.fetchval(statement)
            finally:
                await db.close()

        return run_sync(asked)

    def container(self, run: str) -> str:
        return self.plane.container(uuid.UUID(run))


def reach(container: str, text: str) -> None:
    """Waits until the container prints that text; it may not exist yet."""
    wait(lambda: docker("ps", "--quiet", "--filter", f"name={container}"))
    command = ["docker", "logs", "--follow", container]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as log:
        assert log.stdout
        seen = []
        for line in log.stdout:
            seen.append(line)
            if text in line:
                log.kill()
                return
    raise AssertionError("".join(seen))


@pytest.fixture(scope="module")
def plane(cluster: Cluster, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with new_control_plane(cluster, bench.image, tmp_path_factory.mktemp("plane")) as made:
        yield made


@pytest.fixture(scope="module")
def production(
    plane: Plane, bench: Bench, runtime_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Production]:
    """The first version, deployed by a run; the volume of the project is the folder that the runtime serves."""
    shop = new_shop(plane, bench, runtime_image, tmp_path_factory.mktemp("shop"))
    folder = tmp_path_factory.mktemp("site")
    with socket.create_server((shop.host, 0)) as free:
        port = free.getsockname()[1]  # a port that the engine chose would be another one after a restart
    site = new_site(bench, runtime_image, folder, "-p", f"{shop.host}:{port}:5432")
    labels = {"database-id": plane.identity, "project-id": plane.project_id, "volume": "odoo-data"}
    words = [f"--label=ops-worker.{key}={value}" for key, value in labels.items()]
    bound = ("--opt", "type=none", "--opt", "o=bind", "--opt", f"device={site.data}")
    docker("volume", "create", *words, *bound, plane.volume("odoo-data"))
    shop.workflow(
        "deploy", env={"PGHOST": shop.host, "PGPORT": str(port)}, concurrency_key="deploy",
        retry={"max_attempts": 2, "on": ["worker_lost"], "delay_seconds": 0},
    )  # fmt: skip
    made = Production(shop, site)
    version = made.push()
    first = shop.run("deploy")
    assert first["status"] == "succeeded", first["summary"]
    assert site.serves(f"{version} {version} 1")
    yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("ended", [False, True], ids=["while-it-works", "after-its-end"])
def test_a_deploy_outlives_its_worker(production: Production, ended: bool) -> None:  # noqa: FBT001
    """The successor comes while the deploy works, or when its container has exited; the deploy runs once."""
    site, shop = production.site, production.shop
    production.sell()
    new, go = production.push(UNTIL_RELEASED), site.data / "go"
    run = production.enqueue()
    with shop.worker() as worker:
        reach(production.container(run), MIGRATES)
        worker.kill()
        worker.wait()
    if ended:
        go.touch()
        assert docker("wait", production.container(run)).strip() == "0"
    with shop.worker("--until-idle") as successor:
        adopted = f"select count(*) from ops.run_events where run_id = '{run}' and payload ? 'previous_worker_id'"
        wait(lambda: "adopted" if production.query(adopted) else "")
        go.touch()
        assert successor.wait() == 0
    go.unlink()
    shown = shop.shown(run)
    assert (shown["status"], shown["reason"]) == ("succeeded", "succeeded"), shown
    assert b'"result": "deployed"' in shop.artifact(shown, "deploy.json")
    assert shop.command("runs", "logs", run).count(MIGRATES) == 1
    assert site.serves(f"{new} {new} 1"), "the migration has deleted what was sold"
    assert site.sql(DATABASES, "postgres").split() == ["prod", "prod__old"]
    assert len(list((site.data / "releases").iterdir())) == 2


@pytest.mark.parametrize("step", [MIGRATES, SWITCHED])
def test_a_deploy_of_a_lost_host_is_retried_by_another_one(production: Production, step: str) -> None:
    """Its worker and its container are gone; the volume and the runtime are not."""
    site, shop = production.site, production.shop
    old, before = production.sell(), site.state()
    new = f"{(version := production.push(UNTIL_RELEASED))} {version} 1"
    run = die(production, step)
    docker("rm", "-f", "-v", production.container(run))
    served = production.settled(old, new)
    assert (served == old) == (step == MIGRATES)
    assert served == new or site.state() == before
    (site.data / "go").touch()
    production.query("update ops_private.leases set engine_id = 'of the host that is gone'")
    run_sync(later, production.plane.url, 2 * LEASE + 1)
    production.query("select ops.reap()")
    shop.work("--worker-id", f"{production.plane.name}-b")
    (site.data / "go").unlink()
    lost = shop.shown(run)
    assert (lost["status"], lost["reason"]) == ("failed", "worker_lost")
    assert production.query(f"select status from ops.runs where retry_of = '{run}'") == "succeeded"
    assert production.settled(old, new) == new


@pytest.mark.parametrize("step", [MIGRATES, SWITCHED])
def test_a_host_that_restarts_during_a_deploy_serves_the_old_or_the_new_one(production: Production, step: str) -> None:
    """Worker, deploy, runtime and PostgreSQL are killed together; all but the deploy are started again."""
    site, shop = production.site, production.shop
    old, before = production.sell(), site.state()
    new = f"{(version := production.push(UNTIL_RELEASED))} {version} 1"
    run = die(production, step, site.server, site.runtime)
    docker("start", site.server, site.runtime)
    served = production.settled(old, new)
    assert (served == old) == (step == MIGRATES)
    assert served == new or site.state() == before
    shop.work()
    assert shop.shown(run)["status"] == "failed"
    (site.data / "go").touch()
    again = shop.run("deploy")
    assert again["status"] == "succeeded", again["summary"]
    (site.data / "go").unlink()
    assert production.settled(old, new) == new


def die(production: Production, step: str, *others: str) -> str:
    """A deploy is killed together with its worker and other containers when it prints that; returns its run."""
    run, go = production.enqueue(), production.site.data / "go"
    if step != MIGRATES:
        go.touch()
    with production.shop.worker() as worker:
        reach(production.container(run), step)
        worker.kill()
        docker("kill", "--signal", "KILL", production.container(run), *others)
        worker.wait()
    assert docker("wait", production.container(run)).strip() == str(KILLED)
    go.unlink(missing_ok=True)
    return run


async def later(url: str, seconds: float) -> None:
    """Moves the clock of the control plane on."""
    db = await asyncpg.connect(url)
    try:
        passed = await db.fetchval("select extract(epoch from ops_private.current_time() - clock_timestamp())::float8")
        await shift_clock(db, passed + seconds)
    finally:
        await db.close()
