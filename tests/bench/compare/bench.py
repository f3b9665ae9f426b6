"""What every peer is given: a PostgreSQL, a job, processes; and what every peer gives back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.support.docker import docker
from tests.support.postgres import Cluster

ROOT = Path(__file__).resolve().parents[3]
LINES = 30
SCRIPT = f'i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo "line $i"; sleep 1; done'
START = 300.0
"""Seconds for the whole set-up, until the job begins."""
STOP = 90.0
"""Seconds between SIGTERM and SIGKILL, as systemd waits by default."""
MAJOR = 17
"""The servers of 17 bring pg_trgm, which Prefect needs."""


class StepFailed(Exception):
    """A step of the set-up failed or took too long."""


@dataclass(frozen=True)
class Seen:
    """What a peer tells of the job."""

    state: str
    ended: bool
    lines: tuple[str, ...]


class Bench:
    """One scenario's folder, database and processes. Every process has ``token`` in its environment."""

    def __init__(self, folder: Path, venv: Path, cluster: Cluster, image: str) -> None:
        self.folder = folder
        self.bin = venv / "bin"
        self.cluster = cluster
        self.image = image
        self.token = f"compare-{uuid.uuid4().hex[:12]}"
        self._started: dict[int, dict[str, str]] = {}
        self.deadline = time.monotonic() + START
        self.command = ("sh", "-c", SCRIPT, self.token)
        folder.mkdir(parents=True)

    def seconds(self) -> float:
        """What is left for the set-up."""
        return max(0.0, self.deadline - time.monotonic())

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The caller's environment without its own settings of the peers, and a home of its own."""
        kept = {name: os.environ[name] for name in ("LANG", "DOCKER_HOST") if name in os.environ}
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.folder), "COMPARE": self.token, "DO_NOT_TRACK": "1", **kept, **extra}

    def run(self, *command: str, **environ: str) -> str:
        """Run a command of the set-up to its end; its output.

        Raises:
            StepFailed: it failed, or the time for the set-up is over.
        """
        words = self._words(command)
        try:
            done = subprocess.run(
                words, cwd=self.folder, env=self.environment(environ), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=self.seconds(), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise StepFailed(f"{command[0]}: no end in time") from None
        if done.returncode:
            (self.folder / "setup.log").write_text(done.stdout + done.stderr)
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise StepFailed(f"{command[0]}: {said[-1][:200].replace(str(self.folder), '')}")
        return done.stdout

    def spawn(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a process that goes on; its output goes to a file."""
        env = self.environment(environ)
        with (self.folder / f"{Path(command[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(
                self._words(command), cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._started[process.pid] = env
        return process

    def _words(self, command: tuple[str, ...]) -> list[str]:
        program = self.bin / command[0]
        return [str(program) if program.exists() else command[0], *command[1:]]

    def url(self, scheme: str = "postgresql") -> str:
        """The database over TCP, as the superuser."""
        return self.cluster.url(host="127.0.0.1").replace("postgresql", scheme, 1)

    def rows(self, statement: str, *args: object) -> list[asyncpg.Record]:
        """Rows of the peer's own database."""
        return self.cluster.execute(statement, *args)

    def jobs(self) -> list[int]:
        """The job's processes, also those in containers of an engine on this machine."""
        return [pid for pid in _pids() if self.token in _words_of(pid) and SCRIPT in _words_of(pid)]

    def left(self) -> str:
        """What is still there of the job."""
        if containers := self.containers():
            return ", ".join(f"container ({state})" for state in containers.values())
        return f"{len(self.jobs())} process(es)" if self.jobs() else "nothing"

    def containers(self) -> dict[str, str]:
        """The state of each container that has the job as its command, by id."""
        listed = docker("ps", "-a", "--no-trunc", "--format", "{{.ID}}\t{{.State}}\t{{.Command}}")
        rows = (line.split("\t", 2) for line in listed.split("\n") if self.token in line)
        return {row[0]: row[1] for row in rows}

    def kill(self, **marks: str) -> None:
        """SIGKILL for every process of this scenario that was started with these variables, and for its descendants."""
        deadline = time.monotonic() + 10
        while (found := self._family({"COMPARE": self.token} | marks)) and time.monotonic() < deadline:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _family(self, marks: Mapping[str, str]) -> set[int]:
        # a program that writes a title for `ps` overwrites its environment, so the environment alone is not enough
        wanted = {f"{name}={value}" for name, value in marks.items()}
        sessions = {pid for pid, environ in self._started.items() if marks.items() <= environ.items()}
        parents = {pid: _parent_and_session(pid) for pid in _pids()}
        family = {pid for pid, (_, session) in parents.items() if session in sessions or wanted <= _environ_of(pid)}
        while born := {pid for pid, (parent, _) in parents.items() if parent in family} - family:
            family |= born
        return family

    def clear(self) -> None:
        """End all that the scenario started."""
        self.kill()
        for container in self.containers():
            docker("rm", "--force", "--volumes", container, check=False)


class Site(ABC):
    """A peer as one scenario runs it. ``worker`` is what takes the job and runs it; the rest is its control plane."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def prepare(self) -> None:
        """Set up the database and start the control plane."""

    @abstractmethod
    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start the worker; its environment has ``COMPARE_WORKER``, so that all of its processes are found."""

    @abstractmethod
    def submit(self) -> None:
        """Queue the job once."""

    @abstractmethod
    def look(self) -> Seen:
        """What a user sees of the job now."""


@dataclass(frozen=True)
class Peer:
    """One row of the table, three times."""

    name: str
    packages: tuple[str, ...]
    """Names and versions for pip; none for ops-worker itself."""
    setup: str
    """How it was set up, for the page."""
    site: type[Site]


def until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Wait until it holds.

    Raises:
        StepFailed: it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StepFailed(f"{what}: not in time")
        time.sleep(0.5)


def answers(port: int) -> Callable[[], bool]:
    """Whether a server takes connections there."""

    def ask() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ask


@contextmanager
def database() -> Iterator[Cluster]:
    """A PostgreSQL of its own for one scenario."""
    with Cluster(MAJOR, listen="127.0.0.1", settings={"autovacuum": "on"}) as cluster:
        yield cluster


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if int(entry.name) != os.getpid()]


def _parent_and_session(pid: int) -> tuple[int, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return (0, 0) if fields[0] == "Z" else (int(fields[1]), int(fields[3]))  # a zombie has ended


def _words_of(pid: int) -> list[str]:
    return _nul_separated(Path(f"/proc/{pid}/cmdline"))


def _environ_of(pid: int) -> set[str]:
    return set(_nul_separated(Path(f"/proc/{pid}/environ")))


def _nul_separated(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
