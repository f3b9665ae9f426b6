"""The handle of a container: when it is started."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, cast

import docker.errors
import pytest

from worker.engine.containers import Container


class ScriptedClient:
    """The SDK's client, for one container in that status; None for one that is gone."""

    def __init__(self, status: str | None) -> None:
        self.status = status
        self.story: list[str] = []

    def look(self, call: str) -> None:
        self.story.append(call)
        if self.status is None:
            raise docker.errors.NotFound("gone")

    def inspect_container(self, _: str) -> dict[str, Any]:
        self.look("inspect")
        return {"State": {"Status": self.status}}

    def start(self, _: str) -> None:
        self.look("start")
        self.status = "running"

    async def call(self, function: Callable[[ScriptedClient], object]) -> object:
        """Takes the place of ``EngineApi``."""
        return function(self)


@pytest.mark.parametrize(
    ("status", "new_for", "starts", "story"),
    [
        ("created", 60.0, True, ["start"]),
        ("created", -1.0, True, ["inspect", "start"]),
        ("created", -math.inf, True, ["inspect", "start"]),
        ("running", -math.inf, False, ["inspect"]),
        ("exited", -math.inf, False, ["inspect"]),
        (None, 60.0, False, ["start"]),
        (None, -math.inf, False, ["inspect"]),
    ],
)
async def test_only_a_container_that_never_ran_is_started(
    status: str | None, new_for: float, starts: object, story: list[str]
) -> None:
    client = ScriptedClient(status)
    container = Container(cast("Any", client), cast("Any", None), "c", time.monotonic() + new_for)
    assert await container.start() is starts
    assert client.story == story
    client.status = "exited"
    assert not await container.start(), "the first start may have succeeded, and its answer be lost"
    assert client.story == [*story, "inspect"]
