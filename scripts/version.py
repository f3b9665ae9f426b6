"""The version of a build, for hatchling: ``python3 scripts/version.py`` prints it.

A commit that has the tag ``vX.Y.Z`` is ``X.Y.Z``. Any other is ``X.Y.Z.devTIME+gHASH`` of the next release, where TIME
is the commit's, so pip treats a later commit as newer, also in a shallow clone. Uncommitted changes add the time of
the last change. Without git it is the version of the sdist that contains this file, or ``X.Y.Z.dev0``.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

NEXT = "0.1.0"
"""The next release."""

ROOT = Path(__file__).resolve().parents[1]


def version(root: Path = ROOT) -> str:
    """The version of the project in that folder."""
    information = root / "PKG-INFO"
    if information.exists():
        return information.read_text(encoding="utf-8").partition("\nVersion: ")[2].partition("\n")[0]
    if not (root / ".git").exists() or not (commit := _git(root, "log", "-1", "--format=%ct g%h")):
        return f"{NEXT}.dev0"
    seconds, name = commit.split()
    changed = [root / line for line in _git(root, "diff", "--name-only", "HEAD").splitlines()]
    dirty = [f".d{_stamp(max(path.lstat().st_mtime for path in there))}"] if (there := _existing(changed)) else []
    if not changed and _git(root, "tag", "--points-at", "HEAD", f"v{NEXT}"):
        return NEXT
    return "".join([f"{NEXT}.dev{_stamp(float(seconds))}+{name}", *dirty])


def _existing(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.is_symlink() or path.exists()]


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d%H%M%S")


def _git(root: Path, *words: str) -> str:
    """The output of git; empty without git, or if git does not trust the repository."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    print(version())
