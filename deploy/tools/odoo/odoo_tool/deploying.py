"""The command ``deploy``: a build becomes production, or production stays exactly as it was.

Steps: unpack the release, while production runs; maintenance; clone the database and link the filestore; update the
changed modules in the clone; look at its login page; switch; let the runtime serve the new release. The database of
production itself is never written to. Whatever fails, the names go back; see ``switching.py``.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import addons, comparing, database, releases, switching
from .backup import FILES, boot, check_modules
from .cache import files_below
from .project import Project, configure, installation
from .steps import Failure, explain, run, say, step
from .volume import Journal, Volume

CHECKSUMS = "select value from ir_config_parameter where key = 'module_auto_update.installed_checksums'"
UPDATE_ADVICE = "see the messages of Odoo above: a module or its migration failed; correct it and deploy again"
LONGEST_NAME = 58  # PostgreSQL's 63 without __new


@dataclass(frozen=True)
class Options:
    """What a workflow may choose."""

    database: str
    install: Sequence[str] = ()
    keep: bool = True
    """whether what was replaced stays until the next deploy"""


class Clock:
    """How long each part took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def deploy(build: Path, volume: Volume, options: Options, work: Path, artifacts: Path) -> bool:
    """Deploys a build; writes ``deploy.json`` and ``summary.md``."""
    clock = Clock()
    if not os.access(artifacts, os.W_OK):
        raise Failure(
            f"{artifacts}: this user may not write there", "mount a folder there that the user odoo may write to"
        )
    existed = check_place(volume, options.database)
    commit = json.loads((build / "manifest.json").read_text())["commit"] if (build / "manifest.json").is_file() else ""
    began = dt.datetime.now(tz=dt.timezone.utc)
    name = f"{began:%Y%m%dT%H%M%SZ}-{commit.removeprefix('folder-')[:12]}"
    with clock.part("release"):
        project = releases.unpack(build, volume, name, options.database)
        check_code(project, options, existed=existed)
    journal = begin(volume, options, name, began, existed=existed)
    signal.signal(signal.SIGTERM, _canceled)
    try:
        changed = attempt(project, volume, journal, options, work, clock)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise go_back(volume, error, artifacts) from error
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report = {
        "result": "deployed",
        "release": name,
        "previous": journal.previous,
        "changed": changed,
        "seconds": clock.seconds,
    }
    volume.close_journal(keep=True)
    step("deploy: deleting old releases" if options.keep else "deploy: deleting what was replaced")
    switching.tidy(volume, options.database, previous=journal.previous if options.keep else "")
    if not options.keep:
        (volume.state / "previous.json").unlink()
    write(artifacts, report, f"Release {name} is production")
    return True


def begin(volume: Volume, options: Options, name: str, began: dt.datetime, *, existed: bool) -> Journal:
    """Makes space for the clone, and notes that the deploy begins.

    Raises:
        Failure: a person's maintenance goes on, or a filestore cannot be deleted
    """
    volume.check_maintenance()
    step("deploy: deleting what the last deploy replaced")
    (volume.state / "previous.json").unlink(missing_ok=True)
    switching.make_space(volume, options.database, name)
    if existed:
        volume.filestore(options.database).mkdir(exist_ok=True)
    old_oid = switching.oid(options.database)
    began_at = began.isoformat(timespec="seconds")
    return volume.note(Journal(name, options.database, volume.current, existed, began_at, old_oid))


def _canceled(*_: object) -> None:
    raise Failure("deploy: it was canceled", "deploy again when you want to")


# --- before anything changes ----------------------------------------------------------------------------------------


def check_place(volume: Volume, name: str) -> bool:
    """Whether the database exists. The server, the volume and the login must fit together.

    Raises:
        Failure: they do not
    """
    if len(name) > LONGEST_NAME:
        raise Failure(f"--database {name}: it has more than {LONGEST_NAME} characters", "give it a shorter name")
    database.await_server()
    who = "select rolsuper or rolcreatedb from pg_roles where rolname = current_user"
    if database.query(who) != "t":
        raise Failure(
            f"PGUSER {os.environ['PGUSER']}: it may not create databases",
            f"as a superuser of the server: alter role {os.environ['PGUSER']} createdb",
        )
    filestore = volume.filestore(name)
    has_files = filestore.is_dir() and any(files_below(filestore))
    if not switching.oid(name):
        if has_files:
            raise Failure(
                f"database {name}: the server {os.environ['PGHOST']} does not have it, but there is {filestore}",
                "correct PGHOST or --database; for a new start, move the old filestore away",
            )
        return False
    owner = f"select pg_has_role(datdba, 'member') from pg_database where datname = '{name}'"  # noqa: S608 - checked
    if database.query(owner) != "t":
        raise Failure(f"database {name}: PGUSER {os.environ['PGUSER']} is not its owner", "log in as its owner")
    attachments = database.query(FILES, name).splitlines()
    if attachments and not has_files:
        raise Failure(
            f"filestore {filestore}: it is empty, but the database has {len(attachments)} attachments",
            "mount the volume of production (--data), or copy its filestore there",
        )
    return True


def check_code(project: Project, options: Options, *, existed: bool) -> None:
    """The release has all modules that it needs, that are to be installed, and that are installed already."""
    addons.check([*project.own, *options.install], project.addons, project.python_path)
    if existed:
        check_modules(project, options.database, {})


# --- the steps ------------------------------------------------------------------------------------------------------


def attempt(
    project: Project, volume: Volume, journal: Journal, options: Options, work: Path, clock: Clock
) -> Sequence[str]:
    """Makes the release production; returns the modules that were updated or installed."""
    began = time.monotonic()
    with clock.part("maintenance page"):
        begin_maintenance(volume, journal)
    with clock.part("clone"):
        journal = clone(volume, journal)
    config = configure(project, work, demo=False, data=volume.folder)
    if journal.existed:
        with clock.part("counting"):
            step("deploy: counting rows and files, to compare them if the deploy fails")
            facts = comparing.measure(journal.new, volume.filestore(journal.new))
            volume.write("before", asdict(facts))
    with clock.part("update"):
        changed = update(project, config, journal, options)
    with clock.part("health"):
        step("deploy: starting Odoo on the clone")
        boot(project, config, journal.new, {}, "correct the release and deploy again")
    with clock.part("switch"):
        if not journal.existed:
            protect(volume, journal.new)
        switching.close(journal.new)
        os.sync()  # the release and the filestore are on the disk before they count
        step(f"deploy: switching database {journal.database}")
        switching.switch(journal)
        step("deploy: switching filestore and release")
        switching.forward(volume, journal)
    with clock.part("start"):
        step("deploy: ending maintenance")
        volume.end_maintenance(journal.name)
        await_service(volume, journal.name)
    clock.seconds["without service"] = round(time.monotonic() - began, 1)
    return changed


def begin_maintenance(volume: Volume, journal: Journal) -> None:
    """The runtime stops Odoo; no other program reaches the database either."""
    step("deploy: maintenance: waiting until the runtime has stopped Odoo")
    if not stop_service(volume, journal):
        say("  no runtime works on this volume")
    if journal.existed:
        step(f"deploy: closing database {journal.database}")
        switching.close(journal.database)


def stop_service(volume: Volume, journal: Journal) -> bool:
    """The runtime shows the maintenance page; False if there is no runtime."""
    shown = volume.maintain(journal.name)
    return volume.await_runtime(lambda status: status.get("maintenance") == shown, "it did not stop Odoo")


def clone(volume: Volume, journal: Journal) -> Journal:
    """The database by its files, the filestore by hard links; an empty database for the first deploy."""
    own, new = volume.filestore(journal.database), volume.filestore(journal.new)
    if not journal.existed:
        step(f"deploy: creating database {journal.new}")
        database.create(journal.new)
        new.mkdir()
    else:
        step(f"deploy: cloning database {journal.database}")
        database.create(journal.new, journal.database)
        database.copy_settings(journal.database, journal.new)
        step(f"deploy: linking filestore {own}")
        run(["cp", "-al", own, new], thing=f"filestore {own}", advice="see cp's message above; the volume may be full")
    return volume.note(replace(journal, new_oid=switching.oid(journal.new)))


def update(project: Project, config: Path, journal: Journal, options: Options) -> list[str]:
    """Updates the modules of which the content changed, and installs those that are wanted; returns their names."""
    env = addons.path_variable(project.python_path)
    before = checksums(journal.new) if journal.existed else {}
    update_them: list[str | Path] = ["click-odoo-update", "-c", config, "-d", journal.new]
    wanted = list(options.install)
    if journal.existed:
        step("deploy: updating the modules that changed")
        run(update_them, thing="update", advice=UPDATE_ADVICE, env=env)
        there = set(database.query("select name from ir_module_module where state = 'installed'", journal.new).split())
        wanted = [name for name in wanted if name not in there]
    else:
        wanted = wanted or list(project.own)
    if wanted:
        step(f"deploy: installing {', '.join(wanted)}")
        run(installation(config, journal.new, wanted), thing="installation", advice=UPDATE_ADVICE, env=env)
        run([*update_them, "--only-compute-hashes"], thing="checksums of modules", advice=UPDATE_ADVICE, env=env)
    unfinished = database.query("select name from ir_module_module where state like 'to %'", journal.new).split()
    if unfinished:
        raise Failure(f"update: {', '.join(unfinished)} did not end its installation or update", UPDATE_ADVICE)
    changed = different(before, checksums(journal.new))
    step(f"deploy: {len(changed)} modules changed{': ' if changed else ''}{', '.join(changed[:20])}")
    return changed


def checksums(name: str) -> dict[str, str]:
    """Of the modules, as click-odoo-update notes them in the database."""
    if database.query("select to_regclass('ir_config_parameter')", name) == "":
        return {}
    found: dict[str, str] = json.loads(database.query(CHECKSUMS, name) or "{}")
    return found


def different(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(name for name, value in after.items() if before.get(name) != value)


def protect(volume: Volume, name: str) -> None:
    """Gives the administrator of a new database a random password, and writes it to a file of the volume."""
    file = volume.state / "admin_password"
    password = secrets.token_urlsafe(24)
    file.unlink(missing_ok=True)
    with open(file, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
        opened.write(password)
    set_password(name, password, "login = 'admin'")
    say(f"  the password of the user admin is in {file}")


def set_password(name: str, password: str, condition: str) -> None:
    """Gives users of a database a password; Odoo is not running on it."""
    from passlib.hash import pbkdf2_sha512  # noqa: PLC0415 - Odoo's own

    hashed = pbkdf2_sha512.hash(password)
    database.query(f"update res_users set password = '{hashed}' where {condition}", name)  # noqa: S608 - its alphabet has no quote


def await_service(volume: Volume, name: str) -> None:
    """The runtime serves the new release and shows its login page."""

    def serves(status: Mapping[str, object]) -> bool:
        if status.get("release") == name and status.get("state") == "failing":
            raise Failure(f"runtime: Odoo does not start with release {name}", "read the log of the runtime")
        return status.get("release") == name and status.get("state") == "serving"

    step("deploy: waiting until the runtime serves the new release")
    if not volume.await_runtime(serves, f"it did not serve {name}"):
        say("  no runtime works on this volume; it will serve this release when it starts")


# --- back -----------------------------------------------------------------------------------------------------------


def go_back(volume: Volume, error: BaseException, artifacts: Path) -> Failure:
    """Reverts; returns the failure that is to be reported."""
    failure = error if isinstance(error, Failure) else Failure(f"deploy: {error!r}", "see the lines above")
    say(explain(failure))
    began = time.monotonic()
    step("deploy: it failed: going back")
    try:
        finish = leave(volume)
    except (Failure, OSError) as second:
        return Failure(
            f"{failure.thing}; and the way back failed: {second}",
            "production stays in maintenance, and the old database is complete. Repair what is named above. The "
            "runtime goes back by itself as soon as it can; without one, run `deploy --recover`",
        )
    seconds = time.monotonic() - began
    try:
        result = finish()
    except (Failure, OSError) as third:
        result = f"production is back, but could not be compared: {third}"
    report = {"result": "reverted", "reason": failure.thing, "revert_seconds": round(seconds, 1), "comparison": result}
    (artifacts / "deploy.json").write_text(json.dumps(report, indent=2) + "\n")
    step(f"deploy: reverted in {seconds:.1f} s; {result}")
    return Failure(failure.thing, f"{failure.advice}. Reverted in {seconds:.1f} s: {result}")


def leave(volume: Volume) -> switching.Finish:
    """Goes back to what was there before the deploy of the journal."""
    journal = volume.journal()
    if journal is None:
        raise Failure(f"volume {volume.folder}: the journal is gone", "leave the files of the folder deploy alone")
    journal = volume.note(replace(journal, reverting=True))
    stop_service(volume, journal)
    return switching.settle(volume, journal)


def recover(volume: Volume, artifacts: Path) -> bool:
    """Ends a deploy that was killed; does nothing if there is none."""
    journal = volume.journal()
    if journal is None:
        step("recovery: no deploy was interrupted")
        return True
    stop_service(volume, journal)
    result = switching.settle(volume, journal)()
    step(f"recovery: {result}")
    write(artifacts, {"result": "recovered", "release": volume.current, "comparison": result}, result)
    return True


def undo(volume: Volume, artifacts: Path) -> bool:
    """Goes back to what the last deploy replaced; what was written since is lost.

    Raises:
        Failure: it is no longer there
    """
    database.await_server()
    last = volume.journal("previous")
    if last is None or not last.existed or switching.oid(last.old) != last.old_oid or not switching.took_place(last):
        raise Failure(
            "--revert: what the last deploy replaced is not there any more",
            "deploy the older commit, or restore a backup",
        )
    step(f"revert: going back to before {last.began}; everything that was written to {last.database} since is lost")
    began = time.monotonic()
    volume.note(last)
    (volume.state / "previous.json").unlink()
    result = leave(volume)()
    seconds = round(time.monotonic() - began, 1)
    if volume.current:
        await_service(volume, volume.current)
    report = {"result": "reverted", "release": volume.current, "revert_seconds": seconds}
    write(artifacts, report, f"Reverted: {result}")
    return True


def write(artifacts: Path, report: Mapping[str, object], title: str) -> None:
    (artifacts / "deploy.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in report.items())]
    (artifacts / "summary.md").write_text("\n".join(lines) + "\n")
    step(title)
