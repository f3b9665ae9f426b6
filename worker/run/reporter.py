"""What a run reports to the control plane, with its secrets masked."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio.to_thread

from worker.logs.redact import Redactor
from worker.model.outcome import Outcome
from worker.model.report import Report
from worker.run.ports import RunQueue


class Reporter:
    """Events and the outcome of one run. Until ``mask`` is called there are no secrets to mask."""

    def __init__(self, queue: RunQueue, run_id: uuid.UUID) -> None:
        self.redactor = Redactor()
        self._queue = queue
        self._run_id = run_id

    async def mask(self, values: Sequence[bytes]) -> None:
        """Masks these values from now on."""
        self.redactor = await anyio.to_thread.run_sync(Redactor, values)

    async def event(self, event_type: str, message: str, payload: dict[str, Any]) -> None:
        """Adds an ``info``, ``warning`` or ``error`` event. Raises ``LeaseLost``."""
        message, payload = self.redactor.value([message, payload])
        await self._queue.add_event(self._run_id, event_type, message, payload)

    async def report(self, report: Report) -> None:
        """Records what the artifacts say about the run, if they say anything. Raises ``LeaseLost``."""
        tests, summary = report.tests, report.summary
        if tests is not None:
            tests = replace(tests, failing=[self.text(name) for name in tests.failing])
        if summary is not None:
            summary = self.text(summary)
        if tests is not None or summary is not None:
            await self._queue.record_report(self._run_id, tests, summary)

    def text(self, text: str) -> str:
        """The text without secrets."""
        return self.redactor.text(text)

    def masked(self, outcome: Outcome) -> Outcome:
        """The outcome without secrets."""
        message, details = self.redactor.value([outcome.message, outcome.details])
        return replace(outcome, message=message, details=details)
