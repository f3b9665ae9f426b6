"""Releases: folders of the volume with the code of one build, unpacked and ready to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import addons, python
from .building import ADDONS, MANIFEST
from .cache import file_digest
from .project import Project, odoo
from .source import Source
from .steps import Failure, run, step
from .versions import series
from .volume import Volume

RELEASE = "release.json"


def unpack(build: Path, volume: Volume, name: str, database: str) -> Project:
    """Makes a release of a build, whose files are compared with its manifest.

    Raises:
        Failure: a file is missing or damaged, or the build is for another Odoo
    """
    try:
        manifest = json.loads((build / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise Failure(
            f"build {build}: it has no {MANIFEST}", "name the folder of a build's artifacts with --build"
        ) from error
    check(build, manifest["files"])
    used = odoo()
    if series(manifest["odoo"]) != series(used.version):
        raise Failure(
            f"build {build}: it is for Odoo {manifest['odoo']}, and this image has Odoo {used.version}",
            "build and deploy with images of the same Odoo",
        )
    step(f"unpacking release {name}")
    part = volume.releases / f".part-{name}"
    shutil.rmtree(part, ignore_errors=True)
    (part / "addons").mkdir(parents=True)
    run(["tar", "-xzf", build / ADDONS, "-C", part / "addons", "--no-same-owner"], thing=ADDONS,
        advice="see tar's message above; the volume may be full")  # fmt: skip
    if (build / "wheels").is_dir():
        python.install(build / "wheels", part / "python")
    facts = {key: manifest[key] for key in ("commit", "odoo", "modules")}
    (part / RELEASE).write_text(json.dumps({**facts, "database": database}, indent=2, sort_keys=True) + "\n")
    release = volume.releases / name
    part.rename(release)
    return project(release)


def check(build: Path, files: dict[str, str]) -> None:
    for name, checksum in files.items():
        file = build / name
        if not file.is_file() or file_digest(file) != checksum:
            raise Failure(
                f"build {build}: {name} {'differs from its manifest' if file.is_file() else 'is missing'}",
                "build the commit again; what a build writes belongs together",
            )


def facts(release: Path) -> dict[str, Any]:
    """The commit, the version of Odoo, the database and the modules of a release."""
    found: dict[str, Any] = json.loads((release / RELEASE).read_text())
    return found


def places(release: Path) -> tuple[list[Path], Path | None]:
    """The folders of add-ons, and that of Python packages if there are any."""
    python_path = release / "python"
    packaged = python_path / "odoo" / "addons"
    folders = [release / "addons", *([packaged] if packaged.is_dir() else [])]
    return folders, python_path if python_path.is_dir() else None


def project(release: Path) -> Project:
    """The release as the other commands see a project."""
    noted = facts(release)
    folders, python_path = places(release)
    used = odoo()
    own = [name for name, each in noted["modules"].items() if each["own"]]
    source = Source(release, noted["commit"])
    return Project(source, None, python_path, own, folders, addons.known([*folders, *used.folders]), used)
