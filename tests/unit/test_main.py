"""What the command does before there is a daemon."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.__main__ import _name_of

URL = "postgresql://worker:hunter22@db.example:6543/ops"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (URL.replace("hunter22", "other"), True),
        (URL.replace(":hunter22", ""), True),
        (URL + "?password=x&sslmode=require", True),
        (URL.replace("worker", "owner"), False),
        (URL.replace("db.", "db2."), False),
        (URL.replace("6543", "5432"), False),
        (URL.replace("/ops", "/copy"), False),
        ("postgresql:///ops?host=/run/db&user=worker", False),
    ],
)
def test_the_name_that_keeps_a_second_worker_out_has_no_password_in_it(other: str, *, same: bool) -> None:
    assert (_name_of("build-1", URL) == _name_of("build-1", other)) is same
    assert _name_of("build-1", other) != _name_of("build-2", other)


def test_the_default_port_and_the_parameters_of_a_url_name_the_same_database() -> None:
    plain = _name_of("build-1", "postgresql://worker:x@db/ops")
    assert plain == _name_of("build-1", "postgres://worker@DB:5432/ops")
    assert plain == _name_of("build-1", "postgresql://worker@/ops?host=db")
    assert plain == _name_of("build-1", "postgresql:///?host=db&port=5432&user=worker&dbname=ops")


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
