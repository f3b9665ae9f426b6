"""``npm ci``, once per checkout, for the folders here that hold a ``package-lock.json``."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = Path(__file__).with_name("node")
"""Supabase's CLI, and what writes and checks the documents of the schema."""


class NpmMissing(Exception):
    """There is no npm here, or it could not install what a lock file names."""


def run(program: str, *args: str | Path) -> str:
    """Run, in ``TOOLS``, a program by name or a script that ends in ``.mjs``; its standard output.

    Raises:
        RuntimeError: it failed; the text is what it said.
    """
    modules = install(TOOLS)
    command = ["node", str(TOOLS / program)] if program.endswith(".mjs") else [str(modules / ".bin" / program)]
    done = subprocess.run(
        [*command, *map(str, args)], cwd=TOOLS, env=_environment(), capture_output=True, text=True, check=False
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
        npm = shutil.which("npm", path=_environment()["PATH"]) or _apt_npm()
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=folder, env=_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NpmMissing(f"npm ci in {folder} failed:\n{done.stderr}")
        if complete is not None:
            complete(modules)
        stamp.write_text(lock, encoding="utf-8")
    return modules


def _environment() -> dict[str, str]:
    beside = Path(sys.executable).parent  # a Node.js of the virtual environment comes after the system's
    return os.environ | {"PATH": f"{os.environ['PATH']}{os.pathsep}{beside}"}


def _apt_npm() -> str:
    """Debian's npm; as root only."""
    subprocess.run(["bash", "-c", ". scripts/common.sh; is_root && has_apt && apt_install npm"], cwd=ROOT, check=False)
    npm = shutil.which("npm")
    if npm is None:
        raise NpmMissing("npm is missing: install Node.js 20.19 or newer with it")
    return npm
