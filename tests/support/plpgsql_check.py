"""plpgsql_check, which ``supabase db lint`` calls, out of Debian's or Ubuntu's package of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from tests.support.npm import ROOT
from tests.support.postgres import MAJORS

_FOLDER = ROOT / "build" / "plpgsql_check"


class ExtensionMissing(Exception):
    """The system's packages do not have plpgsql_check."""


def unpacked() -> tuple[int, Path]:
    """Major version of PostgreSQL that the system's package is for, and the root of what is in it.

    It is unpacked below ``build/``, not installed, so nobody's server changes and nobody has to be root.

    Raises:
        ExtensionMissing: see there.
    """
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _found() or _fetched()


def _found() -> tuple[int, Path] | None:
    for major in MAJORS:
        if (_FOLDER / str(major)).is_dir():
            return major, _FOLDER / str(major)
    return None


def _fetched() -> tuple[int, Path]:
    said = ""
    for prepare in ((), ("apt-get", "update", "--quiet")):  # the lists may be missing, or too old to be of use
        if prepare and os.geteuid() == 0:
            subprocess.run(prepare, capture_output=True, check=False)
        for major in MAJORS:
            package = f"postgresql-{major}-plpgsql-check"
            done = subprocess.run(
                ["apt-get", "download", "--quiet", package], cwd=_FOLDER, capture_output=True, text=True, check=False
            )
            said = done.stderr
            for archive in _FOLDER.glob(f"{package}_*.deb"):
                partial = _FOLDER / "partial"
                subprocess.run(["dpkg-deb", "--extract", archive, partial], check=True)
                partial.rename(_FOLDER / str(major))
                return major, _FOLDER / str(major)
    raise ExtensionMissing(f"apt-get download postgresql-N-plpgsql-check, for N in {MAJORS}: {said}")
