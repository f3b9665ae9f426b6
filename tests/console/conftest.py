"""Fixtures for the console: a login that can only act for users, and members of each role."""

from __future__ import annotations

import asyncpg
import pytest_asyncio

from tests.conftest import Connect
from tests.db.crowd import Crowd, gather
from tests.db.world import World, new_project, new_workflow

LOGIN = "ops_console"


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
async def console_url(db: asyncpg.Connection, db_url: str) -> str:
    """The URL of a login as docs/console.md makes it."""
    await db.execute(f"create role {LOGIN} login noinherit in role authenticated")
    return db_url.replace("postgres@", f"{LOGIN}@")
