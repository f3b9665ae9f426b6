"""A control plane of its own for each test on the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.support.docker import Plane, base_image, docker, new_plane


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
