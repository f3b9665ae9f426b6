"""Stores the files of a container's /artifacts, which arrive as a tar stream, in an object store.

Threads read the stream in steps. A step reads some small files whole, the header of a large file, or a piece of it. So
memory does not depend on what a run wrote, and a cancelled collection waits for at most one step. A file's object
always exists before ``on_artifact`` is called for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import obstore
from anyio.abc import TaskGroup
from obstore.exceptions import BaseError

from worker.artifacts.archive import Archive, ArchivedFile, ArchiveReader, Selection, shown
from worker.artifacts.location import Location, explain, locate
from worker.artifacts.upload import CLOSE_SECONDS, Uploader
from worker.concurrency import task_group
from worker.errors import ArtifactError, EngineError, EngineUnavailable
from worker.model.claim import Artifact
from worker.model.config import ArtifactRule
from worker.model.report import Report

T = TypeVar("T")
OnArtifact = Callable[[Artifact], Awaitable[None]]
OnWarning = Callable[[str], Awaitable[None]]

SMALL_AT_ONCE = 8

MAX_KEY = 1024
"""Most bytes of a key (S3)."""

_PROBE = ".ops-worker-check"


class ArtifactStore:
    """The store of artifacts. Any number of collections may run at the same time; the limits are per run."""

    def __init__(self, location: Location, *, max_bytes: int = 10 * 2**30, max_files: int = 10_000) -> None:
        self.url = location.url
        self._location = location
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._threads = anyio.CapacityLimiter(8)

    @classmethod
    def from_url(cls, url: str, *, max_bytes: int = 10 * 2**30, max_files: int = 10_000) -> Self:
        """The store at that URL; see :func:`locate`. Raises ``ConfigurationError``."""
        return cls(locate(url), max_bytes=max_bytes, max_files=max_files)

    @property
    def folder(self) -> Path | None:
        """The store's folder; None for a bucket."""
        return self._location.folder

    async def check(self) -> None:
        """Writes a small object and deletes it. Raises ``ArtifactError``; its text names the remedy."""

        # Not put_async: a process that exits within milliseconds of its result may be aborted
        # (pyo3-async-runtimes#40), and after a failed check this one does.
        def write() -> None:
            obstore.put(self._location.impatient, _PROBE, b"")
            with suppress(BaseError, OSError):  # another worker may be checking too, or only writing is allowed
                obstore.delete(self._location.impatient, _PROBE)

        try:
            await self._in_thread(write)
        except (BaseError, OSError) as error:
            raise ArtifactError(f"cannot write to {self.url}: {explain(error, self.url)}") from None

    async def delete(self, key: str) -> None:
        """Deletes an object; a missing object is no error. Raises ``ArtifactError``."""
        try:
            await obstore.delete_async(self._location.store, key)
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            raise ArtifactError(f"cannot delete {shown(key)} from {self.url}: {explain(error, self.url)}") from None

    async def collect(
        self,
        archive: Archive,
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        on_artifact: OnArtifact,
        on_warning: OnWarning,
        redact: Callable[[str], str] = str,
        report: Report | None = None,
    ) -> int:
        """Stores each file that a rule names (the first such rule counts) and returns the number of files.

        ``on_artifact`` may be called concurrently. ``on_warning`` is called for each refused entry; a name that
        ``redact`` changes is always refused. ``report`` takes what the files say about the run. Raises
        ``ArtifactError`` when the store fails, and when the archive is cut, damaged or beyond a limit. The files that
        were read whole before the error are stored and recorded. Errors of the engine and of the callbacks are raised
        unchanged.
        """
        selection = Selection(
            rules,
            key_prefix,
            max_bytes=self._max_bytes,
            max_files=self._max_files,
            max_key=MAX_KEY if self.folder else MAX_KEY - len(urlsplit(self.url).path),
            in_folder=self.folder is not None,
            redact=redact,
        )
        reader = ArchiveReader(archive, selection, report or Report())
        collection = _Collection(reader, Uploader(self._location, self._in_thread), on_artifact)
        try:
            async with task_group() as tasks:
                try:
                    while files := await self._in_thread(reader.next_files):
                        await _tell(selection.take_warnings(), on_warning)
                        await collection.store(files, tasks)
                except (ArtifactError, EngineError, EngineUnavailable) as error:
                    collection.failure = error  # raised when the small files are stored
        finally:
            reader.interrupt()
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._in_thread(reader.close)
        await _tell(selection.take_warnings(last=True), on_warning)
        if collection.failure is not None:
            raise collection.failure
        return collection.stored

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(step, abandon_on_cancel=True, limiter=self._threads)


class _Collection:
    """Stores the files of one archive: a large one alone, small ones concurrently."""

    def __init__(self, reader: ArchiveReader, uploader: Uploader, on_artifact: OnArtifact) -> None:
        self.stored = 0
        self.failure: Exception | None = None
        self._reader = reader
        self._uploader = uploader
        self._on_artifact = on_artifact
        self._slots = anyio.Semaphore(SMALL_AT_ONCE)

    async def store(self, files: Sequence[tuple[ArchivedFile, bytes | None]], tasks: TaskGroup) -> None:
        """Stores the files of one step of the reader. A file without data is large, and is read here."""
        for file, data in files:
            if data is None:
                await self._record(file, await self._uploader.put_large(file, self._reader))
            else:
                await self._slots.acquire()
                tasks.start_soon(self._store_small, file, data)

    async def _store_small(self, file: ArchivedFile, data: bytes) -> None:
        try:
            await self._uploader.put(file, data)
            await self._record(file, hashlib.sha256(data).hexdigest())
        finally:
            self._slots.release()

    async def _record(self, file: ArchivedFile, sha256: str) -> None:
        await self._on_artifact(self._uploader.artifact(file, sha256))
        self.stored += 1


async def _tell(messages: Sequence[str], on_warning: OnWarning) -> None:
    for message in messages:
        await on_warning(message)
