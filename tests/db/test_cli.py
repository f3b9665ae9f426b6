"""``ops-worker`` as a process: what it refuses, what it waits for, what it prints, its exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import complaints, ops_worker, started
from tests.support.docker import PATIENCE, ROOT, WorkerProcess
from tests.support.postgres import Cluster
from tests.support.scripts import environ_of

SECRET = "hunter22"  # noqa: S105 - what must not be seen


async def until_waits_for(worker: WorkerProcess, what: str) -> dict[str, Any]:
    """Waits for the line that names what cannot be reached."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for line in worker.said:
                if "cannot be reached" in line["event"] and what in str(line):
                    return line
            assert worker.process.returncode is None, worker.output.read_text()
            await asyncio.sleep(0.02)


class Surroundings:
    """The database, the engine and the folder that a worker with good settings uses."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.database = socket.create_server(("127.0.0.1", 0))
        self.engine = socket.socket(socket.AF_UNIX)
        self.engine.bind(str(folder / "docker.sock"))
        self.engine.listen()
        self.settings = {
            "database_url": f"postgresql://worker:{SECRET}@127.0.0.1:{self.database.getsockname()[1]}/ops",
            "docker_host": f"unix://{folder / 'docker.sock'}",
            "artifact_store": self.store.as_uri(),
            "log_format": "json",
        }

    def environ(self, **changed: str | None) -> dict[str, str]:
        values = self.settings | changed
        return {f"OPS_WORKER_{name.upper()}": value for name, value in values.items() if value is not None}

    @property
    def touched(self) -> list[str]:
        """Which of the three were used."""
        found = ["artifact store"] if self.store.exists() else []
        for name, listener in (("database", self.database), ("engine", self.engine)):
            listener.setblocking(False)
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                continue
            found.append(name)
        return found

    def close(self) -> None:
        self.database.close()
        self.engine.close()


@pytest.fixture
def surroundings(socket_folder: Path) -> Iterator[Surroundings]:
    made = Surroundings(socket_folder)
    yield made
    made.close()


# --- what it refuses ------------------------------------------------------------------------------------------------


BAD_VALUES = [  # of each place where a value is checked; all texts: tests/unit/cli
    ("concurrency", "many", "whole number"),
    ("metrics_address", "nowhere", "host:port"),
    ("artifact_store", "ftp://somewhere", "file:///folder"),
    ("docker_host", "somewhere", ""),
    ("docker_host", "ssh://somewhere", "unix:///path or tcp://"),
    ("database_url", f"mysql://worker:{SECRET}@127.0.0.1/ops", "postgresql://"),
    ("database_url", f"postgresql://worker:{SECRET}@127.0.0.1:port/ops", ""),
    ("database_url", f"postgresql://worker:1?{SECRET}@127.0.0.1/ops", "name=value"),
]


def test_each_bad_value_is_one_line_and_nothing_is_touched(surroundings: Surroundings) -> None:
    left = list(BAD_VALUES)
    while left:  # one value of each setting at once; some are checked later than others
        now = {f"--{row[0].replace('_', '-')} (OPS_WORKER_{row[0].upper()})": row for row in reversed(left)}
        done = ops_worker(**surroundings.environ(**{name: value for name, value, _ in now.values()}))
        assert done.returncode == 2, done.stderr
        said = dict(line.split(": ", 1) for line in complaints(done))
        assert now.keys() >= said.keys() > set()
        for flag, sentence in said.items():
            assert now[flag][2] in sentence
            left.remove(now[flag])
        assert SECRET not in done.stderr
        assert surroundings.touched == []


def test_good_values_reach_engine_and_store(surroundings: Surroundings) -> None:
    # The control of the test above: with good values the same surroundings are touched.
    command = [sys.executable, "-m", "worker"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environ_of(**surroundings.environ()), stderr=subprocess.PIPE
    ) as process:
        surroundings.engine.settimeout(PATIENCE)
        surroundings.engine.accept()[0].close()
        process.kill()
        process.wait()
    assert surroundings.store.exists()


@pytest.mark.parametrize("argv", ["", "db status"])
def test_a_missing_database_url_is_refused(surroundings: Surroundings, argv: str) -> None:
    done = ops_worker(*argv.split(), **surroundings.environ(database_url=None))
    assert done.returncode == 2
    assert complaints(done) == ["--database-url (OPS_WORKER_DATABASE_URL): required; DATABASE_URL counts too"]
    assert surroundings.touched == []


@pytest.mark.parametrize(
    ("argv", "printed"), [("--version", r"ops-worker \S+\n"), ("--help", r"usage: ops-worker .*\n  db migrate .*")]
)
def test_version_and_help_are_printed_without_any_setting(argv: str, printed: str) -> None:
    done = ops_worker(argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(printed, done.stdout, re.DOTALL)


def test_a_secret_in_the_place_of_an_argument_is_not_quoted(db_url: str, tmp_path: Path) -> None:
    store = {"OPS_WORKER_ARTIFACT_STORE": (tmp_path / "store").as_uri()}
    misplaced = f"postgresql://worker:{SECRET}@127.0.0.1:9/ops"
    for argv in ("db {}", "db migrate {}", "db rollback {}", "db create-worker build1 {} extra", "prune {}", "{}",
                 "--secrets-dir {}"):  # fmt: skip
        done = ops_worker(*argv.format(misplaced).split(), OPS_WORKER_DATABASE_URL=db_url, **store)
        assert (argv, done.returncode in (1, 2), SECRET in done.stderr) == (argv, True, False)
        assert complaints(done)
    for url, why in (
        (f"postgresql://worker:1?{SECRET}@127.0.0.1/ops", "expected name=value behind the question mark"),
        (f"postgresql://worker:{SECRET}@,/ops", "not a URL that the driver understands"),
    ):
        for argv in ("--until-idle", "db status", "db create-worker build1", "prune"):
            done = ops_worker(*argv.split(), OPS_WORKER_DATABASE_URL=url, **store)
            assert (argv, done.returncode) == (argv, 2)
            (line,) = complaints(done)
            assert (why in line, SECRET in line) == (True, False)


# --- what it waits for ----------------------------------------------------------------------------------------------


def unreachable(cluster: Cluster, case: str) -> str:
    """The URL of an unreachable database, or with a login that is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return {
        "no server": f"postgresql://worker:{SECRET}@127.0.0.1:{port}/ops",
        "no such host": f"postgresql://worker:{SECRET}@no-such-host.invalid/ops",
        "no such database": f"{cluster.url('nothing_here')}&password={SECRET}",
        "no such role": f"{cluster.url(user='unknown_role')}&password={SECRET}",
    }[case]


LOGIN_REFUSED = "--database-url (OPS_WORKER_DATABASE_URL): the server refuses the login: "


@pytest.mark.parametrize(
    ("case", "status", "says"),
    [
        ("no server", 1, "cannot connect to the database"),
        ("no such host", 1, "cannot connect to the database"),
        ("no such database", 2, f'{LOGIN_REFUSED}database "nothing_here" does not exist'),
        ("no such role", 2, f'{LOGIN_REFUSED}role "unknown_role" does not exist'),
    ],
)
def test_an_unreachable_database_or_refused_login_is_one_line(
    cluster: Cluster, tmp_path: Path, case: str, status: int, says: str
) -> None:
    for argv in ("--until-idle", "db status"):
        store = (tmp_path / "store").as_uri()
        url = unreachable(cluster, case)
        done = ops_worker(*argv.split(), OPS_WORKER_DATABASE_URL=url, OPS_WORKER_ARTIFACT_STORE=store)
        assert done.returncode == status
        (line,) = complaints(done)
        assert (says in line, SECRET in line) == (True, False)


@pytest.mark.parametrize("argv", [("--log-level", "error"), ("prune",)])
def test_a_wrong_password_ends_the_worker_at_start_and_is_not_quoted(
    tcp_cluster: Cluster, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    # without --until-idle: systemd does not start a service again that ends with 2
    url = tcp_cluster.url(host="127.0.0.1", password=SECRET)
    store = (tmp_path / "store").as_uri()
    done = ops_worker(*argv, "--artifact-store", store, OPS_WORKER_DATABASE_URL=url)
    assert done.returncode == 2
    (line,) = complaints(done)
    assert line.startswith(f"{LOGIN_REFUSED}password authentication failed")
    assert SECRET not in line


async def test_a_login_that_is_refused_later_is_retried(tcp_cluster: Cluster, tmp_path: Path) -> None:
    with tcp_cluster.database(tcp_cluster.template()) as name:
        tcp_cluster.execute(f"create role rotated login superuser password '{SECRET}'")
        url = tcp_cluster.url(name, user="rotated", host="127.0.0.1", password=SECRET)
        flags = ("--poll-interval", "0.2", "--lease", "15")
        async with started(tmp_path, *flags, OPS_WORKER_DATABASE_URL=url) as worker:
            await worker.until_said("worker started")
            tcp_cluster.execute(f"alter role rotated password '{SECRET[::-1]}'")
            tcp_cluster.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotated'")
            await worker.until_said("database unavailable, retrying", error="password authentication failed")
            tcp_cluster.execute(f"alter role rotated password '{SECRET}'")
            await worker.until_said("database back")
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0
        tcp_cluster.execute("drop role rotated")


async def test_start_waits_for_the_database(tmp_path: Path) -> None:
    with Cluster() as cluster, cluster.database(cluster.template()) as name:
        cluster.stop()
        async with started(tmp_path, OPS_WORKER_DATABASE_URL=cluster.url(name)) as worker:
            try:
                await until_waits_for(worker, "the database")
            finally:
                cluster.start()
            await worker.until_said("worker started")
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("ssh://build", 2, "DOCKER_HOST: expected unix:///path or tcp://host:port; for ssh, forward the socket"),
        ("unix:///no/such/docker.sock", 1, "unix:///no/such/docker.sock"),
        ("tcp://127.0.0.1:9", 1, "tcp://127.0.0.1:9"),
    ],
)
def test_an_unreachable_engine_is_one_line(db_url: str, tmp_path: Path, address: str, status: int, says: str) -> None:
    store = (tmp_path / "store").as_uri()
    done = ops_worker(
        "--until-idle", "--artifact-store", store, OPS_WORKER_DATABASE_URL=db_url, DOCKER_HOST=address
    )  # fmt: skip
    assert done.returncode == status
    (line,) = complaints(done)
    assert says in line
    assert status == 2 or "engine" in line


async def test_start_waits_for_the_engine(db_url: str, socket_folder: Path) -> None:
    engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not engine.startswith("unix://"):
        pytest.skip(f"the engine is not on this host: DOCKER_HOST={engine}")
    address = socket_folder / "docker.sock"
    settings = {"OPS_WORKER_DATABASE_URL": db_url, "OPS_WORKER_DOCKER_HOST": f"unix://{address}"}
    async with started(socket_folder, **settings) as worker:
        await until_waits_for(worker, "the container engine")
        address.symlink_to(engine.removeprefix("unix://"))
        await worker.until_said("worker started")
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_that_waits_stops_at_the_first_signal_and_prints_no_traceback(
    tmp_path: Path, number: signal.Signals
) -> None:
    url = f"postgresql://worker:{SECRET}@127.0.0.1:9/ops"
    async with started(tmp_path, OPS_WORKER_DATABASE_URL=url) as worker:
        await until_waits_for(worker, "the database")
        worker.signal(number)
        await worker.wait()
        assert "Traceback" not in worker.output.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_does_not_exit_with_zero(surroundings: Surroundings, number: signal.Signals) -> None:
    # Otherwise `ops-worker db migrate && ...` goes on without a schema.
    command = [sys.executable, "-m", "worker", "db", "migrate"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environ_of(**surroundings.environ()), stderr=subprocess.PIPE
    ) as process:
        surroundings.database.settimeout(PATIENCE)
        connection, _ = surroundings.database.accept()  # and never answers
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
        connection.close()
    assert process.returncode != 0
    assert b"Traceback" not in said


async def test_an_idle_worker_whose_database_went_away_stops_at_the_first_signal(tmp_path: Path) -> None:
    with Cluster() as cluster, cluster.database(cluster.template()) as name:
        async with started(tmp_path, "--poll-interval", "0.2", OPS_WORKER_DATABASE_URL=cluster.url(name)) as worker:
            await worker.until_said("worker started")
            cluster.stop()
            try:
                await worker.until_said("database unavailable, retrying")
                worker.signal(signal.SIGTERM)
                async with asyncio.timeout(30):
                    assert await worker.wait() == 0
            finally:
                cluster.start()


def test_a_taken_metrics_port_is_one_line_and_exit_code_one(surroundings: Surroundings) -> None:
    # The port may be free a moment later, so this is not a wrong setting.
    taken = surroundings.database.getsockname()[1]
    done = ops_worker("--metrics-address", f"127.0.0.1:{taken}", **surroundings.environ())
    assert done.returncode == 1
    (line,) = complaints(done)
    assert "--metrics-address (OPS_WORKER_METRICS_ADDRESS)" in line
    assert "in use" in line.lower()
    assert surroundings.touched == []
