"""The command ``ops-worker prune``."""

from __future__ import annotations

from dataclasses import asdict

from worker.artifacts.store import ArtifactStore
from worker.cli.commands import Invocation
from worker.cli.screen import Screen
from worker.database import retention


async def prune(call: Invocation) -> int:
    settings = call.settings
    dsn = settings.dsn
    store = ArtifactStore.from_url(settings.artifact_store)
    kept = retention.Retention(settings.keep_logs, settings.keep_events)
    done = await retention.prune(dsn, store, settings.worker_id, kept, dry_run=settings.dry_run)
    screen = Screen(as_json=call.options["json"])
    if screen.as_json:
        screen.json({"dry_run": settings.dry_run, **asdict(done)})
    else:
        what = "would be deleted" if settings.dry_run else "deleted"
        size = f"{done.bytes / 2**20:,.1f} MiB"
        counts = f"{done.artifacts:,} expired artifacts ({size}), {done.lines:,} log lines, {done.events:,} events"
        screen.lines([f"{what}: {counts}"])
    return 0
