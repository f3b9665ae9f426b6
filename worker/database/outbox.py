"""The outbox of the control plane: one method per function, for the loop that delivers messages."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from worker.errors import Refused
from worker.model.claim import WorkerIdentity
from worker.model.delivery import Delivery, Taken


class Outbox:
    """The calls of one worker instance; ``call`` repeats a statement over passing faults and returns its answer.

    A repeated ``take`` leaves the messages whose answer was lost until their lease ends. A repeated ``settle`` finds
    the message gone.
    """

    def __init__(self, call: Callable[..., Awaitable[dict[str, Any]]], identity: WorkerIdentity) -> None:
        self._call = call
        self._me = identity

    async def register(self, destinations: Sequence[Mapping[str, Any]]) -> None:
        """Registers what this worker delivers, in place of what it did. Raises ``Refused``."""
        text = json.dumps(list(destinations))
        accepted(await self._call("select ops.register_destinations($1, $2::jsonb)", self._me.worker_id, text))

    async def take(self, names: Sequence[str]) -> Taken:
        """Takes the messages that are due for these destinations. Raises ``Refused``."""
        sql = "select ops.take_deliveries($1, $2, $3)"
        answer = accepted(await self._call(sql, self._me.worker_id, self._me.instance_id, list(names)))
        return Taken(tuple(map(Delivery.from_payload, answer["deliveries"])), answer["registered"])

    async def settle(self, delivery_id: str, error: str | None, *, final: bool) -> bool | None:
        """Ends an attempt; returns whether the message was given up, None if this instance does not hold it."""
        sql = "select ops.settle_delivery($1, $2, $3, $4)"
        answer = await self._call(sql, delivery_id, self._me.instance_id, error, final)
        if answer.get("code") == "not_found":
            return None
        given_up: bool = accepted(answer)["given_up"]
        return given_up


def accepted(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of a function. Raises ``Refused`` if it refused the call."""
    if not answer["success"]:
        raise Refused(answer.get("code", "refused"), answer["error"])
    return answer
