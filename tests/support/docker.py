"""A real control plane and real workers for the tests on a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from worker.database import roles
from worker.run.lifecycle import container_name

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("succeeded", "failed", "canceled")
HOST_PASSWORD = "hunter22-of-the-host"  # noqa: S105 - what no worker may print
PATIENCE = 120.0
"""Seconds after which a test gives up waiting; nothing is asserted about time."""
UNTIL_RELEASED = "while [ ! -e /tmp/go ]; do sleep 0.1; done"
"""Shell in a container: waits for ``Plane.release``."""
WAITS = f"echo up; {UNTIL_RELEASED}; echo down"


@dataclass
class WorkerProcess:
    """A worker under way."""

    process: asyncio.subprocess.Process
    output: Path

    def signal(self, number: int) -> None:
        """Not by way of the process object, which would take the exit status from whoever waits for it."""
        if self.process.returncode is None:
            os.kill(self.process.pid, number)

    async def wait(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def go_on(self) -> None:
        """Waits until the process stands still, then continues it: a SIGCONT before its SIGSTOP would be lost."""
        async with asyncio.timeout(PATIENCE):
            while not self.stands_still:
                await asyncio.sleep(0.02)
        self.signal(signal.SIGCONT)

    @property
    def said(self) -> list[dict[str, Any]]:
        """The worker's own log lines."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def until_said(self, event: str, *, error: str = "") -> dict[str, Any]:
        """Waits for a log line with that event, and with that text in its error."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for line in self.said:
                    if line["event"] == event and error in line.get("error", ""):
                        return line
                if self.process.returncode is not None:
                    raise AssertionError(f"worker exited without saying {event!r}:\n{self.output.read_text()}")
                await asyncio.sleep(0.02)

    @property
    def stands_still(self) -> bool:
        """Whether a SIGSTOP has taken effect."""
        return "\nState:\tT" in Path(f"/proc/{self.process.pid}/status").read_text()

    @property
    def peak_memory(self) -> int:
        """The most bytes that were resident so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


@asynccontextmanager
async def worker_process(
    output: Path, program: str, *argv: str, env: Mapping[str, str]
) -> AsyncIterator[WorkerProcess]:
    """A module of ours as a process that writes to that file, killed at the end of the block if it still lives."""
    with output.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", program, *argv, cwd=ROOT, env=env, stdout=sink, stderr=sink
        )
    try:
        yield WorkerProcess(process, output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class Plane:
    """A database with one project, and the workers on it: each logs in with the role of a build host.

    ``db`` and ``url`` are the superuser's.
    """

    db: asyncpg.Connection
    url: str
    image: str
    folder: Path
    project_id: uuid.UUID
    name: str
    identity: uuid.UUID
    """The database's, as a label of its runs' containers."""
    engine: str | None = None
    """The engine's address, where it is not the default one."""
    program: str = "worker"
    """The module that a worker process runs."""

    def docker(self, *words: str) -> str:
        """What the ``docker`` command prints, at this plane's engine."""
        return docker(*(() if self.engine is None else ("--host", self.engine)), *words)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def login(self, url: str) -> str:
        """Such a URL, for the host's role."""
        return roles.login_url(url, "postgres", f"{self.name}_host", HOST_PASSWORD)

    async def workflow(self, config: Mapping[str, Any] | None = None, **columns: Any) -> uuid.UUID:
        """A new workflow; returns its id."""
        values = {
            "project_id": self.project_id,
            "workflow_type": "build",
            "name": f"w{uuid.uuid4().hex[:8]}",
            "config": json.dumps(config or {}),
            **columns,
        }
        names, marks = ", ".join(values), ", ".join(f"${n}" for n in range(1, len(values) + 1))
        sql = f"insert into ops.workflows ({names}) values ({marks}) returning id"
        workflow_id: uuid.UUID = await self.db.fetchval(sql, *values.values())
        return workflow_id

    async def queue(self, workflow_id: uuid.UUID, metadata: Mapping[str, Any] | None = None) -> uuid.UUID:
        """Queues a run as a plain client does; returns its id."""
        run_id: uuid.UUID = await self.db.fetchval(
            "insert into ops.runs (project_id, workflow_id, status, metadata) values ($1, $2, 'queued', $3)"
            " returning id",
            self.project_id,
            workflow_id,
            json.dumps(metadata or {}),
        )
        return run_id

    async def shell(self, script: str, **config: Any) -> uuid.UUID:
        """Queues a run of a shell script; returns its id."""
        return await self.queue(await self.workflow({"command": ["sh", "-c", script], **config}))

    async def python(self, script: str, **config: Any) -> uuid.UUID:
        """Queues a run of a Python script; returns its id."""
        return await self.queue(await self.workflow({"command": ["python3", "-c", script], **config}))

    @asynccontextmanager
    async def worker(self, *flags: str, **environ: str) -> AsyncIterator[WorkerProcess]:
        """A worker process, killed at the end of the block if it still lives."""
        output = self.folder / f"worker-{uuid.uuid4().hex[:8]}.log"
        settings = {
            "OPS_WORKER_DATABASE_URL": self.login(self.url),
            "OPS_WORKER_WORKER_ID": f"{self.name}-worker",
            "OPS_WORKER_ARTIFACT_STORE": self.store.as_uri(),
            "OPS_WORKER_LOG_FORMAT": "json",
            "OPS_WORKER_DEFAULT_MEMORY": "256m",
            "OPS_WORKER_POLL_INTERVAL": "0.5",
            "OPS_WORKER_STOP_GRACE": "2",
        }
        async with worker_process(output, self.program, *flags, env={**os.environ, **settings, **environ}) as worker:
            yield worker

    async def work(self, *flags: str, **environ: str) -> WorkerProcess:
        """Runs a worker until the queue is empty, and expects it to leave in peace."""
        async with self.worker("--until-idle", *flags, **environ) as worker:
            assert await worker.wait() == 0, worker.output.read_text()
        return worker

    async def run(self, run_id: uuid.UUID) -> asyncpg.Record:
        return await self.db.fetchrow("select * from ops.runs where id = $1", run_id)

    async def until(self, run_id: uuid.UUID, *statuses: str) -> asyncpg.Record:
        """Waits for one of these states."""
        async with asyncio.timeout(PATIENCE):
            while (run := await self.run(run_id))["status"] not in statuses:
                await asyncio.sleep(0.02)
        return run

    async def until_logged(self, run_id: uuid.UUID, message: str) -> None:
        """Waits for a log line of exactly that text."""
        sql = "select exists (select from ops.run_logs where run_id = $1 and message = $2)"
        async with asyncio.timeout(PATIENCE):
            while not await self.db.fetchval(sql, run_id, message):
                await asyncio.sleep(0.02)

    async def until_says(self, run_id: uuid.UUID) -> str:
        """Waits for the first log line and returns its text."""
        async with asyncio.timeout(PATIENCE):
            while not (said := await self.messages(run_id)):
                await asyncio.sleep(0.02)
        return said[0]

    async def log(self, run_id: uuid.UUID) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.db.fetch(
            "select * from ops.run_logs where run_id = $1 order by seq", run_id
        )
        return rows

    async def messages(self, run_id: uuid.UUID) -> list[str]:
        return [line["message"] for line in await self.log(run_id)]

    async def events(self, run_id: uuid.UUID, event_type: str | None = None) -> list[dict[str, Any]]:
        """The run's events in order, with the payload read."""
        rows = await self.db.fetch("select * from ops.run_events where run_id = $1 order by seq", run_id)
        return [
            {**row, "payload": json.loads(row["payload"])} for row in rows if event_type in (None, row["event_type"])
        ]

    async def artifacts(self, run_id: uuid.UUID) -> dict[str, asyncpg.Record]:
        """The run's artifacts by their path below /artifacts."""
        rows = await self.db.fetch("select * from ops.run_artifacts where run_id = $1 order by artifact_key", run_id)
        return {json.loads(row["metadata"])["path"]: row for row in rows}

    def stored(self, artifact: asyncpg.Record) -> Path:
        """The file of an artifact."""
        return self.store / str(artifact["artifact_key"])

    async def release(self, run_id: uuid.UUID) -> None:
        """Lets a container go on that waits for /tmp/go."""
        self.docker("exec", self.container(run_id), "touch", "/tmp/go")  # noqa: S108 - inside the container

    async def containers(self) -> list[str]:
        """The containers of this database's runs, in any state."""
        return self.docker("ps", "-aq", "--filter", f"label=ops-worker.database-id={self.identity}").split()

    def container(self, run_id: uuid.UUID) -> str:
        """The name of that run's container."""
        return container_name(run_id, self.identity)


def docker(*words: str, check: bool = True) -> str:
    """What the ``docker`` command prints."""
    return subprocess.run(["docker", *words], check=check, capture_output=True, text=True).stdout


def base_image(*packages: str) -> str:
    """An image with a shell and Python, made or found by the project's own script."""
    command = [str(ROOT / "scripts" / "base-image"), *packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stderr}"
    return done.stdout.strip()


async def new_plane(db: asyncpg.Connection, url: str, image: str, folder: Path, tool: Sequence[str] = ()) -> Plane:
    """Registers a project, its tool, and a build host in an empty control plane."""
    name = f"t{uuid.uuid4().hex[:10]}"
    await roles.create_worker(db, f"{name}_host", HOST_PASSWORD)
    project_id = await db.fetchval(
        "insert into ops.projects (workspace_key, slug, name, odoo_version) values ($1, $1, $1, '19.0') returning id",
        name,
    )
    await db.execute("insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', $1)", image)
    identity = await db.fetchval("select ops_private.database_identity()")
    return Plane(db, url, image, folder, project_id, name, identity)
