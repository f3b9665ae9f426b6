"""The command ``ops-worker doctor``: checks the control plane and, where it runs on a build host, engine and disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import anyio

from worker.artifacts.store import ArtifactStore
from worker.cli import findings
from worker.cli.commands import Invocation
from worker.cli.findings import Finding
from worker.cli.render import safe
from worker.cli.screen import Screen
from worker.cli.session import control_plane
from worker.cli.settings import Settings
from worker.database import health
from worker.database.control_plane import ControlPlane
from worker.engine.engine import Engine
from worker.errors import CommandError, ConfigurationError, EngineError, EngineUnavailable, OpsError
from worker.run.disk import Disk

ENGINE_SECONDS = 15.0
DEFAULT_SOCKET = Path("/var/run/docker.sock")
STYLES = {"ok": "green", "warn": "yellow", "error": "red", "skipped": "dim"}


async def doctor(call: Invocation) -> int:
    """Prints a finding for each check, and exits with 1 if one is an error."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        found = [*await _database(plane), await _pooler(call), *await _host(call.settings)]
    if screen.as_json:
        screen.json([it.row() for it in found])
    else:
        screen.lines(_shown(screen, found))
    return 1 if any(it.state == "error" for it in found) else 0


async def _database(plane: ControlPlane) -> list[Finding]:
    """The checks that need the connection only, and those that an operator's role may ask for."""
    found = [findings.server(await health.server_version(plane)), findings.clock(*await health.clock_skew(plane))]
    found += findings.schema(await health.schema_problems(plane))
    try:
        facts = await health.facts(plane)
    except CommandError as error:
        advice = "Use the URL of service_role or of the schema's owner."
        return [*found, Finding("operation", "skipped", safe(error), advice)]
    return [
        *found,
        findings.migrations(health.known_migrations(), facts["migrations"]),
        *findings.snapshots(facts["snapshots"]),
        *findings.leases(facts["stale_leases"]),
        *findings.workers(facts["workers"], facts["drained"]),
        *findings.queue(facts["paused"], facts["paused_projects"], facts["unserved"]),
    ]


async def _pooler(call: Invocation) -> Finding:
    direct, notified = await health.notification_arrives(call.command.name, call.settings.dsn)
    return findings.pooler(direct=direct, notified=notified)


async def _host(settings: Settings) -> list[Finding]:
    """The engine, and the disks of engine and artifacts."""
    if not _names_an_engine(settings):
        advice = "Run ops-worker doctor on a build host, with the settings of its worker."
        return [Finding("engine", "skipped", "this host has no container engine", advice)]
    try:
        engine = Engine(settings.docker_host, streams=1)
    except (ConfigurationError, EngineUnavailable) as error:
        return [Finding("engine", "error", str(error), "Correct --docker-host or DOCKER_HOST.")]
    try:
        with anyio.fail_after(ENGINE_SECONDS):
            facts = await engine.info()
    except (EngineUnavailable, EngineError, ConfigurationError, TimeoutError) as error:
        said = str(error) or f"the engine did not answer within {ENGINE_SECONDS:g} s"
        return [Finding("engine", "error", said, "Is the engine running, and may this user use its socket?")]
    finally:
        engine.close()
    folders = engine.local_folders(facts, settings.containerd_root)
    return [*findings.engine(facts.version, filters_bridges=facts.filters_bridges), _disk(settings, folders)]


def _names_an_engine(settings: Settings) -> bool:
    return settings.docker_host is not None or "DOCKER_HOST" in os.environ or DEFAULT_SOCKET.exists()


def _disk(settings: Settings, folders: tuple[Path, ...]) -> Finding:
    try:
        store = ArtifactStore.from_url(settings.artifact_store).folder
    except OpsError as error:
        return Finding("disk", "error", str(error), "Correct --artifact-store.")
    shortage = Disk(folders, store, settings.min_free_disk).shortage()
    if shortage is not None:
        advice = "The worker claims nothing. Free disk space: docker system df shows what the engine keeps."
        return Finding("disk", "error", shortage, advice)
    places = ", ".join(str(folder) for folder in (*folders, store) if folder is not None)
    if not places:
        return Finding("disk", "skipped", "engine and artifacts are not on this host")
    return Finding("disk", "ok", f"more than --min-free-disk is left: {places}")


def _shown(screen: Screen, found: Sequence[Finding]) -> list[str]:
    width = max(len(it.check) for it in found)
    lines = []
    for it in found:
        state = screen.look.styled(it.state, STYLES[it.state]) + " " * (len("skipped") - len(it.state))
        lines.append(f"{state}  {it.check:<{width}}  {safe(it.finding)}")
        if it.advice:
            lines.append(f"{'':{len('skipped') + width + 4}}{safe(it.advice)}")
    return lines
