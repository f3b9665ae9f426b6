"""What every test of a run begins with."""

from __future__ import annotations

import pytest

from tests.unit.fakes import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("worker.run.journal.backoff", lambda _: 0.0)
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 0.0)
    return World()
