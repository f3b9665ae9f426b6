"""The type ``upgrade``: a rehearsal of new code, or of the next version of Odoo, on a copy of production.

Steps: restore the newest proven backup on the throwaway server; neutralise it; list the advisories for its modules;
migrate it; start Odoo on it, and open the action of each menu; write the report. Production is not reached: all
variables of PostgreSQL are replaced by those of the throwaway server before the first step.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import addons, advisories, database, smoke
from .backup import PORT, check_modules, neutralize, place_filestore, running, stage, staged, throwaway, unpack
from .project import Project, configure, odoo_program
from .reports import one_line
from .restic import PROVEN, UPGRADED, Repository
from .steps import Failure, run, say, step
from .versions import FRAMEWORK, SCRIPTS, UPDATE, series, way_of

MODULES = "select name, latest_version from ir_module_module where state in ('installed', 'to upgrade') order by 1"
UNFINISHED = "select name from ir_module_module where state in ('to upgrade', 'to install', 'to remove') order by 1"
COLUMNS = """
select c.table_name || '.' || c.column_name from information_schema.columns as c
join information_schema.tables as t using (table_schema, table_name)
where table_schema = 'public' and table_type = 'BASE TABLE'
"""
QUIET = """
update ir_cron set active = false;
update ir_mail_server set active = false;
"""
SHOWN = 50  # lines of a list in the summary; upgrade.json has all


@dataclass(frozen=True)
class Options:
    """What a workflow may choose."""

    database: str
    throwaway: str
    snapshot: str = ""
    advisories: str = ""
    """a JSON array, as text"""
    urls: Sequence[str] = ()
    update_all: bool = False
    """update every module, also those whose files did not change"""
    keep_as: str = ""
    """the name under which the next upgrade finds the migrated database"""


@dataclass(frozen=True)
class Facts:
    """A database at one moment."""

    modules: Mapping[str, str]
    """the installed ones with their versions"""
    columns: frozenset[str]
    bytes: int

    @property
    def series(self) -> str:
        """Such as 19.0."""
        return ".".join(map(str, series(self.modules["base"])))


@dataclass(frozen=True)
class Rehearsal:
    """What happened to the copy, with the seconds of each part."""

    before: Facts
    after: Facts
    way: str
    advisories: Sequence[Mapping[str, object]]
    files: int
    checked: smoke.Checked
    seconds: Mapping[str, float]


def upgrade(project: Project, repository: Repository, options: Options, work: Path, artifacts: Path) -> bool:
    """Rehearses; returns whether every check succeeded. Writes ``upgrade.json`` and ``summary.md``."""
    if options.keep_as == options.database:
        raise Failure(
            f"--keep-as {options.keep_as}: the next upgrade of {options.database} would begin with the migrated one",
            f"give it another name, such as {options.database}_{project.odoo.major}",
        )
    leave_production(options.throwaway)
    database.await_server()
    tags = (f"{tag},database={options.database}" for tag in (PROVEN, UPGRADED))
    chosen = repository.named(options.snapshot) if options.snapshot else repository.latest(*tags)
    name = f"upgrade_of_{options.database}"
    database.drop(name)
    done = rehearse(project, repository, chosen, name, options, work, artifacts)
    database.drop(name)
    kept = keep(project, repository, name, options, work) if options.keep_as and not done.checked.problems else ""
    report = {
        "database": options.database,
        "snapshot": chosen["id"],
        "backup_made": chosen["time"],
        "code": project.source.commit,
        "from": done.before.series,
        "to": project.odoo.series,
        "way": done.way,
        "files_checked": done.files,
        **{f"{part}_seconds": round(seconds, 1) for part, seconds in done.seconds.items()},
        "bytes_before": done.before.bytes,
        "bytes_after": done.after.bytes,
        "modules": changes(done.before.modules, done.after.modules),
        "columns_gone": sorted(done.before.columns - done.after.columns),
        "columns_new": len(done.after.columns - done.before.columns),
        "advisories": done.advisories,
        "menus_opened": done.checked.menus,
        "menus_not_opened": done.checked.not_opened,
        "urls_opened": done.checked.urls,
        "kept_as": options.keep_as if kept else "",
        "kept_snapshot": kept,
        "problems": done.checked.problems,
    }
    (artifacts / "upgrade.json").write_text(json.dumps(report, indent=2) + "\n")
    (artifacts / "summary.md").write_text(summary(report))
    for problem in done.checked.problems:
        say(f"ERROR: {one_line(problem)}")
    return not done.checked.problems


def rehearse(
    project: Project, repository: Repository, chosen: Mapping[str, object], name: str, options: Options, work: Path,
    artifacts: Path,
) -> Rehearsal:  # fmt: skip
    """Restores, migrates and checks the copy."""
    began = time.monotonic()
    files = restore(project, repository, chosen, name, work)
    before = facts(name)
    way = way_of(before.series, project.odoo.series, project.addons)
    if way == UPDATE:  # OpenUpgrade knows modules that have another name in the next version
        check_modules(project, name, {})
    told = advisories.applicable(options.advisories, before.series, project.odoo.series, before.modules)
    for each in told:
        step(f"advisory: {advisory_line(each).removeprefix('- ')}")
    config = configure(project, work)
    restored = time.monotonic()
    step(f"migration: from {before.series} to {project.odoo.series} by {way}")
    migrate(project, config, name, way, update_all=options.update_all)
    migrated = time.monotonic()
    after = facts(name)
    unfinished(name)
    check_modules(project, name, {})
    if options.keep_as:
        stage(name)  # before it is neutralised, and the administrator gets another password
    neutralize(project, config, name, {})
    step("checks: starting Odoo")
    with running(project, config, name, {}, artifacts / "odoo.log") as boot_seconds:
        checked = smoke.check(f"http://127.0.0.1:{PORT}", name, project.odoo.major, options.urls)
    seconds = {"restore": restored - began, "migration": migrated - restored, "boot": boot_seconds,
               "check": checked.seconds}  # fmt: skip
    return Rehearsal(before, after, way, told, files, checked, seconds)


def keep(project: Project, repository: Repository, name: str, options: Options, work: Path) -> str:
    """Adds the migrated database to the repository of the backups, in place of the last one; returns the snapshot."""
    tag = f"{UPGRADED},database={options.keep_as}"
    step(f"upgrade: adding the migrated database to {repository.place} as {options.keep_as}")
    filestore = work / "data" / "filestore" / name
    tags = [UPGRADED, f"database={options.keep_as}", f"odoo={project.odoo.version}"]
    kept = repository.backup(staged(), [filestore] if filestore.is_dir() else [], tags)
    shutil.rmtree(staged())
    repository.forget(tag, "--keep-last", "1")
    return kept.id


def leave_production(host: str) -> None:
    """Replaces every variable by which a program could find another server than the throwaway one."""
    server = throwaway(host)
    for variable in [each for each in os.environ if each.startswith("PG")]:
        del os.environ[variable]
    os.environ.update(server)


def restore(project: Project, repository: Repository, chosen: Mapping[str, object], name: str, work: Path) -> int:
    """Restores the backup and lets it do nothing by itself; returns how many attachments were compared."""
    paths = chosen["paths"]
    assert isinstance(paths, list)  # noqa: S101 - for the type checker
    restored = unpack(repository, str(chosen["id"]), paths, name, work, {})
    files = place_filestore(restored, configure(project, work), name, {})
    step("upgrade: neutralising")  # the rest when the migration has ended, since Odoo's own needs the new tables
    database.query(QUIET, name)
    return files


def facts(name: str) -> Facts:
    lines = database.query(MODULES, name).splitlines()
    modules = dict(line.split("|", 1) for line in lines)
    columns = frozenset(database.query(COLUMNS, name).splitlines())
    return Facts(modules, columns, int(database.query("select pg_database_size(current_database())", name)))


def migrate(project: Project, config: Path, name: str, way: str, *, update_all: bool) -> None:
    """Runs click-odoo-update, or Odoo with OpenUpgrade.

    Raises:
        Failure: a migration script or a module failed
    """
    environment = addons.path_variable(project.python_path)
    advice = "see Odoo's messages above: the last one names the module and the script"
    if way == UPDATE:
        words = ["--update-all"] if update_all else []
        run(
            [UPDATE, "-c", config, "-d", name, *words],
            thing=f"update of {name}", advice=advice, env=environment,
        )  # fmt: skip
        return
    run(
        [*odoo_program(), "-c", config, "-d", name, "-u", "all", f"--load=base,web,{FRAMEWORK}",
         f"--upgrade-path={project.addons[SCRIPTS].path / 'scripts'}", "--stop-after-init", "--no-http",
         "--max-cron-threads=0"],
        thing=f"upgrade of {name}", advice=advice, env=environment,
    )  # fmt: skip


def unfinished(name: str) -> None:
    """Odoo can end with exit code 0 although it could not load a module.

    Raises:
        Failure: a module waits for its update
    """
    waiting = database.query(UNFINISHED, name).split()
    if waiting:
        raise Failure(
            f"module {waiting[0]}: the migration did not finish it ({len(waiting)} modules in all)",
            "see Odoo's messages above: a module that it depends on is missing or cannot be installed",
        )


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """The modules whose version is another one, each with both; empty where the module is not installed."""
    names = sorted({*before, *after})
    both = {name: [before.get(name, ""), after.get(name, "")] for name in names}
    return {name: versions for name, versions in both.items() if versions[0] != versions[1]}


def summary(report: Mapping[str, object]) -> str:
    """``summary.md``: what failed, then the figures, the advisories and what changed."""
    problems, modules, told, gone = (report[key] for key in ("problems", "modules", "advisories", "columns_gone"))
    assert isinstance(problems, list)  # noqa: S101 - for the type checker
    assert isinstance(modules, dict)  # noqa: S101
    assert isinstance(told, list)  # noqa: S101
    assert isinstance(gone, list)  # noqa: S101
    lines = [f"- **FAILED** {one_line(problem)}" for problem in problems[:SHOWN]]
    ended = f"{len(problems)} problems" if problems else "no problem"
    lines += ["", f"# Upgrade of {report['database']} from {report['from']} to {report['to']}: {ended}", ""]
    figures = ("backup_made", "code", "way", "restore_seconds", "migration_seconds", "boot_seconds", "check_seconds",
               "bytes_before", "bytes_after", "menus_opened", "menus_not_opened", "urls_opened")  # fmt: skip
    lines += [f"- {key}: {report[key]}" for key in figures]
    if told:
        lines += ["", f"## {len(told)} advisories", ""]
        lines += [advisory_line(each) for each in told]
    lines += ["", f"## {len(modules)} modules with another version", "", "| module | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {versions[0]} | {versions[1]} |" for name, versions in list(modules.items())[:SHOWN]]
    lines += ["", f"## {len(gone)} columns are gone, {report['columns_new']} are new", ""]
    return "\n".join([*lines, *(f"- {column}" for column in gone[:SHOWN])]).lstrip("\n") + "\n"


def advisory_line(advisory: Mapping[str, object]) -> str:
    modules, guide = advisory["modules"], advisory.get("migration_guide")
    assert isinstance(modules, list)  # noqa: S101 - for the type checker
    about = f" ({', '.join(modules)})" if modules else ""
    end = f": {one_line(str(guide))}" if guide else ""
    return f"- {advisory['severity']}: {one_line(str(advisory['title']))}{about}{end}"
