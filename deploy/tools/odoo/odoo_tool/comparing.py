"""What a database and its filestore contain, in figures that can be compared: rows and checksums of tables, and files.

Tables are read from the smallest to the largest, until the time is over; those that were not read are named. The second
measurement sees the database as it was when its snapshot began, so that production need not wait for it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .cache import digest
from .database import ADVICE
from .steps import Failure

SECONDS = 30
TABLES = """
select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname not in ('pg_catalog', 'information_schema')
order by pg_table_size(c.oid), 1"""
ROWS = "select count(*) || ' rows, checksum ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) from only {} t"
SEQUENCES = """
select count(*) || ' sequences, checksum ' ||
  coalesce(sum(hashtextextended(schemaname || '.' || sequencename || ' ' || coalesce(last_value, 0), 0)::numeric), 0)
from pg_sequences"""
END = "--end--"


@dataclass(frozen=True)
class Facts:
    """Each thing with its figures; and the tables for which there was no time."""

    figures: Mapping[str, str]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """The result of a comparison."""

    equal: int
    different: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        if self.different:
            return f"{len(self.different)} of {self.equal + len(self.different)} differ: {'; '.join(self.different)}"
        left = f"; not compared for want of time: {', '.join(self.left_out)}" if self.left_out else ""
        return f"all {self.equal} tables and folders of files have the same rows and checksums as before{left}"


class Snapshot:
    """A database as it is when this is created, whatever is written to it later."""

    def __init__(self, database: str) -> None:
        command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]
        self._psql = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._database = database
        if self.ask("begin isolation level repeatable read read only; select 'ready'") != "ready":
            raise Failure(f"database {database}: it could not be read", ADVICE)

    def ask(self, sql: str) -> str | None:
        """The answer; None if the time that was given is over."""
        assert self._psql.stdin  # noqa: S101 - for the type checker
        assert self._psql.stdout  # noqa: S101
        try:
            self._psql.stdin.write(f"{sql};\n\\echo {END}\n")
            self._psql.stdin.flush()
        except BrokenPipeError:
            return None
        lines: list[str] = []
        for line in self._psql.stdout:
            if line.rstrip("\n") == END:
                return "".join(lines).strip()
            lines.append(line)
        return None

    def measure(self, seconds: float) -> Facts:
        """The figures of all tables that can be read in this time."""
        tables = (self.ask(TABLES) or "").splitlines()
        figures = {}
        deadline = time.monotonic() + seconds
        for name, sql in [("sequences", SEQUENCES), *((name, ROWS.format(name)) for name in tables)]:
            left = int((deadline - time.monotonic()) * 1000)
            answer = self.ask(f"set local statement_timeout = {left}; {sql}") if left > 0 else None
            if answer is None:
                break
            figures[name] = answer
        return Facts(figures, tuple(name for name in tables if name not in figures))

    def end(self) -> None:
        self._psql.kill()
        self._psql.communicate()


def measure(database: str, filestore: Path, seconds: float = SECONDS) -> Facts:
    """The figures of a database, and of its filestore."""
    snapshot = Snapshot(database)
    try:
        found = snapshot.measure(seconds)
    finally:
        snapshot.end()
    return Facts({**found.figures, **files(filestore)}, found.left_out)


def files(filestore: Path) -> dict[str, str]:
    """For each folder: how many files it has, and a checksum of their names, sizes and times.

    The name of a file is the checksum of its content, so the content itself is not read.
    """
    figures = {}
    for parent, folders, names in os.walk(filestore):
        folders.sort()
        stats = ((name, Path(parent, name).lstat()) for name in sorted(names))
        facts = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
        if facts:
            where = Path(parent).relative_to(filestore)
            figures[f"filestore/{where}"] = f"{len(facts)} files, checksum {digest(facts)}"
    return figures


def compare(before: Facts, after: Facts) -> Difference:
    left_out = {*before.left_out, *after.left_out}
    names = sorted({*before.figures, *after.figures} - left_out)
    different = tuple(
        f"{name} had {before.figures.get(name, 'nothing')} and has {after.figures.get(name, 'nothing')}"
        for name in names
        if before.figures.get(name) != after.figures.get(name)
    )
    return Difference(len(names) - len(different), different, tuple(sorted(left_out)))
