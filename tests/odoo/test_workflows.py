"""The workflows of the README, executed by a real worker: tools from a file, services, caches, volumes, secrets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.odoo.conftest import Bench, Project
from tests.odoo.test_building import SERVER, GitServer, git, logs, new_key
from tests.support.command import ops_worker
from tests.support.docker import ROOT, Plane, docker, new_plane, until
from tests.support.markdown import Document
from tests.support.postgres import Cluster, run_sync

pytestmark = pytest.mark.timeout(1200)

TOOLS = ROOT / "deploy" / "tools" / "odoo"
README_URL = "ssh://git@git.example/acme/shop.git"
PASSING = """
from odoo.tests import TransactionCase

class TestShop(TransactionCase):
    def test_a_book_is_sold(self):
        self.assertEqual(1 + 1, 2)

    def test_a_partner_is_made(self):
        self.assertTrue(self.env["res.partner"].create({"name": "x"}))
"""


@dataclass(frozen=True)
class Shop:
    """A project with a repository, on a control plane, and the build host that executes its runs."""

    plane: Plane
    repository: str
    host: str
    """the address by which a container reaches what this host publishes"""
    code: Project
    server: GitServer

    def command(self, *words: str) -> str:
        """What ``ops-worker`` prints with these words."""
        done = ops_worker(*words, OPS_WORKER_DATABASE_URL=self.plane.url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def workflow(self, kind: str, **changes: Any) -> None:
        """Makes the workflow that the README has for this type. ``changes`` are the places of this test."""
        configs = [json.loads(block) for block in Document(TOOLS / "README.md").blocks("json")]
        [config] = [config for config in configs if config["command"][0] == kind]
        config["command"] = [word.replace(README_URL, self.repository) for word in config["command"]]
        config["env"] = config.get("env", {}) | changes.pop("env", {})
        config["volumes"] = config.get("volumes", []) + changes.pop("volumes", [])
        config["secrets"] = [
            name for name in config["secrets"] if name != "aws_credentials"
        ]  # the backups are in a volume
        columns = {"workflow_type": kind, "name": kind, "git_ref": "main"}
        run_sync(lambda: add_workflow(self.plane, config | changes, columns))

    def run(self, workflow: str) -> dict[str, Any]:
        """Queues a run, lets the worker execute it, and returns what ``ops-worker runs show`` says of it."""
        run = self.command("runs", "enqueue", f"{self.plane.name}/{workflow}").strip()
        flags = ["--until-idle", "--secrets-dir", str(self.plane.folder / "secrets"),
                 "--allowed-volumes", f"{self.plane.name}/*"]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "worker", *flags], cwd=ROOT, capture_output=True, text=True, check=False,
            env=self.plane.environ | {"OPS_WORKER_DEFAULT_MEMORY": "2g"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown: dict[str, Any] = json.loads(self.command("runs", "show", run, "--json"))
        return shown

    def artifact(self, run: Mapping[str, Any], name: str) -> bytes:
        [url] = [each["artifact_url"] for each in run["artifacts"] if each["artifact_key"].endswith(f"/{name}")]
        return Path(urlsplit(url).path).read_bytes()

    def push(self, message: str) -> None:
        git("add", "-A", cwd=self.code.folder)
        git("commit", "-q", "-m", message, cwd=self.code.folder)
        git("push", "-q", str(self.server.folder / "shop.git"), "main", cwd=self.code.folder)


async def add_workflow(plane: Plane, config: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    db = await asyncpg.connect(plane.url)
    try:
        await replace(plane, db=db).workflow(config, **columns)
    finally:
        await db.close()


def published(bench: Bench, alias: str, port: int) -> tuple[str, int]:
    """Where containers of other networks reach that port."""
    address, _, found = docker("port", f"{bench.name}-{alias}", str(port)).split()[0].rpartition(":")
    return address, int(found)


@pytest.fixture(scope="module")
def plane(cluster: Cluster, tool_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with one project."""
    folder = tmp_path_factory.mktemp("plane")

    async def made(url: str) -> Plane:
        db = await asyncpg.connect(url)
        try:
            return await new_plane(db, url, tool_image, folder)
        finally:
            await db.close()

    with cluster.database(cluster.template()) as name:
        found = run_sync(lambda: made(cluster.url(name)))
        yield found
        found.remove_volumes()


@pytest.fixture(scope="module")
def shop(
    plane: Plane, bench: Bench, tool_image: str, postgres_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    """The repository of the project on a git server, the secrets of the host, and the tools by ``tools sync``."""
    folder = tmp_path_factory.mktemp("shop")
    host = docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", bench.name).strip()
    (folder / "git").mkdir()
    (folder / "git").chmod(0o755)
    key = new_key(bench, folder)
    shutil.copyfile(f"{key}.pub", folder / "git" / "authorized_keys")
    options = ("-v", f"{folder / 'git'}:/srv:ro", "--user", "postgres", "--entrypoint", "sh", "-p", f"{host}::2222")
    name = bench.serve("git", bench.image, "-c", SERVER, options=options)
    run_sync(lambda: until(lambda: "Server listening" in logs(name)))
    host_key = docker("exec", name, "cat", "/tmp/host_key.pub").strip()  # noqa: S108 - in the container
    address, port = published(bench, "git", 2222)
    secrets = plane.folder / "secrets"
    secrets.mkdir()
    shutil.copyfile(key, secrets / "deploy_key")
    (secrets / "known_hosts").write_text(f"[{address}]:{port} {host_key}\n")
    for secret in ("pgpassword", "restic_password"):
        (secrets / secret).write_text("a long password of the tests")
    server = GitServer(folder / "git", "", key)
    code = Project(folder / "shop", folder)
    code.module("shop", ["base"], test_shop=PASSING)
    server.publish("shop", code.folder)
    made = Shop(plane, f"ssh://postgres@{address}:{port}/srv/shop.git", address, code, server)
    tools = folder / "tools.toml"
    text = (TOOLS / "tools.toml").read_text().replace('"odoo-tool:19"', f'"{tool_image}"')
    tools.write_text(text.replace('"odoo-postgres:19"', f'"{postgres_image}"'))
    assert [line.split()[0] for line in made.command("tools", "sync", str(tools)).splitlines()[1:]] == [
        "added",
        "added",
    ]
    return made


def test_a_red_test_is_the_first_thing_that_a_person_sees(shop: Shop) -> None:
    shop.workflow("test")
    green = shop.run("test")
    assert green["status"] == "succeeded", green
    assert (green["tests"]["passed"], green["tests"]["failed"]) == (2, 0)
    test = shop.code.folder / "shop" / "tests" / "test_shop.py"
    test.write_text(PASSING.replace("1 + 1, 2", "1 + 1, 3"))
    shop.push("break a test")
    red = shop.run("test")
    assert (red["status"], red["reason"], red["exit_code"]) == ("failed", "exit_code", 1)
    assert red["summary"].splitlines()[0] == (
        "- **FAILED** `shop` `TestShop.test_a_book_is_sold`: AssertionError: 2 != 3"
    )
    assert (red["tests"]["passed"], red["tests"]["failed"]) == (1, 1)
    shown = shop.command("runs", "show", red["run"]).splitlines()
    assert "test_a_book_is_sold" in shown[shown.index("Failing tests") + 1]
    assert shown.index("Failing tests") < 5, "above it: whether this error is new or known"
    log = shop.command("runs", "logs", red["run"])
    assert "==> dependencies: 1 modules from the cache" in log, "the green run has kept the template"
    assert b"<coverage" in shop.artifact(red, "coverage.xml")


def test_a_commit_is_built_once(shop: Shop) -> None:
    shop.workflow("build")
    builds = [shop.run("build") for _ in range(2)]
    assert [run["status"] for run in builds] == ["succeeded", "succeeded"], builds
    assert shop.artifact(builds[0], "addons.tar.gz") == shop.artifact(builds[1], "addons.tar.gz")
    assert ": from the cache" in shop.command("runs", "logs", builds[1]["run"])


def test_production_is_backed_up_from_its_volume_and_the_backup_proven(shop: Shop, bench: Bench) -> None:
    plane, code = shop.plane, shop.code.folder
    bench.serve("prod", bench.postgres, "--trust", options=(
        "--tmpfs", "/var/lib/postgresql/data", "-p", f"{shop.host}::5432"))  # fmt: skip
    server = f"{bench.name}-prod"
    run_sync(lambda: until(lambda: "healthy" in docker("inspect", "-f", "{{.State.Health.Status}}", server).split()))
    labels = {"database-id": plane.identity, "project-id": plane.project_id, "volume": "odoo-data"}
    volume = plane.volume("odoo-data")
    docker("volume", "create", *(f"--label=ops-worker.{key}={value}" for key, value in labels.items()), volume)
    docker("run", "--rm", "--user", "0", "-v", f"{volume}:/data", "--entrypoint", "chmod", bench.image, "777", "/data")
    docker("run", "--rm", "--network", bench.name, "-e", "PGHOST=prod", "-e", "PGUSER=odoo", "-v", f"{volume}:/data",
           "-v", f"{code}:/src:ro", "--entrypoint", "python", bench.image, "-m", "odoo", "-d", "prod", "-i", "shop",
           "--addons-path", "/src", "--data-dir", "/data", "--stop-after-init", "--no-http",
           "--log-level=warn")  # fmt: skip
    address, port = published(bench, "prod", 5432)
    place = {"PGHOST": address, "PGPORT": str(port), "RESTIC_REPOSITORY": "/backups"}
    shop.workflow("backup", env=place, volumes=[{"name": "backups", "path": "/backups"}])
    backup = shop.run("backup")
    assert backup["status"] == "succeeded", backup["summary"]
    assert backup["summary"].startswith("# Backup ")
    report = json.loads(shop.artifact(backup, "backup.json"))
    assert report["files_checked"] > 0, "those of the volume"

    shop.workflow("upgrade", env={"RESTIC_REPOSITORY": "/backups"}, volumes=[{"name": "backups", "path": "/backups"}])
    rehearsal = shop.run("upgrade")
    assert rehearsal["status"] == "succeeded", rehearsal["summary"]
    assert rehearsal["summary"].startswith("# Upgrade of prod from 19.0 to 19.0: no problem\n")
