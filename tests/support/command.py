"""The command ``ops-worker``, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.docker import PATIENCE, ROOT, WorkerProcess, worker_process
from tests.support.scripts import environ_of


def ops_worker(*argv: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *argv],
        cwd=ROOT, env=environ_of(**environ), input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What it printed to stderr, a problem a line, each with the program's name before it."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("ops-worker: ") for line in lines), done.stderr
    return [line.removeprefix("ops-worker: ") for line in lines]


@asynccontextmanager
async def started(folder: Path, *argv: str, **environ: str) -> AsyncIterator[WorkerProcess]:
    """A worker that stays, killed at the end of the block if it still lives."""
    output = folder / "worker.log"
    settings = {"OPS_WORKER_ARTIFACT_STORE": (folder / "store").as_uri(), "OPS_WORKER_LOG_FORMAT": "json"}
    async with worker_process(output, "worker", *argv, env=environ_of(**settings, **environ)) as worker:
        yield worker
