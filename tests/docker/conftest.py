"""A control plane for each test on the engine: of its own, or a project on one that a shared worker serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.support.docker import Plane, base_image, docker, new_plane, new_tenant, shared_worker
from tests.support.postgres import Cluster


@pytest.fixture(scope="session")
def image() -> str:
    """An image with a shell and Python."""
    return base_image("python3-minimal")


@pytest_asyncio.fixture
async def plane(db: asyncpg.Connection, db_url: str, image: str, tmp_path: Path) -> AsyncIterator[Plane]:
    """A database with a project; the containers that its runs leave are removed after the test."""
    made = await new_plane(db, db_url, image, tmp_path)
    yield made
    while left := await made.containers():  # a killed worker's call may be removing one at this moment
        docker("rm", "-fv", *left, check=False)
    made.remove_volumes()


@pytest.fixture(scope="session")
def serving(cluster: Cluster, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """The worker that all tests of this process share which need no flags of their own."""
    with (
        cluster.database(cluster.template()) as name,
        shared_worker(cluster.url(name), image, tmp_path_factory.mktemp("serving")) as made,
    ):
        yield made
        made.remove_volumes()


@pytest_asyncio.fixture
async def served(serving: Plane, connect: Connect) -> AsyncIterator[Plane]:
    """A project of its own on the shared worker, which must remove each run's container."""
    made = await new_tenant(serving, await connect(serving.url))
    yield made
    unfinished = "select ops.cancel_run(id) from ops.runs where project_id = $1 and finished_at is null"
    await made.db.execute(unfinished, made.project_id)  # where the test failed
    await made.until_containers(0)
