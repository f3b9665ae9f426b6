"""Write the documents of the schema: ``make schema-docs``.

All of them are read from one database, which the migrations made, on one fixed version of PostgreSQL:

- ``spec/odooops-sh/schema.dbml``, ``spec/odooops-sh/schema.mmd`` and its picture ``docs/schema.svg``, and
  ``docs/schema.prisma``, by ``node/write.mjs``;
- ``lib/database.types.ts``, by Supabase's CLI.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support import npm
from tests.support.postgres import Cluster, run_sync
from tests.support.supabase import Cli
from worker.database import migrations
from worker.database.connection import connected

TYPES = "lib/database.types.ts"
SOURCES = ("spec/odooops-sh/schema.dbml", "spec/odooops-sh/schema.mmd", "docs/schema.prisma")
NAMES = (*SOURCES, "docs/schema.svg", TYPES)
"""Where each is in the repository."""
MAJOR = 17
"""What Supabase runs. Versions dump differently, so the documents come from one."""


def write(folder: Path) -> None:
    """Write all documents below a folder, under ``NAMES``."""
    (folder / TYPES).parent.mkdir(exist_ok=True)
    with Cluster(MAJOR, listen="127.0.0.1") as cluster, cluster.database() as name:
        run_sync(_migrate, cluster.url(name))
        url = cluster.url(name, host="127.0.0.1")
        with tempfile.TemporaryDirectory() as scratch:
            dump = Path(scratch, "dump.sql")
            dump.write_text(cluster.dump(name, "--table=ops.*", "--table=auth.users"), encoding="utf-8")
            npm.run("write.mjs", url, dump, folder)
            types = Cli.project(Path(scratch, "project"), url, npm.ROOT / "sql" / "migrations").types()
        (folder / TYPES).write_text(types, encoding="utf-8")


async def _migrate(url: str) -> None:
    async with connected(url) as connection:
        # the reference to it is part of the schema wherever that table is
        await connection.execute("create schema auth; create table auth.users (id uuid primary key)")
        await migrations.migrate(connection)


if __name__ == "__main__":
    write(npm.ROOT)
