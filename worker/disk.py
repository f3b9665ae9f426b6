"""How much room is left where runs write. Below a floor the worker claims nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from worker.settings import flag
from worker.units import shown_size


def shortage(folders: Iterable[Path], floor: int) -> str | None:
    """Says which of the folders has less than ``floor`` bytes left for an ordinary user; None when none has.

    A folder that cannot be seen from here, as that of an engine outside of the worker's container, is passed over.
    """
    for folder in folders:
        try:
            disk = os.statvfs(folder)
        except OSError:
            continue
        free = disk.f_bavail * disk.f_frsize
        if free < floor:
            left = f"{free / 2**20:,.0f}m left on the disk of {folder}"
            return f"{left}, and {flag('min_free_disk')} is {shown_size(floor)}"
    return None
