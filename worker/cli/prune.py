"""The command ``ops-worker prune``."""

from __future__ import annotations

import sys
from dataclasses import asdict

from worker.artifacts.store import ArtifactStore
from worker.cli.commands import Invocation
from worker.cli.screen import Screen
from worker.cli.volumes import prune_volumes
from worker.database import retention


async def prune(call: Invocation) -> int:
    settings = call.settings
    dsn = settings.dsn
    store = ArtifactStore.from_url(settings.artifact_store)
    kept = retention.Retention(settings.keep_logs, settings.keep_events)
    done = await retention.prune(dsn, store, settings.worker_id, kept, dry_run=settings.dry_run)
    volumes = await prune_volumes(settings)
    screen = Screen(as_json=call.options["json"])
    if screen.as_json:
        engine = {"volumes": [asdict(each) for each in volumes.found], "networks": volumes.networks}
        screen.json({"dry_run": settings.dry_run, **asdict(done), **engine})
    else:
        what = "would be deleted" if settings.dry_run else "deleted"
        networks = (f"{what}: network {name} of an archived project" for name in volumes.networks)
        size = f"{done.bytes / 2**20:,.1f} MiB"
        counts = f"{done.artifacts:,} expired artifacts ({size}), {done.lines:,} log lines, {done.events:,} events"
        screen.lines([f"{what}: {counts}", *(each.text for each in volumes.found), *networks])
    for problem in volumes.problems:
        print(problem, file=sys.stderr)
    return int(volumes.failed)
