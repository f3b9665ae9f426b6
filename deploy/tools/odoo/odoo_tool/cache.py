"""The project's cache: folders named by the checksum of what they were made from.

An entry is made in a folder beside it and renamed when it is complete, so a run that is killed leaves no half entry.
The file ``.checksums`` of an entry has the checksum of each file; an entry that does not agree with it is deleted and
made anew. Entries that were not used for a month are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .steps import Failure, say

CHECKSUMS = ".checksums"
UNUSED_SECONDS = 30 * 24 * 3600


def digest(parts: Iterable[str]) -> str:
    """The key of an entry: a checksum of texts, of which none can pass into its neighbour."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    total = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """The files below a folder in a fixed order, without those that Python compiled and those of git."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in {"__pycache__", ".git"})
        for name in sorted(names):
            if not name.endswith((".pyc", ".pyo")) and name != ".git":
                yield Path(parent, name)


def folder_digest(folder: Path) -> str:
    """The checksum of the names and the content of all files of a folder."""
    return digest(f"{path.relative_to(folder)} {file_digest(path)}" for path in files_below(folder))


def checksums(folder: Path) -> dict[str, str]:
    """The checksums of all files of an entry."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(folder)): file_digest(path) for path in found}


class Cache:
    """Entries of the kinds ``builds``, ``templates``, ``wheels``; and the folder itself for the mirror of git."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise Failure(
                f"cache {folder}: it is not a folder that this user may write to",
                "give the workflow a cache with this path, or another path with --cache",
            )

    def find(self, kind: str, key: str) -> Path | None:
        """The entry, if it is complete and undamaged."""
        entry = self.folder / kind / key
        try:
            noted = json.loads((entry / CHECKSUMS).read_text())
        except (OSError, ValueError):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        if noted != checksums(entry):
            say(f"WARNING: cache entry {kind}/{key} is damaged: it is deleted and made anew")
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry)
        return entry

    def make(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """The new entry, which ``fill`` wrote into the folder that it was given."""
        parent = self.folder / kind
        parent.mkdir(exist_ok=True)
        self._sweep(parent)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=parent))
        try:
            fill(part)
            (part / CHECKSUMS).write_text(json.dumps(checksums(part)))
            part.chmod(0o755)
            entry = parent / key
            try:
                part.rename(entry)
            except OSError:  # another run made the same entry meanwhile
                if not entry.is_dir():
                    raise
            return entry
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @staticmethod
    def _sweep(parent: Path) -> None:
        """Deletes what killed runs left for a day, and entries that were not used for a month."""
        now = time.time()
        for entry in parent.iterdir():
            limit = 24 * 3600 if entry.name.startswith(".part-") else UNUSED_SECONDS
            with contextlib.suppress(FileNotFoundError):  # another run may delete it first
                if now - entry.stat().st_mtime > limit:
                    shutil.rmtree(entry, ignore_errors=True)
