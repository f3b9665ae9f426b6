"""Writes the files of a run into the object store: a small one at once, a large one in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import obstore
from obstore.exceptions import BaseError

from worker.artifacts.archive import ArchivedFile, ArchiveReader, shown
from worker.artifacts.location import Location, explain
from worker.concurrency import task_group
from worker.errors import ArtifactError
from worker.model.claim import Artifact

PIECE = 1 << 20
"""Bytes of a large file that one step reads."""

PART = 5 << 20
"""Fewest bytes that S3 accepts as a part of a multipart upload."""

MAX_PARTS = 10_000
"""Most parts that S3 accepts in one upload."""

PARTS_AT_ONCE = 3

CLOSE_SECONDS = 5.0
"""Time limit for the end of a cancelled collection: a thread stops reading, a multipart upload is aborted."""


class Uploader:
    """Writes files into one store. ``in_thread`` runs a step of reading in a thread."""

    def __init__(self, location: Location, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._location = location
        self._in_thread = in_thread

    async def put_large(self, file: ArchivedFile, reader: ArchiveReader) -> str:
        """Streams a file as a multipart upload, which is aborted if the file is cut. Returns its SHA-256."""
        pieces = _Pieces()
        digest = hashlib.sha256()
        stored = anyio.Event()
        upload_scope = anyio.CancelScope(shield=True)  # so that a multipart upload is aborted, not left behind

        def next_piece() -> bytes:
            piece = reader.read(PIECE)
            digest.update(piece)
            return piece

        async def upload() -> None:
            with upload_scope:
                try:
                    await self.put(file, pieces)
                    stored.set()
                except (_Cut, ArtifactError):
                    if not pieces.abandoned:
                        raise

        with pieces:
            async with task_group() as tasks:
                tasks.start_soon(upload)
                try:
                    while piece := await self._in_thread(next_piece):
                        await pieces.send(piece)
                    pieces.end(whole=True)
                    await stored.wait()
                finally:
                    pieces.end()
                    upload_scope.deadline = anyio.current_time() + CLOSE_SECONDS
        return digest.hexdigest()

    async def put(self, file: ArchivedFile, data: bytes | _Pieces) -> None:
        options: dict[str, Any] = {"chunk_size": max(PART, -(-file.size // MAX_PARTS))}
        if self._location.folder is None:  # LocalFileSystem refuses attributes
            options["attributes"] = {"Content-Type": file.content_type}
        try:
            await obstore.put_async(self._location.store, file.key, data, max_concurrency=PARTS_AT_ONCE, **options)
        except (BaseError, OSError) as error:
            what = f"cannot store {shown(file.path)} in {self._location.url}"
            raise ArtifactError(f"{what}: {explain(error, self._location.url)}") from None

    def artifact(self, file: ArchivedFile, sha256: str) -> Artifact:
        return Artifact(
            path=file.path,
            key=file.key,
            url=(self._location.folder / file.key).as_uri()
            if self._location.folder is not None
            else f"{self._location.url}/{file.key}",
            content_type=file.content_type,
            size_bytes=file.size,
            checksum=f"sha256:{sha256}",
            expires_at=file.expires_at,
        )


class _Cut(Exception):
    """The archive ended before the rest of a large file arrived."""


class _Pieces:
    """The pieces of a large file between reader and upload. The iterator raises ``_Cut`` unless the file is whole."""

    def __init__(self) -> None:
        self.abandoned = False  # the result of the upload is no longer needed
        self._whole = False
        self._send, self._receive = anyio.create_memory_object_stream[bytes](2)
        self.send = self._send.send

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._send.close()
        self._receive.close()

    def end(self, *, whole: bool = False) -> None:
        """Ends the iterator. Only the first call decides whether the file is whole."""
        self._whole = self._whole or whole
        self.abandoned = not whole
        self._send.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration if self._whole else _Cut from None
