"""Why this worker claims nothing, apart from its concurrency: the disk is short, or an operator drains it."""

from __future__ import annotations

import structlog

from worker.telemetry import Metrics

log = structlog.get_logger()


class Admission:
    """What holds the claims back; logs when that changes."""

    def __init__(self, metrics: Metrics) -> None:
        self.short = False
        self.draining = False
        self._metrics = metrics

    def record_disk(self, why: str | None) -> bool:
        """Takes why the disk is short, None if it has room; returns whether that is news."""
        changed = self.short != (why is not None)
        self.short = why is not None
        self._metrics.disk_short.set(self.short)
        if changed and self.short:
            log.warning("claiming nothing: the disk is short", why=why)
        elif changed:
            log.info("claiming again: the disk has room")
        return changed

    def record_drain(self, *, draining: bool) -> bool:
        """Takes whether an operator drains this worker (``ops.drain_worker``); returns whether that is news."""
        changed = self.draining != draining
        self.draining = draining
        self._metrics.draining.set(draining)
        if changed and draining:
            log.warning("claiming nothing: an operator drains this worker", undo="ops-worker drain --undo")
        elif changed:
            log.info("claiming again: the worker is no longer drained")
        return changed

    @property
    def held_back_by(self) -> str | None:
        """For the status; None if nothing holds the claims back."""
        if self.draining:
            return "an operator drains this worker"
        return "the disk is short" if self.short else None
