"""Fixtures for the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.collected import Collected


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    """A store that is a folder, not made yet."""
    return Collected(tmp_path / "store")
