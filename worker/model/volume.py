"""The volumes of projects: what a configuration says of one, its name on the engine, and the host's patterns. Pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from worker.model.fields import STRICT, MountPath

MAX_VOLUMES = 10
VOLUME_PREFIX = "ops-volume-"
"""How the engine's name of every volume of a project begins."""


CACHE_PREFIX = "ops-cache-"

MAX_CACHES = 5


def _name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name, re.ASCII):
        raise ValueError("expected at most 64 lower-case letters, digits, underscores, dots and dashes")
    return name


VolumeName = Annotated[str, AfterValidator(_name)]


class Volume(BaseModel):
    """``volumes``: a volume of the project, and where it is mounted."""

    model_config = STRICT

    name: VolumeName
    path: MountPath
    read_only: bool = False


class Cache(BaseModel):
    """``cache``: a folder that a later run of the project may find as this run left it."""

    model_config = STRICT

    name: VolumeName
    path: MountPath


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume in a container; ``name`` is the engine's."""

    name: str
    path: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class ProjectVolume:
    """A volume that is on the engine: its name there, and whose it is."""

    engine_name: str
    database_id: uuid.UUID
    project_id: uuid.UUID
    name: str


@dataclass(frozen=True, slots=True)
class CacheVolume:
    """The volume of one run for a cache: its name on the engine, whose it is, and the run's container."""

    engine_name: str
    database_id: uuid.UUID
    project_id: uuid.UUID
    run_id: uuid.UUID
    name: str
    container: str


def cache_volume(
    database_id: uuid.UUID, project_id: uuid.UUID, run_id: uuid.UUID, name: str, container: str
) -> CacheVolume:
    """The volume of a run for that cache of its project. No other run has the same."""
    unique = uuid.uuid5(database_id, f"{project_id}/{name}/{run_id}")
    return CacheVolume(f"{CACHE_PREFIX}{unique}", database_id, project_id, run_id, name, container)


def engine_name(database_id: uuid.UUID, project_id: uuid.UUID, name: str) -> str:
    """The engine's name of a project's volume. No other name, project or database has the same."""
    return f"{VOLUME_PREFIX}{uuid.uuid5(database_id, f'{project_id}/{name}')}"


def volume_allowed(workspace_key: str, name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the host's patterns matches; ``*`` alone matches every volume."""
    return any(pattern == "*" or fnmatchcase(f"{workspace_key}/{name}", pattern) for pattern in patterns)


def check_volume_pattern(pattern: str) -> str:
    """Returns the pattern. Raises ``ValueError`` for a pattern that matches no volume."""
    if pattern != "*" and not re.fullmatch(r"[a-z0-9_*?]+/[a-z0-9_.*?-]+", pattern):
        raise ValueError("expected patterns such as acme/filestore, acme/* or *, with a workspace key before the slash")
    return pattern
