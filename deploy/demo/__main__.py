"""``make demo``: real work through a real PostgreSQL and a real Docker engine, to watch.

python deploy/demo               the demo; its state is kept in .demo/
python deploy/demo psql [ARG…]   psql in the demo's database, also while the demo runs
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

from deploy.demo import cluster, control_plane, engine
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
        """Artifacts by run, as links that a person can find his way in."""
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
        """Whether nobody else uses the folder; nobody else can while this lasts."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


# --- the demo ---------------------------------------------------------------------------------------------------------


async def demo(state: State, screen: Screen) -> bool:
    """The whole demo; whether all went as expected."""
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
        return await report(state, screen, show)


async def _remove_runs(plane: control_plane.ControlPlane) -> None:
    await engine.remove_runs(await plane.database_id())  # which is known once its worker has registered


async def report(state: State, screen: Screen, show: Show) -> bool:
    """The table, where everything is, and what is not as it should be."""
    rows: list[Row] = []
    listing: dict[str, list[str]] = {}
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
            folder = link(state.runs / f"{run.number}-{job.workflow_type}", artifacts[0].path.parent)
            listing[shown(folder)] = [each.name for each in artifacts]
        rows.append(Row(
            number=run.number, name=job.name, status=run.status, took=run.took, waited=run.waited, lines=run.lines,
            warnings=run.warnings, artifacts=len(artifacts), size=sum(each.size for each in artifacts), reason=reason,
        ))  # fmt: skip
    screen.table(rows)
    screen.heading("Artifacts")
    screen.files(listing)
    screen.heading("Look into the database again")
    screen.say(f"  {_command(state)} psql -c '\\dt ops.*'")
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
    return True


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def link(path: Path, target: Path) -> Path:
    """A link to a folder, replacing an older one."""
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
    return path


def psql(state: State, arguments: list[str]) -> int:
    """Runs psql in the demo's database, starting it for that time if it does not run."""
    if not (state.folder / "data").exists():
        raise DemoError("there is no database yet: run the demo first")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # psql's own business
    with state.locked() as alone, cluster.running(state.folder) if alone else nullcontext() as sockets:
        folder = sockets or Path((state.folder / "data" / "postmaster.pid").read_text().splitlines()[4])
        url = cluster.url(folder, control_plane.DATABASE)
        return subprocess.run([cluster.binaries() / "psql", *arguments, url], check=False).returncode


def _git_commit() -> str | None:
    git = ["git", "-C", str(engine.ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _command(state: State) -> str:
    elsewhere = [] if state.folder == DEFAULT_STATE else ["--state", shown(state.folder)]
    return shlex.join([shown(Path(sys.executable)), shown(engine.HERE), *elsewhere])


async def main_task(state: State, screen: Screen) -> int:
    """The demo, ended cleanly by the first Ctrl-C or SIGTERM; more of them change nothing."""
    task = asyncio.ensure_future(demo(state, screen))
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
    parser.add_argument("verb", nargs="?", choices=["psql"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    state = State(options.state.resolve())
    screen = Screen()
    try:
        if options.verb == "psql":
            return psql(state, options.arguments)
        state.create()
        with state.locked() as alone:
            if alone:
                return asyncio.run(main_task(state, screen))
        screen.fail(f"demo: {shown(state.folder)} is in use by another demo or psql")
    except (DemoError, WorkerFailed, cluster.ClusterError, engine.CommandError, OpsError, ExceptionGroup) as error:
        screen.fail(f"demo: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
