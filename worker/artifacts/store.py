"""From the tar stream of a container's /artifacts into an object store: a folder, S3, Google or Azure.

Threads pull the stream, a step at a time: a step brings some small files whole, the head of a large one, or a
piece of it. So memory does not depend on what a run leaves, and a cancelled collection waits for one step at
most. A file's object always exists before ``on_artifact`` hears of it.

What the archive says is not trusted: only plain files with plain names below /artifacts are taken.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from worker.artifacts.archive import Archive, ArchivedFile, ArchiveReader, Selection, shown
from worker.concurrency import task_group
from worker.errors import ArtifactError, ConfigurationError, EngineError, EngineUnavailable
from worker.model.claim import Artifact
from worker.model.config import ArtifactRule

T = TypeVar("T")

SMALL_AT_ONCE = 8

PIECE = 1 << 20
"""Bytes of a large file that a step brings."""

PART = 5 << 20
"""The least that S3 takes as a part of a multipart upload, of which it takes 10,000."""

MAX_PARTS = 10_000

PARTS_AT_ONCE = 3

MAX_KEY = 1024
"""Bytes of a key (S3)."""

CLOSE_SECONDS = 5.0
"""How long the end of a cancelled collection may take: a thread that reads, a multipart upload to abort."""

_PROBE = ".ops-worker-check"
_STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_KEY",
}
_BACKOFF = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2}
# A request may take two minutes, which is a part at 0.35 Mbit/s; a store that is away is waited for as long.
_PATIENT: dict[str, Any] = {
    "client_options": {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=2)},
    "retry_config": {"max_retries": 50, "retry_timeout": timedelta(minutes=2), "backoff": _BACKOFF},
}
_IMPATIENT: dict[str, Any] = {
    "client_options": {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=10)},
    "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=20), "backoff": _BACKOFF},
}


class ArtifactStore:
    """Where artifacts go. Made once, by ``from_url``; any number of collections may run at the same time."""

    def __init__(
        self, store: Any, impatient: Any, url: str, root: Path | None, *, max_bytes: int, max_files: int
    ) -> None:
        self.url = url
        self._store = store
        self._impatient = impatient
        self.folder = root
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._threads = anyio.CapacityLimiter(8)

    @classmethod
    def from_url(cls, url: str, *, max_bytes: int = 10 * 2**30, max_files: int = 10_000) -> Self:
        """The store at ``file:///folder`` (which is made), ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

        Credentials, region and endpoint come from the environment (``AWS_*``). The limits are a run's.
        Raises ``ConfigurationError``.
        """
        limits = {"max_bytes": max_bytes, "max_files": max_files}
        if re.search(r"[@?#]", url):
            raise _refused(f"credentials do not belong into the URL; set {_CREDENTIALS['s3']}")
        try:
            parts = urlsplit(url)
            if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
                root = Path(os.path.normpath(unquote(parts.path)))
                root.mkdir(mode=0o750, parents=True, exist_ok=True)
                folder = LocalStore(root, automatic_cleanup=True)  # of folders that are empty
                return cls(folder, folder, root.as_uri(), root, **limits)
            prefix = parts.path.strip("/")
            straight = not prefix or {"", ".", ".."}.isdisjoint(prefix.split("/"))
            if parts.scheme in _STORES and re.fullmatch(r"[\w.-]+", parts.netloc, re.ASCII) and straight:
                endpoints = [os.environ[variable] for variable in _ENDPOINTS if os.environ.get(variable)]
                if not all(re.match(r"https?://[\w.-]", endpoint) for endpoint in endpoints):
                    raise _refused("AWS_ENDPOINT_URL: expected https://host/path")
                plain = any(endpoint.startswith("http://") for endpoint in endpoints)
                store, impatient = (
                    _STORES[parts.scheme](
                        parts.netloc,
                        prefix=prefix or None,
                        client_options={**kind["client_options"], "allow_http": plain},
                        retry_config=kind["retry_config"],
                    )
                    for kind in (_PATIENT, _IMPATIENT)
                )
                base = f"{parts.scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else "")
                return cls(store, impatient, base, None, **limits)
        except (BaseError, OSError, ValueError) as error:
            raise _refused(f"{url}: {_first_line(error)}") from None
        raise _refused(f"expected file:///folder or s3://bucket/prefix, got {url!r}")

    async def check(self) -> None:
        """Writes a small object and deletes it. Raises ``ArtifactError`` that says what to do."""

        # Not put_async: a process that exits within milliseconds of its result may be aborted
        # (pyo3-async-runtimes#40), and after a failed check this one does.
        def write() -> None:
            obstore.put(self._impatient, _PROBE, b"")
            with suppress(BaseError, OSError):  # another worker may be checking too, or only writing is allowed
                obstore.delete(self._impatient, _PROBE)

        try:
            await self._in_thread(write)
        except (BaseError, OSError) as error:
            raise ArtifactError(f"cannot write to {self.url}: {self._explain(error)}") from None

    async def delete(self, key: str) -> None:
        """Deletes an object; one that is gone is fine. Raises ``ArtifactError``."""
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            raise ArtifactError(f"cannot delete {shown(key)} from {self.url}: {self._explain(error)}") from None

    async def collect(
        self,
        archive: Archive,
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        on_artifact: Callable[[Artifact], Awaitable[None]],
        on_warning: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str] = str,
    ) -> int:
        """Stores each file that a rule names (the first such rule counts) and returns how many there were.

        ``on_artifact`` may be called several times at once; ``on_warning`` is told what was refused, which a name
        that ``redact`` would change always is. Raises
        ``ArtifactError`` when the store fails, and when the archive is cut, damaged or beyond a limit; what
        was read in full before is then stored and recorded all the same. The engine's errors and those of the
        callbacks come out as they are.
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
        reader = ArchiveReader(archive, selection)
        failure: Exception | None = None
        stored = 0
        slots = anyio.Semaphore(SMALL_AT_ONCE)

        async def store_small(file: ArchivedFile, data: bytes) -> None:
            nonlocal stored
            try:
                await self._put(file, data)
                await on_artifact(self._artifact(file, hashlib.sha256(data).hexdigest()))
                stored += 1
            finally:
                slots.release()

        try:
            async with task_group() as tasks:
                try:
                    while files := await self._in_thread(reader.next_files):
                        await _tell(selection.take_warnings(), on_warning)
                        for file, data in files:
                            if data is None:
                                checksum = await self._put_large(file, reader)
                                await on_artifact(self._artifact(file, checksum))
                                stored += 1
                            else:
                                await slots.acquire()
                                tasks.start_soon(store_small, file, data)
                except (ArtifactError, EngineError, EngineUnavailable) as error:
                    failure = error  # told after the small files that are on their way
        finally:
            reader.interrupt()
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._in_thread(reader.close)
        await _tell(selection.take_warnings(last=True), on_warning)
        if failure is not None:
            raise failure
        return stored

    async def _put_large(self, file: ArchivedFile, reader: ArchiveReader) -> str:
        """Streams a file as a multipart upload, which is aborted if the file is cut. Returns its SHA-256."""
        pieces = _Pieces()
        digest = hashlib.sha256()
        stored = anyio.Event()
        upload_scope = anyio.CancelScope(shield=True)  # or a multipart upload would be forgotten, not aborted

        def next_piece() -> bytes:
            piece = reader.read(PIECE)
            digest.update(piece)
            return piece

        async def upload() -> None:
            with upload_scope:
                try:
                    await self._put(file, pieces)
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

    async def _put(self, file: ArchivedFile, data: bytes | _Pieces) -> None:
        options: dict[str, Any] = {"chunk_size": max(PART, -(-file.size // MAX_PARTS))}
        if self.folder is None:  # LocalFileSystem refuses attributes
            options["attributes"] = {"Content-Type": file.content_type}
        try:
            await obstore.put_async(self._store, file.key, data, max_concurrency=PARTS_AT_ONCE, **options)
        except (BaseError, OSError) as error:
            what = f"cannot store {shown(file.path)} in {self.url}"
            raise ArtifactError(f"{what}: {self._explain(error)}") from None

    def _artifact(self, file: ArchivedFile, sha256: str) -> Artifact:
        return Artifact(
            path=file.path,
            key=file.key,
            url=(self.folder / file.key).as_uri() if self.folder is not None else f"{self.url}/{file.key}",
            content_type=file.content_type,
            size_bytes=file.size,
            checksum=f"sha256:{sha256}",
            expires_at=file.expires_at,
        )

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(step, abandon_on_cancel=True, limiter=self._threads)

    def _explain(self, error: Exception) -> str:
        """What a person can do about an error of the store. Quotes no header and no query of a request."""
        text = _first_line(error)
        if number := re.search(r"\(os error (\d+)\)", text):
            code = int(number[1])
            denied = code in (errno.EACCES, errno.EPERM)
            return f"user {os.geteuid()} may not write there" if denied else os.strerror(code).lower()
        credentials = _CREDENTIALS.get(self.url.partition(":")[0], "the permissions")
        found = re.search(r"<Code>(\w+)</Code>", str(error)), re.search(r"status code: (\d+)", text)
        word, status = (match[1] if match else "" for match in found)
        answer = f"{word} (HTTP {status})" if word else f"HTTP {status}"
        if "//169.254.169.254/" in text:  # where a virtual machine in a cloud finds its own
            return f"there are no credentials; set {credentials}"
        if word == "NoSuchBucket":
            return "there is no such bucket"
        if word == "AccessDenied":
            return "the credentials are known, but may not write there (AccessDenied)"
        if word == "EntityTooLarge" or status == "413":
            return f"the store does not take files of that size: {answer}"
        if status in ("401", "403"):
            return f"the store refuses the credentials: {answer}; check {credentials}"
        if status:
            return f"the store answers {answer}"
        if "HTTP error" in text:
            return "the store cannot be reached; check the network and the endpoint (AWS_ENDPOINT_URL)"
        return re.sub(r"\?\S*", "", text)


async def _tell(messages: Sequence[str], on_warning: Callable[[str], Awaitable[None]]) -> None:
    for message in messages:
        await on_warning(message)


def _refused(problem: str) -> ConfigurationError:
    return ConfigurationError("artifact_store", problem)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class _Cut(Exception):
    """The rest of a large file is not coming."""


class _Pieces:
    """A large file on its way to the store: an iterator that ends by ``_Cut`` unless it was whole."""

    def __init__(self) -> None:
        self.abandoned = False  # the result of the upload is not needed any more
        self._whole = False
        self._send, self._receive = anyio.create_memory_object_stream[bytes](2)
        self.send = self._send.send

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._send.close()
        self._receive.close()

    def end(self, *, whole: bool = False) -> None:
        """Ends the iterator, for good: the first call says whether the file is whole."""
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
