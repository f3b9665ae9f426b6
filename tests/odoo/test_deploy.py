"""The command ``deploy`` and the runtime: a production of a real Odoo, and every way in which a deploy can end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docker.test_compose import compose_command
from tests.odoo.conftest import Bench, Done, Project, writable
from tests.support.docker import PATIENCE, ROOT, docker

pytestmark = pytest.mark.timeout(900)

MODEL = """
from odoo import fields, models
class Note(models.Model):
    _name = "shop.note"
    _description = "note"
    name = fields.Char()
"""
CONTROLLER = """
from odoo import http
class Shop(http.Controller):
    @http.route("/shop", auth="none")
    def shop(self):
        env = http.request.env(su=True)
        return "%s %s %s" % ("{version}", env.ref("shop.version").name, env["shop.note"].search_count([]))
"""
RECORD = '<odoo><record id="version" model="shop.note"><field name="name">{version}</field></record></odoo>'
DAMAGE = """
import pathlib, time
from odoo.tools import config
def migrate(cr, version):
    cr.execute("delete from shop_note where name = 'sold'")
    pathlib.Path(config.filestore(cr.dbname), "new").write_text("new")
    cr.execute("commit")
    print("THE MIGRATION WORKS", flush=True)
    time.sleep({seconds})
    {then}
"""
SOLD = 5000
DATABASES = "select datname from pg_database where datname like 'prod%' order by 1"


@dataclass(frozen=True)
class Site:
    """The database ``prod`` on a server that keeps its data, a volume, and a runtime that serves it."""

    bench: Bench
    folder: Path
    cache: Path
    project: Project
    runtime: str
    server: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def options(self) -> dict[str, Any]:
        return {"volumes": {self.data: "/data"}, "cache": self.cache, "env": {"PGHOST": "prod"}}

    def deploy(self, *flags: str, build: Path | None = None) -> Done:
        options = self.options()
        if build is not None:
            options["volumes"] = {self.data: "/data", build: "/build:ro"}
            flags = (*flags, "--build", "/build")
        return self.bench.run("deploy", "--database", "prod", *flags, **options)

    def build(self, version: str, migration: str = "") -> Path:
        """A build of ``write_version``."""
        write_version(self.project, version, migration)
        done = self.bench.run("build", source=self.project.folder, cache=self.cache)
        assert done.code == 0, done.output
        return done.artifacts

    def get(self, path: str = "/shop") -> tuple[int, str]:
        """The status and the body that a visitor gets; 0 if there is no answer."""
        address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", self.runtime)
        try:
            with urllib.request.urlopen(f"http://{address.strip()}:8069{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def serves(self, *bodies: str) -> str:
        """Waits until visitors get one of these; returns it."""
        return wait(lambda: next((body for body in bodies if self.get() == (200, body)), ""))

    def sql(self, statement: str, database: str = "prod") -> str:
        return self.bench.sql(statement, database, alias="prod")

    def state(self) -> object:
        """What a failed deploy may not change. What the deploy before it replaced is gone."""
        rows = "select count(*), md5(string_agg(t::text, ',' order by id)) from {} t"
        files = {
            str(path.relative_to(self.data)): path.stat().st_size
            for path in (self.data / "filestore" / "prod").rglob("*")
        }
        tables = [
            self.sql(rows.format(name)) for name in ("shop_note", "ir_module_module", "ir_attachment", "ir_model")
        ]
        return (
            tables,
            files,
            (self.data / "current").readlink(),
            self.sql("select oid from pg_database where datname = 'prod'"),
        )


def write_version(project: Project, version: str, migration: str = "", *, number: int = 2) -> None:
    """Writes the modules ``shop``, with this version, and ``other``, which is always the same.

    ``number``: that of the migration, which Odoo runs when a lower one is installed.
    """
    shop = project.folder / "shop"
    for name in ("other", "shop"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
    project.module("other", ["base"])
    project.module("shop", ["web"])
    manifest: dict[str, Any] = {
        "name": "shop", "version": "19.0.1.0.0", "license": "LGPL-3", "author": "ACME", "depends": ["web"],
        "data": ["data.xml"],
    }  # fmt: skip
    if migration:
        manifest["version"] = f"19.0.{number}.0.0"
        (shop / "migrations" / manifest["version"]).mkdir(parents=True)
        (shop / "migrations" / manifest["version"] / "pre-migrate.py").write_text(migration)
    (shop / "__manifest__.py").write_text(repr(manifest))
    (shop / "__init__.py").write_text("from . import controller, model\n")
    (shop / "model.py").write_text(MODEL)
    (shop / "controller.py").write_text(CONTROLLER.replace("{version}", version))
    (shop / "data.xml").write_text(RECORD.format(version=version))


def wait(condition: Callable[[], str]) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return answer


def report(done: Done) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((done.artifacts / "deploy.json").read_text())
    return loaded


def new_site(bench: Bench, runtime_image: str, folder: Path, *published: str) -> Site:
    """Production before its first deploy; ``published``: options by which others reach the server."""
    data = writable(folder / "data")
    options = ("-v", "/var/lib/postgresql/data", *published)
    server = bench.serve("prod", bench.postgres, "--durable", "--trust", "-c", "fsync=off", options=options)
    wait(lambda: "yes" if "healthy" in docker("inspect", "-f", "{{.State.Health.Status}}", server).split() else "")
    options = ("--read-only", "--tmpfs", "/tmp:mode=1777", "-e", "PGHOST=prod", "-v", f"{data}:/data")  # noqa: S108
    runtime = bench.serve("runtime", runtime_image, options=options)
    project = Project(folder / "project", folder)
    return Site(bench, folder, writable(folder / "cache"), project, runtime, server)


@pytest.fixture(scope="module")
def site(bench: Bench, runtime_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    yield new_site(bench, runtime_image, folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def v1(site: Site) -> Path:
    return site.build("v1")


@pytest.fixture(scope="module")
def v2(site: Site) -> Path:
    return site.build("v2")


@pytest.fixture(scope="module")
def deployed(site: Site, v1: Path) -> Done:
    """The first deploy, and some data of the users."""
    assert wait(lambda: site.get()[1]).count("Nothing is deployed here yet.") == 2
    done = site.deploy(build=v1)
    assert done.code == 0, done.output
    site.sql(f"insert into shop_note (name) select 'sold' from generate_series(1, {SOLD})")
    site.sql("alter database prod set work_mem = '5MB'")
    return done


def test_the_first_deploy_installs_everything_and_closes_the_default_login(site: Site, deployed: Done) -> None:
    assert site.serves(f"v1 v1 {SOLD + 1}")
    assert {"base", "other", "shop", "web"} <= set(report(deployed)["changed"])
    password = (site.data / "deploy" / "admin_password").read_text()
    assert [signs_in(site, each) for each in ("admin", password)] == [False, True]
    assert password not in deployed.output


SIGN_IN = """
import json, sys, urllib.request
data = json.dumps({"params": {"db": "prod", "login": "admin", "password": sys.argv[1]}}).encode()
url = "http://127.0.0.1:8069/web/session/authenticate"
print(urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})).read().decode())
"""


def signs_in(site: Site, password: str) -> bool:
    return '"uid": 2' in docker("exec", site.runtime, "python", "-c", SIGN_IN, password)


def test_a_deploy_updates_only_what_changed_and_can_be_taken_back(site: Site, v2: Path, deployed: Done) -> None:
    done = site.deploy(build=v2)
    assert done.code == 0, done.output
    assert report(done)["changed"] == ["shop"]
    assert site.serves(f"v2 v2 {SOLD + 1}")
    assert site.sql("show work_mem") == "5MB"
    assert site.sql(DATABASES, "postgres").split() == ["prod", "prod__old"]

    unchanged = site.deploy(build=v2)
    assert unchanged.code == 0, unchanged.output
    assert report(unchanged)["changed"] == []
    assert "No module needs updating" in unchanged.output

    again = site.deploy("--install", "auth_signup", build=site.build("v3"))
    assert "shop" in report(again)["changed"], again.output
    assert "auth_signup" in report(again)["changed"]
    assert site.serves(f"v3 v3 {SOLD + 1}")
    back = site.deploy("--revert")
    assert back.code == 0, back.output
    assert site.serves(f"v2 v2 {SOLD + 1}")
    assert site.sql("select state from ir_module_module where name = 'auth_signup'") == "uninstalled"
    refused = site.deploy("--revert")
    assert "ERROR: --revert: what the last deploy replaced is not there any more" in refused.output


def test_a_migration_that_raises_reverts_itself(site: Site, deployed: Done) -> None:
    broken = site.build("broken", DAMAGE.format(seconds=0, then="raise ValueError('no such column')"))
    before, served = site.state(), site.get()
    assert served[0] == 200
    done = site.deploy(build=broken)
    assert done.code == 1
    assert "THE MIGRATION WORKS" in done.output
    assert re.search(
        r"Reverted in [\d.]+ s: .*all \d+ tables and folders of files have the same rows and checksums", done.summary
    )
    assert done.summary.startswith("- **FAILED** update: click-odoo-update ended with exit code")
    assert site.serves(served[1])
    assert site.state() == before


class Deploying:
    """A deploy under way, of which the lines are read as they come."""

    def __init__(self, site: Site, build: Path) -> None:
        self.name = f"{site.bench.name}-{uuid.uuid4().hex[:8]}"
        command = site.bench.command(
            "deploy", "--database", "prod", "--build", "/build", artifacts=writable(site.folder / self.name),
            volumes={site.data: "/data", build: "/build:ro"}, cache=site.cache, env={"PGHOST": "prod"},
        )  # fmt: skip
        self.process = subprocess.Popen(
            [*command[:2], "--name", self.name, *command[2:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def reach(self, text: str) -> None:
        """Waits until a line has this text."""
        assert self.process.stdout
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if text in line:
                return
        raise AssertionError("".join(seen))

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate()
        return self.process.returncode, output


@pytest.mark.parametrize(
    "step",
    [
        "deploy: maintenance",
        "deploy: cloning database",
        "deploy: linking filestore",
        "deploy: updating the modules",
        "deploy: starting Odoo on the clone",
        "deploy: switching database",
        "deploy: switching filestore",
        "deploy: ending maintenance",
    ],
)
def test_a_deploy_that_is_killed_leaves_production_old_or_new(
    site: Site, v1: Path, v2: Path, deployed: Done, step: str
) -> None:
    old = f"v1 v1 {SOLD + 1}" if site.get()[1].startswith("v1") else f"v2 v2 {SOLD + 1}"
    new = f"v1 v1 {SOLD + 1}" if old.startswith("v2") else f"v2 v2 {SOLD + 1}"
    assert site.serves(old)
    deploy = Deploying(site, v1 if new.startswith("v1") else v2)
    deploy.reach(step)
    docker("kill", "--signal", "KILL", deploy.name)
    assert deploy.end()[0] == 137
    wait(lambda: "" if (site.data / "deploy" / "journal.json").exists() else "settled")
    served = site.serves(old, new)
    assert (served == new) or "switching filestore" not in step
    assert (served == old) or "switching" in step or "ending" in step
    wait(lambda: "tidy" if "prod__new" not in site.sql(DATABASES, "postgres").split() else "")
    kept = {"prod", "prod__old"} if served == new else {"prod"}
    assert {path.name for path in (site.data / "filestore").iterdir()} == kept
    assert set(site.sql(DATABASES, "postgres").split()) == kept
    assert site.sql("select count(*) from shop_note where name = 'sold'") == str(SOLD)


def test_a_postgresql_that_is_killed_during_the_update_leaves_production_old(site: Site, deployed: Done) -> None:
    slow = site.build("slow", DAMAGE.format(seconds=5, then="pass"))
    before, (status, served) = site.state(), site.get()
    assert status == 200
    deploy = Deploying(site, slow)
    deploy.reach("THE MIGRATION WORKS")
    assert site.get("/any")[0] == 503
    docker("kill", "--signal", "KILL", site.server)
    docker("start", site.server)
    code, output = deploy.end()
    assert code == 1, output
    assert "have the same rows and checksums as before" in output
    assert site.serves(served)
    assert site.state() == before


def test_the_runtime_restarts_odoo_after_a_crash_and_when_told(site: Site, deployed: Done) -> None:
    """Also after its own restart, when a deploy was killed while it did not run."""
    [status, served] = site.get()
    assert status == 200
    docker("exec", site.runtime, "sh", "-c", "kill -9 $(pgrep -f 'bin/odoo -c' | head -1)")
    wait(lambda: "ended" if "WARNING: Odoo ended with exit code -9" in log(site) else "")
    assert site.serves(served)

    count = log(site).count("stopping Odoo")
    docker("exec", site.runtime, "touch", "/data/deploy/restart")
    wait(lambda: "stopped" if log(site).count("stopping Odoo") > count else "")
    assert site.serves(served)

    docker("stop", site.runtime)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", site.runtime).strip() == "0"
    deploy = Deploying(site, site.build("v9"))
    deploy.reach("deploy: updating the modules")
    docker("kill", "--signal", "KILL", deploy.name)
    deploy.end()
    docker("start", site.runtime)
    assert site.serves(served)
    assert site.sql(DATABASES, "postgres").split()[0] == "prod"


def log(site: Site) -> str:
    done = subprocess.run(["docker", "logs", site.runtime], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_compose_file_serves_what_is_deployed(site: Site, runtime_image: str, v1: Path, tmp_path: Path) -> None:
    (tmp_path / "pgpassword").write_text(uuid.uuid4().hex)
    (tmp_path / "pgpassword").chmod(0o644)
    env = {**os.environ, "ODOO_TOOL_IMAGE": site.bench.image, "ODOO_POSTGRES_IMAGE": site.bench.postgres,
           "ODOO_RUNTIME_IMAGE": runtime_image, "PGPASSWORD_FILE": str(tmp_path / "pgpassword"),
           "ODOO_ADDRESS": "127.0.0.1:0"}  # fmt: skip
    file = str(ROOT / "deploy" / "tools" / "odoo" / "compose.yaml")
    command = [*compose_command(), "-p", f"{site.bench.name}-compose", "-f", file]

    def compose(*words: str) -> str:
        done = subprocess.run([*command, *words], check=False, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        compose("up", "--detach")
        compose(
            "run", "--rm", "-T", "-v", f"{v1}:/build:ro", "deploy", "deploy", "--database", "prod", "--build", "/build"
        )
        runtime = compose("ps", "-q", "runtime").strip()
        wait(lambda: "yes" if docker("inspect", "-f", "{{.State.Health.Status}}", runtime).strip() == "healthy" else "")
        address = compose("port", "runtime", "8069").strip()
        with urllib.request.urlopen(f"http://{address}/shop", timeout=60) as answer:
            assert answer.read() == b"v1 v1 1"
    finally:
        compose("down", "--volumes", "--timeout", "60")
