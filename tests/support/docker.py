"""A real control plane and real workers for the tests on a real engine."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.postgres import run_sync
from worker.database import roles
from worker.model.volume import engine_name
from worker.run.preparation import container_name

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("succeeded", "failed", "canceled")
KILLED = 137
HOST_PASSWORD = "hunter22-of-the-host"  # noqa: S105 - what no worker may print
PATIENCE = 120.0
"""Seconds after which a test gives up waiting; nothing is asserted about time."""
UNTIL_RELEASED = "while [ ! -e /tmp/go ]; do sleep 0.1; done"
"""Shell in a container: waits for ``Plane.release``."""
WAITS = f"echo up; {UNTIL_RELEASED}; echo down"
ENGINE_SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
"""Where the engine listens that the tests share."""


async def until(condition: Callable[[], Any], pause: float = 0.05, patience: float = PATIENCE) -> Any:
    """Waits until the condition, which may be a coroutine function, answers something true; returns that."""
    async with asyncio.timeout(patience):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(pause)


@dataclass
class WorkerProcess:
    """A worker under way."""

    process: asyncio.subprocess.Process
    output: Path

    def signal(self, number: int) -> None:
        """Not by the process object, which would take the exit status from the task that waits for it."""
        if self.process.returncode is None:
            os.kill(self.process.pid, number)

    async def wait(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def resume(self) -> None:
        """Waits until the process is stopped, then continues it: a SIGCONT before its SIGSTOP would be lost."""
        await until(lambda: self.is_stopped)
        self.signal(signal.SIGCONT)

    @property
    def said(self) -> list[dict[str, Any]]:
        """The worker's own log lines."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def until_said(self, event: str, *, error: str = "") -> dict[str, Any]:
        """Waits for a log line with that event, and with that text in its error."""

        def found() -> dict[str, Any] | None:
            lines = [line for line in self.said if line["event"] == event and error in line.get("error", "")]
            if not lines and self.process.returncode is not None:
                raise AssertionError(f"worker exited without logging {event!r}:\n{self.output.read_text()}")
            return lines[0] if lines else None

        line: dict[str, Any] = await until(found)
        return line

    async def until_written(self, text: str) -> None:
        """Waits until the worker's log has that text."""
        await until(lambda: text in self.output.read_text())

    @property
    def is_stopped(self) -> bool:
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
    def shared_log(self) -> Path:
        """What the shared worker wrote."""
        return self.folder / "worker.log"

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
        async with worker_process(output, self.program, *flags, env={**self.environ, **environ}) as worker:
            yield worker

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a worker process, with its settings."""
        return {
            **os.environ,
            "OPS_WORKER_DATABASE_URL": self.login(self.url),
            "OPS_WORKER_WORKER_ID": f"{self.name}-worker",
            "OPS_WORKER_ARTIFACT_STORE": self.store.as_uri(),
            "OPS_WORKER_LOG_FORMAT": "json",
            "OPS_WORKER_DEFAULT_MEMORY": "256m",
            "OPS_WORKER_POLL_INTERVAL": "0.5",
            "OPS_WORKER_STOP_GRACE": "2",
        }

    async def work(self, *flags: str, **environ: str) -> WorkerProcess:
        """Runs a worker until the queue is empty, and expects exit code 0."""
        async with self.worker("--until-idle", *flags, **environ) as worker:
            assert await worker.wait() == 0, worker.output.read_text()
        return worker

    async def tool(self, image: str, config: Mapping[str, Any] | None = None) -> str:
        """A new version of the tool with that image; workflows ask for it as ``version``."""
        version = uuid.uuid4().hex[:8]
        sql = "insert into ops.tools (tool_name, version, docker_image, config) values ('odoo', $1, $2, $3)"
        await self.db.execute(sql, version, image, json.dumps(config or {}))
        return version

    async def cancel(self, run_id: uuid.UUID) -> str:
        """Asks for a cancel; returns the run's status."""
        answer = json.loads(await self.db.fetchval("select ops.cancel_run($1)", run_id))
        assert answer["success"], answer
        return str(answer["status"])

    async def run(self, run_id: uuid.UUID) -> asyncpg.Record:
        return await self.db.fetchrow("select * from ops.runs where id = $1", run_id)

    async def until(self, run_id: uuid.UUID, *statuses: str) -> asyncpg.Record:
        """Waits for one of these states."""

        async def reached() -> asyncpg.Record | None:
            run = await self.run(run_id)
            return run if run["status"] in statuses else None

        return await until(reached)

    async def finished(self, script: str, **config: Any) -> asyncpg.Record:
        """The run of a shell script, after a worker under way has completed it."""
        return await self.until(await self.shell(script, **config), *FINAL)

    async def until_logged(self, run_id: uuid.UUID, message: str) -> None:
        """Waits for a log line of exactly that text."""
        sql = "select exists (select from ops.run_logs where run_id = $1 and message = $2)"
        await until(lambda: self.db.fetchval(sql, run_id, message))

    async def until_says(self, run_id: uuid.UUID) -> str:
        """Waits for the first log line and returns its text."""
        lines: list[str] = await until(lambda: self.messages(run_id))
        return lines[0]

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
        self.release_container(self.container(run_id))

    def release_container(self, container: str) -> None:
        """The same by name. The program may end, and its container with it, before ``touch`` does: 137, killed."""
        words = ("exec", container, "touch", "/tmp/go")  # noqa: S108 - inside the container
        try:
            self.docker(*words)
        except subprocess.CalledProcessError as error:
            if error.returncode != KILLED:
                raise

    async def containers(self) -> list[str]:
        """The containers of this database's runs, in any state."""
        return self.docker("ps", "-aq", "--filter", f"label=ops-worker.database-id={self.identity}").split()

    async def until_containers(self, left: int) -> None:
        """Waits until that many containers of this database are left."""

        async def reached() -> bool:
            return len(await self.containers()) == left

        await until(reached)

    def volume(self, name: str) -> str:
        """The engine's name of a volume of the project."""
        return engine_name(self.identity, self.project_id, name)

    def remove_volumes(self) -> None:
        """Removes the volumes and caches of this database's projects, when no container of theirs is left."""
        label = f"label=ops-worker.database-id={self.identity}"
        if names := self.docker("volume", "ls", "-q", "--filter", label).split():
            self.docker("volume", "rm", *names)

    def caches(self) -> list[str]:
        """The volumes of this database's caches, without those that mark others as kept."""
        label = f"label=ops-worker.database-id={self.identity}"
        return self.docker("volume", "ls", "-q", "--filter", label, "--filter", "label=ops-worker.cache").split()

    def kept_caches(self) -> set[str]:
        """Those of them that a run has kept, and that a later one may find."""
        marks = self.docker("volume", "ls", "--filter", "label=ops-worker.cache-kept", "--format", "{{.Name}}").split()
        return set(self.caches()) & {mark.removesuffix("-kept") for mark in marks}

    def container(self, run_id: uuid.UUID) -> str:
        """The name of that run's container."""
        return container_name(run_id, self.identity)


def docker(*words: str, check: bool = True) -> str:
    """What the ``docker`` command prints."""
    return subprocess.run(["docker", *words], check=check, capture_output=True, text=True).stdout


def printed(*words: str) -> str:
    """What a container prints: ``docker run`` with these words, read from its log.

    Docker 26.1 can lose the output of a short container on the way to an attached client.
    """
    container = docker("run", "--detach", *words).strip()
    try:
        code = docker("wait", container).strip()
        text = docker("logs", container)
        assert code == "0", f"exit code {code}: {text}"
        return text
    finally:
        docker("rm", "--volumes", container)


def base_image(*packages: str) -> str:
    """An image with a shell and Python, made or found by the project's own script."""
    command = [str(ROOT / "scripts" / "base-image"), *packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}:\n{done.stderr}"
    return done.stdout.strip()


async def new_plane(db: asyncpg.Connection, url: str, image: str, folder: Path) -> Plane:
    """Registers a build host, a tool, and a project in an empty control plane."""
    host = f"t{uuid.uuid4().hex[:10]}"
    await roles.create_worker(db, f"{host}_host", HOST_PASSWORD)
    await db.execute("insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', $1)", image)
    identity = await db.fetchval("select ops_private.database_identity()")
    return Plane(db, url, image, folder, await new_project(db, host), host, identity)


async def new_project(db: asyncpg.Connection, name: str) -> uuid.UUID:
    sql = "insert into ops.projects (workspace_key, slug, name, odoo_version) values ($1, $1, $1, '19.0') returning id"
    project_id: uuid.UUID = await db.fetchval(sql, name)
    return project_id


@contextmanager
def shared_worker(url: str, image: str, folder: Path) -> Iterator[Plane]:
    """A plane on that database, and a worker on it as long as the block lasts; it must leave with exit code 0.

    ``Plane.db`` is closed: each test connects anew, in its own event loop.
    """

    async def prepared() -> Plane:
        db = await asyncpg.connect(url)
        try:
            return await new_plane(db, url, image, folder)
        finally:
            await db.close()

    plane = run_sync(prepared)
    (folder / "secrets").mkdir()
    words = [sys.executable, "-m", plane.program, "--concurrency", "6", "--secrets-dir", str(folder / "secrets")]
    words += ["--allowed-volumes", "*/allowed*"]
    with (
        plane.shared_log.open("wb") as sink,
        subprocess.Popen(
            words, cwd=ROOT, env=plane.environ | {"SECRET_OF_THE_HOST": HOST_PASSWORD}, stdout=sink, stderr=sink
        ) as process,
    ):
        try:
            yield plane
            process.terminate()
            log = plane.shared_log.read_text
            assert process.wait(PATIENCE) == 0, log()
            assert HOST_PASSWORD not in log(), "no setting is logged with its password"
        finally:
            process.kill()


async def new_tenant(plane: Plane, db: asyncpg.Connection) -> Plane:
    """A project of its own on a shared worker's plane."""
    name = f"t{uuid.uuid4().hex[:10]}"
    return replace(plane, db=db, project_id=await new_project(db, name), name=name)
