"""The command ``ops-worker prune``."""

from __future__ import annotations

from worker.artifacts.store import ArtifactStore
from worker.cli.commands import Invocation
from worker.database import retention


async def prune(call: Invocation) -> int:
    settings = call.settings
    dsn = settings.dsn
    store = ArtifactStore.from_url(settings.artifact_store)
    kept = retention.Retention(settings.keep_logs, settings.keep_events)
    return await retention.prune(dsn, store, settings.worker_id, kept, dry_run=settings.dry_run)
