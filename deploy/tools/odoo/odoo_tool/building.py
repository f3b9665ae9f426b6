"""The type ``build``: one folder with everything that a deployment needs, made once for each commit.

Steps: fetch the code; resolve and check what its modules need; pack the add-ons; write the SBOM, and the manifest with
the checksum of each file; keep the build in the cache, and copy it to the artifacts.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from . import addons, packages, sbom
from .cache import CHECKSUMS, Cache, checksums, digest, folder_digest
from .pack import pack
from .project import Project, odoo, prepare
from .python import installed as python_installed
from .source import Source
from .steps import say, step

RECIPE = "1"  # changes when a build is made in another way
MANIFEST = "manifest.json"
ADDONS = "addons.tar.gz"


def build(source: Source, modules: Sequence[str], slug: str, cache: Cache, work: Path, artifacts: Path) -> bool:
    """Copies the build of this code to the artifacts."""
    found = made(source, modules, slug, cache, work)
    for path in sorted(found.iterdir()):
        if path.name != CHECKSUMS:
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, artifacts / path.name)
    manifest = json.loads((found / MANIFEST).read_text())
    (artifacts / "summary.md").write_text(summary(manifest))
    say(f"==> build of commit {source.commit}: {len(manifest['modules'])} modules, {len(manifest['files'])} files")
    return True


def made(source: Source, modules: Sequence[str], slug: str, cache: Cache, work: Path) -> Path:
    """Makes the build of this code, or takes it from the cache; returns its folder."""
    debian = packages.installed()
    key = digest([RECIPE, source.commit, slug, ",".join(modules), odoo().version, sys.version, python_installed(),
                  json.dumps(debian)])  # fmt: skip
    found = cache.find("builds", key)
    if found is not None:
        step(f"build {key[:12]}: from the cache")
    else:
        project = prepare(source, cache, work, modules)
        found = cache.make("builds", key, lambda folder: _fill(folder, project, debian, slug, key))
        step(f"build {key[:12]}: kept in the cache")
    return found


def _fill(folder: Path, project: Project, debian: dict[str, str], slug: str, key: str) -> None:
    wanted = addons.closure(project.own, project.addons)
    inside = {name: project.addons[name].path for name in sorted(wanted)
              if project.source.folder in project.addons[name].path.parents}  # fmt: skip
    step(f"packing {len(inside)} add-ons")
    pack(inside, folder / ADDONS)
    if project.wheels is not None:
        (folder / "wheels").mkdir()
        for path in sorted(project.wheels.iterdir()):
            if path.name != CHECKSUMS:
                shutil.copyfile(path, folder / "wheels" / path.name)
    modules = {
        name: {
            "version": project.addons[name].manifest.version or "",
            "sha256": folder_digest(path),
            "own": name in project.own,
        }
        for name, path in inside.items()
    }
    step("writing the SBOM and the manifest")
    parts = [
        *(sbom.Part("generic", name, str(each["version"]), "odoo-addon") for name, each in modules.items()),
        *(sbom.wheel_part(path) for path in sorted((folder / "wheels").glob("*.whl"))),
        *sbom.debian_parts(debian, packages.distribution()),
    ]
    root = sbom.Part("generic", slug or "project", project.source.commit)
    sbom.write(folder / "sbom.cdx.json", root, parts, key, project.source.time)
    manifest = {
        "commit": project.source.commit,
        "odoo": project.odoo.version,
        "modules": modules,
        "apt": packages.check(project.source.folder, debian),
        "files": checksums(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def summary(manifest: dict[str, object]) -> str:
    """The summary of a build, from its manifest."""
    modules, files = manifest["modules"], manifest["files"]
    assert isinstance(modules, dict)  # noqa: S101 - for the type checker
    assert isinstance(files, dict)  # noqa: S101
    lines = [f"# Build of commit {manifest['commit']}", "", f"Odoo {manifest['odoo']}", "", "| module | version |"]
    lines += ["|---|---|", *(f"| {name} | {each['version']} |" for name, each in modules.items())]
    lines += ["", "| file | sha256 |", "|---|---|", *(f"| {name} | {value} |" for name, value in files.items())]
    return "\n".join(lines) + "\n"
