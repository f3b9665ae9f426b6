"""Add-ons: where they are, what they need, and which module wants what is missing. Manifests are read by manifestoo."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifestoo_core.addon import Addon, is_addon_dir
from manifestoo_core.addons_set import AddonsSet

from .steps import Failure, read

DEPTH = 3  # of folders in which add-ons are searched


@dataclass(frozen=True)
class Needs:
    """What modules need from outside of the add-ons: each name with the module that wants it."""

    modules: Mapping[str, str]
    """missing modules"""
    python: Mapping[str, str]
    programs: Mapping[str, str]


def addons_folders(root: Path, depth: int = DEPTH) -> list[Path]:
    """The folders below ``root``, itself included, that directly contain add-ons."""
    if not root.is_dir() or is_addon_dir(root, allow_not_installable=True):
        return []
    children = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    own = [root] if any(is_addon_dir(path, allow_not_installable=True) for path in children) else []
    return own + [found for path in children if depth for found in addons_folders(path, depth - 1)]


def core_folders() -> list[Path]:
    """The folders of the add-ons that come with Odoo."""
    code = "import json, odoo.addons; print(json.dumps(list(odoo.addons.__path__)))"
    printed = read(
        [sys.executable, "-c", code],
        thing="Odoo",
        advice="build the image FROM one that has Odoo (build argument BASE)",
    )
    return [Path(path) for path in json.loads(printed.splitlines()[-1])]


def known(folders: Iterable[Path]) -> dict[str, Addon]:
    """The installable add-ons of these folders by name. Of two with the same name the first counts, as in Odoo."""
    found: dict[str, Addon] = {}
    for folder in folders:
        there = AddonsSet()
        there.add_from_addons_dir(folder)
        for name in sorted(there):
            found.setdefault(name, there[name])
    return found


def closure(modules: Sequence[str], addons: Mapping[str, Addon]) -> dict[str, str]:
    """All modules that these need, themselves included, each with the module that wants it first."""
    wanted = dict.fromkeys(modules, "the command line")
    queue = list(modules)
    while queue:
        name = queue.pop(0)
        if name not in addons:
            continue
        for dependency in [*addons[name].manifest.depends, "base"]:
            if dependency not in wanted:
                wanted[dependency] = name
                queue.append(dependency)
    return wanted


def with_automatic(names: Iterable[str], addons: Mapping[str, Addon]) -> set[str]:
    """These modules and those that Odoo installs by itself when they are (``auto_install``)."""
    found = set(names)
    automatic = {name: addon for name, addon in addons.items() if addon.manifest.manifest_dict.get("auto_install")}
    while True:
        new = set()
        for name, addon in automatic.items():
            rule = addon.manifest.manifest_dict["auto_install"]
            if name not in found and found.issuperset(addon.manifest.depends if rule is True else rule):
                new |= {name, *closure([name], addons)} - found
        if not new:
            return found
        found |= new


def needs(modules: Sequence[str], addons: Mapping[str, Addon]) -> Needs:
    """What a database with these modules needs."""
    wanted = closure(modules, addons)
    missing = {name: by for name, by in wanted.items() if name not in addons}
    external: dict[str, dict[str, str]] = {"python": {}, "bin": {}}
    for name in wanted:
        if name in addons:
            for kind, into in external.items():
                for requirement in addons[name].manifest.external_dependencies.get(kind, []):
                    into.setdefault(requirement, name)
    return Needs(missing, external["python"], external["bin"])


def check(modules: Sequence[str], addons: Mapping[str, Addon], python_path: Path | None) -> None:
    """Checks that everything is there which these modules need.

    Raises:
        Failure: a module, a Python package or a program is missing; it names the module that wants it
    """
    wanted = needs(modules, addons)
    for name, by in wanted.modules.items():
        raise Failure(
            f"module {by}: depends on {name}, which is in no folder of add-ons",
            f"add {name} to the repository (a submodule), or its package to requirements.txt, or remove it from "
            f"`depends` in the manifest of {by}",
        )
    for requirement in absent_python(list(wanted.python), python_path):
        by = wanted.python[requirement]
        raise Failure(
            f"module {by}: needs the Python package {requirement}, which is not installed",
            f"add {requirement} to requirements.txt of the repository",
        )
    for program, by in wanted.programs.items():
        if not any(os.access(Path(folder, program), os.X_OK) for folder in os.get_exec_path()):
            raise Failure(
                f"module {by}: needs the program {program}, which is not in this image",
                "add its Debian package to the build argument APT_PACKAGES of the image",
            )


ABSENT = """
import importlib.metadata, importlib.util, json, re, sys
absent = []
for requirement in json.load(sys.stdin):
    name = re.split(r"[^\\w.-]", requirement, maxsplit=1)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        try:
            there = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            there = None
        if there is None:
            absent.append(requirement)
print(json.dumps(absent))
"""


def absent_python(requirements: Sequence[str], python_path: Path | None) -> list[str]:
    """Those which are neither the name of an installed package nor of an importable module."""
    if not requirements:
        return []
    code = ABSENT.replace("json.load(sys.stdin)", repr(list(requirements)))
    printed = read(
        [sys.executable, "-c", code],
        thing="Python packages",
        advice="see the message above",
        env=path_variable(python_path),
    )
    absent: list[str] = json.loads(printed)
    return absent


def path_variable(python_path: Path | None) -> dict[str, str]:
    """``PYTHONPATH`` with the packages of the project before what it has already."""
    if python_path is None:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(python_path), os.environ.get("PYTHONPATH", "")]))}
