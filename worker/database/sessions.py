"""The console's connections: a bounded pool. Each request is one transaction with the rights of its user.

The transaction begins with ``set local role authenticated`` and the claims of the user, as an API does it, so the row
policies and the functions of the control plane decide. Both end with the transaction: the next user of the connection
inherits nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import anyio
import asyncpg

from worker.database.connection import explained, open_pool
from worker.database.control_plane import ControlPlane
from worker.errors import CommandError, ConfigurationError, DatabaseUnavailable

COMMAND = "console"
POOL_SIZE = 8
"""Connections. More requests than that wait for one, for ``ACQUIRE_SECONDS``."""

ACQUIRE_SECONDS = 5.0
RELEASE_SECONDS = 5.0
STATEMENT_MILLISECONDS = 8000
"""How long a statement may take: as long as Supabase permits ``authenticated``."""

NEEDS = "a role that may `set role authenticated`, with the rights of its user"

_ENTER = """
    select set_config('statement_timeout', $1, true),
        case when $2::text is not null then set_config('request.jwt.claims', $2, true) end,
        case when $2 is not null then set_config('request.jwt.claim.sub', $3, true) end,
        case when $4::text is not null then set_config('role', $4, true) end
"""

# service_role may exist without being this schema's (another program made it); its rights are those of an operator.
_RIGHTS = """
    select session_user as name, r.rolsuper or r.rolbypassrls or pg_has_role(n.nspowner, 'usage') or exists (
        select from pg_roles as s where s.rolname = 'service_role' and pg_has_role(s.oid, 'usage')) as operator
    from pg_roles as r, pg_namespace as n where r.rolname = session_user and n.nspname = 'ops'
"""


class Sessions:
    """The pool, and blocks that use one of its connections for one user."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str) -> AsyncIterator[Self]:
        """Connects. Raises ``DatabaseUnavailable``, or ``ConfigurationError`` where the login is refused."""
        pool = await open_pool(dsn, application_name=f"ops-worker {COMMAND}", size=POOL_SIZE)
        try:
            yield cls(pool)
        finally:
            pool.terminate()

    async def check_login(self, *, for_users: bool) -> None:
        """Checks that the schema is there, and ``for_users`` that the login can act for users and for no one else.

        Raises ``ConfigurationError`` and ``CommandError``.
        """
        async with self.acting_for(None) as plane:
            rights = await plane.row(_RIGHTS)
        if rights is None:
            raise CommandError(f"{COMMAND}: there is no schema ops. Run `ops-worker db migrate` on this database first")
        if not for_users:
            return
        if rights["operator"]:
            problem = (
                f"the role {rights['name']} has an operator's rights; expected a login without rights of its own, made"
                " by: ops-worker db create-console NAME"
            )
            raise ConfigurationError("database_url", problem)
        try:
            async with self.acting_for({"sub": "00000000-0000-0000-0000-000000000000"}) as plane:
                await plane.row("select 1")
        except CommandError as error:
            problem = (
                f"the role {rights['name']} cannot act for users: expected one that may `set role authenticated`,"
                f" made by: grant authenticated to {rights['name']}"
            )
            raise ConfigurationError("database_url", problem) from error

    @asynccontextmanager
    async def acting_for(self, claims: Mapping[str, Any] | None, *, write: bool = False) -> AsyncIterator[ControlPlane]:
        """The control plane with the rights of the user of these claims; None: with the rights of the login.

        The transaction is read-only unless ``write``. Raises ``CommandError``, ``Refused`` and ``DatabaseUnavailable``.
        """
        async with self._in_role(None if claims is None else "authenticated", claims, write=write) as plane:
            yield plane

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[ControlPlane]:
        """The control plane for the delivery of a forge, which no user sends. Raises as ``acting_for``."""
        async with self._in_role("ops_webhook", None, write=True) as plane:
            yield plane

    @asynccontextmanager
    async def _in_role(
        self, role: str | None, claims: Mapping[str, Any] | None, *, write: bool
    ) -> AsyncIterator[ControlPlane]:
        connection, transaction = await self._entered(role, claims, write=write)
        try:
            async with explained(COMMAND, connection, NEEDS):
                try:
                    yield ControlPlane.on(COMMAND, connection)
                except BaseException:
                    await _rolled_back(transaction)
                    raise
                await transaction.commit()
        finally:
            await self._released(connection)

    async def _entered(
        self, role: str | None, claims: Mapping[str, Any] | None, *, write: bool
    ) -> tuple[asyncpg.Connection, asyncpg.transaction.Transaction]:
        """A connection whose transaction has begun. One that was lost while it was idle is replaced."""
        text = None if claims is None else json.dumps(claims)
        user = None if claims is None else str(claims["sub"])
        for lost in range(POOL_SIZE + 1):
            connection = await self._acquired()
            transaction = connection.transaction(readonly=not write)
            try:
                async with explained(COMMAND, connection, NEEDS):
                    await transaction.start()
                    await connection.fetchrow(_ENTER, str(STATEMENT_MILLISECONDS), text, user, role)
            except (DatabaseUnavailable, asyncpg.InternalClientError) as error:
                with suppress(asyncpg.InterfaceError):  # the pool may have noticed, too
                    connection.terminate()
                await self._released(connection)
                if lost == POOL_SIZE:
                    raise DatabaseUnavailable(
                        f"{COMMAND}: the connections to the database are lost: {error}"
                    ) from error
            except BaseException:
                await self._released(connection)
                raise
            else:
                return connection, transaction
        raise AssertionError

    async def _acquired(self) -> asyncpg.Connection:
        try:
            return await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        except TimeoutError:
            problem = "the database does not answer, or all connections are in use"
            raise DatabaseUnavailable(f"{COMMAND}: {problem}") from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable(f"{COMMAND}: the database cannot be reached: {error}") from error

    async def _released(self, connection: asyncpg.Connection) -> None:
        with anyio.move_on_after(RELEASE_SECONDS, shield=True):  # the browser may be gone
            await self._pool.release(connection)


async def _rolled_back(transaction: asyncpg.transaction.Transaction) -> None:
    """Ends the transaction. Where that fails, the connection is lost, and the pool makes another one."""
    with (
        anyio.move_on_after(RELEASE_SECONDS, shield=True),
        suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
    ):
        await transaction.rollback()
