"""The database of the demo's project: a PostgreSQL server that starts with an Odoo-like schema and some thousand rows.

``PASSWORD`` is that of its user odoo, who owns the database library.
"""

from __future__ import annotations

import os
from pathlib import Path

from .context import required
from .postgres import command, init, server

DATA = Path("/tmp/data")  # noqa: S108 - the container's own
SEED = Path(__file__).with_name("project_database.sql")


def main() -> None:
    init(DATA)
    with server(DATA) as env:
        command(
            "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-v", f"password={required('PASSWORD')}", "-f", str(SEED), env=env
        )
    (DATA / "pg_hba.conf").write_text("local all postgres trust\nhost library odoo all scram-sha-256\n")
    os.execvp("postgres", ["postgres", "-D", str(DATA), "-k", str(DATA), "-h", "*", "-c", "fsync=off"])  # noqa: S606


if __name__ == "__main__":
    main()
