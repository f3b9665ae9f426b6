"""``make demo``: real work through a real PostgreSQL and a real Docker engine, to watch.

deploy/demo/run                   the demo; its state is kept in .demo/. On a terminal it ends with the console's
                                  address, and waits for Enter; --no-wait does not
deploy/demo/run log RUN           the log of one of its runs
deploy/demo/run psql [ARG...]     psql in the demo's database, also while the demo runs
deploy/demo/run with COMMAND...   a command that finds the demo's database in OPS_WORKER_DATABASE_URL, and psql and
                                  ops-worker in its PATH
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from deploy.demo import cluster, console, control_plane, engine
from deploy.demo.control_plane import BACKUP, BUILD, DEFECT, NEXT_VERSION, TEST, UPGRADE
from deploy.demo.screen import Row, Screen
from deploy.demo.show import Show, WorkerFailed, work, worker_flags
from worker.errors import OpsError

DEFAULT_STATE = engine.ROOT / ".demo"


class DemoError(Exception):
    """The demo cannot go on."""


# --- where things are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """The demo's folder. Deleting it makes the next demo the first."""

    folder: Path

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def runs(self) -> Path:
        """Links to the artifacts of each run, by readable names."""
        return self.folder / "runs"

    @property
    def worker_log(self) -> Path:
        return self.folder / "worker.log"

    @property
    def name(self) -> str:
        """Tells this demo's containers from those of another checkout."""
        return f"ops-worker-demo-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    def create(self) -> None:
        for folder in (self.folder, self.artifacts, self.runs):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")

    def forget_runs(self) -> None:
        """Removes what the runs left."""
        for folder in (self.artifacts, self.runs):
            shutil.rmtree(folder)
            folder.mkdir()

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Yields whether this demo has the folder's lock; other demos cannot take it until the block ends."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


# --- the demo ---------------------------------------------------------------------------------------------------------


async def demo(state: State, screen: Screen, *, wait: bool) -> bool:
    """The whole demo; whether all went as expected. ``wait``: shows the console until Enter is pressed."""
    with screen.step("Docker engine") as step:
        step.result = await engine.version()
    with screen.step("Tool image") as step:
        image, built = await engine.tool_image(step.say)
        step.result = image + ("" if built else ", already here")
    async with AsyncExitStack() as stack:
        with screen.step("Database") as step:
            sockets = stack.enter_context(cluster.running(state.folder))
            url = cluster.url(sockets, control_plane.DATABASE)
            steps, dropped = await control_plane.prepare(cluster.url(sockets, "postgres"), url)
            if dropped:
                step.say("the schema was edited since the last demo: starting with an empty database")
                await engine.remove_runs(dropped)
                state.forget_runs()
            applied = f"{steps} migrations applied" if steps else "up to date"
            step.result = f"PostgreSQL 18 in {shown(state.folder)}, {applied}"
        plane = await stack.enter_async_context(control_plane.connect(url, state.artifacts))
        with screen.step("Project's services") as step:
            services = await stack.enter_async_context(engine.services(image, state.name))
            stack.push_async_callback(_remove_runs, plane)
            step.result = "its database and a package server"
        with screen.step("Project") as step:
            await plane.end_leftovers()
            await plane.register(image, services.network, _git_commit())
            show = Show(screen, plane, services)
            numbers = [
                await show.queue(BUILD),
                await show.queue(TEST),
                await show.queue(DEFECT),
                await show.queue(BACKUP, services.database_env),
                await show.queue(
                    UPGRADE,
                    {"TARGET_VERSION": NEXT_VERSION, "ADVISORIES": json.dumps(await plane.applicable_advisories())},
                ),
            ]
            step.result = f"5 workflow types registered, runs #{numbers[0]} to #{numbers[-1]} queued"

        state.worker_log.unlink(missing_ok=True)
        flags = worker_flags(state.artifacts, services.network)
        screen.heading(f"$ ops-worker {' '.join(flags[:2])}")
        with screen.following():
            await work(show, flags, await control_plane.worker_url(url), state.worker_log)
        good = await report(state, screen, show)
        if wait:
            await console.show(screen, url, state.folder / "console.log")
        return good


async def _remove_runs(plane: control_plane.ControlPlane) -> None:
    await engine.remove_runs(await plane.database_id())  # which is known once its worker has registered


async def report(state: State, screen: Screen, show: Show) -> bool:
    """The table, where everything is, and what is not as it should be."""
    rows: list[Row] = []
    problems: list[str] = []
    for run in await show.plane.runs(show.jobs):
        job = show.jobs[run.run_id]
        artifacts = await show.plane.artifacts(run.run_id)
        reason = run.error_message or ""
        if (run.status, run.exit_code) != (job.status, job.exit_code):
            problems.append(f"#{run.number} {job.name}: {run.status} ({reason}), expected {job.status}")
        elif job.exit_code:
            reason += " (on purpose)"
        if not await show.plane.log_is_whole(run.run_id):
            problems.append(f"#{run.number} {job.name}: its log has gaps")
        problems += [problem for each in artifacts if (problem := each.problem())]
        if artifacts:
            link(state.runs / f"{run.number}-{job.workflow_type}", artifacts[0].path.parent)
        rows.append(Row(
            number=run.number, name=job.name, status=run.status, took=run.took, waited=run.waited, lines=run.lines,
            warnings=run.warnings, errors=run.errors, artifacts=len(artifacts),
            size=sum(each.size for each in artifacts), reason=reason,
        ))  # fmt: skip
    screen.table(rows)
    screen.say("")
    if problems or len(rows) != len(control_plane.JOBS):
        for problem in problems or ["not all runs were queued"]:
            screen.fail(problem)
        screen.fail(f"This is not as it should be; the worker's own log is {shown(state.worker_log)}.")
        return False
    screen.say(
        "All went as expected: every log is complete, every artifact has its checksum, and the one red run is red on"
        " purpose.",
        "green",
    )
    red = next(row.number for row in rows if row.name == DEFECT.name)
    screen.heading("Next")
    screen.next_steps({
        f"{_command(state)} log {red}": f"why run #{red} failed",
        f"ls {shown(state.runs)}/*": "the artifacts",
        f"{_command(state)} psql": "the database; \\q ends it",
        ".venv/bin/ops-worker --help": "the worker's settings and commands",
    })  # fmt: skip
    return True


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def link(path: Path, target: Path) -> Path:
    """A link to a folder, replacing an older one."""
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
    return path


LOG = """select to_char(l."timestamp", 'HH24:MI:SS'), rpad(l.log_level, 5), l.message
from ops.run_logs as l join ops.runs as r on r.id = l.run_id join ops.projects as p on p.id = r.project_id
where p.slug = 'library' and r.run_number = :'run' order by l.seq"""


def log(state: State, arguments: list[str]) -> int:
    """Prints the log of a run."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        raise DemoError("log needs the number of a run, such as: log 3")
    return psql(state, ["-qAt", "-F", " ", "-v", f"run={arguments[0]}", "-f", "-"], LOG)


def psql(state: State, arguments: list[str], script: str | None = None) -> int:
    """Runs psql in the demo's database, starting it for that time if it does not run."""
    if not (state.folder / "data").exists():
        raise DemoError("there is no database yet: run the demo first")
    return beside_database(state, [str(cluster.binaries() / "psql"), *arguments], script, url_last=True)


def run_with(state: State, command: list[str]) -> int:
    """Runs a command that finds the demo's database in its environment."""
    if not command:
        raise DemoError("with needs a command, such as: with bash")
    state.create()
    return beside_database(state, command)


def beside_database(state: State, command: list[str], script: str | None = None, *, url_last: bool = False) -> int:
    """Runs the command while the demo's database is there, started for that time if it does not run."""
    signal.signal(signal.SIGINT, lambda *_: None)  # the command's own business
    with state.locked() as alone, cluster.running(state.folder) if alone else nullcontext() as sockets:
        folder = sockets or Path((state.folder / "data" / "postmaster.pid").read_text().splitlines()[4])
        asyncio.run(control_plane.create(cluster.url(folder, "postgres")))
        url = cluster.url(folder, control_plane.DATABASE)
        path = [str(Path(sys.executable).parent), str(cluster.binaries()), os.environ.get("PATH", os.defpath)]
        environ = os.environ | {"OPS_WORKER_DATABASE_URL": url, "PATH": os.pathsep.join(path)}
        words = [*command, url] if url_last else command  # it holds no password
        try:
            return subprocess.run(words, env=environ, input=script, text=True, check=False).returncode
        except FileNotFoundError:
            raise DemoError(f"there is no command {command[0]}") from None


def _git_commit() -> str | None:
    git = ["git", "-C", str(engine.ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _command(state: State) -> str:
    elsewhere = [] if state.folder == DEFAULT_STATE else ["--state", shown(state.folder)]
    return shlex.join([shown(engine.HERE / "run"), *elsewhere])


async def main_task(state: State, screen: Screen, *, wait: bool) -> int:
    """The demo, ended cleanly by the first Ctrl-C or SIGTERM; more of them change nothing."""
    task = asyncio.ensure_future(demo(state, screen, wait=wait))
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            screen.say("Stopping: what runs is cancelled, what was started is removed.", "yellow")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        return 130


def main() -> int:
    parser = argparse.ArgumentParser("demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="folder of the demo's state")
    parser.add_argument("--no-wait", action="store_true", help="end without waiting for Enter")
    parser.add_argument("command", nargs="?", choices=["log", "psql", "with"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    state = State(options.state.resolve())
    screen = Screen()
    try:
        if options.command:
            return {"log": log, "psql": psql, "with": run_with}[options.command](state, options.arguments)
        state.create()
        with state.locked() as alone:
            if alone:
                return asyncio.run(main_task(state, screen, wait=not options.no_wait and sys.stdin.isatty()))
        screen.fail(f"demo: {shown(state.folder)} is in use by another demo or psql")
    except (DemoError, WorkerFailed, cluster.ClusterError, engine.CommandError, OpsError, ExceptionGroup) as error:
        screen.fail(f"demo: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
