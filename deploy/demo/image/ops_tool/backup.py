"""Backup: dump the project's database, restore the dump into a fresh server, compare every table.

libpq's own variables (PGHOST, PGDATABASE, PGUSER, PGPASSWORD) say where the database is.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .context import Context, ToolError, required, sha256
from .postgres import Session, command, init, server

SCRATCH = Path("/tmp/restore")  # noqa: S108 - the container's own
TABLES = (
    "select c.oid::regclass from pg_class as c"
    " where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace order by c.relname"
)


def run(context: Context, log: logging.Logger) -> None:
    """Raises ``ToolError`` when there is no dump, or when it does not restore to the same rows."""
    dump = context.artifacts / "backup.dump"
    with Session() as source:
        source.ask("begin isolation level repeatable read, read only")
        [snapshot] = source.ask("select pg_export_snapshot()")  # the dump and the comparison see one moment
        [version] = source.ask("show server_version")
        log.info("dumping %s from PostgreSQL %s", required("PGDATABASE"), version)
        command("pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={dump}")
        log.info("dump has %s bytes, sha256 %.12s…", f"{dump.stat().st_size:,}", sha256(dump))
        original = fingerprints(source)

    log.info("restoring it into a fresh server")
    init(SCRATCH)
    with server(SCRATCH) as env:
        command("pg_restore", "--exit-on-error", "--no-owner", "--dbname=postgres", str(dump), env=env)
        with Session(env) as copy:
            restored = fingerprints(copy)

    tables = {}
    for name, (rows, checksum) in original.items():
        same = restored.get(name) == (rows, checksum)
        tables[name] = {"rows": rows, "md5": checksum, "restored": same}
        log.log(
            logging.INFO if same else logging.ERROR,
            "%s: %s rows, %s",
            name,
            f"{rows:,}",
            "same" if same else "NOT the same",
        )
    good = bool(tables) and restored == original
    context.write_json("restore-check.json", {
        "database": os.environ["PGDATABASE"],
        "server_version": version,
        "dump_sha256": sha256(dump),
        "restores": good,
        "tables": tables,
    })  # fmt: skip
    if not good:
        raise ToolError("the dump does not restore to what was dumped")
    log.info("the dump restores: %s tables, %s rows", len(tables), f"{sum(rows for rows, _ in original.values()):,}")


def fingerprints(session: Session) -> dict[str, tuple[int, str]]:
    """Of each table the number of its rows, and one checksum of them all in any order."""
    found = {}
    for table in session.ask(TABLES):
        checksum = "md5(string_agg(md5(t::text), '' order by md5(t::text)))"
        [row] = session.ask(f"select count(*), {checksum} from {table} as t")  # noqa: S608 - the catalogue's name
        rows, digest = row.split("|")
        found[table] = (int(rows), digest)
    return found
