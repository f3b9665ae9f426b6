"""How far the pull of an image is, from what the engine reports of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.model.sizes import rounded_size

_FETCHED = ("Verifying Checksum", "Download complete", "Extracting", "Pull complete")
"""What the engine reports of a layer that has arrived."""


class PullProgress:
    """Takes the engine's reports in one thread, and may be read in another."""

    def __init__(self, now: float) -> None:
        self.changed_at = now
        """When something last changed, in the caller's time."""
        self._states: dict[str, tuple[str, int]] = {}
        self._sizes: dict[str, int] = {}

    def record(self, report: Mapping[str, Any], now: float) -> None:
        """Takes one report. A report that repeats the state of its layer changes nothing."""
        layer, status = report.get("id"), str(report.get("status"))
        if not layer or status.startswith("Pulling from"):  # of the whole image; its id is the tag
            return
        detail = report.get("progressDetail") or {}
        if total := detail.get("total"):
            self._sizes[layer] = total
        state = (status, detail.get("current") or 0)
        if self._states.get(layer) != state:
            self._states[layer] = state
            self.changed_at = now

    @property
    def waits(self) -> bool:
        """Whether a layer waits until the engine has fetched others, perhaps those of another image."""
        return any(status == "Waiting" for status, _ in list(self._states.values()))

    @property
    def layers(self) -> int:
        """How many layers the engine has named."""
        return len(self._states)

    @property
    def layers_done(self) -> int:
        """How many of them are on the engine."""
        return sum(status in ("Pull complete", "Already exists") for status, _ in list(self._states.values()))

    @property
    def received(self) -> int:
        """Bytes that have arrived from the registry, of the layers whose size it gave."""
        return sum(
            self._sizes.get(layer, 0) if status in _FETCHED else current
            for layer, (status, current) in list(self._states.items())
        )

    @property
    def text(self) -> str:
        """In words: ``1 of 3 layers, 40 MiB received``."""
        return f"{self.layers_done} of {self.layers} layers, {rounded_size(self.received)} received"
