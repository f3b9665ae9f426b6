"""The services of a run: containers beside it, on a network of the run's own.

They are created before the container of the run, and started after it is created and recorded. So a worker that adopts
the run finds either none of them started, or all that it needs in the terms of the run. The engine makes the health
checks, so they go on while no worker is there. A service that ended before the run's container did ends the run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol

import anyio

from worker.concurrency import cancel_on
from worker.errors import EngineError
from worker.logs.lines import LineAssembler
from worker.logs.redact import Redactor
from worker.model.container import ContainerState, RunNetwork
from worker.model.outcome import ServiceFailure, Stop, service_fault
from worker.model.spec import RunSpec, RunTerms
from worker.run.engine_retry import EngineRetry
from worker.run.ports import RunContainer, RunTimings
from worker.run.reporter import Reporter
from worker.run.stopping import StopRequest

KEPT_LINES, KEPT_CHARACTERS = 50, 500
"""The last lines of a failed service that its event has, and the characters of each: an event has a limit."""


class ServiceEngine(Protocol):
    """What services need of the engine."""

    def container(self, ref: str) -> RunContainer: ...


def service_container(run_container: str, service: str) -> str:
    """The name of a service's container, from the name of its run's."""
    return f"{run_container}-{service}"


def run_network(run_container: str, spec: RunSpec) -> RunNetwork | None:
    """The network of a run's own, of the same name as its container; None for a run without services."""
    return RunNetwork(run_container, internal=spec.network == "none") if spec.services else None


class Services:
    """The services of one run, from their start until the run's container has ended."""

    def __init__(
        self,
        engine: ServiceEngine,
        run_container: str,
        terms: RunTerms,
        reporter: Reporter,
        calls: EngineRetry,
        stop: StopRequest,
        start: Callable[[RunContainer], Awaitable[bool]],
    ) -> None:
        self.failure: ServiceFailure | None = None
        """Why a service ended the run."""
        self._terms = {service.name: service for service in terms.services}
        self._limit = terms.timeout_seconds, "timeout_seconds"
        if terms.serve is not None:
            self._limit = terms.serve.ready_timeout_seconds, "serve.ready_timeout_seconds"
        self._containers: Mapping[str, RunContainer] = {
            name: engine.container(service_container(run_container, name)) for name in self._terms
        }
        self._reporter = reporter
        self._calls = calls
        self._stop = stop
        self._start = start

    async def start(self, run: RunContainer, timings: RunTimings) -> None:
        """Starts them, and waits until all are healthy; asks the run to stop if they are not within its time limit.

        Does nothing if the run's container has been started: then they were healthy.
        """
        if not self._containers or self._stop.requested.is_set():
            return
        state = await self._calls(run.inspect)
        if state is None or state.started_at is not None:
            return
        waiting, (seconds, limit) = list(self._containers), self._limit
        with anyio.move_on_after(seconds):
            async with cancel_on(self._stop.requested):
                for name, container in self._containers.items():
                    await self._started(name, container)
                while waiting := [name for name in waiting if not await self._is_healthy(name)]:  # noqa: ASYNC110
                    await anyio.sleep(timings.service_start_poll)
        if waiting and self.failure is None and not self._stop.requested.is_set():
            await self._fail(waiting[0], f"was not healthy within {seconds:.12g} s ({limit})")

    async def watch(self, run: RunContainer, timings: RunTimings) -> None:
        """Asks the run to stop when a service ends or becomes unhealthy while the run's container is running."""
        while self.failure is None:
            await anyio.sleep(timings.service_poll)
            for name, container in self._containers.items():
                why = service_fault(await self._calls(container.inspect), self._terms[name])
                state = await self._calls(run.inspect) if why is not None else None
                if why is not None and state is not None and state.running:
                    await self._fail(name, why)

    async def look_back(self, run: ContainerState) -> None:
        """Asks the run, which has ended, to stop if a service ended before it."""
        if self.failure is not None or self._stop.requested.is_set() or run.finished_at is None:
            return
        for name, container in self._containers.items():
            state = await self._calls(container.inspect)
            ended = None if state is None or state.running else state.finished_at
            if state is None or (ended is not None and ended < run.finished_at):
                await self._fail(name, service_fault(state, self._terms[name]) or "")

    async def settle(self, grace_seconds: float) -> None:
        """Stops those that may write to a volume that stays, before another run can use it."""
        for name, container in self._containers.items():
            if self._terms[name].keeps:
                await self._calls(container.stop, grace_seconds)

    async def kill(self) -> None:
        """Kills them all."""
        for container in self._containers.values():
            await self._calls(container.stop, 0)

    async def _started(self, name: str, container: RunContainer) -> None:
        try:
            await self._start(container)
        except EngineError as error:
            raise EngineError(error.status, f"service {name!r}: {error}") from error

    async def _is_healthy(self, name: str) -> bool:
        state = await self._calls(self._containers[name].inspect)
        if (why := service_fault(state, self._terms[name])) is not None:
            await self._fail(name, why)
        return state is not None and state.running and state.health in (None, "none", "healthy")

    async def _fail(self, name: str, why: str) -> None:
        """Records the first failure, with the last lines of the service, and asks the run to stop."""
        if self.failure is not None:
            return
        said: list[str] = []
        with suppress(EngineError):  # it is gone
            said = last_lines(await self._calls(self._containers[name].tail, KEPT_LINES), self._reporter.redactor)
        self.failure = ServiceFailure(name, why, tuple(said))
        self._stop.request(Stop.SERVICE)


def last_lines(journal: bytes, redactor: Redactor) -> list[str]:
    """The lines at the end of a log as the engine frames it, without secrets."""
    lines = LineAssembler(redactor=redactor)
    said = [message for each in (*lines.feed(journal), *lines.flush()) for message in each.messages]
    return [message[:KEPT_CHARACTERS] for message in said[-KEPT_LINES:]]
