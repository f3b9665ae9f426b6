"""Fixtures for every test directory: a database of its own for each test, on a real PostgreSQL."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.support.postgres import Cluster, Clusters

# hypothesis has no time limits, since the machine may be busy, and keeps its notes where they are ignored
set_hypothesis_home_dir(Path(__file__).parents[1] / "build" / "hypothesis")
settings.register_profile("ops-worker", deadline=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.register_profile("brief", deadline=None, max_examples=10)  # tests.matrix: the search itself is make test's
settings.load_profile("ops-worker")

Connect = Callable[..., Awaitable[asyncpg.Connection]]


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist's schedulers carry no types
    """Gives the tests of all files with the same ``xdist_group`` to one process, and every other test to any."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.partition("::")[0]) or nodeid


@cache
def group_of(file: Path) -> str | None:
    """The group that a test file names."""
    found = re.search(r'xdist_group\("([^"]+)"\)', file.read_text(encoding="utf-8"))
    return found and found[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Groups | None:
    """Replaces xdist 3.8's own scheduler for ``--dist loadgroup``, to which pytest 9.2 does not tell the groups."""
    return Groups(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """PostgreSQL servers by major version, one of each per test process at most."""
    started = Clusters()
    yield started
    started.close()


@pytest.fixture(scope="session")
def cluster(clusters: Clusters) -> Cluster:
    """The server that tests run on unless they ask for another; ``OPS_TEST_POSTGRES`` names its version."""
    return clusters.get()


@pytest.fixture(scope="session")
def tcp_cluster() -> Iterator[Cluster]:
    """A server on 127.0.0.1 and a free port, for tests that put something between themselves and it."""
    with Cluster(listen="127.0.0.1") as started:
        yield started


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short, since that of a socket has at most 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def db_url(cluster: Cluster) -> Iterator[str]:
    """URL of a new database that holds the migrations; dropped after the test."""
    with cluster.database(cluster.template()) as name:
        yield cluster.url(name)


@pytest.fixture
def empty_db_url(cluster: Cluster) -> Iterator[str]:
    """URL of a new, empty database; dropped after the test."""
    with cluster.database() as name:
        yield cluster.url(name)


@pytest_asyncio.fixture
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Open connections that end with the test.

    ``await connect()`` is the superuser's on the test's database; ``url`` names another database, ``user``
    logs in as another role, ``role`` switches to one that cannot log in; the rest is for ``asyncpg.connect``.
    """
    opened: list[asyncpg.Connection] = []

    async def open_one(
        url: str | None = None, *, user: str | None = None, role: str | None = None, **options: object
    ) -> asyncpg.Connection:
        target = url if url is not None else request.getfixturevalue("db_url")
        login = {} if user is None else {"user": user}
        connection = await asyncpg.connect(target, **login, **options)
        opened.append(connection)
        if role is not None:
            await connection.execute(f'set role "{role}"')
        return connection

    yield open_one
    for connection in opened:
        connection.terminate()


@pytest_asyncio.fixture
async def db(db_url: str, connect: Connect) -> asyncpg.Connection:
    """The superuser's connection to the test's database."""
    return await connect(db_url)
