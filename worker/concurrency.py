"""Structured concurrency: task groups with plain errors, retries with backoff, time limits."""

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

T = TypeVar("T")
log = structlog.get_logger()


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group that raises the first error itself, not an ``ExceptionGroup``, and logs the other errors."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        first, *others = _errors(group)
        for error in others:
            log.warning("another task failed at the same time", error=repr(error), first_error=repr(first))
        raise first from first.__cause__


def _errors(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [each for part in error.exceptions for each in _errors(part)]
    return [error]


async def retrying(
    call: Callable[[], Awaitable[T]],
    *,
    transient: Callable[[Exception, int], bool],
    on_fault: Callable[[Exception, int], object],
    first: float = 0.1,
    cap: float = 5.0,
) -> T:
    """Repeats ``call`` until it succeeds, with ``backoff`` between the attempts.

    ``transient`` takes an error and the number of its attempt (from 0), and decides whether the same call may succeed
    later. If not, the error is raised. Otherwise ``on_fault`` is called with the same two values.
    """
    attempt = 0
    while True:
        try:
            return await call()
        except Exception as error:
            if not transient(error, attempt):
                raise
            on_fault(error, attempt)
        await anyio.sleep(backoff(attempt, first=first, cap=cap))
        attempt += 1


def backoff(attempt: int, *, first: float = 0.1, cap: float = 5.0) -> float:
    """Seconds to wait before attempt ``attempt`` (from 0): exponential with jitter, at most ``cap``."""
    return random.uniform(first / 2, min(cap, first * math.pow(2, min(attempt, 16))))  # noqa: S311 - not a secret


@asynccontextmanager
async def cancel_on(event: anyio.Event) -> AsyncIterator[None]:
    """Cancels the block when the event is set, also when it is set already."""

    async def cancel(scope: anyio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async with task_group() as tasks:
        tasks.start_soon(cancel, tasks.cancel_scope)
        if event.is_set():
            tasks.cancel_scope.cancel()
        yield
        tasks.cancel_scope.cancel()


class TimeLimit:
    """Cancels work after ``seconds`` in all. Several pieces of work, one after the other, share them."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._waits = 0
        self._scope = anyio.CancelScope()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs the block within the seconds that are left. Raises ``TimeoutError`` if it was cancelled for that."""
        ends = anyio.current_time() + self._left
        with anyio.CancelScope(deadline=ends) as self._scope:
            try:
                yield
            finally:
                self._left = self._scope.deadline - anyio.current_time()
        if self._scope.cancelled_caught:
            raise TimeoutError

    def shorten(self, seconds: float) -> None:
        """Reduces what is left to ``seconds``, counted from now."""
        self._left = min(self._left, seconds)
        if not self._waits:
            self._scope.deadline = min(self._scope.deadline, anyio.current_time() + seconds)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Does not count the time in the block, in which the work waits for another. Several blocks may overlap."""
        if not self._waits:
            self._left = self._scope.deadline - anyio.current_time()
            self._scope.deadline = math.inf
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._scope.deadline = anyio.current_time() + self._left
