"""Secrets that the host has, by name: files in a folder, which is what systemd, Docker and Kubernetes give.

``DIR/NAME`` is for every project, ``DIR/WORKSPACE_KEY/NAME`` for one, and wins. A name has no slash, so a workflow
reaches nothing else: neither another project's folder nor the rest of the host.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from worker.errors import ConfigurationError, SpecError
from worker.model.container import MAX_SECRET, Secret

MAX_CHANGED_BYTES = MAX_SECRET
"""Bytes of all values that a container holds as secrets and its host does not."""

_WORKSPACE_KEY = re.compile(r"[a-z0-9_]+", re.ASCII)


class SecretsFolder:
    """Reads at each call, so that the next run gets a secret that was changed."""

    def __init__(self, root: Path | None = None) -> None:
        """Raises ``ConfigurationError`` when there is no such folder."""
        if root is not None and not root.is_dir():
            raise ConfigurationError("secrets_dir", "there is no such folder")
        self._root = root

    def read(self, workspace_key: str, names: Iterable[str], *, required: bool = True) -> tuple[Secret, ...]:
        """These secrets of a project. Blocking: for a thread.

        Raises ``SpecError`` that names the first missing one. Leaves missing ones out if they are not ``required``.
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
            problem = "this host has none: its setting secrets_dir is not set"
        for path in self._places(workspace_key, name):
            try:
                with path.open("rb") as file:
                    value = file.read(MAX_SECRET + 1)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
            except OSError as error:
                problem = f"the worker cannot read it: {error.strerror}"
                break
            if len(value) <= MAX_SECRET:
                return value
            problem = f"it is larger than {MAX_SECRET // 1024} KiB"
            break
        raise SpecError("secret_missing", "secrets", f"secret {name!r} is missing: {problem}")

    def _places(self, workspace_key: str, name: str) -> list[Path]:
        if self._root is None:
            return []
        own = [self._root / workspace_key / name] if _WORKSPACE_KEY.fullmatch(workspace_key) else []
        return [*own, self._root / name]


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
