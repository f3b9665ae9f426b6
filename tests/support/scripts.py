"""The shell scripts of ``scripts/odooops`` and ``sql/tests``, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.docker import PATIENCE, ROOT
from tests.support.postgres import client_binaries

SCRIPTS = ROOT / "scripts" / "odooops"


def environ_of(**environ: str) -> dict[str, str]:
    """An environment with psql and ``environ``, without what else chooses a database or sets up a worker."""
    others = ("PG", "OPS_WORKER_", "DATABASE_URL", "SUPABASE_URL")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return clean | {"PATH": f"{client_binaries()}{os.pathsep}{os.environ['PATH']}"} | environ


def script(path: str | Path, *words: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of ``scripts/odooops``, or of another folder by its path, to its end."""
    return subprocess.run(
        [SCRIPTS / path, *words], cwd=cwd, env=environ_of(**environ), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a script of ``scripts/odooops`` printed, to stderr, without the script's name."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    name, _, message = line.partition(": ")
    assert (SCRIPTS / name).is_file()
    return message
