"""The exit of the command."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("UsageError('unknown command')", 2, "unknown command"),
        ("ConfigurationError('lease', 'too short')", 2, "--lease (OPS_WORKER_LEASE): too short"),
        ("ConfigurationError('DOCKER_HOST', 'no address')", 2, "DOCKER_HOST: no address"),
        ("OpsError('cannot delete')", 1, "cannot delete"),
    ],
)
def test_a_refusal_leaves_without_finalisation(error: str, status: int, line: str) -> None:
    # a thread of the object store that takes the interpreter lock meanwhile aborts the process
    program = (
        "import atexit, worker.__main__ as it, worker.errors as errors\n"
        "atexit.register(print, 'finalised')\n"
        f"def refuse(argv): raise errors.{error}\n"
        "it._status = refuse\n"
        "it.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"ops-worker: {line}\n")
