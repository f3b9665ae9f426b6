"""A project on this machine: its code, its add-ons, its Python packages, and the Odoo that uses them."""

from __future__ import annotations

import configparser
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifestoo_core.addon import Addon

from . import addons, packages, python
from .cache import Cache, folder_digest
from .source import Git, Source
from .steps import Failure, read, step
from .versions import series

ADVICE = "build the image FROM one that has Odoo (build argument BASE)"


@dataclass(frozen=True)
class Odoo:
    """The Odoo of the image."""

    version: str
    folders: Sequence[Path]

    @property
    def gevent_port(self) -> str:
        """The flag of the second port."""
        return "--gevent-port" if self.major >= 16 else "--longpolling-port"  # noqa: PLR2004

    @property
    def major(self) -> int:
        return int(self.version.split(".", maxsplit=1)[0].rpartition("~")[2])

    @property
    def series(self) -> str:
        """Such as 19.0."""
        return ".".join(map(str, series(self.version)))


@dataclass(frozen=True)
class Project:
    """What a build has prepared."""

    source: Source
    wheels: Path | None
    python_path: Path | None
    own: Sequence[str]
    """the modules of the repository itself"""
    folders: Sequence[Path]
    """of add-ons, in the order of Odoo's ``addons_path``"""
    addons: dict[str, Addon]
    """everything installable, with Odoo's own"""
    odoo: Odoo


def installation(config: Path, name: str, modules: Iterable[str]) -> list[str]:
    """The call of Odoo that installs these modules in a database, and ends."""
    return [
        *odoo_program(), "-c", str(config), "-d", name, "-i", ",".join(modules), "--stop-after-init", "--no-http",
        "--max-cron-threads=0",
    ]  # fmt: skip


def odoo_program() -> list[str]:
    """How Odoo is started: its own program, in this Python, which has the packages of the image.

    Not ``-m odoo``: Odoo 14 has no ``odoo.__main__``, and with ``--workers`` Odoo starts the file of its program again.

    Raises:
        Failure: the image has no Odoo
    """
    program = shutil.which("odoo") or shutil.which("odoo-bin")
    if program is None:
        raise Failure("Odoo: the image has no program odoo", ADVICE)
    return [sys.executable, program]


def odoo() -> Odoo:
    code = "import json, odoo.release; print(json.dumps(odoo.release.version))"
    printed = read(
        [sys.executable, "-c", code],
        thing="Odoo",
        advice=ADVICE,
    )
    return Odoo(json.loads(printed.splitlines()[-1]), addons.core_folders())


def fetch(repository: str, folder: Path | None, ref: str, commit: str, git: Git, work: Path) -> Source:
    """The code of the run: a commit of the repository, or a folder of the image.

    Raises:
        Failure: neither is given, or what is given cannot be had
    """
    if folder is not None:
        if not folder.is_dir():
            raise Failure(f"--source {folder}: there is no such folder", "correct the workflow's command")
        step(f"code: the folder {folder}")
        shutil.copytree(folder, work / "source", symlinks=True, copy_function=shutil.copyfile)  # tests may write to it
        return Source(work / "source", f"folder-{folder_digest(folder)}")
    if not repository:
        raise Failure(
            "--repository: it is missing", 'set the workflow\'s "command", such as ["build", "--repository", URL]'
        )
    if not ref and not commit:
        raise Failure(
            f"repository {repository}: no commit is named", "set git_ref or git_commit of the workflow or the run"
        )
    step(f"code: {repository}, {f'commit {commit}' if commit else ref}")
    source = git.checkout(repository, ref, commit, work / "source")
    step(f"code: commit {source.commit}")
    return source


def prepare(source: Source, cache: Cache, work: Path, modules: Sequence[str]) -> Project:
    """Installs the Python packages and checks what the modules need.

    Raises:
        Failure: something is missing, or there is no module
    """
    packages.check(source.folder, packages.installed())
    wheels = python.wheelhouse(source.folder, cache)
    python_path = None
    if wheels is not None:
        python_path = work / "python"
        python.install(wheels, python_path)
    used = odoo()
    own_folders = addons.addons_folders(source.folder)
    packaged = python_path / "odoo" / "addons" if python_path else None
    folders = [*own_folders, *([packaged] if packaged and packaged.is_dir() else [])]
    found = addons.known([*folders, *used.folders])
    own = list(modules) or own_modules(source, own_folders, found)
    if not own:
        raise Failure(
            f"modules: no installable add-on in {source.folder}",
            "an add-on is a folder with __init__.py and __manifest__.py; it may be up to three folders deep",
        )
    step(f"add-ons: {len(own)} of the project ({', '.join(own[:20])}), Odoo {used.version}")
    addons.check(own, found, python_path)
    return Project(source, wheels, python_path, own, folders, found, used)


def bare(work: Path) -> Project:
    """Odoo alone, for a database without modules of a project."""
    used = odoo()
    return Project(Source(work, ""), None, None, [], [], addons.known(used.folders), used)


def own_modules(source: Source, folders: Sequence[Path], found: dict[str, Addon]) -> list[str]:
    """The modules that are not in a submodule."""
    mine = [folder for folder in folders if not any(_is_below(folder, foreign) for foreign in source.foreign)]
    return sorted(name for name, addon in found.items() if addon.path.parent in mine)


def _is_below(folder: Path, other: Path) -> bool:
    return folder == other or other in folder.parents


def configure(project: Project, work: Path, *, demo: bool = True, data: Path | None = None) -> Path:
    """Writes the configuration file of Odoo; everything about the database is in the environment."""
    if data is None:
        data = work / "data"
        data.mkdir(exist_ok=True)
    config = configparser.RawConfigParser()
    config["options"] = {
        "addons_path": ",".join(map(str, project.folders or [project.odoo.folders[0]])),
        "data_dir": str(data),
        "list_db": "False",
        "http_interface": "127.0.0.1",
        "limit_time_real": "0",
        "limit_time_cpu": "0",
        **({"with_demo": str(demo)} if project.odoo.major >= 19 else {"without_demo": str(not demo)}),  # noqa: PLR2004
    }
    path = work / "odoo.conf"
    with path.open("w") as file:
        config.write(file)
    return path


def clear(folder: Path) -> None:
    """Empties a folder of the program's own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
