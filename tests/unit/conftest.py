"""Fixtures for the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.collected import Collected
from tests.unit.fakes import DaemonWorld


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    """A store that is a folder, not made yet."""
    return Collected(tmp_path / "store")


@pytest.fixture
def daemon_world(monkeypatch: pytest.MonkeyPatch) -> DaemonWorld:
    """A daemon that begins scripted runs, and does not wait between attempts."""
    made = DaemonWorld()
    monkeypatch.setattr("worker.daemon.Run", made.begin)
    monkeypatch.setattr("worker.concurrency.backoff", lambda _, **__: 0.0)
    monkeypatch.setattr("worker.run.disk.SHORT_PAUSE", 0.0)
    return made
