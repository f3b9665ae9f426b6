"""How hypothesis runs: no time limits, since the machine may be busy, and its notes where they are ignored."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(__file__).parents[2] / "build" / "hypothesis")
settings.register_profile("ops-worker", deadline=None)
settings.load_profile("ops-worker")
