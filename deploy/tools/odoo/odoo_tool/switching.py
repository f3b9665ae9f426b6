"""The switch from the old production to the new one, and back. Each function may be repeated after a kill.

The update works on a clone, ``NAME__new``. One transaction of PostgreSQL renames the databases: before it, production
is old, and after it, new. Everything else follows what the databases say, while the runtime shows the maintenance page:

    settle    a statement of a killed deploy ends; then forward if the switch took place, else backward
    forward   the new filestore and the new release get their place
    backward  the old database, filestore and release get their place again; only names change, nothing is copied
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

from . import comparing, database
from .steps import Failure, step
from .volume import Journal, Volume

IDLE_SECONDS = 30


def application(name: str) -> None:
    """Marks the connections of this program to the server, so that a recovery finds those of a killed deploy."""
    os.environ["PGAPPNAME"] = f"odoo-deploy-{name}"


def end_application() -> None:
    os.environ.pop("PGAPPNAME", None)


def oid(name: str) -> int:
    """The number that a database keeps when its name changes; 0 if there is no such database."""
    return int(database.query(f"select oid from pg_database where datname = '{name}'") or 0)  # noqa: S608 - checked


def took_place(journal: Journal) -> bool:
    """Whether the switch has been committed."""
    return bool(journal.new_oid) and oid(journal.database) == journal.new_oid


def close(name: str) -> None:
    """Ends all connections to a database, and lets no new one in."""
    database.query(f'alter database "{name}" allow_connections false')
    _end_sessions(f"datname = '{name}'")


def reopen(name: str) -> None:
    database.query(f'alter database "{name}" allow_connections true')


def _end_sessions(condition: str) -> None:
    others = f"from pg_stat_activity where {condition} and pid <> pg_backend_pid() and backend_type = 'client backend'"
    deadline = time.monotonic() + IDLE_SECONDS
    while database.query(f"select pid, pg_terminate_backend(pid) {others}"):
        if time.monotonic() > deadline:
            raise Failure(f"PostgreSQL: a session does not end ({condition})", "end it as its superuser")
        time.sleep(0.1)


def switch(journal: Journal) -> None:
    """The one step in which production changes. It is on the disk when this returns, whatever the server's settings."""
    names = ["set synchronous_commit = on"]
    names += [f'alter database "{journal.database}" rename to "{journal.old}"'] if journal.existed else []
    names.append(f'alter database "{journal.new}" rename to "{journal.database}"')
    database.query("; ".join(names))


Finish = Callable[[], str]
"""Deletes what is left of an interrupted deploy, while production runs again; returns what production is."""


def settle(volume: Volume, journal: Journal) -> Finish:
    """Ends an interrupted deploy. Production may run again when this returns."""
    application(journal.database)
    database.await_server()
    _end_sessions(f"application_name = 'odoo-deploy-{journal.database}'")
    if not journal.reverting and took_place(journal):
        step(f"recovery: the switch to {journal.name} took place: completing it")
        forward(volume, journal)
        volume.end_maintenance(journal.name)
        volume.close_journal(keep=True)
        return lambda: f"production is {journal.name}"
    step(f"recovery: going back to {journal.previous or 'what was there before'}")
    return revert(volume, journal)


def revert(volume: Volume, journal: Journal) -> Finish:
    """Production is old again when this returns. The function that it returns compares it with what was before."""
    backward(volume, journal)
    noted = volume.read("before")
    snapshot, files = None, {}
    if noted and journal.existed:
        snapshot, files = comparing.Snapshot(journal.database), comparing.files(volume.filestore(journal.database))
    volume.close_journal(keep=False)
    volume.end_maintenance(journal.name)

    def finish() -> str:
        tidy(volume, journal.database)
        what = f"production is {journal.previous or 'what was there before'}"
        if snapshot is None:
            return what
        try:
            step(f"comparing {journal.database} with what was there before the deploy")
            after = snapshot.measure(comparing.SECONDS)
        finally:
            snapshot.end()
        before = comparing.Facts(noted["figures"], tuple(noted["left_out"]))
        return f"{what}; {comparing.compare(before, comparing.Facts({**after.figures, **files}, after.left_out))}"

    return finish


def forward(volume: Volume, journal: Journal) -> None:
    """Filestore and release follow the databases."""
    own, new, old = (volume.filestore(name) for name in (journal.database, journal.new, journal.old))
    if new.is_dir():
        if own.is_dir():
            own.rename(old)
        new.rename(own)
    volume.serve(journal.name)
    reopen(journal.database)


def backward(volume: Volume, journal: Journal) -> None:
    """Everything has the names again that it had before the deploy."""
    if took_place(journal):
        close(journal.database)
        names = [f'alter database "{journal.database}" rename to "{journal.new}"']
        if journal.existed:
            names.append(f'alter database "{journal.old}" rename to "{journal.database}"')
        database.query("; ".join(names))
    if journal.existed:
        reopen(journal.database)
    own, new, old = (volume.filestore(name) for name in (journal.database, journal.new, journal.old))
    if own.is_dir() and not new.is_dir() and (old.is_dir() or not journal.existed):
        own.rename(new)
    if old.is_dir():
        old.rename(own)
    volume.serve(journal.previous)


def make_space(volume: Volume, name: str, new: str) -> None:
    """Deletes what the last deploy replaced, before the next one.

    Raises:
        Failure: a filestore cannot be deleted, and would be in the way of the next one of its name
    """
    tidy(volume, name, new=new)
    for left in (volume.filestore(f"{name}__{which}") for which in ("new", "old")):
        if left.exists():
            raise Failure(
                f"filestore {left}: it cannot be deleted", "delete it as its owner or as root, then deploy again"
            )


def tidy(volume: Volume, name: str, *, previous: str = "", new: str = "") -> None:
    """Deletes clones and releases, except the current release, the new one, and the previous one with its database."""
    gone = [f"{name}__new", *([] if previous else [f"{name}__old"])]
    for each in gone:
        database.drop(each)
        shutil.rmtree(volume.filestore(each), ignore_errors=True)
    for release in volume.releases.iterdir():
        if release.name not in {volume.current, previous, new}:
            shutil.rmtree(release, ignore_errors=True)
