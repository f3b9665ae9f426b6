"""The request to stop a run: the first reason wins."""

from __future__ import annotations

import anyio

from worker.model.outcome import Stop


class StopRequest:
    """``reason`` is why the run is to stop; None while it is not."""

    def __init__(self) -> None:
        self.reason: Stop | None = None
        self.requested = anyio.Event()
        self.canceled = anyio.Event()
        """Set by a cancel, also by one that comes after another reason."""

    def request(self, why: Stop) -> None:
        """Asks the run to stop. Only the first reason counts; a cancel shortens the collection of artifacts, too."""
        if why is Stop.CANCEL:
            self.canceled.set()
        if self.reason is None:
            self.reason = why
            self.requested.set()
