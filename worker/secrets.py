"""Secrets that the host has, by name: files in a folder, which is what systemd, Docker and Kubernetes give.

``DIR/NAME`` is for every project, ``DIR/WORKSPACE_KEY/NAME`` for one, and wins. A name has no slash, so a workflow
reaches nothing else: neither another project's folder nor the rest of the host.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import ConfigurationError, SpecError
from worker.settings import flag
from worker.tar import DamagedError, first_file

MAX_BYTES = 64 * 1024
"""Of one secret; what is larger is no secret."""

MAX_CHANGED_BYTES = MAX_BYTES
"""Of all values that a container holds as secrets and its host does not."""

_WORKSPACE_KEY = re.compile(r"[a-z0-9_]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret; its value is shown nowhere."""

    name: str
    value: bytes = field(repr=False)

    @property
    def variable(self) -> tuple[str, str]:
        """Its name and value as an environment variable. Raises ``SpecError`` for what no variable can hold."""
        try:
            text = self.value.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            what = f"secret {self.name!r} cannot be an environment variable ({flag('secrets_as_env')})"
            raise SpecError("secret_missing", "secrets", f"{what}: it is no text")
        return re.sub(r"\W", "_", self.name, flags=re.ASCII).upper(), text


class SecretsFolder:
    """Reads at each call, so that a secret that was changed is the new one from the next run on."""

    def __init__(self, root: Path | None = None) -> None:
        """Raises ``ConfigurationError`` when there is no such folder."""
        if root is not None and not root.is_dir():
            raise ConfigurationError(f"{flag('secrets_dir')}: there is no such folder")
        self._root = root

    def read(self, workspace_key: str, names: Iterable[str], *, required: bool = True) -> tuple[Secret, ...]:
        """These secrets of a project. Blocking: for a thread.

        Raises ``SpecError`` that names the first one that cannot be had, unless they are not ``required``.
        """
        found = []
        for name in names:
            try:
                found.append(Secret(name, self._value(workspace_key, name)))
            except SpecError:
                if required:
                    raise
        return tuple(found)

    def _value(self, workspace_key: str, name: str) -> bytes:
        problem = f"this host has none of that name for project {workspace_key!r}"
        if self._root is None:
            problem = f"this host has none: {flag('secrets_dir')} is not set"
        for path in self._places(workspace_key, name):
            try:
                with path.open("rb") as file:
                    value = file.read(MAX_BYTES + 1)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
            except OSError as error:
                problem = f"the worker cannot read it: {error.strerror}"
                break
            if len(value) <= MAX_BYTES:
                return value
            problem = f"it is larger than {MAX_BYTES // 1024} KiB"
            break
        raise SpecError("secret_missing", "secrets", f"secret {name!r} is missing: {problem}")

    def _places(self, workspace_key: str, name: str) -> list[Path]:
        if self._root is None:
            return []
        own = [self._root / workspace_key / name] if _WORKSPACE_KEY.fullmatch(workspace_key) else []
        return [*own, self._root / name]


def secret_files(secrets: Sequence[Secret], uid: int) -> bytes:
    """A tar archive of files that only that user may read: without capabilities, root may not read others' either."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for secret in secrets:
            entry = tarfile.TarInfo(secret.name)
            entry.mode, entry.uid, entry.size = 0o400, uid, len(secret.value)
            tar.addfile(entry, io.BytesIO(secret.value))
    return buffer.getvalue()


def held_value(chunks: Iterator[bytes]) -> bytes | None:
    """The secret in an archive of its file; None if the archive is cut, or the file is too large or no plain file."""
    with suppress(DamagedError):
        return first_file(chunks, MAX_BYTES)
    return None


def changed_values(held: Iterable[Secret], known: Collection[Secret]) -> list[bytes]:
    """The values that a container holds and its host does not, at most ``MAX_CHANGED_BYTES`` in all.

    The program may have written them, and the search for all forms of a secret takes a thousand times its memory.
    """
    values = []
    left = MAX_CHANGED_BYTES
    for secret in held:
        if secret not in known and len(secret.value) <= left:
            values.append(secret.value)
            left -= len(secret.value)
    return values
