"""The Python packages that a project requires: resolved once, locked with hashes, kept as wheels."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cache import Cache, digest, file_digest
from .source import EPOCH
from .steps import Failure, read, run, step

REQUIREMENTS = "requirements.txt"
LOCK = "requirements.lock"
ADVICE = "correct requirements.txt, or give pip the index and its certificate (PIP_INDEX_URL and PIP_CERT in env)"


def wheelhouse(source: Path, cache: Cache) -> Path | None:
    """The folder of the project's wheels and their lock; None if the project requires nothing.

    A package that the image has in a version that fits is not in it.
    """
    file = source / REQUIREMENTS
    if not file.is_file() or not file.read_text().strip():
        return None
    key = digest([file.read_text(), sys.version, platform.machine(), installed()])
    found = cache.find("wheels", key)
    if found is not None:
        step(f"Python packages: wheels {key[:12]} from the cache")
        return found
    step(f"Python packages: resolving {REQUIREMENTS} and building wheels {key[:12]}")
    return cache.make("wheels", key, lambda folder: _fill(file, folder))


def installed() -> str:
    """The packages of the image, since they decide what else is needed."""
    return read([sys.executable, "-m", "pip", "list", "--format=json"], thing="pip", advice="see the message above")


def _fill(file: Path, folder: Path) -> None:
    report = folder / "report.json"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    run(
        [*pip, "install", "--quiet", "--dry-run", "--report", report, "-r", file],
        thing=REQUIREMENTS,
        advice=ADVICE,
        cwd=file.parent,
    )
    (folder / LOCK).write_text(lock(json.loads(report.read_text())))
    report.unlink()
    run(
        [*pip, "wheel", "--quiet", "--no-deps", "--require-hashes", "-r", folder / LOCK, "-w", folder],
        thing=LOCK,
        advice=ADVICE,
        env={"SOURCE_DATE_EPOCH": str(EPOCH)},  # most builders then write the same bytes each time
    )
    built = {path.name.partition("-")[0]: file_digest(path) for path in folder.glob("*.whl")}
    (folder / LOCK).write_text(with_wheels((folder / LOCK).read_text(), built))


def lock(report: Mapping[str, Any]) -> str:
    """The lines of a lock from pip's report of what it would install.

    Raises:
        Failure: a package comes from a place that has no hash
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" not in hashes:
            raise Failure(
                f"requirements.txt, {name}: it comes from a place without a hash",
                f"name a release of {name} instead of a folder or a git repository, or add it as a submodule",
            )
        lines.append(f"{name}=={version} --hash=sha256:{hashes['sha256']}")
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def with_wheels(text: str, built: Mapping[str, str]) -> str:
    """The lock with the checksums of the wheels too, since a wheel that was built here is not the file of the index."""
    lines = []
    for line in text.splitlines():
        name = re.sub(r"[-_.]+", "_", line.partition("==")[0]).lower()
        found = next((value for key, value in built.items() if key.lower() == name), None)
        lines.append(line if found is None or found in line else f"{line} --hash=sha256:{found}")
    return "\n".join(lines) + "\n"


def install(wheels: Path, target: Path) -> None:
    """Unpacks the wheels into a folder for ``PYTHONPATH``; reaches no index."""
    names = sorted(str(path) for path in wheels.glob("*.whl"))
    if not names:
        return
    step(f"Python packages: installing {len(names)} wheels")
    run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps",
         "--no-compile", "--no-warn-conflicts", "--target", target, *names],
        thing="wheels",
        advice="see pip's message above",
    )  # fmt: skip
