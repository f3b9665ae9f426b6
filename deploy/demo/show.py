"""The runs under way: follows them in the database and shows them, beside the worker that does the work."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo import engine
from deploy.demo.control_plane import BUILD, DEPLOY, ControlPlane, Job, RunView
from deploy.demo.screen import Progress, Screen

LOOK_SECONDS = 0.15
STOP_SECONDS = 30
CONCURRENCY = 4


class WorkerFailed(Exception):
    """The worker failed, or left runs undone."""

    def __init__(self, exit_code: int | None, log: Path) -> None:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        super().__init__(f"the worker exited with {exit_code} before all was done; it said:\n{last}")


@dataclass
class Show:
    """The demo's runs: follows them, shows them, and queues the deployment once there is something to deploy."""

    screen: Screen
    plane: ControlPlane
    services: engine.Services
    jobs: dict[uuid.UUID, Job] = field(default_factory=dict)
    ended: set[uuid.UUID] = field(default_factory=set)

    async def queue(self, job: Job, env: dict[str, str] | None = None) -> int:
        run_id, number = await self.plane.queue(job, env)
        self.jobs[run_id] = job
        return number

    async def look(self) -> None:
        """Shows how each run stands; queues the deployment once the build has ended."""
        runs = await self.plane.runs(self.jobs)
        self.screen.show([
            Progress(
                number=run.number, name=self.jobs[run.run_id].name, status=run.status, took=run.took, lines=run.lines,
                warnings=run.warnings, errors=run.errors, last_line=run.error_message or run.last_line,
            )
            for run in runs
        ])  # fmt: skip
        for run in runs:
            if run.final and run.run_id not in self.ended:
                self.ended.add(run.run_id)
                if self.jobs[run.run_id] is BUILD and run.status == "succeeded":
                    await self._deploy(run)

    async def _deploy(self, run: RunView) -> None:
        """What a deployment needs: the build's package on the package server, and the checksums out of the database."""
        files = {each.name: each for each in await self.plane.artifacts(run.run_id)}
        url = await self.services.publish(f"build-{run.number}", {name: each.path for name, each in files.items()})
        env = {"PACKAGE_URL": url, "MANIFEST_SHA256": files["manifest.json"].checksum.removeprefix("sha256:")}
        if last := await self.plane.last_deployment():
            url = await self.services.publish("deployed", {last.name: last.path})
            env |= {"PREVIOUS_URL": f"{url}/{last.name}", "PREVIOUS_SHA256": last.checksum.removeprefix("sha256:")}
        await self.queue(DEPLOY, env)

    @property
    def open(self) -> list[uuid.UUID]:
        """The runs that have not ended."""
        return [run_id for run_id in self.jobs if run_id not in self.ended]


# --- the worker -------------------------------------------------------------------------------------------------------


def worker_flags(store: Path, network: str) -> list[str]:
    """What a person would type; the database's address is in the environment."""
    return [
        "--until-idle",
        f"--concurrency={CONCURRENCY}",
        "--worker-id=demo",
        f"--artifact-store={store.as_uri()}",
        f"--allowed-images={engine.REPOSITORY}:*",
        f"--allowed-networks=none,{network}",
    ]


@asynccontextmanager
async def worker(flags: list[str], url: str, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The real worker as a process of its own; ended when this is left."""
    inherited = {name: value for name, value in engine.ENVIRONMENT.items() if not name.startswith("OPS_WORKER_")}
    guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
    with log.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            *guard, sys.executable, "-m", "worker", *flags, cwd=engine.ROOT,
            env={**inherited, "OPS_WORKER_DATABASE_URL": url},
            stdin=asyncio.subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def work(show: Show, flags: list[str], url: str, log: Path) -> None:
    """Runs the worker until all runs have ended.

    Raises:
        WorkerFailed: just that.
    """
    while show.open:
        known = len(show.jobs)
        async with worker(flags, url, log) as process:
            try:
                ended = False
                while not ended:
                    ended = process.returncode is not None  # before the look, so that one comes after its end
                    await show.look()
                    await asyncio.sleep(0 if ended else LOOK_SECONDS)
            except BaseException:
                await show.plane.cancel(show.open)  # so that the worker ends them instead of finishing them
                raise
        if process.returncode or (show.open and len(show.jobs) == known):
            raise WorkerFailed(process.returncode, log)
