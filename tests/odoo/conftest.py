"""Real Odoo in the real images: a PostgreSQL beside each file of tests, add-ons of the OCA, and containers as the
worker starts them. ``make test-odoo`` runs these; the first call makes the images, which takes some minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker import ROOT, docker, until
from tests.support.postgres import run_sync

BUILD = ROOT / "build" / "odoo"


@dataclass(frozen=True)
class Done:
    """A container that has ended."""

    code: int
    output: str
    artifacts: Path

    @property
    def summary(self) -> str:
        return (self.artifacts / "summary.md").read_text()


@dataclass
class Bench:
    """A network with PostgreSQL servers, and containers of the tool image on it."""

    image: str
    postgres: str
    folder: Path
    name: str = field(default_factory=lambda: f"ops-odoo-test-{uuid.uuid4().hex[:8]}")
    started: list[str] = field(default_factory=list)

    def serve(self, alias: str, image: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """Starts a service that others reach by ``alias``; returns the name of its container."""
        container = f"{self.name}-{alias}"
        docker("run", "-d", "--name", container, "--network", self.name, "--network-alias", alias, "--cap-drop", "ALL",
               *options, image, *words)  # fmt: skip
        self.started.append(container)
        return container

    def database(self, alias: str = "db") -> None:
        server = self.serve(alias, self.postgres, "--trust", options=("--tmpfs", "/var/lib/postgresql/data"))
        run_sync(
            lambda: until(lambda: "healthy" in docker("inspect", "-f", "{{.State.Health.Status}}", server).split())
        )

    def command(
        self,
        *words: str | Path,
        artifacts: Path,
        source: Path | None = None,
        cache: Path | None = None,
        secrets: Path | None = None,
        env: dict[str, str] | None = None,
        volumes: dict[Path, str] | None = None,
        network: str | None = None,
    ) -> list[str]:
        """Starts the tool as the worker does: without capabilities, with /artifacts, secrets and a cache as folders."""
        mounts = {artifacts: "/artifacts", cache or writable(self.folder / f"cache-{uuid.uuid4().hex[:8]}"): "/cache"}
        if source is not None:
            mounts[source] = "/src:ro"
            words = (*words, "--source", "/src")
        if secrets is not None:
            mounts[secrets] = "/run/secrets:ro"
        mounts.update(volumes or {})
        command = ["docker", "run", "--rm", "--init", "--network", network or self.name, "--cap-drop", "ALL",
                   "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp:mode=1777"]  # fmt: skip # noqa: S108
        for host, there in mounts.items():
            command += ["-v", f"{host}:{there}"]
        for key, value in (env or {}).items():
            command += ["-e", f"{key}={value}"]
        return [*command, self.image, *map(str, words)]

    def run(self, *words: str | Path, **options: Any) -> Done:
        """Runs the tool; the options are those of ``command``."""
        artifacts = writable(self.folder / f"artifacts-{uuid.uuid4().hex[:8]}")
        done = subprocess.run(
            self.command(*words, artifacts=artifacts, **options),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Done(done.returncode, done.stdout, artifacts)

    def sql(self, statement: str, database: str = "postgres", alias: str = "db") -> str:
        """What psql prints on a server, as its superuser."""
        server = f"{self.name}-{alias}"
        return docker(
            "exec", server, "psql", "-XAtqh", "127.0.0.1", "-U", "odoo", "-d", database, "-c", statement
        ).strip()


def writable(folder: Path) -> Path:
    """A folder that the user of the image may write to."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return folder


@cache
def image(target: str, series: str = "19") -> str:
    command = [str(ROOT / "scripts" / "odoo-image"), target, series]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


@pytest.fixture(scope="session")
def tool_image() -> str:
    return image("odoo")


@pytest.fixture(scope="session")
def postgres_image() -> str:
    return image("postgres")


@pytest.fixture(scope="session")
def runtime_image() -> str:
    return image("runtime")


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Bench]]:
    """For a series of Odoo, ``19`` or ``14``: a network of this module's own, with a PostgreSQL named ``db``."""
    made: dict[str, Bench] = {}

    def bench(series: str) -> Bench:
        if series not in made:
            folder = tmp_path_factory.mktemp(f"bench-{series}")
            made[series] = Bench(image("odoo", series), image("postgres", series), folder)
            docker("network", "create", made[series].name)
            made[series].database()
        return made[series]

    try:
        yield bench
    finally:
        for each in made.values():
            for container in each.started:
                docker("rm", "-f", "-v", container, check=False)
            docker("network", "rm", each.name, check=False)


@pytest.fixture(scope="module")
def bench(benches: Callable[[str], Bench]) -> Bench:
    return benches("19")


def downloaded(listed: Path) -> Path:
    """The folder of the packages that the file names, downloaded once."""
    folder = BUILD / listed.stem
    stamp = folder / ".complete"
    if not stamp.is_file() or stamp.read_text() != listed.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "download"]
        subprocess.run([*pip, "--require-hashes", "--no-deps", "-r", listed, "-d", folder], check=True)
        stamp.write_text(listed.read_text())
    return folder


@pytest.fixture(scope="session")
def wheels() -> Path:
    return addons_of("19")


def addons_of(series: str) -> Path:
    return downloaded(Path(__file__).with_name("addons.txt" if series == "19" else f"addons-{series}.txt"))


@pytest.fixture
def project(tmp_path: Path, wheels: Path) -> Project:
    return Project(tmp_path / "project", wheels)


@dataclass(frozen=True)
class Project:
    """A folder of add-ons, as a repository of a user."""

    folder: Path
    wheels: Path
    series: str = "19"

    def of(self, series: str) -> Project:
        """The same folder, with add-ons for another series of Odoo."""
        return replace(self, wheels=addons_of(series), series=series)

    def add(self, name: str) -> Path:
        """Unpacks an add-on of the OCA; returns its folder."""
        (wheel,) = self.wheels.glob(f"odoo*_addon_{name}-*.whl")
        self.folder.mkdir(exist_ok=True)
        prefix = f"odoo/addons/{name}/"
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.startswith(prefix) and not member.endswith("/"):
                    target = self.folder / name / member.removeprefix(prefix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(member))
        return self.folder / name

    def module(self, name: str, depends: list[str], **files: str) -> Path:
        """Writes a small add-on of this project's own; returns its folder."""
        folder = self.folder / name
        (folder / "tests").mkdir(parents=True)
        manifest = {"name": name, "version": f"{self.series}.0.1.0.0", "license": "LGPL-3", "author": "ACME",
                    "depends": depends}  # fmt: skip
        (folder / "__manifest__.py").write_text(repr(manifest))
        (folder / "__init__.py").touch()
        for stem, text in files.items():
            (folder / "tests" / f"{stem}.py").write_text(text)
        (folder / "tests" / "__init__.py").write_text("".join(f"from . import {stem}\n" for stem in files))
        return folder
