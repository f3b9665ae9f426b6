"""A project with a repository on a control plane, and a real worker: the workflows of the README."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.odoo.conftest import Bench, Project
from tests.odoo.test_building import SERVER, GitServer, git, logs, new_key
from tests.support.command import ops_worker
from tests.support.docker import ROOT, Plane, docker, new_plane, until
from tests.support.markdown import Document
from tests.support.postgres import Cluster, run_sync

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
        [config] = [config for config in configs if config["command"][:1] == [kind]]
        config["command"] = [word.replace(README_URL, self.repository) for word in config["command"]]
        config["env"] = config.get("env", {}) | changes.pop("env", {})
        config["volumes"] = config.get("volumes", []) + changes.pop("volumes", [])
        config["secrets"] = [
            name for name in config["secrets"] if name != "aws_credentials"
        ]  # the backups are in a volume
        columns = {"workflow_type": kind, "name": kind, "git_ref": "main"}
        run_sync(lambda: add_workflow(self.plane, config | changes, columns))

    def enqueue(self, workflow: str) -> str:
        """Queues a run; returns its id."""
        return self.command("runs", "enqueue", f"{self.plane.name}/{workflow}").strip()

    @contextmanager
    def worker(self, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """The worker of this host, killed at the end of the block if it still lives."""
        words = [sys.executable, "-m", "worker", "--secrets-dir", str(self.plane.folder / "secrets"),
                 "--allowed-volumes", f"{self.plane.name}/*", *flags]  # fmt: skip
        env = self.plane.environ | {"OPS_WORKER_DEFAULT_MEMORY": "2g"}
        with (
            self.plane.shared_log.open("ab") as sink,
            subprocess.Popen(words, cwd=ROOT, env=env, stdout=sink, stderr=sink) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def work(self, *flags: str) -> None:
        """A worker executes runs until the queue is empty."""
        with self.worker("--until-idle", *flags) as process:
            assert process.wait() == 0, self.plane.shared_log.read_text()

    def run(self, workflow: str) -> dict[str, Any]:
        """Queues a run, lets the worker execute it, and returns what ``ops-worker runs show`` says of it."""
        run = self.enqueue(workflow)
        self.work()
        return self.shown(run)

    def shown(self, run: str) -> dict[str, Any]:
        """What ``ops-worker runs show`` says of a run."""
        shown: dict[str, Any] = json.loads(self.command("runs", "show", run, "--json"))
        return shown

    def ready(self, run: str) -> str:
        """The URL of a served run, once it is ready."""
        while not (found := self.shown(run))["url"]:
            assert is_active(found), found
            time.sleep(2)
        return str(found["url"])

    def ended(self, run: str) -> dict[str, Any]:
        """The run, once it has ended."""
        while is_active(found := self.shown(run)):
            time.sleep(2)
        return found

    def artifact(self, run: Mapping[str, Any], name: str) -> bytes:
        [url] = [each["artifact_url"] for each in run["artifacts"] if each["artifact_key"].endswith(f"/{name}")]
        return Path(urlsplit(url).path).read_bytes()

    def push(self, message: str) -> None:
        git("add", "-A", cwd=self.code.folder)
        git("commit", "-q", "-m", message, cwd=self.code.folder)
        git("push", "-q", str(self.server.folder / "shop.git"), "main", cwd=self.code.folder)


def is_active(run: Mapping[str, Any]) -> bool:
    return run["status"] in {"queued", "claimed", "running"}


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


@contextmanager
def new_control_plane(cluster: Cluster, image: str, folder: Path) -> Iterator[Plane]:
    """A control plane with one project."""

    async def made(url: str) -> Plane:
        db = await asyncpg.connect(url)
        try:
            return await new_plane(db, url, image, folder)
        finally:
            await db.close()

    with cluster.database(cluster.template()) as name:
        found = run_sync(lambda: made(cluster.url(name)))
        yield found
        found.remove_volumes()


def new_shop(plane: Plane, bench: Bench, runtime: str, folder: Path) -> Shop:
    """The repository of the project on a git server, the secrets of the host, and the tools by ``tools sync``."""
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
    server = GitServer(folder / "git", name, "", key)
    code = Project(folder / "shop", folder)
    code.module("shop", ["base"], test_shop=PASSING)
    server.publish("shop", code.folder)
    made = Shop(plane, f"ssh://postgres@{address}:{port}/srv/shop.git", address, code, server)
    tools = folder / "tools.toml"
    text = (TOOLS / "tools.toml").read_text()
    images = {"odoo-tool": bench.image, "odoo-postgres": bench.postgres, "odoo-runtime": runtime}
    for tool, image in images.items():
        text = text.replace(f'"{tool}:19"', f'"{image}"')
    tools.write_text(text)
    added = made.command("tools", "sync", str(tools)).splitlines()[1:]
    assert [line.split()[:2] for line in added] == [["added", tool] for tool in images]
    return made
