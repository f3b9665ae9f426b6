"""The workflows of the README, executed by a real worker: tools from a file, services, caches, volumes, secrets."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.odoo.conftest import Bench
from tests.odoo.shop import PASSING, README_URL, TOOLS, Shop, is_active, new_control_plane, new_shop, published
from tests.support.docker import Plane, docker, until
from tests.support.postgres import Cluster, run_sync

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def plane(cluster: Cluster, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with new_control_plane(cluster, bench.image, tmp_path_factory.mktemp("plane")) as made:
        yield made


@pytest.fixture(scope="module")
def shop(plane: Plane, bench: Bench, runtime_image: str, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return new_shop(plane, bench, runtime_image, tmp_path_factory.mktemp("shop"))


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
           "-v", f"{code}:/src:ro", "--entrypoint", "python", bench.image, "/usr/bin/odoo", "-d", "prod", "-i", "shop",
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


@pytest.mark.timeout(2400)
def test_a_preview_and_production_are_served_and_a_deploy_shows_the_maintenance_page(shop: Shop) -> None:
    """The workflows that a user copies."""
    sync_project(shop)
    with serving(shop):
        preview, production = shop.enqueue("preview"), shop.enqueue("production")
        url = shop.ready(preview)
        assert answer(f"{url}/web/login")[0] == 200
        [password] = re.findall(r"the password of all its users is (\S+)", shop.command("runs", "logs", preview))
        assert [user_id(url, "preview", "admin", each) for each in ("admin", password)] == [None, 2]
        assert user_id(url, "preview", "demo", password), "a preview has demo data"
        assert shop.shown(production)["url"] is None, "nothing is deployed"

        installed = assert_succeeds(shop, shop.enqueue("deploy"))
        url = shop.ready(production)
        assert answer(f"{url}/web/login")[0] == 200
        (shop.code.folder / "shop" / "models.py").write_text("VERSION = 2\n")
        shop.push("a new version")
        second = shop.enqueue("deploy")
        seen = []
        while is_active(shop.shown(second)):
            for _ in range(10):
                seen.append(answer(f"{url}/web/login"))
                time.sleep(0.1)
        report = assert_succeeds(shop, second)
        assert report["changed"] == ["shop"], report
        assert any(code == 503 and "This site is being updated." in page for code, page in seen)
        assert {code for code, _ in seen} <= {200, 503, 0}
        assert answer(f"{url}/web/login")[0] == 200
        assert report["previous"] == installed["release"]


@contextmanager
def serving(shop: Shop) -> Iterator[None]:
    """A worker that stays; at the end of the block the served runs are canceled."""
    with shop.worker():
        try:
            yield
        finally:
            active = [each["run"] for each in json.loads(shop.command("runs", "list", "--json")) if is_active(each)]
            for run in active:
                shop.command("runs", "cancel", run)
            for run in active:
                shop.ended(run)


def sync_project(shop: Shop) -> None:
    """What a user does with the file."""
    text = (TOOLS / "project.toml").read_text().replace(README_URL, shop.repository)
    file = shop.plane.folder / "project.toml"
    text = text.replace('"odoo-data"', '"odoo-site"')  # the other has the filestore of another test
    file.write_text(text.replace('slug = "acme"', f'slug = "{shop.plane.name}"'))
    shop.command("projects", "sync", str(file))


def assert_succeeds(shop: Shop, run: str) -> dict[str, Any]:
    """Waits for a deploy; returns its report."""
    done = shop.ended(run)
    assert done["status"] == "succeeded", shop.command("runs", "logs", run)
    report: dict[str, Any] = json.loads(shop.artifact(done, "deploy.json"))
    return report


def answer(url: str) -> tuple[int, str]:
    """The status and the body that a visitor gets; 0 if there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=60) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def user_id(url: str, database: str, login: str, password: str) -> int | None:
    """The id of the user who signs in; None if Odoo refuses the password."""
    data = json.dumps({"params": {"db": database, "login": login, "password": password}}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/web/session/authenticate", data, headers)) as got:
        found: int | None = json.load(got).get("result", {}).get("uid")
        return found
