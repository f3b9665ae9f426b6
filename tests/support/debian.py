"""Programs out of Debian's packages, unpacked below ``build/``: nothing is installed, and no service starts."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "debian"


class PackageMissing(Exception):
    """A package cannot be had here."""


@cache
def unpacked(package: str, *also: str, libraries: bool = False) -> Path:
    """The root of what the packages hold, and with ``libraries`` of the libraries that the first one depends on.

    Raises:
        PackageMissing: there is no apt, or it knows no such package.
    """
    root = FOLDER / package
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may find it missing at once
        if not root.exists():
            making = FOLDER / f"{package}.part"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            _download(making, package, *also)
            if libraries:
                _download(making, *_libraries(package))
            for archive in making.glob("*.deb"):
                _run("dpkg-deb", "--extract", str(archive), str(making), cwd=making)
            making.rename(root)
    return root


def first_unpacked(name: str, majors: Sequence[int]) -> tuple[int, Path]:
    """The first of these major versions of which this release has the package, and the root of what it holds.

    Raises:
        PackageMissing: it has none.
    """
    for outdated in (True, False):
        for major in majors:
            package = name.format(major)
            if not subprocess.run(["apt-cache", "show", package], capture_output=True, check=False).returncode:
                return major, unpacked(package)
        if outdated:  # the lists are missing or old; only root may fetch them
            _run("apt-get", "-q", "update", cwd=FOLDER)
    raise PackageMissing(f"apt knows no {name}, for any of {majors}")


def libraries(root: Path) -> str:
    """The folders of an unpacked package that hold shared libraries, as ``LD_LIBRARY_PATH`` takes them."""
    return ":".join(sorted({str(file.parent) for file in root.rglob("*.so*")}))


def _libraries(package: str) -> list[str]:
    """The libraries that it depends on, and those that they depend on, and so on, but for what every system has."""
    found: set[str] = set()
    asked = {package}
    while asked:
        new = set(_depends(*sorted(asked))) - found
        found |= new
        asked = new
    return sorted(found)


def _depends(*packages: str) -> list[str]:
    listed = _run("apt-cache", "depends", "--no-recommends", "--no-suggests", *packages, cwd=FOLDER)
    names = re.findall(r"^ +(?:Pre)?Depends: (lib\S+)$", listed, re.MULTILINE)
    return [name for name in names if not re.match(r"libc6|libpam|libsystemd0|libssl", name)]


def _download(folder: Path, *packages: str) -> None:
    if not shutil.which("apt-get"):
        raise PackageMissing(f"{packages[0]}: there is no apt-get to fetch it with")
    try:
        _run("apt-get", "-q", "download", *packages, cwd=folder)
    except PackageMissing:  # the lists are missing or old; only root may fetch them
        _run("apt-get", "-q", "update", cwd=folder)
        _run("apt-get", "-q", "download", *packages, cwd=folder)


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageMissing(f"{' '.join(command)}:\n{done.stderr}")
    return done.stdout
