"""Structured concurrency, with errors that can be caught by their class; and how long to wait before trying again."""

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group whose first error comes out as itself, not wrapped in an ``ExceptionGroup``."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


def backoff(attempt: int, *, first: float = 0.1, cap: float = 5.0) -> float:
    """Seconds to wait before attempt ``attempt`` (from 0): exponential with jitter, at most ``cap``."""
    return random.uniform(first / 2, min(cap, first * math.pow(2, min(attempt, 16))))  # noqa: S311 - not a secret


async def unless(event: anyio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Does the work, but gives it up when the event comes first or meanwhile."""

    async def give_up(scope: anyio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    if event.is_set():
        return
    async with task_group() as tasks:
        tasks.start_soon(give_up, tasks.cancel_scope)
        await work()
        tasks.cancel_scope.cancel()


class TimeLimit:
    """Gives up work that takes longer than so many seconds. Several pieces of work, one after the other, share them."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._waits = 0
        self._scope = anyio.CancelScope()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The work. Raises ``TimeoutError`` when it is given up."""
        ends = anyio.current_time() + self._left
        with anyio.CancelScope(deadline=ends) as self._scope:
            try:
                yield
            finally:
                self._left = self._scope.deadline - anyio.current_time()
        if self._scope.cancelled_caught:
            raise TimeoutError

    def shorten(self, seconds: float) -> None:
        """Leaves it no more than that from now on."""
        self._left = min(self._left, seconds)
        if not self._waits:
            self._scope.deadline = min(self._scope.deadline, anyio.current_time() + seconds)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A part of the work that does not count, since something else is waited for; there may be several at once."""
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
