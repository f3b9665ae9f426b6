"""A restic repository: snapshots of a database's dump with its filestore, deduplicated and encrypted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .steps import Failure, read, step

KEEP = ("--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "3")
PROVEN = "proven"
"""the tag of a snapshot from which a database was restored, and Odoo started on it"""
UPGRADED = "upgraded"
"""the tag of what an upgrade made of a database, for the next upgrade"""
ADVICE = "see the message of restic above; the password of the repository is the secret restic_password"


@dataclass(frozen=True)
class Snapshot:
    """A backup. ``added`` and ``total`` are bytes: new ones in the repository, and all."""

    id: str
    added: int = 0
    total: int = 0


@dataclass(frozen=True)
class Repository:
    """Where the backups are: a folder, or any other place that restic knows (``s3:…``, ``sftp:…``)."""

    place: str
    secrets: Path
    cache: Path
    project: str

    def environment(self) -> dict[str, str]:
        password = self.secrets / "restic_password"
        if not password.is_file():
            raise Failure(
                "secret restic_password: it is missing",
                "store a long random password as this secret, and a copy where you find it when this host is gone",
            )
        credentials = self.secrets / "aws_credentials"
        return {
            "RESTIC_REPOSITORY": self.place,
            "RESTIC_PASSWORD_FILE": str(password),
            "RESTIC_CACHE_DIR": str(self.cache / "restic"),
            "HOME": os.environ.get("HOME", "/tmp"),  # noqa: S108 - the container's own
            **({"AWS_SHARED_CREDENTIALS_FILE": str(credentials)} if credentials.is_file() else {}),
        }

    def _restic(self, *words: str | Path, thing: str = "", cwd: Path | None = None) -> str:
        thing = thing or f"backup repository {self.place}"
        return read(["restic", *words], thing=thing, advice=ADVICE, cwd=cwd, env=self.environment())

    def ensure(self) -> None:
        """Creates the repository if there is none; an unreadable one is an error."""
        local = ":" not in self.place
        existed = True
        if local and not (Path(self.place) / "config").exists():
            existed = False
        elif not local:
            try:
                self._restic("cat", "config")
            except Failure as failure:
                if "unable to open config file" not in failure.printed:  # restic's last line only asks for the place
                    raise
                existed = False
        if existed:
            self._restic("unlock")  # locks of killed runs: restic takes one of more than 30 minutes for such
        else:
            step(f"backup: creating the repository {self.place}")
            self._restic("init")

    def backup(self, folder: Path, others: Sequence[Path], tags: Sequence[str]) -> Snapshot:
        """Adds a snapshot of these folders."""
        words = [word for tag in tags for word in ("--tag", tag)]
        printed = self._restic("backup", "--json", "--host", self.project, *words, folder, *others)
        return summary(printed)

    def latest(self, *tags: str) -> dict[str, Any]:
        """The newest snapshot of the project, with one of these tags if there are any.

        Raises:
            Failure: there is none
        """
        found = self.snapshots(*tags)
        if not found:
            what = f"with the tag {' or '.join(tags)}" if tags else "at all"
            raise Failure(f"backup of {self.project}: there is none {what}", "run the workflow of type backup first")
        return found[-1]

    def named(self, snapshot: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self._restic("snapshots", "--json", snapshot))
        return found[0]

    def snapshots(self, *tags: str) -> list[dict[str, Any]]:
        words = [word for tag in tags for word in ("--tag", tag)]
        printed = self._restic("snapshots", "--json", "--host", self.project, *words)
        found: list[dict[str, Any]] = json.loads(printed)
        return sorted(found, key=lambda snapshot: str(snapshot["time"]))

    def restore(self, snapshot: str, target: Path) -> None:
        """Writes the files of a snapshot; restic compares every piece with its checksum."""
        self._restic("restore", snapshot, "--target", target, thing=f"backup {snapshot[:8]}")

    def check(self, part: str) -> None:
        """Checks the structure of the repository, and reads a part of its data, such as ``2/7``."""
        self._restic("check", f"--read-data-subset={part}")

    def prove(self, snapshot: str) -> str:
        """Tags the snapshot as proven; returns its new id. The old one may be short: restic 0.11 reports no other."""
        self._restic("tag", "--add", PROVEN, snapshot)
        proven = self.snapshots(PROVEN)
        return next(str(each["id"]) for each in proven if str(each.get("original")).startswith(snapshot))

    def forget(self, tag: str, *keep: str) -> None:
        """Deletes the snapshots of the project with that tag, without those that are kept."""
        self._restic("forget", "--host", self.project, "--tag", tag, "--group-by", "host", *keep, "--prune")


def summary(printed: str) -> Snapshot:
    """The snapshot in what ``restic backup --json`` prints: a line for each message."""
    for line in printed.splitlines():
        try:
            message: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue
        if message.get("message_type") == "summary":
            return Snapshot(message["snapshot_id"], message["data_added"], message["total_bytes_processed"])
    raise Failure("backup: restic reported no snapshot", ADVICE)
