"""Fixtures for the tests of the SQL."""

from __future__ import annotations

import asyncpg
import pytest_asyncio

from tests.conftest import Connect
from tests.db.crowd import Crowd, gather
from tests.db.world import World, new_project, new_workflow
from worker.database import roles


@pytest_asyncio.fixture
async def world(db: asyncpg.Connection) -> World:
    """One project with one workflow in a database of its own."""
    project = await new_project(db, "acme")
    return World(db, project, await new_workflow(db, project))


@pytest_asyncio.fixture
async def crowd(world: World, connect: Connect) -> Crowd:
    """That project with something in every table, and a user for each column of the access matrix."""
    return await gather(world, connect)


@pytest_asyncio.fixture
async def hosts(world: World, connect: Connect) -> tuple[asyncpg.Connection, asyncpg.Connection]:
    """Two build hosts, each logged in with a role of its own: ``host_one`` and ``host_two``."""
    for name in ("host_one", "host_two"):
        await roles.create_worker(world.db, name, "correct-horse-battery")
    return await connect(user="host_one"), await connect(user="host_two")
