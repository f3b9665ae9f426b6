"""The type ``test``: the dependencies from a template, then the project's modules with their tests in shards.

Steps: restore the template of the dependencies, or install and keep it; copy it for each shard; run Odoo with tests
under coverage; write the reports.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from . import addons, database, odoo_log, reports, shards
from .cache import Cache, digest, folder_digest
from .project import Project, configure, installation, odoo_program
from .steps import environment, read, run, say, step

TEMPLATE = "template_of_dependencies"
RECIPE = "1"  # changes when a template is made in another way
TIMINGS = "timings.json"
PORT = 8069
LOG = "odoo-{}.log"


@dataclass(frozen=True)
class Options:
    """What a workflow may choose."""

    shards: int = 1
    test_tags: str = ""
    coverage: bool = True
    fail_on_warnings: bool = False
    demo: bool = True


@dataclass(frozen=True)
class Shard:
    """A database with a part of the tests."""

    number: int
    tags: str
    expected: int = 0
    """how many test classes were assigned to it"""

    @property
    def name(self) -> str:
        return f"shard_{self.number}"


@dataclass(frozen=True)
class End:
    """How the Odoo of a shard ended."""

    code: int
    seconds: float
    processor: float
    """seconds of processor time of Odoo, without PostgreSQL's"""

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, of processor time {self.processor:.1f} s"


def test(project: Project, options: Options, cache: Cache, work: Path, artifacts: Path) -> bool:
    """Runs the tests and writes the reports; returns whether everything succeeded."""
    began = time.monotonic()
    database.await_server()
    config = configure(project, work, demo=options.demo)
    cached = template(project, options, cache, config)
    prepared = time.monotonic()
    parts = plan(project, options, cache)
    (work / "coverage").mkdir(exist_ok=True)
    ends = run_shards(project, parts, options, config, work, artifacts)
    tested = time.monotonic()
    results = [result(project, part, ends[part].code, options, artifacts) for part in parts]
    found = [each for one in results for each in one.tests]
    problems = [each for one in results for each in one.problems]
    ended_badly = [text for one in results for text in one.ended_badly]
    if not found and any(part.expected for part in parts):
        ended_badly.append("no test ran, although the modules define some: see the log of Odoo")
    facts = [
        f"{', '.join(project.own[:20])} on Odoo {project.odoo.version}, {len(parts)} shards",
        f"dependencies: {prepared - began:.1f} s ({'from the cache' if cached else 'installed'})",
        f"tests: {tested - prepared:.1f} s",
        *(f"{part.name}: {len(one.tests)} tests, {ends[part]}" for part, one in zip(parts, results)),
        *(measure_coverage(work, artifacts) if options.coverage else []),
    ]
    report = reports.Report(found, problems, ended_badly, facts)
    (artifacts / "junit.xml").write_bytes(reports.junit(found))
    text = reports.summary(report)
    (artifacts / "summary.md").write_text(text)
    remember_times(cache, found)
    step(f"result: {reports.counts(found)}")
    for line in text.splitlines()[: len(report.failed) + len(ended_badly)]:
        say(f"ERROR: {line.removeprefix('- **FAILED** ')}")
    return report.succeeded


# --- the template ---------------------------------------------------------------------------------------------------


def template(project: Project, options: Options, cache: Cache, config: Path) -> bool:
    """Creates the database with everything that the project's modules depend on; returns whether a dump was there."""
    wanted = addons.closure(project.own, project.addons)
    names = sorted(name for name in wanted if name not in project.own)
    server = database.query("show server_version_num")
    # Modules of the project are among them if they install themselves, or if a foreign module depends on them.
    needed = addons.with_automatic(addons.closure(names, project.addons), project.addons)
    installed = sorted(needed & project.addons.keys())
    parts = [f"{name} {folder_digest(project.addons[name].path)}" for name in installed]
    key = digest([RECIPE, project.odoo.version, server[:-4], str(options.demo), *parts])
    filestore = config.parent / "data" / "filestore" / TEMPLATE
    found = cache.find("templates", key)
    database.drop(TEMPLATE)
    database.create(TEMPLATE)
    if found is not None:
        step(f"dependencies: {len(names)} modules from the cache, template {key[:12]}")
        database.restore(found / "dump", TEMPLATE)
        if (found / "filestore").is_dir():
            shutil.copytree(found / "filestore", filestore)
        return True
    step(f"dependencies: installing {len(names)} modules: {', '.join(names)}")
    run(
        [*installation(config, TEMPLATE, names), "--log-level=warn"],
        thing="dependencies",
        advice="see Odoo's message above: one of the modules that the project depends on cannot be installed",
        env=addons.path_variable(project.python_path),
    )

    def fill(folder: Path) -> None:
        database.dump(TEMPLATE, folder / "dump")
        if filestore.is_dir():
            shutil.copytree(filestore, folder / "filestore")

    step(f"dependencies: keeping template {key[:12]} in the cache")
    cache.make("templates", key, fill)
    return False


# --- the shards -----------------------------------------------------------------------------------------------------


def plan(project: Project, options: Options, cache: Cache) -> list[Shard]:
    """The shards with their parts of the tests."""
    if options.test_tags:
        return [Shard(1, options.test_tags)]
    classes: dict[str, list[str]] = {}
    for name in project.own:
        classes.update(shards.test_classes(name, project.addons[name].path))
    tags = shards.split(project.own, shards.weights(classes, known_times(cache), options.shards), options.shards)
    return [Shard(n, each, len(classes)) for n, each in enumerate(tags, start=1)]


def known_times(cache: Cache) -> dict[str, float]:
    """Seconds of each test class and of each test in earlier runs; empty if there is no readable file."""
    try:
        times: dict[str, float] = json.loads((cache.folder / TIMINGS).read_text())
    except (OSError, ValueError):
        return {}
    return times


def remember_times(cache: Cache, tests: Sequence[odoo_log.Result]) -> None:
    times = known_times(cache)
    new: dict[str, float] = {}
    for each in tests:
        for name in {each.name.partition(".")[0], each.name}:
            tag = f"/{each.module}:{name}"
            new[tag] = round(new.get(tag, 0.0) + each.seconds, 3)
    part = cache.folder / f".{TIMINGS}.{os.getpid()}"
    part.write_text(json.dumps({**times, **new}))
    part.replace(cache.folder / TIMINGS)


def run_shards(
    project: Project, parts: Sequence[Shard], options: Options, config: Path, work: Path, artifacts: Path
) -> dict[Shard, End]:
    """Runs Odoo for each shard, all at once."""
    for part in parts:
        database.drop(part.name)
        database.create(part.name, TEMPLATE)
        filestore = work / "data" / "filestore"
        if (filestore / TEMPLATE).is_dir():
            shutil.copytree(filestore / TEMPLATE, filestore / part.name, copy_function=os.link)
    step(f"tests: {len(parts)} shards" if len(parts) > 1 else "tests")
    lock = threading.Lock()
    ends: dict[Shard, End] = {}

    def work_on(part: Shard) -> None:
        began = time.monotonic()
        command = odoo_command(project, part, options, config, work)
        with (
            (artifacts / LOG.format(part.name)).open("w") as log,
            subprocess.Popen(
                command,
                env=environment({**addons.path_variable(project.python_path), "COVERAGE_CORE": core()}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process,
        ):
            assert process.stdout  # noqa: S101 - for the type checker
            copy(process.stdout, log, lock if len(parts) > 1 else None)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            ends[part] = End(process.returncode, time.monotonic() - began, used.ru_utime + used.ru_stime)

    threads = [threading.Thread(target=work_on, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def copy(lines: Iterable[str], log: TextIO, lock: threading.Lock | None) -> None:
    """Copies Odoo's log to a file and to stdout. With a lock, the lines of a record stay together on stdout."""
    held: list[str] = []

    def print_held() -> None:
        if lock and held:
            with lock:
                sys.stdout.write("".join(held))
                sys.stdout.flush()
            held.clear()

    for line in lines:
        log.write(line)
        if lock is None:
            sys.stdout.write(line)
            sys.stdout.flush()
            continue
        if odoo_log.RECORD.match(line):
            print_held()
        held.append(line)
    print_held()


def core() -> str:
    """How coverage measures: Python's own monitoring is faster, where it exists."""
    return "sysmon" if sys.version_info >= (3, 12) else "ctrace"


def odoo_command(project: Project, part: Shard, options: Options, config: Path, work: Path) -> list[str]:
    """Odoo tests what it installs (``-i``) or updates (``-u``: modules that are in the template already)."""
    modules = ",".join(project.own)
    python, odoo = odoo_program()
    measured = []
    if options.coverage:
        sources = ",".join(str(project.addons[name].path) for name in project.own)
        data = work / "coverage" / ".coverage"
        measured = ["-m", "coverage", "run", "--parallel-mode", f"--data-file={data}", f"--source={sources}"]
    return [
        python, *measured, odoo, "-c", str(config), "-d", part.name, "-i", modules, "-u", modules, "--test-enable",
        "--test-tags", part.tags, "--stop-after-init", "--max-cron-threads=0",
        "--http-port", str(PORT + 2 * part.number), project.odoo.gevent_port, str(PORT + 2 * part.number + 1),
    ]  # fmt: skip


# --- the reports ----------------------------------------------------------------------------------------------------


def result(project: Project, part: Shard, code: int, options: Options, artifacts: Path) -> reports.Report:
    """The result of one shard: from its log, its exit code, and checklog-odoo."""
    lines = (artifacts / LOG.format(part.name)).read_text(errors="replace").splitlines()
    records = list(odoo_log.records(lines))
    report = reports.Report(odoo_log.results(records), odoo_log.problems(records))
    if report.failed:
        return report
    errors = [each for each in report.problems if each.level != "WARNING"]
    if code:
        last = f": {errors[-1].message} {odoo_log.last_words(errors[-1].text)}" if errors else ""
        return replace(report, ended_badly=[f"{part.name}: Odoo ended with exit code {code}{last}"])
    if not log_is_clean(lines, project.source.folder, with_warnings=options.fail_on_warnings):
        what = "warnings or errors" if options.fail_on_warnings else "errors"
        return replace(report, ended_badly=[f"{part.name}: {what} in the log, although every test passed"])
    return report


def log_is_clean(lines: Sequence[str], folder: Path, *, with_warnings: bool) -> bool:
    """What checklog-odoo says of the log; the project may have a ``checklog-odoo.cfg`` with what to ignore."""
    done = subprocess.run(
        ["checklog-odoo", "--no-echo", "-"],
        check=False,
        cwd=folder,
        input="\n".join(lines if with_warnings else odoo_log.without_warnings(lines)) + "\n",
        text=True,
        stdout=sys.stdout,
        stderr=sys.stdout,
    )
    return done.returncode == 0


def measure_coverage(work: Path, artifacts: Path) -> list[str]:
    """Writes ``coverage.xml``; returns a line with the total."""
    folder = work / "coverage"
    if not any(folder.iterdir()):
        return ["coverage: nothing was measured"]
    data = f"--data-file={folder / '.coverage'}"

    def coverage(*words: str | Path) -> str:
        advice = "see the message above, or turn it off with --no-coverage"
        return read([sys.executable, "-m", "coverage", *words], thing="coverage", advice=advice)

    coverage("combine", "--quiet", data, folder)
    coverage("xml", "--quiet", "--ignore-errors", data, "-o", artifacts / "coverage.xml")
    total = coverage("report", "--ignore-errors", data, "--format=total")
    return [f"coverage: {total.strip()} %"]
