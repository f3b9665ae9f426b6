"""The loop that delivers: takes messages from the outbox, sends them, and reports how that went.

    register → take what is due for the destinations that are free → send → settle

Each destination is one task at a time. So one that does not answer delays its own messages only, and at most as many
connections are open as there are destinations. No error of a destination ends the loop or reaches a run.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol, assert_never

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from worker.concurrency import task_group
from worker.model.delivery import Delivery, Taken
from worker.outcomes.http import chat_request, post, status_request
from worker.outcomes.mail import mail_message, send
from worker.outcomes.settings import Destination, Forge, Mail, Notifications, Secrets, Webhook, check_webhook_url
from worker.outcomes.wire import NotSent, Wire

log = structlog.get_logger()


class Outbox(Protocol):
    """The control plane's side."""

    async def register(self, destinations: Sequence[Mapping[str, Any]]) -> None: ...
    async def take(self, names: Sequence[str]) -> Taken: ...
    async def settle(self, delivery_id: str, error: str | None, *, final: bool) -> bool | None:
        """Ends an attempt; returns whether the message was given up, None if this worker does not hold it."""
        ...


@dataclass(frozen=True, slots=True)
class DeliveryTimings:
    """Times in seconds."""

    poll: float = 10.0
    """Between two requests for messages."""
    send: float = 30.0
    """How long one attempt may take."""
    lease: float = 240.0
    """How long after they were taken messages may be sent; less than the lease of ``ops.take_deliveries``."""
    last: float = 10.0
    """How long a worker that stops may still deliver."""


TIMINGS = DeliveryTimings()


class Notifier:
    """Delivers for the destinations of this host, between ``opened`` and its end."""

    def __init__(
        self, outbox: Outbox, settings: Notifications, secrets: Secrets, timings: DeliveryTimings | None = None
    ) -> None:
        self._outbox = outbox
        self._destinations = {each.name: each for each in settings.destinations}
        self._run_url = settings.run_url
        self._secrets = secrets
        self._timings = timings or TIMINGS
        self._busy: set[str] = set()
        self._more = anyio.Event()
        self._closing = False
        self._threads = anyio.CapacityLimiter(len(self._destinations))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Delivers while the block lasts, and then what is due or under way, for a short time."""
        async with task_group() as tasks:
            tasks.start_soon(self._deliver_for_ever, tasks)
            yield
            tasks.cancel_scope.deadline = anyio.current_time() + self._timings.last
            self._closing = True
            self._more.set()

    async def register(self) -> None:
        """Tells the control plane what is wanted. Raises ``Refused`` if this host may not deliver messages."""
        await self._outbox.register([each.wanted for each in self._destinations.values()])

    async def once(self) -> None:
        """Takes what is due, and delivers it."""
        async with task_group() as tasks:
            await self._take(tasks)

    async def _deliver_for_ever(self, tasks: TaskGroup) -> None:
        """Ends when it is closing and nothing is due or under way."""
        while True:
            self._more = anyio.Event()
            try:
                await self._take(tasks)
            except Exception as error:  # noqa: BLE001 - the edge of the loop: it must not end the worker
                log.warning("messages cannot be taken", error=str(error) or repr(error))
            if self._closing and not self._busy:
                return
            with anyio.move_on_after(self._timings.poll * random.uniform(0.75, 1.25)):  # noqa: S311 - jitter
                await self._more.wait()

    async def _take(self, tasks: TaskGroup) -> None:
        """Takes what is due, and starts a task for each destination that has messages."""
        free = [name for name in self._destinations if name not in self._busy]
        if not free:
            return
        taken = await self._outbox.take(free)
        if not taken.registered:
            await self.register()
        deliveries = sorted(taken.deliveries, key=lambda it: it.destination)
        for name, group in groupby(deliveries, key=lambda it: it.destination):
            self._busy.add(name)
            tasks.start_soon(self._deliver_all, self._destinations[name], list(group))

    async def _deliver_all(self, destination: Destination, deliveries: Sequence[Delivery]) -> None:
        """Delivers one after the other, in the order of the runs' changes.

        Only a destination that took all of them gets more before the next poll.
        """
        until = time.monotonic() + self._timings.lease - self._timings.send
        sent = True
        try:
            for delivery in sorted(deliveries, key=lambda it: it.created_at):
                if time.monotonic() > until:  # the rest is due again when its lease ends
                    return
                sent = await self._deliver(destination, delivery) and sent
        except Exception as error:  # noqa: BLE001 - the edge of a destination: its error must not end the loop
            log.warning("a message could not be settled", destination=destination.name, error=repr(error))
        finally:
            self._busy.discard(destination.name)
            if sent or self._closing:
                self._more.set()

    async def _deliver(self, destination: Destination, delivery: Delivery) -> bool:
        """One attempt, and its report to the control plane; returns whether it was sent."""
        named = {"destination": destination.name, "delivery_id": delivery.delivery_id, "run": delivery.name}
        try:
            await self._send(destination, delivery)
        except NotSent as error:
            given_up = await self._outbox.settle(delivery.delivery_id, str(error), final=error.final)
            log.warning("message given up" if given_up else "message not sent", error=str(error), **named)
            return False
        if await self._outbox.settle(delivery.delivery_id, None, final=False) is None:
            log.warning("a message was sent after its lease had ended, so it may be sent twice", **named)
        else:
            log.info("message sent", what=delivery.event, **named)
        return True

    async def _send(self, destination: Destination, delivery: Delivery) -> None:
        """Sends within the time limit. Raises ``NotSent``."""
        wire = Wire(allow_private=destination.allow_private, ca_file=destination.ca_file)
        seconds = self._timings.send
        try:
            with anyio.fail_after(seconds):
                work = partial(self._send_blocking, destination, delivery, wire)
                await anyio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)
        except TimeoutError:
            raise NotSent(f"the receiver took longer than {seconds:g} s") from None
        finally:
            wire.cut()

    def _send_blocking(self, destination: Destination, delivery: Delivery, wire: Wire) -> None:
        """In a thread. Every error is ``NotSent``."""
        try:
            self._sender(destination)(delivery, wire)
        except NotSent:
            raise
        except Exception as error:
            raise NotSent(str(error) if isinstance(error, ValueError) else repr(error)[:300]) from error

    def _sender(self, destination: Destination) -> Callable[[Delivery, Wire], None]:
        """What sends a message to that destination, with its secrets as they are now. Raises ``ValueError``."""
        url, secrets = self._run_url, [self._secrets.read(name) for name in destination.secrets]
        if isinstance(destination, Forge):
            return lambda it, wire: post(status_request(destination, it, secrets[0], url), it.delivery_id, wire)
        if isinstance(destination, Webhook):
            address = check_webhook_url(secrets[0], destination)
            return lambda it, wire: post(chat_request(it, address, url), it.delivery_id, wire)
        if isinstance(destination, Mail):
            password = secrets[0] if secrets else None
            return lambda it, wire: send(destination, password, mail_message(destination, it, url), wire)
        assert_never(destination)
