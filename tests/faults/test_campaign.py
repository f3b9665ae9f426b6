"""A small part of what ``make faults`` and ``make kills`` do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.campaign import kill_every_second, play
from tests.faults.plan import draw
from tests.faults.scene import Scene, new_scene
from tests.support.postgres import Cluster


@pytest_asyncio.fixture
async def mortal(mortal_cluster: Cluster, image: str, tmp_path: Path, engine_socket: str) -> AsyncIterator[Scene]:
    """A scene on a server that may be restarted."""
    async with new_scene(mortal_cluster, image, tmp_path, engine_socket) as made:
        yield made


@pytest.mark.parametrize("seed", [1001, 1002, 1003])
async def test_random_faults_lose_and_double_nothing(mortal: Scene, seed: int) -> None:
    await play(mortal, draw(seed))


async def test_a_worker_that_is_killed_every_second_loses_and_doubles_nothing(scene: Scene) -> None:
    await kill_every_second(scene, runs=8, lines=1_000)
