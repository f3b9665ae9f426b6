"""Databases of a PostgreSQL server, by its own client programs. The server is named by ``PGHOST`` and its relatives."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from .steps import Failure, read, say

WAIT_SECONDS = 60
ADVICE = "read the message of PostgreSQL above; the server's own log is that of the service"

SETTINGS = """
select format('alter database %I connection limit %s', '{new}', datconnlimit) from pg_database where datname = '{old}'
union all
select format('alter %sdatabase %I set %I = %s',
  case when r.rolname is null then '' else format('role %I in ', r.rolname) end, '{new}', split_part(s, '=', 1),
  case when split_part(s, '=', 1) in ('search_path', 'temp_tablespaces', 'local_preload_libraries',
    'session_preload_libraries') then substr(s, strpos(s, '=') + 1)
  else quote_literal(substr(s, strpos(s, '=') + 1)) end)
from pg_db_role_setting d left join pg_roles r on r.oid = d.setrole, unnest(d.setconfig) s
where d.setdatabase = (select oid from pg_database where datname = '{old}')
union all
select format('revoke all on database %I from public', '{new}') from pg_database
where datname = '{old}' and datacl is not null
union all
select format('grant %s on database %I to %s%s', a.privilege_type, '{new}', case a.grantee when 0 then 'public'
  else quote_ident(pg_get_userbyid(a.grantee)) end, case when a.is_grantable then ' with grant option' else '' end)
from pg_database, aclexplode(datacl) a where datname = '{old}'"""


def defaults(secrets: Path) -> None:
    """Sets what is missing of ``PGHOST``, ``PGUSER`` and ``PGPASSWORD`` in the environment of this program."""
    os.environ.setdefault("PGHOST", "db")
    os.environ.setdefault("PGUSER", "odoo")
    password = secrets / "pgpassword"
    if "PGPASSWORD" not in os.environ and password.is_file():
        os.environ["PGPASSWORD"] = password.read_text().rstrip("\n")


def await_server(env: Mapping[str, str] | None = None) -> None:
    """Waits until the server answers."""
    where = {**os.environ, **(env or {})}
    deadline = time.monotonic() + WAIT_SECONDS
    while subprocess.run(["pg_isready", "--quiet", "--dbname=postgres"], check=False, env=where).returncode:
        if time.monotonic() > deadline:
            raise Failure(
                f"PostgreSQL {where.get('PGHOST')}: it did not answer for {WAIT_SECONDS} s",
                "give the workflow a service named db, or set PGHOST, PGPORT and PGUSER in its env",
            )
        time.sleep(0.2)


def query(sql: str, database: str = "postgres", env: Mapping[str, str] | None = None) -> str:
    """The answer of one statement: lines, with ``|`` between columns."""
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]
    return read(command, thing=f"database {database}", advice=ADVICE, env=env).strip()


def create(name: str, template: str = "template0", env: Mapping[str, str] | None = None) -> None:
    """Creates a database as a copy. PostgreSQL copies the files of the template, which is faster than its log."""
    has_strategies = int(query("show server_version_num", env=env)) >= 150000  # noqa: PLR2004 - PostgreSQL 15
    strategy = ["--strategy=file_copy"] if has_strategies else []
    command = ["createdb", "-T", template, *strategy, "-E", "UTF8", name]
    if template == "template0":
        command[-1:-1] = ["--lc-collate=C"]
    read(command, thing=f"database {name}", advice=ADVICE, env=env)


def copy_settings(old: str, new: str) -> None:
    """Copies what belongs to a database but is not in its files: settings, privileges and the limit of connections."""
    for statement in query(SETTINGS.format(old=old, new=new)).splitlines():
        try:
            query(statement)
        except Failure as refused:  # noqa: PERF203 - one that is refused does not stop the others
            say(f"WARNING: {refused}. A superuser has to repeat it for {old} when {new} has its name: {statement}")


def drop(name: str, env: Mapping[str, str] | None = None) -> None:
    read(["dropdb", "--if-exists", "--force", name], thing=f"database {name}", advice=ADVICE, env=env)


def dump(name: str, path: Path) -> None:
    """Writes the database as one file."""
    command = ["pg_dump", "--no-owner", "--format=custom", "--compress=1", f"--file={path}", name]
    read(command, thing=f"dump of database {name}", advice=ADVICE)


def dump_tables(name: str, folder: Path) -> None:
    """Writes the database as a new folder with a file for each table, without compression.

    The file of a table that did not change is the same as before, so a program that looks for equal parts finds it.
    """
    jobs = str(os.cpu_count() or 1)
    command = ["pg_dump", "--no-owner", "--format=directory", "--compress=0", "--jobs", jobs, f"--file={folder}", name]
    read(command, thing=f"dump of database {name}", advice=ADVICE)


def restore(path: Path, name: str, env: Mapping[str, str] | None = None) -> None:
    """Restores a dump of either form into an empty database, with a process for each core."""
    jobs = str(os.cpu_count() or 1)
    command = ["pg_restore", "--no-owner", "--exit-on-error", "--jobs", jobs, "--dbname", name, str(path)]
    read(command, thing=f"restore of database {name}", advice=ADVICE, env=env)
