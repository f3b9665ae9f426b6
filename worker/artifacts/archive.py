"""Reads the tar stream of a container's /artifacts and selects the files to store. It does not know the store.

The archive is not trusted. Only plain files with plain names below /artifacts are selected; every other entry that a
rule names is refused with a warning.
"""

from __future__ import annotations

import mimetypes
import re
import threading
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from pathlib import PurePosixPath

from worker.errors import ArtifactError, OpsError
from worker.model.config import ArtifactRule
from worker.model.report import FileReader, Report
from worker.tar import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    FILE,
    FOLDER,
    HARD_LINK,
    NAMED_PIPE,
    SYMBOLIC_LINK,
    DamagedError,
    Member,
    TarReader,
    piecewise,
)

Archive = Callable[[], AbstractContextManager[Iterator[bytes]]]
"""Opens the tar stream, in pieces of any size. Without a folder /artifacts it is an archive without members.

Threads enter, read and leave it, one at a time. If the iterator has a ``close``, another thread calls that to end a
read that waits.
"""

MAX_NAME = 240
"""Most bytes of a name in a folder: the file system's 255, minus the suffix that a file has while it is written."""

WARNINGS = 20
"""How many refusals get a warning each; the others are only counted."""

SMALL = 1 << 20
"""Files below this size, in bytes, are held whole in memory, and several are uploaded at the same time."""


def shown(name: str) -> str:
    """A name in a message: quoted, cut after ``MAX_NAME`` characters, with escapes for unprintable characters."""
    return repr(name) if len(name) <= MAX_NAME else f"{name[:MAX_NAME]!r}..."


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file that a rule names: its path below /artifacts, and its key and properties in the store."""

    path: str
    key: str
    size: int
    content_type: str
    expires_at: datetime | None


_ODD_IN_FOLDERS = re.compile(r"#(?=\d+(?:/|\Z))|(?<=[A-Za-z])[:|]\Z")
"""Ends of names that LocalFileSystem refuses, or reads as drives of Windows (object_store 0.14)."""


class Selection:
    """Decides, without I/O, which members of the archive are artifacts, and collects warnings of refusals."""

    def __init__(
        self,
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        *,
        max_bytes: int,
        max_files: int,
        max_key: int,
        in_folder: bool,
        redact: Callable[[str], str] = str,
    ) -> None:
        self._rules = [(_glob(rule.path), rule) for rule in rules]
        self._prefix = key_prefix
        self._max_bytes, self._max_files, self._max_key = max_bytes, max_files, max_key
        self._in_folder = in_folder
        self._redact = redact
        self._now = datetime.now(UTC)
        self._keys: set[str] = set()
        self._folders: set[str] = set()
        self._bytes = 0
        self._refused = 0
        self._warnings: list[str] = []

    def take_warnings(self, *, last: bool = False) -> list[str]:
        """The warnings since the last call. The last call adds how many refusals had no warning of their own."""
        taken, self._warnings = self._warnings, []
        if last and self._refused > WARNINGS:
            taken.append(f"and {self._refused - WARNINGS:,} more entries of /artifacts were refused")
        return taken

    def choose(self, member: Member) -> ArchivedFile | None:
        """Returns the file to store; None for a folder, for a file that no rule names, and for a refused entry.

        Raises ``ArtifactError`` beyond a limit. The size of an unselected file counts too, because it is read as well.
        """
        self._bytes += member.size
        if self._bytes > self._max_bytes:
            limit = f"{self._max_bytes / 2**30:.4g} GiB"
            raise ArtifactError(f"the files in /artifacts are larger than {limit}, the limit of a run")
        parts = member.name.split("/")[1:]
        path = "/".join(parts)
        if self._redact(path) != path:
            return self._refuse(path, "its name holds a secret")
        if problem := _name_problem(member, parts):
            return self._refuse(path or member.name, problem)
        rule = next((rule for matches, rule in self._rules if matches(parts)), None)
        if rule is None or member.kind == FOLDER:
            return None
        key = self._prefix + path
        if self._in_folder:
            key = _ODD_IN_FOLDERS.sub(lambda odd: f"%{ord(odd[0]):02X}", key)
        if problem := self._key_problem(key, parts) if member.kind == FILE else _kind(member):
            return self._refuse(path, problem)
        self._count(key)
        days = rule.expires_in_days
        expires_at = None if days is None else self._now + timedelta(days=days)
        return ArchivedFile(path, key, member.size, rule.content_type or _content_type(path), expires_at)

    def _key_problem(self, key: str, parts: list[str]) -> str | None:
        if len(key.encode()) > self._max_key:
            return "its key would be longer than the store allows"
        if self._in_folder and any(len(part.encode()) > MAX_NAME for part in parts):
            return f"a name longer than {MAX_NAME} bytes"
        if key in self._keys or key in self._folders or not self._keys.isdisjoint(_folders(key)):
            return "the archive has that name twice"
        return None

    def _count(self, key: str) -> None:
        self._keys.add(key)
        self._folders.update(_folders(key))
        if len(self._keys) > self._max_files:
            raise ArtifactError(f"/artifacts has more than {self._max_files:,} files, the limit of a run")

    def _refuse(self, name: str, problem: str) -> ArchivedFile | None:
        self._refused += 1
        if self._refused <= WARNINGS:
            self._warnings.append(f"artifact {shown(self._redact(name))} refused: {problem}")
        return None


def _folders(key: str) -> set[str]:
    return {key[: slash.start()] for slash in re.finditer("/", key)}


def _name_problem(member: Member, parts: list[str]) -> str | None:
    name = member.name
    if any("\udc80" <= char <= "\udcff" for char in name):  # bytes that are not UTF-8
        return "its name is not UTF-8"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
        return "its name has control characters"
    if name.startswith("/"):
        return "an absolute name"
    if name.partition("/")[0] != "artifacts" or {"", ".", ".."} & set(parts):
        return "a name that leads out of /artifacts"
    if not parts and member.kind != FOLDER:
        return f"{_kind(member)}, not a folder"
    return None


_KINDS = {
    FILE: "a file",
    SYMBOLIC_LINK: "a symbolic link",
    HARD_LINK: "a hard link",
    CHARACTER_DEVICE: "a device",
    BLOCK_DEVICE: "a device",
    NAMED_PIPE: "a named pipe",
}


def _kind(member: Member) -> str:
    return _KINDS.get(member.kind, "an entry of an unknown kind")


_KNOWN = mimetypes.MimeTypes()  # Python's own table, the same on every host
_MORE = {".log": "text/plain", ".md": "text/markdown", ".sql": "application/sql", ".xz": "application/x-xz"}
_MORE |= {".gz": "application/gzip", ".tgz": "application/gzip", ".bz2": "application/x-bzip2"}


def _content_type(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    return _MORE.get(suffix) or _KNOWN.guess_type(f"/{path}")[0] or "application/octet-stream"


def _glob(pattern: str) -> Callable[[list[str]], bool]:
    """A test of path parts: ``*`` matches within a folder, ``**`` across folders; a folder's name matches all in it.

    It matches part by part. One regular expression for the whole path could take exponential time, and the
    interpreter's lock is held during that time.
    """
    words = [word for word in pattern.split("/") if word not in ("", ".")]
    steps = [None if word == "**" else re.compile(translate(word)) for word in words]
    in_folder = not words or not re.search(r"[*?\[]", words[-1])

    def matches(parts: list[str]) -> bool:
        reached = {0}
        for step in steps:
            if step is None:
                reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
            else:
                reached = {at + 1 for at in reached if at < len(parts) and step.match(parts[at])}
        return bool(reached) if in_folder else len(parts) in reached

    return matches


class _Abandoned(Exception):
    """No caller waits for the archive any more."""


class ArchiveReader:
    """The blocking calls. Threads call the methods, one at a time; any thread may call ``interrupt`` at any time."""

    def __init__(self, archive: Archive, selection: Selection, report: Report) -> None:
        self._archive = archive
        self._selection = selection
        self._report = report
        self._large: FileReader | None = None
        self._busy = threading.Lock()
        self._chunks: Iterator[bytes] = iter(())
        self._abandoned = False
        self._tar = TarReader(piecewise(self._wanted()))
        self._files = self._chosen()
        self._error: OpsError | None = None

    def next_files(self) -> list[tuple[ArchivedFile, bytes | None]]:
        """The next files with their content; a large file has None and is read by ``read``. Empty at the end.

        An error is raised only after the files before it were returned.
        """
        files: list[tuple[ArchivedFile, bytes | None]] = []
        with self._busy:
            try:
                with _damage_told():
                    if self._error is None:
                        self._fill(files)
            except OpsError as error:
                self._error = error
            if not files and self._error is not None:
                raise self._error
        return files

    def _fill(self, files: list[tuple[ArchivedFile, bytes | None]]) -> None:
        size = 0
        for file in self._files:
            reader = self._report.reader(file.path, file.size)
            if file.size >= SMALL:
                self._large = reader
                files.append((file, None))
                return
            data = self._tar.read(file.size)
            files.append((file, data))
            if reader is not None:
                reader.feed(data)
                reader.feed(b"")
            size += BLOCK + file.size
            if size >= SMALL:
                return

    def read(self, size: int) -> bytes:
        """The next piece of the large file; empty at its end."""
        with self._busy, _damage_told():
            piece = self._tar.read(size)
            if self._large is not None:
                self._large.feed(piece)
            return piece

    def interrupt(self) -> None:
        """Ends a call whose caller was cancelled: at its next piece, or at once if the archive can be closed."""
        self._abandoned = True
        close = getattr(self._chunks, "close", None)
        if close is not None and self._busy.locked():
            with suppress(ValueError):  # a generator that runs in a thread cannot be closed from another
                close()

    def close(self) -> None:
        """Leaves the archive's context; with an exception unless the archive was read to its end."""
        with self._busy:
            self._files.close()

    def _chosen(self) -> Generator[ArchivedFile, None, None]:
        with self._archive() as self._chunks:
            while (member := self._tar.next()) is not None:
                if (file := self._selection.choose(member)) is not None:
                    yield file

    def _wanted(self) -> Iterator[bytes]:
        """The pieces of the archive, until ``interrupt`` is called."""
        try:
            while not self._abandoned:
                if (chunk := next(self._chunks, None)) is None:
                    return
                yield chunk
        except OSError as error:
            raise ArtifactError(f"the archive of /artifacts broke off: {error}") from error
        raise _Abandoned


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except DamagedError as error:
        raise ArtifactError(f"the archive of /artifacts is cut or damaged: {error}") from error
