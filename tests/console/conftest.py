"""Fixtures for the console: a login that can only act for users, and members of each role."""

from __future__ import annotations

import asyncpg
import pytest_asyncio

from tests.db.conftest import crowd, world  # noqa: F401 - fixtures
from worker.database import roles

LOGIN = "ops_console"


@pytest_asyncio.fixture
async def console_url(db: asyncpg.Connection, db_url: str) -> str:
    """The URL of a login as docs/console.md makes it."""
    await roles.create_console(db, LOGIN, "correct-horse-battery")
    return db_url.replace("postgres@", f"{LOGIN}@")
