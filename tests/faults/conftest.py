"""Scenes for the tests with faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.scene import DURABLE, Scene, new_scene
from tests.support.docker import ENGINE_SOCKET, base_image
from tests.support.postgres import Cluster


@pytest.fixture(scope="session")
def image() -> str:
    """An image with a shell."""
    return base_image("python3-minimal")


@pytest.fixture(scope="session")
def engine_socket() -> str:
    """Where the engine listens that the tests share."""
    return ENGINE_SOCKET


@pytest.fixture(scope="session")
def mortal_cluster() -> Iterator[Cluster]:
    """A server that tests stop."""
    with Cluster(settings=DURABLE) as started:
        yield started


@pytest_asyncio.fixture
async def scene(cluster: Cluster, image: str, tmp_path: Path, engine_socket: str) -> AsyncIterator[Scene]:
    """A scene on the shared server and engine; at its end, all runs being final, nothing may be left."""
    async with new_scene(cluster, image, tmp_path, engine_socket) as made:
        yield made
        await made.nothing_is_left()
