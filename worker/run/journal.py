"""Reads a container's journal until the container has ended and every line is stored."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import anyio
import structlog

from worker.concurrency import backoff
from worker.errors import EngineError, EngineUnavailable
from worker.logs.lines import LineAssembler
from worker.logs.writer import LogWriter
from worker.model.claim import Claim
from worker.model.container import ContainerState
from worker.model.outcome import Stop
from worker.model.spec import RunTerms
from worker.run.engine_retry import ENGINE_REFUSALS, EngineRetry
from worker.run.ports import RunContainer, RunContext
from worker.run.quota import DiskQuota
from worker.run.reporter import Reporter
from worker.run.serving import journal_bytes

STALLED_READINGS = 5
"""How often in a row the log of an ended container is read without coming further, before it is taken as it is."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """``skip``: lines that are stored already; ``stored``: bytes that are stored; ``printed``: bytes it may print.

    ``kept``: bytes that its engine keeps of the log of a served run, which may print more than that. ``began``: the
    time of the first line that is stored.
    """

    skip: int
    stored: int
    printed: float
    kept: float = math.inf
    began: datetime | None = None

    @classmethod
    def of(cls, claim: Claim, terms: RunTerms, max_log_bytes: int) -> LogLimits:
        """Those of a run with these terms."""
        if terms.serve is None:
            return cls(claim.log_position, max_log_bytes, terms.output_bytes)
        kept = journal_bytes(terms, max_log_bytes)
        return cls(claim.log_position, max_log_bytes, math.inf, kept, claim.log_began_at)


class JournalReader:
    """Reads the journal of one container, again from its first byte whenever a reading breaks.

    Line n is the same in every reading, so what is stored already is skipped.
    """

    def __init__(
        self,
        container: RunContainer,
        context: RunContext,
        reporter: Reporter,
        quota: DiskQuota,
        calls: EngineRetry,
        stop: Callable[[Stop], None],
        limits: LogLimits,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.engine_restarted = False
        """Whether the engine was started again while the container ran."""
        self._container = container
        self._context = context
        self._reporter = reporter
        self._quota = quota
        self._stop = stop
        self._limits = limits
        self._log = log
        self._calls = calls
        self._heard: datetime | None = None
        self._ended = False
        self._began = limits.began
        self._furthest = self._stalled = self._refused = 0

    async def run(self, run_id: uuid.UUID) -> ContainerState | None:
        """Returns the state of the ended container; None when the container is gone. Raises ``EngineError``."""
        skip = self._limits.skip
        async with LogWriter(partial(self._context.queue.append_logs, run_id)).running() as writer:
            attempt = 0
            while True:
                lines = await self._assembler(skip)
                complete = await self._reading(lines, writer)
                state = await self._calls(self._container.inspect)
                await self._note_restart()
                if state is None or ((complete or self._stalled >= STALLED_READINGS) and not state.running):
                    await writer.put(lines.flush())
                    await self._report_losses(lines, whole=complete or state is None)
                    return state
                self._ended = not state.running
                self._furthest, skip = max(self._furthest, lines.bytes), lines.delivered
                await anyio.sleep(backoff(attempt))
                attempt += 1

    async def _assembler(self, skip: int) -> LineAssembler:
        """Of the next reading. If the engine has dropped the beginning of the log, that is long stored.

        Then the number of a line is not known, and only the end of the log is still to be stored.
        """
        if self._limits.kept != math.inf:
            began = await self._calls(self._container.log_began)
            self._began = self._began or began
            if began is not None and self._began is not None and began > self._began:
                return LineAssembler(skip, 0, self._reporter.redactor, dropped=True)
        return LineAssembler(skip, self._limits.stored, self._reporter.redactor)

    async def _reading(self, lines: LineAssembler, writer: LogWriter) -> bool:
        """One reading; returns whether it came to the end of an ended container's journal."""
        try:
            complete = await self._read(lines, writer)
        except (EngineUnavailable, EngineError) as error:
            refused = isinstance(error, EngineError) and not lines.position
            self._refused = self._refused + 1 if refused else 0
            if self._refused > ENGINE_REFUSALS:
                raise
            self._calls.engine_was_away = True
            self._log.warning("log stream broken, reading again", error=str(error))
            return False
        self._stalled = self._stalled + 1 if self._ended and lines.bytes <= self._furthest else 0
        return complete

    async def _read(self, lines: LineAssembler, writer: LogWriter) -> bool:
        async with self._container.follow(ended=self._ended) as journal:
            while True:
                chunk = None
                with anyio.move_on_after(self._context.timings.quiet):
                    chunk = await journal.receive()
                if chunk != b"":
                    self._heard = datetime.now(UTC)
                if chunk:
                    await writer.put(lines.feed(chunk))
                    self._quota.printed = math.ceil(min(lines.output, self._limits.kept))
                    if lines.output > self._limits.printed:  # the rest is not read: it may be endless
                        self._stop(Stop.OUTPUT)
                        await self._until_ended()
                        return True
                elif chunk is None:
                    if await self._has_ended():  # a quiet stream of an ended container may be half-open
                        return False
                else:
                    # The SDK and proxies can show a cut stream as a clean end, so the last entry is compared.
                    last = await self._calls(self._container.last_entry)
                    return last == lines.last_frame or bool(lines.fault)

    async def _has_ended(self) -> bool:
        state = await self._calls(self._container.inspect)
        return state is None or not state.running

    async def _until_ended(self) -> None:
        while not await self._has_ended():  # noqa: ASYNC110 - the engine has no event that outlasts its restart
            await anyio.sleep(self._context.timings.ended_poll)

    async def _note_restart(self) -> None:
        """Reports when the engine was away because it was started again.

        The engine may then have lost what it had not yet written of the log, and the last lines of a container that
        ended before it was back.
        """
        if not self._calls.engine_was_away or self._heard is None:
            return
        if await self._calls(self._context.engine.started_after, self._heard):
            self.engine_restarted = True
            await self._report_damage(": the engine was restarted while the container ran")
        self._calls.engine_was_away, self._heard = False, None

    async def _report_losses(self, lines: LineAssembler, *, whole: bool) -> None:
        if lines.fault:
            await self._report_damage(f", the engine says: {lines.fault}")
        elif not whole:
            await self._report_damage(f": {self._stalled} readings of it ended at the same place before its end")
        if lines.omitted:
            message = f"the log is cut: {lines.omitted:,} of {lines.position:,} lines are left out in its middle"
            counts = {"omitted_lines": lines.omitted, "lines": lines.position, "bytes": lines.bytes}
            await self._reporter.event("warning", message, {"reason": "log_cut", **counts})

    async def _report_damage(self, why: str) -> None:
        await self._reporter.event("warning", f"the log may be incomplete{why}", {"reason": "log_damaged"})
