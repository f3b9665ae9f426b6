"""A collection into a folder; each stored file is compared with its record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio

from tests.support.archives import Archive, archive
from worker.artifacts.store import ArtifactStore
from worker.model.claim import Artifact
from worker.model.config import ArtifactRule

ALL = [ArtifactRule()]
PREFIX = "acme/run-1/"


def read(url: str) -> bytes:
    return Path(unquote(urlsplit(url).path)).read_bytes()


@dataclass
class Collected:
    """The records and warnings of a collection, and the files in its folder."""

    root: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    async def add(self, artifact: Artifact) -> None:
        stored = read(artifact.url)  # it exists before its row
        assert artifact.checksum == f"sha256:{hashlib.sha256(stored).hexdigest()}"
        assert artifact.size_bytes == len(stored)
        assert artifact.path not in self.artifacts
        self.artifacts[artifact.path] = artifact

    async def warn(self, message: str) -> None:
        self.warnings.append(message)

    async def collect(self, data: bytes | Archive, rules: Sequence[ArtifactRule] = ALL, **limits: int) -> int:
        store = ArtifactStore.from_url(self.root.as_uri(), **limits)
        source = archive(data) if isinstance(data, bytes) else data
        with anyio.fail_after(30):
            return await store.collect(source, rules, PREFIX, self.add, self.warn)

    @property
    def stored(self) -> dict[str, bytes]:
        """The files of the folder: an object by its path below the prefix, any other file by its full path."""
        found = (path for path in self.root.rglob("*") if path.is_file() or path.is_symlink())
        return {str(path.relative_to(self.root)).removeprefix(PREFIX): path.read_bytes() for path in found}
