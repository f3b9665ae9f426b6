"""Connections to the control plane, and which of their errors pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from asyncpg.pool import PoolAcquireContext

from worker.errors import CommandError, ConfigurationError, DatabaseUnavailable, OpsError

CONNECT_TIMEOUT = 30.0
"""Seconds a command waits for its connection."""

WORKER_CONNECT_TIMEOUT = 10.0
"""Seconds the worker waits for one; it tries again."""

CALL_TIMEOUT = 60.0
"""Seconds one statement may take before the connection is given up as dead."""

TRANSIENT = (
    OSError,  # and so TimeoutError
    asyncpg.InterfaceError,  # the client's own "connection is closed"
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, disk full, out of memory
    asyncpg.OperatorInterventionError,  # class 57: shutdown, restart, cancelled by a time limit
    asyncpg.TransactionRollbackError,  # class 40: serialization failure, deadlock
    asyncpg.ReadOnlySQLTransactionError,  # connected to the old primary after a failover
    asyncpg.LockNotAvailableError,
    asyncpg.PostgresSystemError,  # class 58: the server's disk
    # The address leads to a transaction pooler now; the pool keeps its statements prepared until `listen` finds out.
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    # The password was changed, or the role or the database is gone. An operator may mend that while containers run.
    asyncpg.InvalidAuthorizationSpecificationError,  # class 28
    asyncpg.InvalidCatalogNameError,
)

_LOGIN_REFUSED = frozenset({"28P01", "28000", "3D000"})
"""SQLSTATEs of a wrong password, a role that is not there or may not log in, and a database that is not there."""


_CUT = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError)
"""Errors by which the server, or the driver, ends a connection."""


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later.

    A value that the driver cannot send never does; its error is an ``InterfaceError`` and a ``ValueError``.
    """
    return isinstance(error, TRANSIENT) and not isinstance(error, ValueError)


PREPARED = 32
"""Statements that a connection of the pool keeps prepared; the worker has about 15."""


async def connect(dsn: str, *, application_name: str = "ops-worker") -> asyncpg.Connection:
    """One connection. No statement cache, because a transaction pooler hands each statement to another server."""
    return await asyncpg.connect(dsn, **_options(application_name))


async def open_pool(dsn: str, *, application_name: str, size: int) -> asyncpg.Pool:
    """A pool of at most ``size`` such connections; the database has answered on one of them.

    Raises ``DatabaseUnavailable``, or ``ConfigurationError`` where the login is refused.
    """
    pool = asyncpg.create_pool(dsn, min_size=0, max_size=size, reset=_keep_session, **_options(application_name))
    try:
        await pool
        await pool.fetchval("select 1")
    except (*TRANSIENT, asyncpg.PostgresError, ValueError, IndexError) as error:
        pool.terminate()
        raise _explained(error) from None
    return pool


async def prepare_statements(pool: asyncpg.Pool, dsn: str, *, application_name: str, prepare: bool) -> None:
    """Sets whether the connections of the pool keep their statements prepared; the next call opens a new connection.

    A prepared call saves a round trip, and with it 0.1 ms of the server and 0.2 ms of the worker. Behind a transaction
    pooler the next call may reach a server that does not know the statement, or knows another one of that name.
    """
    options = _options(application_name) | {"statement_cache_size": PREPARED if prepare else 0}
    pool.set_connect_args(dsn, **options)
    await pool.expire_connections()


def acquire(pool: asyncpg.Pool) -> PoolAcquireContext:
    """A connection of the pool for a block. Raises ``TimeoutError`` when none comes free within ``CALL_TIMEOUT``."""
    return pool.acquire(timeout=CALL_TIMEOUT)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection for a command, closed after the block; raises as :func:`connect_for_command`."""
    connection = await connect_for_command(dsn)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def connect_for_command(dsn: str, *, answer_within: float | None = None) -> asyncpg.Connection:
    """A connection for a command; it also works through a transaction pooler.

    ``answer_within``: the seconds that a query may take; then it raises ``TimeoutError``.

    Raises:
        ConfigurationError: that is no URL, or the server knows no such role, password or database.
        DatabaseUnavailable: the database cannot be reached.
    """
    try:
        return await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT, statement_cache_size=0, command_timeout=answer_within
        )
    except TimeoutError:
        raise DatabaseUnavailable(f"the database did not answer within {CONNECT_TIMEOUT:g} seconds") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, IndexError) as error:
        raise _explained(error) from None


@asynccontextmanager
async def connected_for(command: str, dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection for the command of that name; an error of the server becomes one sentence.

    Raises:
        CommandError: the server refused something.
        ConfigurationError, DatabaseUnavailable: as :func:`connected`.
    """
    async with connected(dsn) as connection, explained(command, connection, OPERATOR):
        yield connection


_LOGIN = "select session_user"
OPERATOR = "the URL of service_role or of the schema's owner"


@asynccontextmanager
async def explained(
    command: str, connection: asyncpg.Connection, needs: str, *, transient: bool = False
) -> AsyncIterator[None]:
    """Turns an error of the server in the block into one sentence. ``needs``: the URL that the command needs.

    ``transient``: raises errors that pass as they are, for a caller that repeats the block.
    """
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        # After an error a transaction answers no question until its end.
        role = "This role" if connection.is_in_transaction() else f"The role {await connection.fetchval(_LOGIN)}"
        raise CommandError(f"{command}: {error.args[0]}. {role} may not do this: {command} needs {needs}") from error
    except (
        asyncpg.UndefinedFunctionError,
        asyncpg.UndefinedTableError,
        asyncpg.UndefinedColumnError,
        asyncpg.InvalidSchemaNameError,
    ) as error:
        raise CommandError(f"{command}: {error.args[0]}. Run `ops-worker db migrate` on this database first") from error
    except asyncpg.PostgresError as error:
        if transient and is_transient(error):
            raise
        if isinstance(error, _CUT):
            raise DatabaseUnavailable(f"{command}: the connection to the database is lost: {error}") from error
        raise CommandError(f"{command}: {error.args[0]} (SQLSTATE {error.sqlstate})") from error
    except (asyncpg.InterfaceError, ConnectionResetError, TimeoutError) as error:
        if transient and is_transient(error):
            raise
        why = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
        raise DatabaseUnavailable(f"{command}: the connection to the database is lost: {why}") from error


async def _keep_session(_: asyncpg.Connection) -> None:
    """Takes the place of the driver's reset, which sends four more statements after each call.

    Before it, the driver rolls back a transaction that is still open. Nothing else is left to reset: a call is one
    statement, its functions change settings only until its end, and it takes no lock of the session. The listener has
    a connection of its own.
    """


def _options(application_name: str) -> dict[str, Any]:
    """What the worker's connections have in common, in a pool or not."""
    return {
        "timeout": WORKER_CONNECT_TIMEOUT,
        "command_timeout": CALL_TIMEOUT,
        "statement_cache_size": 0,
        "server_settings": {"application_name": application_name},
    }


def _explained(error: BaseException) -> OpsError:
    """The error of an attempt to connect, in plain words."""
    if isinstance(error, (ValueError, IndexError)):  # the URL itself; the driver would quote its password
        return ConfigurationError("database_url", "not a URL that the driver understands")
    if getattr(error, "sqlstate", None) in _LOGIN_REFUSED:
        return ConfigurationError("database_url", f"the server refuses the login: {error}")
    return DatabaseUnavailable(f"cannot connect to the database: {str(error) or type(error).__name__}")
