"""Facts that the engine reports about itself."""

from __future__ import annotations

import uuid
from typing import Any, cast

import docker.errors
import pytest
import requests

from worker.engine import create
from worker.engine.client import EngineApi
from worker.engine.create import CONNECT_ATTEMPTS
from worker.engine.engine import Engine, filters_bridges
from worker.errors import EngineError, EngineUnavailable
from worker.model.container import ProjectNetwork
from worker.telemetry import Metrics


@pytest.mark.parametrize(
    ("api_version", "facts", "filters"),
    [
        ("1.41", {"BridgeNfIptables": True}, True),
        ("1.41", {"BridgeNfIptables": False}, False),
        ("1.47", {}, True),
        ("1.48", {"BridgeNfIptables": False}, True),
        ("1.49", {"FirewallBackend": {"Driver": "iptables"}}, True),
        ("1.49", {}, False),
    ],
)
def test_kernel_filters_bridges_by_the_facts_of_the_engine(
    api_version: str, facts: dict[str, object], filters: object
) -> None:
    assert filters_bridges(api_version, facts) is filters


class Answering:
    """A client whose answers to ``info`` are those."""

    api_version = "1.41"

    def __init__(self, *answers: Exception) -> None:
        self._answers = list(answers)

    def inspect_container(self, _: str) -> dict[str, Any]:
        raise self._answers.pop(0)

    def close(self) -> None:
        pass


def refusal(status: int) -> docker.errors.APIError:
    response = requests.Response()
    response.status_code = status
    return docker.errors.APIError("no", response)


async def test_calls_are_counted_by_the_method_that_makes_them_and_by_how_they_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    client = Answering(refusal(404), refusal(500), refusal(400), requests.ConnectionError("cut"))
    monkeypatch.setattr(EngineApi, "new_client", lambda _: cast("Any", client))
    container = Engine(None, streams=1, metrics=metrics).container("c")
    assert await container.inspect() is None
    for error in (EngineError, EngineError, EngineUnavailable):
        with pytest.raises(error):
            await container.inspect()
    value = metrics.registry.get_sample_value
    assert value("ops_worker_engine_call_duration_seconds_count", {"call": "inspect"}) == 4
    for kind, count in (("server", 1), ("request", 2), ("unavailable", 1)):
        assert value("ops_worker_engine_errors_total", {"call": "inspect", "error": kind}) == count


class Connecting:
    """A client of an engine on which a network is removed as often as given, just before a container joins it."""

    def __init__(self, removals: int) -> None:
        self.removals, self.networks_made, self.joined = removals, 0, False

    def networks(self, **_: object) -> list[dict[str, Any]]:
        return []

    def create_network(self, *_: object, **__: object) -> None:
        self.networks_made += 1

    def connect_container_to_network(self, *_: object, **__: object) -> None:
        if self.networks_made <= self.removals:
            raise docker.errors.NotFound("network gone")
        self.joined = True


def test_a_network_that_the_end_of_another_run_removes_is_made_again() -> None:
    network = ProjectNetwork(uuid.UUID(int=1), uuid.UUID(int=2))
    client = Connecting(CONNECT_ATTEMPTS - 1)
    create._connect(cast("Any", client), "c", network, ["run-1.project"])
    assert (client.joined, client.networks_made) == (True, CONNECT_ATTEMPTS)
    with pytest.raises(docker.errors.NotFound):
        create._connect(cast("Any", Connecting(CONNECT_ATTEMPTS)), "c", network, [])
