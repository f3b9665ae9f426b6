"""The part of ``prune`` that looks at the engine: volumes and networks of archived projects.

A volume has data, so it is removed on request only. A network has none, and only a killed worker leaves one.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field

from worker.cli.settings import Settings
from worker.database.retention import archived_projects
from worker.engine.engine import Engine
from worker.errors import EngineError, EngineUnavailable


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A volume of a project that is archived, or deleted: ``project`` is its workspace key, or its id."""

    project: str
    name: str
    volume: str
    removed: bool

    @property
    def text(self) -> str:
        """In words."""
        named = f"volume {self.project}/{self.name} ({self.volume})"
        return f"removed: {named}" if self.removed else f"of an archived project: {named}; --remove-volumes removes it"


@dataclass(frozen=True, slots=True)
class PrunedVolumes:
    """What was found; ``problems`` are for a person, and an error if ``failed``."""

    found: list[FoundVolume] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    """The names of the networks that were, or would be, removed."""
    problems: list[str] = field(default_factory=list)
    failed: bool = False


async def prune_volumes(settings: Settings) -> PrunedVolumes:
    """Finds the volumes of projects that are archived or deleted; removes them if the settings ask for it.

    Without an engine there is nothing to find: that is an error only if volumes are to be removed.
    """
    found, problems = [], []
    with closing(Engine(settings.docker_host, streams=1)) as engine:
        try:
            volumes, networks = await engine.volumes(), await engine.unused_project_networks()
        except EngineUnavailable as error:
            return PrunedVolumes([], [], [f"volumes are not looked at: {error}"], settings.remove_volumes)
        owners = {(each.database_id, each.project_id) for each in volumes}
        owners |= {(each.database_id, each.project_id) for each in networks}
        archived = await archived_projects(settings.dsn, owners)
        gone = [each for each in networks if (each.database_id, each.project_id) in archived]
        if not settings.dry_run:
            gone = [each for each in gone if await engine.remove_project_network(each)]
        for volume in volumes:
            owner = (volume.database_id, volume.project_id)
            if owner not in archived:
                continue
            removed = False
            if settings.remove_volumes and not settings.dry_run:
                try:
                    await engine.remove_volume(volume.engine_name)
                    removed = True
                except EngineError as error:
                    problems.append(f"cannot remove volume {volume.engine_name}: {error}")
            project = archived[owner] or str(volume.project_id)
            found.append(FoundVolume(project, volume.name, volume.engine_name, removed))
    return PrunedVolumes(found, [each.name for each in gone], problems, bool(problems))
