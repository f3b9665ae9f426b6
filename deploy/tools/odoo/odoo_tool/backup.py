"""The type ``backup``: database and filestore into a restic repository, proven by a restore on which Odoo starts.

Steps: dump the database, then take the dump and the filestore as one snapshot; check the repository; restore the
snapshot into a throwaway server and start Odoo on it; tag it as proven; delete snapshots that are not kept.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import addons, database
from .cache import file_digest
from .project import Project, configure, odoo_program
from .restic import KEEP, Repository
from .steps import Failure, environment, run, say, step

DUMP = "database"
STAGED = "odoo-backup"
BOOT_SECONDS = 300
KEPT = "a backup is kept, but not marked as proven"
LAST_LINES = 30
PORT = 8069
FILES = "select store_fname from ir_attachment where store_fname is not null order by 1"
INSTALLED = "select name from ir_module_module where state in ('installed', 'to upgrade') order by 1"


@dataclass(frozen=True)
class Options:
    """What a workflow may choose."""

    database: str
    filestore: Path | None
    throwaway: str
    """host of the server on which the restore is tried"""
    check_all: bool = False


def backup(project: Project, repository: Repository, options: Options, work: Path, artifacts: Path) -> bool:
    """Makes, proves and thins out backups; writes ``backup.json`` and ``summary.md``."""
    if os.environ["PGHOST"] == options.throwaway:
        raise Failure(
            f"PGHOST {options.throwaway}: the restore would be tried on the server of the database itself",
            "set PGHOST to the server of the database, and give the workflow a service of another name (--throwaway)",
        )
    database.await_server()
    began = time.monotonic()
    repository.ensure()
    stage(options.database)
    step(f"backup: adding the dump and the filestore {options.filestore or '(none)'} to {repository.place}")
    others = [options.filestore] if options.filestore else []
    snapshot = repository.backup(staged(), others, [f"database={options.database}", f"odoo={project.odoo.version}"])
    shutil.rmtree(staged())
    made = time.monotonic()
    part = "1/1" if options.check_all else f"{dt.datetime.now(tz=dt.timezone.utc).isoweekday()}/7"
    step(f"backup: checking the repository, and {part} of its data")
    repository.check(part)
    facts = prove(project, repository, snapshot.id, options, work)
    proven_id = repository.prove(snapshot.id)
    proven = time.monotonic()
    step("backup: deleting what is not kept: 7 daily, 4 weekly, 3 monthly")
    repository.forget(f"database={options.database}", *KEEP)
    kept = len(repository.snapshots())
    report = {
        "database": options.database,
        "snapshot": proven_id,
        "bytes": snapshot.total,
        "bytes_added": snapshot.added,
        "backup_seconds": round(made - began, 1),
        "proof_seconds": round(proven - made, 1),
        "proven_at": dt.datetime.now(tz=dt.timezone.utc).isoformat(timespec="seconds"),
        "snapshots": kept,
        **facts,
    }
    (artifacts / "backup.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        f"# Backup {proven_id[:8]} of {options.database} is proven",
        "",
        *(f"- {k}: {v}" for k, v in report.items()),
    ]
    (artifacts / "summary.md").write_text("\n".join(lines) + "\n")
    return True


def staged() -> Path:
    """The folder of a dump, always the same, since restic compares with the same path."""
    return Path(os.environ.get("TMPDIR", "/tmp")) / STAGED  # noqa: S108


def stage(name: str) -> None:
    """Dumps a database for the repository, which compresses it."""
    shutil.rmtree(staged(), ignore_errors=True)
    staged().mkdir()
    step(f"backup: dumping database {name}")
    database.dump_tables(name, staged() / DUMP)


# --- the proof ------------------------------------------------------------------------------------------------------


def prove(
    project: Project, repository: Repository, snapshot: str, options: Options, work: Path
) -> dict[str, int | float]:
    """Restores the snapshot on the throwaway server and starts Odoo on it; returns figures.

    Raises:
        Failure: something is missing in the backup, or Odoo does not answer
    """
    server = throwaway(options.throwaway)
    name = f"proof_of_{options.database}"
    database.await_server(server)
    database.drop(name, env=server)
    restored = unpack(repository, snapshot, [str(options.filestore or f"/{STAGED}")], name, work, server)
    config = configure(project, work)
    files = place_filestore(restored, config, name, server)
    check_modules(project, name, server)
    step("proof: starting Odoo on the restored database")
    neutralize(project, config, name, server)
    seconds = boot(project, config, name, server)
    database.drop(name, env=server)
    return {"files_checked": files, "boot_seconds": round(seconds, 1)}


def throwaway(host: str) -> dict[str, str]:
    """The environment for the throwaway server: the service ``postgres`` of the workflow."""
    return {
        "PGHOST": host,
        "PGHOSTADDR": "",  # else that of production would win over PGHOST
        "PGPORT": "5432",
        "PGUSER": "odoo",
        "PGPASSWORD": os.environ.get("THROWAWAY_PASSWORD", ""),
    }


def unpack(
    repository: Repository, snapshot: str, paths: Sequence[str], name: str, work: Path, server: Mapping[str, str]
) -> Path | None:
    """Restores the dump into a new database; returns the folder of the restored filestore.

    ``paths`` are the folders of the snapshot: that of the dump, and that of the filestore if there is one.
    """
    target = work / "restored"
    step(f"restore: reading backup {snapshot[:8]}")
    repository.restore(snapshot, target)
    [dump] = target.rglob(f"{STAGED}/{DUMP}")
    step(f"restore: loading database {name}")
    database.create(name, env=server)
    database.restore(dump, name, env=server)
    shutil.rmtree(dump)
    filestores = [path for path in paths if not path.endswith(f"/{STAGED}")]
    return target / filestores[0].lstrip("/") if filestores else None


def place_filestore(restored: Path | None, config: Path, name: str, server: Mapping[str, str]) -> int:
    """Moves the filestore to where Odoo expects it, and compares it with the database; returns the number of files.

    The name of a file is the SHA-1 of its content, so a damaged file is found, too.
    """
    folder = config.parent / "data" / "filestore" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if restored is not None:
        shutil.move(restored, folder)
    wanted = [line for line in database.query(FILES, name, env=server).splitlines() if line]
    step(f"restore: comparing {len(wanted)} attachments with the filestore")
    for each in wanted:
        file = folder / each
        if not file.is_file():
            raise Failure(
                f"attachment {each}: the database has it, the filestore of the backup does not",
                "name the database's filestore with --filestore, as a volume of the workflow; if that is right, "
                "the file was lost before the backup",
            )
        if file_digest(file, "sha1") != file.name:
            raise Failure(
                f"attachment {each}: its content does not have the checksum that is its name",
                "the file is damaged in the filestore itself: restore it from an older backup",
            )
    return len(wanted)


def check_modules(project: Project, name: str, server: Mapping[str, str]) -> None:
    """Every module that is installed in the database must be in the code, or Odoo would start without it."""
    absent = [each for each in database.query(INSTALLED, name, env=server).split() if each not in project.addons]
    if absent:
        raise Failure(
            f"module {absent[0]}: it is installed in the database, but not in the code of this run",
            "name the repository that production runs with --repository, and its commit as git_commit of the workflow",
        )


def odoo_environment(project: Project, server: Mapping[str, str]) -> dict[str, str]:
    return {**server, **addons.path_variable(project.python_path)}


def neutralize(project: Project, config: Path, name: str, server: Mapping[str, str]) -> None:
    """Odoo's own: no mail is sent, no scheduled action runs."""
    if project.odoo.major < 16:  # noqa: PLR2004
        server_actions = "update ir_cron set active = false; update ir_mail_server set active = false"
        database.query(server_actions, name, env=server)
        return
    run(
        [*odoo_program(), "neutralize", "-c", config, "-d", name],
        thing=f"database {name}",
        advice="see Odoo's message above",
        env=odoo_environment(project, server),
    )


def boot(
    project: Project,
    config: Path,
    name: str,
    server: Mapping[str, str],
    advice: str = KEPT,
) -> float:
    """Starts Odoo, waits until the page of its login is there, and stops it; returns the seconds."""
    with running(project, config, name, server, advice=advice) as seconds:
        return seconds


@contextlib.contextmanager
def running(
    project: Project,
    config: Path,
    name: str,
    server: Mapping[str, str],
    log: Path | None = None,
    advice: str = KEPT,
) -> Iterator[float]:
    """Odoo on ``PORT`` while the block lasts, from when its login page is there; gives the seconds until then."""
    command: Sequence[str] = [
        *odoo_program(), "-c", str(config), "-d", name, "--max-cron-threads=0", "--log-level=warn",
        "--http-interface", "127.0.0.1", "--http-port", str(PORT), *(["--logfile", str(log)] if log else []),
    ]  # fmt: skip
    began = time.monotonic()
    sys.stdout.flush()
    process = subprocess.Popen(command, env=environment(odoo_environment(project, server)), stdin=subprocess.DEVNULL)
    try:
        while not answers(f"http://127.0.0.1:{PORT}/web/login"):
            ended = process.poll() is not None
            if ended or time.monotonic() - began > BOOT_SECONDS:
                if log and log.is_file():
                    say("\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:]))
                raise Failure(
                    f"Odoo on {name}: it {'ended' if ended else f'ran for {BOOT_SECONDS} s'} without an answer",
                    f"see Odoo's messages above; {advice}",
                )
            time.sleep(0.3)
        yield time.monotonic() - began
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return int(answer.status) == 200  # noqa: PLR2004
    except (urllib.error.URLError, OSError):
        return False
