"""A served run: it becomes ready when its health path answers, and ends when its time is over.

Its times count from the start of its container, so they are the same for a worker that adopts it. A run that has been
ready once stays so: an adopting worker does not ask again.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import anyio

from worker.errors import EngineError
from worker.model.claim import Claim
from worker.model.container import ContainerState
from worker.model.outcome import Stop
from worker.model.serve import ServeTerms, published_url
from worker.model.spec import RunTerms
from worker.run.engine_retry import EngineRetry
from worker.run.ports import RunContainer, RunContext
from worker.run.reporter import Reporter
from worker.run.services import KEPT_LINES, last_lines
from worker.run.stopping import StopRequest

PROBE_SECONDS = 5.0
"""How long one health check may take, unless the interval between two is longer."""

JOURNAL_LOGS = 8
"""The journal of a served run may be this many times as large as its stored log: JSON writes a byte as up to six."""


def journal_bytes(terms: RunTerms, max_log_bytes: int) -> int:
    """How much of what a served run prints its engine keeps; the oldest half of that is dropped for the newest."""
    return max(terms.output_bytes, JOURNAL_LOGS * max_log_bytes)


def left_of(state: ContainerState, seconds: float) -> float:
    """What is left of the time since a container was started."""
    if state.started_at is None:
        return seconds
    return max(0.0, seconds - (datetime.now(UTC) - state.started_at).total_seconds())


class Serving:
    """The readiness of one run. Does nothing for a run that is not served."""

    def __init__(
        self,
        claim: Claim,
        context: RunContext,
        terms: RunTerms,
        reporter: Reporter,
        calls: EngineRetry,
        stop: StopRequest,
    ) -> None:
        self.said: tuple[str, ...] = ()
        """The last lines of a run that was not ready in time."""
        self._claim = claim
        self._context = context
        self._terms = terms.serve
        self._reporter = reporter
        self._calls = calls
        self._stop = stop
        self._ready = claim.ready_at is not None

    @property
    def expired(self) -> Stop:
        """Why a run whose time limit has passed is stopped."""
        if self._terms is None:
            return Stop.TIMEOUT
        return Stop.TTL if self._ready else Stop.NOT_READY

    async def watch(self, run: RunContainer) -> None:
        """Records when the run is ready; asks it to stop if it is not in time. Raises ``LeaseLost``."""
        terms = self._terms
        state = None if terms is None or self._ready else await self._calls(run.inspect)
        if terms is None or state is None:
            return
        url = None
        with anyio.move_on_after(left_of(state, terms.ready_timeout_seconds)):
            url = await self._until_answered(run, terms)
        if url is not None:
            self._ready = True
            await self._context.queue.mark_ready(self._claim.run_id, url)
            return
        state = await self._calls(run.inspect)
        if state is not None and state.running:  # what ended by itself has another reason
            with suppress(EngineError):
                self.said = tuple(last_lines(await self._calls(run.tail, KEPT_LINES), self._reporter.redactor))
            self._stop.request(Stop.NOT_READY)

    async def _until_answered(self, run: RunContainer, terms: ServeTerms) -> str:
        """Asks until the answer is good, and returns the URL of the run."""
        seconds = max(terms.interval_seconds, PROBE_SECONDS)
        while True:
            state = await self._calls(run.inspect)
            published = None if state is None else state.published
            if published is not None and await self._context.probe(*published, terms.path, seconds):
                again = await self._calls(run.inspect)  # another container may have got the port meanwhile
                if again is not None and again.running and again.published == published:
                    return terms.url or published_url(*published)
            await anyio.sleep(terms.interval_seconds)
