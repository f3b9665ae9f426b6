"""Facts that the engine reports about itself."""

from __future__ import annotations

from typing import Any, cast

import docker.errors
import pytest
import requests

from worker.engine.client import EngineApi
from worker.engine.engine import Engine, filters_bridges
from worker.errors import EngineError, EngineUnavailable
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
