"""The images that runs wait for: the engine pulls each of them once, however many runs wait for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.concurrency import task_group
from worker.errors import ImageMissing
from worker.model.container import Image
from worker.model.pull import PullProgress
from worker.run.engine_retry import EngineRetry

Report = Callable[[PullProgress], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PullLimits:
    """Times of a pull, in seconds."""

    total: float
    idle: float
    """How long a pull may last without any progress."""
    report: float = 10.0
    """How often each run reports the progress, if there is any."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that has been pulled, and what that took."""

    image: Image
    progress: PullProgress
    seconds: float


class _Pull:
    """A pull under way."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.progress = PullProgress(self.began)
        self.waiting = 0
        """How many runs wait for it."""
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.result: Pulled | Exception | None = None


class PullEngine(Protocol):
    """The engine's images."""

    async def image(self, reference: str) -> Image | None: ...
    async def pull(self, reference: str, on_report: Callable[[Mapping[str, Any]], object]) -> None: ...


class Pulls:
    """The pulls of one worker. Each is a task of its own, between ``opened`` and its end."""

    def __init__(self, engine: PullEngine, limits: PullLimits) -> None:
        self._engine = engine
        self._limits = limits
        self._tasks: TaskGroup
        self._pulls: dict[str, _Pull] = {}
        """Those under way, by the full name of the image."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Pulls]:
        """Images can be pulled in the block; its end ends every pull."""
        async with task_group() as self._tasks:
            yield self
            self._tasks.cancel_scope.cancel()

    async def pull(self, reference: str, report: Report) -> Pulled:
        """Waits until the image is pulled, and calls ``report`` while the pull makes progress.

        A cancelled call leaves the pull to the other runs that wait for it; the last of them ends it.
        Raises ``ImageMissing`` with the reason.
        """
        pull = self._pulls.get(reference)
        if pull is None:
            pull = self._pulls[reference] = _Pull()
            self._tasks.start_soon(self._run, reference, pull)
        pull.waiting += 1
        try:
            await self._wait(pull, report)
        finally:
            pull.waiting -= 1
            if not pull.waiting:
                pull.scope.cancel()
                self._forget(reference, pull)  # at once: the next run begins another pull
        if isinstance(pull.result, Pulled):
            return pull.result
        raise pull.result or ImageMissing(reference, "the worker stopped pulling it")

    async def _wait(self, pull: _Pull, report: Report) -> None:
        reported = pull.progress.text
        while not pull.ended.is_set():
            with anyio.move_on_after(self._limits.report):
                await pull.ended.wait()
            if not pull.ended.is_set() and (text := pull.progress.text) != reported:
                reported = text
                await report(pull.progress)

    async def _run(self, reference: str, pull: _Pull) -> None:
        """The task of one pull. Keeps every error for the runs that wait: an error here would end the worker."""
        try:
            with pull.scope:
                pull.result = await self._limited(reference, pull)
        except Exception as error:  # noqa: BLE001 - each run that waits raises it
            pull.result = error
        finally:
            self._forget(reference, pull)
            pull.ended.set()

    def _forget(self, reference: str, pull: _Pull) -> None:
        if self._pulls.get(reference) is pull:
            del self._pulls[reference]

    async def _limited(self, reference: str, pull: _Pull) -> Pulled:
        """Pulls within the limits. A registry may send a byte now and then, or nothing more."""
        limits, fetched = self._limits, None
        with anyio.move_on_after(limits.total) as total:
            async with task_group() as tasks:
                tasks.start_soon(self._cancel_when_idle, pull, tasks.cancel_scope)
                fetched = await self._fetch(reference, pull)
                tasks.cancel_scope.cancel()
        if fetched is not None:
            return Pulled(fetched, pull.progress, time.monotonic() - pull.began)
        if total.cancelled_caught:
            why = f"took longer than {limits.total:g} s, the host's setting pull_timeout"
        else:
            why = f"made no progress for {limits.idle:g} s, the host's setting pull_idle_timeout"
        raise ImageMissing(reference, f"the registry {why} ({pull.progress.text})")

    async def _cancel_when_idle(self, pull: _Pull, scope: anyio.CancelScope) -> None:
        # No event: the reports come from another thread, and only their absence matters.
        while (left := self._last_change(pull) + self._limits.idle - time.monotonic()) > 0:  # noqa: ASYNC110
            await anyio.sleep(left)
        scope.cancel()

    def _last_change(self, pull: _Pull) -> float:
        """The engine fetches few layers at once, so one that waits makes progress while another pull does."""
        others = (other.progress.changed_at for other in self._pulls.values() if pull.progress.waits)
        return max(pull.progress.changed_at, *others, 0.0)

    async def _fetch(self, reference: str, pull: _Pull) -> Image:
        calls = EngineRetry(structlog.get_logger().bind(image=reference))

        async def attempt() -> None:
            pull.progress.changed_at = time.monotonic()  # an engine that is away is not a registry that is idle
            await self._engine.pull(reference, lambda said: pull.progress.record(said, time.monotonic()))

        await calls(attempt)
        image = await calls(self._engine.image, reference)
        if image is None:
            raise ImageMissing(reference, "the registry's answer did not contain it")
        return image
