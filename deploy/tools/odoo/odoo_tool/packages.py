"""The Debian packages of the image, and those that a project asks for in ``apt.txt``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .steps import Failure, read

APT = "apt.txt"


def installed() -> dict[str, str]:
    """Version by name of every installed package."""
    listed = read(
        ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n"],
        thing="Debian packages",
        advice="build the image FROM Debian or Ubuntu (build argument BASE)",
    )
    rows = (line.split("\t") for line in listed.splitlines())
    return {row[1]: row[2] for row in rows if row[0].startswith("ii")}


def distribution() -> str:
    """Such as ``debian``."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next((line[3:].strip('"') for line in lines if line.startswith("ID=")), "debian")


def asked(text: str) -> list[tuple[int, str]]:
    """The lines of ``apt.txt`` with their numbers; ``#`` begins a comment.

    Raises:
        Failure: a line is not the name of one package
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if name and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name):
            raise Failure(f"{APT}, line {number}: {name!r} is not the name of a package", "write one name on each line")
        if name:
            found.append((number, name))
    return found


def check(source: Path, there: Mapping[str, str]) -> list[str]:
    """The packages of ``apt.txt``; all are in the image.

    A run is no root and has no capability, so it installs no package.

    Raises:
        Failure: one is not in the image
    """
    file = source / APT
    wanted = asked(file.read_text()) if file.is_file() else []
    for number, name in wanted:
        if name not in there:
            raise Failure(
                f"{APT}, line {number}: the package {name} is not in this image",
                f"build the image with it: docker build --build-arg APT_PACKAGES='{' '.join(n for _, n in wanted)}' …; "
                "a run cannot install packages, since it is not root",
            )
    return [name for _, name in wanted]
