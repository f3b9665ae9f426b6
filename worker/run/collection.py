"""Uploads the artifacts of an ended container, within a time limit."""

from __future__ import annotations

import os
from pathlib import Path

import anyio.to_thread

from worker.concurrency import TimeLimit, cancel_on, task_group
from worker.errors import ArtifactError, EngineError
from worker.model.claim import Artifact, Claim
from worker.model.container import ContainerState
from worker.model.report import Report
from worker.model.spec import RunTerms
from worker.run.engine_retry import EngineRetry
from worker.run.ports import RunContainer, RunContext
from worker.run.quota import DiskQuota
from worker.run.reporter import Reporter
from worker.run.stopping import StopRequest


class ArtifactCollection:
    """The upload of one run's artifacts. Waiting for a database or an engine that is away does not count."""

    def __init__(
        self, claim: Claim, context: RunContext, reporter: Reporter, calls: EngineRetry, stop: StopRequest
    ) -> None:
        self._claim = claim
        self._context = context
        self._reporter = reporter
        self._calls = calls
        self._stop = stop

    async def run(
        self, container: RunContainer, state: ContainerState, terms: RunTerms, quota: DiskQuota
    ) -> str | None:
        """Returns what went wrong, None if nothing did. Uploads nothing of a run that exceeded its quota."""
        problem: str | None = "not collected, since it was too much for the disk"
        timings = self._context.timings
        seconds = max(timings.collect, terms.timeout_seconds)
        limit = TimeLimit(seconds)

        async def shorten() -> None:
            await self._stop.canceled.wait()
            limit.shorten(timings.canceled_collect)

        async with task_group() as tasks:
            tasks.start_soon(shorten)
            async with cancel_on(quota.exceeded):
                try:
                    problem = await self._upload(container, state.artifacts, terms, limit)
                except TimeoutError:
                    canceled = f"the run was canceled, and it took {timings.canceled_collect:g} s more"
                    took = canceled if self._stop.canceled.is_set() else f"it took longer than {seconds:g} s"
                    problem = f"the collection was given up: {took}"
            tasks.cancel_scope.cancel()
        return problem

    async def _upload(
        self, container: RunContainer, folder: Path | None, terms: RunTerms, limit: TimeLimit
    ) -> str | None:
        """Raises ``TimeoutError``."""
        empty = None
        if folder is not None:
            empty = await anyio.to_thread.run_sync(is_empty, folder, abandon_on_cancel=True)
        if empty:
            return None
        run_id = self._claim.run_id
        report = Report()

        async def on_artifact(artifact: Artifact) -> None:
            with limit.waiting():
                await self._context.queue.add_artifact(run_id, artifact)

        async def on_warning(message: str) -> None:
            with limit.waiting():
                await self._reporter.event("warning", message, {"reason": "artifact_refused"})

        async def attempt() -> None:
            nonlocal report
            report = Report()
            with limit.running():
                if empty is None and await container.left_nothing():
                    return
                await self._context.store.collect(
                    container.archive,
                    terms.artifacts,
                    f"{self._claim.project.workspace_key}/{run_id}/",
                    on_artifact,
                    on_warning,
                    self._reporter.redactor.text,
                    report,
                )

        problem = None
        try:
            # Repeated as a whole when the engine goes away meanwhile: the same key is the same artifact.
            await self._calls(attempt)
        except (ArtifactError, EngineError) as error:
            problem = str(error)
        await self._reporter.report(report)
        return problem


def is_empty(folder: Path) -> bool | None:
    """Whether nothing is in that folder of the engine's; None if the worker cannot see it. Blocking: for a thread.

    The engine starts a process for each archive, also for one of an empty folder.
    """
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:  # the engine is on another host, or the worker may not look
        return None
