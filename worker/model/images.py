"""Names of images, and the patterns that a host allows. Pure.

The worker reads a name as the engine does: ``odoo`` is ``docker.io/library/odoo:latest``. It compares, pulls and
records this full form. So all spellings of a name match the same patterns, and no name is read as the id of a local
image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\]"
_REGISTRY = re.compile(rf"(?:{_HOST})(?::[0-9]+)?", re.ASCII)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a name or of a pattern; a missing part is None."""

    name: str
    tag: str | None
    digest: str | None

    @classmethod
    def of(cls, text: str) -> Self:
        rest, at, digest = text.partition("@")
        colon = rest.rfind(":")
        name, tag = (rest, None) if colon <= rest.rfind("/") else (rest[:colon], rest[colon + 1 :])
        first, slash, path = name.partition("/")
        if not slash or not (re.search(r"[.:]", first) or first == "localhost" or first != first.lower()):
            first, path = "docker.io", name
        if first in ("docker.io", "index.docker.io"):
            first, path = "docker.io", path if "/" in path or path == "**" else f"library/{path}"
        return cls(f"{first}/{path}", tag, digest if at else None)


@dataclass(frozen=True, slots=True)
class ImageName:
    """The full name of an image. With a digest, the engine and the worker ignore the tag."""

    name: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``ValueError`` for a text that the engine does not accept as the name of an image."""
        parts = _Parts.of(text)
        registry, _, path = parts.name.partition("/")
        sound = (
            len(parts.name) <= _MAX_NAME
            and _REGISTRY.fullmatch(registry)
            and _PATH.fullmatch(path)
            and (parts.tag is None or _TAG.fullmatch(parts.tag))
            and (parts.digest is None or _DIGEST.fullmatch(parts.digest))
        )
        if not sound:
            raise ValueError("expected the name of an image, such as odoo:19.0 or registry.example/team/odoo:19.0")
        tag = parts.tag if parts.tag is not None or parts.digest is not None else "latest"
        return cls(parts.name, tag, parts.digest)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest is not None else f"{self.name}:{self.tag}"


def digest_of(image: ImageName, known_as: Iterable[str]) -> str | None:
    """Returns the digest from the repository of this name, out of all digests that the engine has for the image."""
    for text in known_as:
        parts = _Parts.of(text)
        if parts.name == image.name and parts.digest is not None:
            return f"{parts.name}@{parts.digest}"
    return None


def allowed(image: ImageName, patterns: Iterable[str]) -> bool:
    """Returns whether one of the host's patterns matches the image.

    A pattern is a name. ``*`` and ``?`` match inside of one component, ``**`` matches several; ``*`` alone matches
    every image. A pattern without tag and digest matches the whole repository. A pattern with a tag matches no name
    with a digest, because the engine ignores the tag of such a name.
    """
    return any(_covers(pattern, image) for pattern in patterns)


def check_pattern(pattern: str) -> str:
    """Returns the pattern. Raises ``ValueError`` for a pattern that matches no valid name."""
    parts = _Parts.of(pattern)
    plain = re.sub(r"\[[^]]*\]|[*?]+", "x", parts.name)
    registry, _, path = plain.partition("/")
    if not (_REGISTRY.fullmatch(registry) and _PATH.fullmatch(path) and parts.tag != ""):
        raise ValueError("expected patterns such as odoo:*, registry.example/team/* or registry.example/**")
    if parts.digest is not None and not (_DIGEST.fullmatch(parts.digest) or parts.digest == "*"):
        raise ValueError("expected a whole digest after @, sha256: and 64 hexadecimal digits, or * for any")
    return pattern


def _covers(pattern: str, image: ImageName) -> bool:
    if pattern == "*":
        return True
    parts = _Parts.of(pattern)
    if not _matches(parts.name.split("/"), image.name.split("/")):
        return False
    if parts.digest is not None:
        return image.digest is not None and parts.digest in ("*", image.digest)
    if parts.tag is None:
        return True
    return image.digest is None and image.tag is not None and fnmatchcase(image.tag, parts.tag)


def _matches(pattern: list[str], name: list[str]) -> bool:
    """Matches component by component, so only ``**`` crosses a slash."""
    if not pattern:
        return not name
    first, *rest = pattern
    if first == "**":
        return any(_matches(rest, name[skipped:]) for skipped in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], first) and _matches(rest, name[1:])
