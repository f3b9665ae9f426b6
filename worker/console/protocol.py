"""HTTP as uvicorn speaks it, with a time limit for the headers: without one, a silent client keeps its connection."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 10.0
"""From the connection, or from the first byte of a later request, until its headers are complete."""


class Impatient(H11Protocol):
    """Closes a connection whose next request does not begin in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Starts the time with the first byte of a request, and ends it with its headers."""
        before = self.cycle
        if self._late is None and getattr(before, "response_complete", True):
            self._wait()
        super().data_received(data)
        if self.cycle is not before:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEADERS_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
