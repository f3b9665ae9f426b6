"""Facts that the engine reports about itself."""

from __future__ import annotations

import pytest

from worker.engine.engine import filters_bridges


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
