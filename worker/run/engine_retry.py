"""Calls of the container engine that outlast its absence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from worker.concurrency import retrying
from worker.errors import SERVER_ERROR, EngineError, EngineUnavailable

T = TypeVar("T")

ENGINE_REFUSALS = 5
"""How often in a row the engine may answer that it failed before the run ends (some 3 s)."""


class EngineRetry:
    """Makes calls of the engine, each of which can be repeated.

    A call is repeated while the engine is away, and a few times while the engine answers that it failed (5xx).
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger, redact: Callable[[str], str] = str) -> None:
        self.engine_was_away = False
        """Whether a call had to be repeated; the caller resets it."""
        self._log = log
        self._redact = redact

    async def __call__(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """Raises ``EngineError`` when the engine refuses, and the errors of the call that are not the engine's."""
        return await retrying(lambda: call(*args), transient=_transient, on_fault=self._on_fault)

    def _on_fault(self, error: Exception, attempt: int) -> None:
        self.engine_was_away = True
        if attempt == 0:
            self._log.warning("engine unavailable, retrying", error=self._redact(str(error)))


def _transient(error: Exception, attempt: int) -> bool:
    if isinstance(error, EngineError):
        return error.status >= SERVER_ERROR and attempt < ENGINE_REFUSALS
    return isinstance(error, EngineUnavailable)
