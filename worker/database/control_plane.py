"""The control plane as a person's command uses it: one connection, in plain rows.

With ``patient`` a query is repeated after a passing fault, on a new connection: then a command that follows a run
outlives a restart of the database. Only reads are repeated; an action whose answer is lost is reported.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import asyncpg

from worker.concurrency import retrying
from worker.database.connection import connect_for_command, explained, is_transient
from worker.errors import DatabaseUnavailable, Refused

T = TypeVar("T")
Row = dict[str, Any]

ANSWER_SECONDS = 60.0
"""How long a query may take. Then its connection counts as lost, as one does that was cut without a word."""

GIVE_UP_SECONDS = 300.0
"""How long a patient query is repeated while the database cannot be reached."""

NEEDS = "the URL of service_role, of the schema's owner, or of a member of the project"


class ControlPlane:
    """The connection of the command with that name."""

    def __init__(self, command: str, dsn: str, *, patient: bool, on_lost: Callable[[Exception], object]) -> None:
        self._command = command
        self._dsn = dsn
        self._patient = patient
        self._on_lost = on_lost
        self._connection: asyncpg.Connection | None = None
        self._answered = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, command: str, dsn: str, *, patient: bool = False, on_lost: Callable[[Exception], object] = lambda _: None
    ) -> AsyncIterator[Self]:
        """Connects.

        Raises:
            ConfigurationError: the server knows no such role, password or database.
            DatabaseUnavailable: the database cannot be reached.
        """
        plane = cls(command, dsn, patient=patient, on_lost=on_lost)
        await plane._connected()
        try:
            yield plane
        finally:
            await plane._disconnect()

    @classmethod
    def on(cls, command: str, connection: asyncpg.Connection) -> Self:
        """The control plane on a connection that its owner opened and closes."""
        plane = cls(command, "", patient=False, on_lost=lambda _: None)
        plane._connection = connection
        return plane

    async def rows(self, query: str, *args: object) -> list[Row]:
        """The rows of a query. Raises ``CommandError`` and ``DatabaseUnavailable``."""
        return [dict(row) for row in await self._read(lambda connection: connection.fetch(query, *args))]

    async def row(self, query: str, *args: object) -> Row | None:
        """The first row of a query."""
        found = await self._read(lambda connection: connection.fetchrow(query, *args))
        return None if found is None else dict(found)

    async def answer(self, query: str, *args: object, needs: str = NEEDS) -> Row:
        """What a function of the control plane answers. Raises ``Refused`` if it refuses. ``needs``: what it needs."""
        connection = await self._connected()
        async with explained(self._command, connection, needs):
            answer: Row = json.loads(await connection.fetchval(query, *args))
        if not answer.get("success", True):
            raise Refused(answer["code"], answer["error"])
        return answer

    async def use(self, call: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """What ``call`` returns, which takes the connection. Raises ``CommandError`` and ``DatabaseUnavailable``."""
        connection = await self._connected()
        async with explained(self._command, connection, NEEDS):
            return await call(connection)

    async def _read(self, fetch: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
        async def once() -> Any:
            connection = await self._connected()
            async with explained(self._command, connection, NEEDS, transient=self._patient):
                found = await fetch(connection)
            self._answered = time.monotonic()
            return found

        try:
            return await retrying(once, transient=self._may_pass, on_fault=self._lost, first=0.2, cap=5)
        except Exception as error:
            if not is_transient(error):
                raise
            raise DatabaseUnavailable(f"{self._command}: the connection to the database is lost: {error}") from error

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None:
            self._connection = await connect_for_command(self._dsn, answer_within=ANSWER_SECONDS)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2)
            except Exception:  # noqa: BLE001 - it is lost already; nothing depends on its end
                connection.terminate()

    def _may_pass(self, error: Exception, _attempt: int) -> bool:
        if not self._patient or time.monotonic() - self._answered > GIVE_UP_SECONDS:
            return False
        return isinstance(error, DatabaseUnavailable) or is_transient(error)

    def _lost(self, error: Exception, _attempt: int) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
        self._on_lost(error)
