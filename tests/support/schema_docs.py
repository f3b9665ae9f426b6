"""Write the documents of the schema: ``make schema-docs``.

All of them are read from one database, which the migrations made, on one fixed version of PostgreSQL:

- ``docs/schema.dbml``, ``docs/schema.mmd`` and its picture ``docs/schema.svg``, ``docs/schema.prisma``, by
  ``node/write.mjs``;
- ``docs/types/database.types.ts``, by Supabase's CLI.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support import npm
from tests.support.postgres import Cluster, run_sync
from tests.support.supabase import Cli
from worker.database import migrations
from worker.database.connection import connected

DOCS = npm.ROOT / "docs"
NAMES = ("schema.dbml", "schema.mmd", "schema.svg", "schema.prisma", "types/database.types.ts")
MAJOR = 17
"""What Supabase runs. Versions dump differently, so the documents come from one."""


def write(folder: Path) -> None:
    """Write all documents into a folder, below it under ``NAMES``."""
    (folder / "types").mkdir(exist_ok=True)
    with Cluster(MAJOR, listen="127.0.0.1") as cluster, cluster.database() as name:
        run_sync(_migrate, cluster.url(name))
        url = cluster.url(name, host="127.0.0.1")
        with tempfile.TemporaryDirectory() as scratch:
            dump = Path(scratch, "dump.sql")
            dump.write_text(cluster.dump(name, "--table=ops.*", "--table=auth.users"), encoding="utf-8")
            npm.run("write.mjs", url, dump, folder)
            types = Cli.project(Path(scratch, "project"), url, npm.ROOT / "sql" / "migrations").types()
        (folder / "types" / "database.types.ts").write_text(types, encoding="utf-8")


async def _migrate(url: str) -> None:
    async with connected(url) as connection:
        # the reference to it is part of the schema wherever that table is
        await connection.execute("create schema auth; create table auth.users (id uuid primary key)")
        await migrations.migrate(connection)


if __name__ == "__main__":
    write(DOCS)
