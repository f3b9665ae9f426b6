"""The project's volume: the code and files of production, and the files by which a deploy and the runtime agree.

releases/<name>/       the code of a release, with release.json
current                link to the release that is served
filestore/<database>/  Odoo's own: the volume is its data_dir
deploy/journal.json    a deploy works, or was killed
deploy/before.json     what the database and the filestore had before it
deploy/previous.json   what the last deploy replaced; `deploy --revert` goes back to it
deploy/lock            held by a deploy or by a recovery
deploy/runtime.lock    held by the runtime
deploy/status.json     what the runtime does
deploy/maintenance     while it exists, the runtime answers 503; a person may create it too
deploy/restart         `touch` makes the runtime restart Odoo
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

from .steps import Failure

RUNTIME_SECONDS = 300
DEPLOY = re.compile(r"\d{8}T\d{6}Z-[\w.-]*")
"""The name of a deploy, which its maintenance file contains."""

LOCK_SECONDS = 3
"""How long a deploy tries to take a lock: a runtime that looks at it holds it for a moment."""


@dataclass(frozen=True)
class Journal:
    """A deploy that is not at its end. Whether it took place is decided by the database alone: see ``switching.py``."""

    name: str
    """of the deploy, and of its release"""
    database: str
    previous: str
    """the release before; empty if there was none"""
    existed: bool
    """whether the database existed before"""
    began: str
    old_oid: int = 0
    new_oid: int = 0
    """of the clone, as soon as it exists"""
    reverting: bool = False

    @property
    def new(self) -> str:
        """The name of the clone, also in the filestore."""
        return f"{self.database}__new"

    @property
    def old(self) -> str:
        """The name of what was replaced."""
        return f"{self.database}__old"


@dataclass(frozen=True)
class Volume:
    """The volume, by its folder."""

    folder: Path

    @property
    def releases(self) -> Path:
        return self.folder / "releases"

    @property
    def state(self) -> Path:
        return self.folder / "deploy"

    @property
    def current(self) -> str:
        """The name of the release that is served; empty if there is none."""
        link = self.folder / "current"
        return link.readlink().name if link.is_symlink() else ""

    def filestore(self, database: str) -> Path:
        return self.folder / "filestore" / database

    def ensure(self) -> None:
        """Creates the folders.

        Raises:
            Failure: this user may not write to the volume
        """
        try:
            for folder in (self.releases, self.state, self.folder / "filestore"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(
                f"volume {self.folder}: {error.strerror or error}",
                "mount the project's volume there, and let it belong to the user of the image (odoo)",
            ) from error

    def serve(self, release: str) -> None:
        """Makes a release the current one, or none, in one step."""
        if not release:
            (self.folder / "current").unlink(missing_ok=True)
            return
        part = self.folder / ".current"
        part.unlink(missing_ok=True)
        part.symlink_to(Path("releases", release))
        part.replace(self.folder / "current")
        sync(self.folder)

    # --- the journal ------------------------------------------------------------------------------------------------

    def journal(self, name: str = "journal") -> Journal | None:
        found = self.read(name)
        return Journal(**found) if found else None

    def note(self, journal: Journal) -> Journal:
        self.write("journal", asdict(journal))
        return journal

    def close_journal(self, *, keep: bool) -> None:
        """The deploy is at its end; ``keep`` notes what it replaced."""
        file = self.state / "journal.json"
        if keep:
            file.replace(self.state / "previous.json")
        else:
            file.unlink(missing_ok=True)
        (self.state / "before.json").unlink(missing_ok=True)
        sync(self.state)

    def read(self, name: str) -> dict[str, Any]:
        """A file of the folder ``deploy``; empty if it does not exist."""
        try:
            found: dict[str, Any] = json.loads((self.state / f"{name}.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file of the folder ``deploy`` as a whole, so that it survives a power failure."""
        part = self.state / f".{name}.{os.getpid()}"
        with part.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.state / f"{name}.json")
        sync(self.state)

    # --- deploy and runtime -----------------------------------------------------------------------------------------

    def is_held(self, lock: str) -> bool:
        """Whether a living process holds a lock; the kernel releases it when the process ends."""
        with self.held(lock) as mine:
            return not mine

    @contextlib.contextmanager
    def held(self, lock: str, seconds: float = 0) -> Iterator[bool]:
        """Holds a lock; False if another process holds it all this time."""
        deadline = time.monotonic() + seconds
        with (self.state / lock).open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # noqa: PERF203 - a loop of tries
                    if time.monotonic() >= deadline:
                        yield False
                        return
                    time.sleep(0.05)
                else:
                    yield True
                    return

    @property
    def maintenance(self) -> str | None:
        """The content of the maintenance file: the deploy's name, or what a person wrote."""
        try:
            return (self.state / "maintenance").read_text().strip()
        except FileNotFoundError:
            return None

    @property
    def by_person(self) -> str | None:
        """The content of a maintenance file that no deploy wrote."""
        found = self.maintenance
        return None if found is None or DEPLOY.fullmatch(found) else found

    def check_maintenance(self) -> None:
        """A deploy ends with production in service, so it does not begin while a person keeps it out of service.

        Raises:
            Failure: a person made the maintenance file
        """
        if self.by_person is not None:
            raise Failure(
                f"{self.state / 'maintenance'}: a person made it, and a deploy would end that maintenance",
                "remove the file, then deploy again",
            )

    def maintain(self, name: str) -> str:
        """Writes the maintenance file unless a person made one; returns its content."""
        if (found := self.by_person) is not None:
            return found
        part = self.state / ".maintenance"
        part.write_text(name)
        part.replace(self.state / "maintenance")
        return name

    def end_maintenance(self, name: str) -> None:
        """Removes the maintenance file if it is this deploy's."""
        if self.maintenance == name:
            (self.state / "maintenance").unlink(missing_ok=True)

    def await_runtime(self, reached: Callable[[Mapping[str, Any]], bool], what: str) -> bool:
        """Waits until the status of the runtime is as wanted; False if no runtime works on this volume.

        Raises:
            Failure: it does not get there, or says that it cannot
        """
        deadline = time.monotonic() + RUNTIME_SECONDS
        while True:
            status = self.read("status")
            if not self.is_held("runtime.lock"):
                return False
            if reached(status):
                return True
            if time.monotonic() > deadline:
                raise Failure(f"runtime: {what} for {RUNTIME_SECONDS} s", "read the log of the runtime")
            time.sleep(0.2)


def sync(folder: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
