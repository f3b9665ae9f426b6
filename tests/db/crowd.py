"""A project with a member of each role, one who is none, and a build host: who may do what, as the roles themselves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg

from tests.conftest import Connect
from tests.db.world import World, call, new_project
from worker.database import roles

CATALOGUES = ("tools", "upgrade_advisories")
ROLES = ("viewer", "developer", "admin", "owner")
HOST = "access_test_host"
COLUMNS = (*ROLES, "stranger", "anon", "ops_worker", HOST, "service_role")
"""The columns of the contract's table; the worker's is two, the role that all share and one that logs in."""
DEVELOPERS = {"developer", "admin", "owner"}
ADMINS = {"admin", "owner"}
NEW_RUN = "insert into ops.runs (project_id, workflow_id, status) values ($1, $2, 'queued')"
Form = Callable[[asyncpg.Connection, uuid.UUID], Awaitable[None]]


async def old_claims(connection: asyncpg.Connection, user: uuid.UUID) -> None:
    await connection.execute(f"set request.jwt.claim.sub = '{user}'")


async def new_claims(connection: asyncpg.Connection, user: uuid.UUID) -> None:
    claims = json.dumps({"sub": str(user), "role": "authenticated"})
    await connection.execute(f"set request.jwt.claim.sub = ''; set request.jwt.claims = '{claims}'")


@dataclass(frozen=True)
class Crowd:
    """A world with something in every table, and one user for each role and one who is not a member."""

    world: World
    users: dict[str, uuid.UUID]
    run: uuid.UUID
    connect: Connect

    async def sign_in(self, who: str, form: Form = old_claims) -> asyncpg.Connection:
        """A connection as that user; ``anon``, ``service_role``, ``ops_worker`` are roles, ``a host`` logs in."""
        if who == HOST:
            return await self.connect(user=HOST)
        if who in {"anon", "service_role", "ops_worker"}:
            return await self.connect(role=who)
        connection = await self.connect(role="authenticated")
        await form(connection, self.users[who])
        return connection


async def gather(world: World, connect: Connect) -> Crowd:
    """Fills the world."""
    users = {role: uuid.uuid4() for role in (*ROLES, "stranger")}
    for role in ROLES:
        await world.db.execute(
            "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, $3)",
            world.project, users[role], role,
        )  # fmt: skip
    elsewhere = await new_project(world.db, "elsewhere")
    await world.db.execute(
        "insert into ops.project_memberships (project_id, user_id, role) values ($1, $2, 'owner')",
        elsewhere, users["stranger"],
    )  # fmt: skip
    run = await world.running()
    await call(world.db, "append_run_log", run, "info", "hello")
    await call(world.db, "add_run_artifact", run, "a", "file:///a")
    await world.db.execute(
        """insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', 'odoo:19');
           insert into ops.upgrade_advisories (from_version, to_version, severity, title)
           values ('18.0', '19.0', 'high', 'Mind this')"""
    )
    await roles.create_worker(world.db, HOST, "of no importance")
    return Crowd(world, users, run, connect)


async def allowed(connection: asyncpg.Connection, statement: str, *args: object) -> bool:
    """Whether the statement passes and touches a row; it is taken back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        status = await connection.execute(statement, *args)
    except asyncpg.PostgresError as error:
        # insufficient privilege, the last owner, a run that begins otherwise than queued
        assert error.sqlstate in {"42501", "OPS01", "OPS03"}  # noqa: PT017
        return False
    finally:
        await transaction.rollback()
    return not status.endswith(" 0")
