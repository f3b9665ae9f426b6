"""Write what the tests and ``ops-worker db verify`` expect of the schema.

``python -m tests.support.schema`` after a change of ``sql/migrations``; then review the diff.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.postgres import NEWEST, Cluster, run_sync
from worker.database import catalog, migrations
from worker.database.connection import connected

ROOT = Path(__file__).resolve().parent.parent.parent
CATALOG = ROOT / "sql" / catalog.CATALOG
DUMP = ROOT / "tests" / "db" / "schema.sql"
TABLES = (
    "projects", "workflows", "runs", "run_events", "run_artifacts", "run_logs", "tools", "upgrade_advisories",
    "project_memberships",
)  # fmt: skip
_HEADER = """\
-- What the migrations make, as pg_dump of PostgreSQL 18 shows it.
-- Written by `make schema`; do not edit.

"""


def current_catalog(cluster: Cluster) -> str:
    """The text of ``sql/catalog.txt`` as the migrations are now."""

    async def read(url: str) -> str:
        async with connected(url) as connection:
            # the foreign key to it is part of the catalogue; verify leaves it out where that table is not
            await connection.execute("create schema auth; create table auth.users (id uuid primary key)")
            await migrations.migrate(connection)
            return catalog.render(await catalog.read_catalog(connection))

    with cluster.database() as name:
        return run_sync(read, cluster.url(name))


def current_dump(cluster: Cluster) -> str:
    """The text of ``tests/db/schema.sql`` as the migrations are now; versions dump differently, so ask the newest."""
    return _HEADER + cluster.dump(cluster.template(), "--schema", "ops*")


def main() -> None:
    """Write both files."""
    with Cluster(NEWEST) as cluster:
        CATALOG.write_text(current_catalog(cluster), encoding="utf-8")
        DUMP.write_text(current_dump(cluster), encoding="utf-8")


if __name__ == "__main__":
    main()
