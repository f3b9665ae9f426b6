"""A control plane, an engine, a relay in front of each, workers that may die, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tests.db.world import shift_clock
from tests.support.docker import FINAL, Plane, WorkerProcess, new_plane, until
from tests.support.postgres import Cluster
from tests.support.relay import Relay
from worker.model.volume import CACHE_PREFIX, VOLUME_PREFIX
from worker.run.services import service_container

LEASE = 15
"""Seconds: the shortest that the worker takes."""

LONG = 300
LONG_LEASE = ("--lease", str(LONG))
"""For a worker that is killed or stops: its run must stay with it while other workers start."""

MEMORY_BOUND = 100 << 20
"""Bytes that no worker may ever have resident, whatever happens around it."""

DURABLE = {"synchronous_commit": "on"}
"""For servers that die: what was committed must be there afterwards (the machine itself lives on)."""

SERVES = """\
import socket
server = socket.create_server(("", 5432))
while True:
    with server.accept()[0] as caller:
        caller.sendall(b"served")
"""
ASKS = "import socket, sys; print(socket.create_connection((sys.argv[1], 5432), 60).recv(9).decode())"
HEALTH = {
    "command": ["python3", "-c", 'import socket; socket.create_connection(("127.0.0.1", 5432), 1).close()'],
    "interval_seconds": 0.2,
    "retries": 1000,
}
"""A service that answers who connects, the question of its run, and its health check."""

SERVE = {"port": 5432, "health": {"interval_seconds": 0.2}}
HTTP = SERVES.replace('sendall(b"served")', 'sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" if caller.recv(999) else b"")')
"""A served run, and what it does at its end."""

UP = "up"
LAST = "end, without a newline"


@dataclass(frozen=True)
class Job:
    """A run, and what must be found of it afterwards."""

    run_id: uuid.UUID
    lines: Sequence[str]
    files: dict[str, bytes]
    exit_code: int
    container: str
    """The name of its container."""
    services: int = 0
    """How many services it has."""
    volume: str | None = None
    """The engine's name of its volume, in which it counts its executions too."""


@dataclass
class Scene:
    """Everything of one test. Workers reach database and engine through the relays, the test goes straight there."""

    plane: Plane
    cluster: Cluster
    name: str
    """The database's."""
    role: str
    """The one that the workers log in as."""
    database: Relay
    engine: Relay
    events: Path | None
    """What the engine said of containers and volumes since the test began."""
    workers: list[WorkerProcess] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)
    peak: int = 0

    # --- acting -----------------------------------------------------------------------------------------------------

    async def job(
        self,
        lines: int = 200,
        *,
        waits: bool = False,
        pause: float = 0.0,
        exit_code: int = 0,
        big: bool = False,
        then: str = "",
        services: int = 0,
        volume: bool = False,
        caches: bool = False,
        ttl: float = 0,
        **config: Any,
    ) -> Job:
        """Queues a run that prints numbered lines and leaves files.

        It counts its own executions in the artifact ``ran``. ``waits``: after its first line it waits for
        ``release``. ``pause``: seconds between ten portions of the lines. ``then``: what it does at the end. ``ttl``:
        then it is served for so many seconds. ``services``: how many it has, each of which must answer before its
        first line. ``volume``: whether it and its first service have one. ``caches``: whether it uses the cache that
        all of them share, and prints it if it finds one that another left half-done.
        """
        nonce = uuid.uuid4().hex[:8]
        names = [f"s{n}" for n in range(services)]
        words = ["echo ran >> /artifacts/ran", *(f"python3 -c '{ASKS}' {name}" for name in names), f"echo {UP}"]
        volumes = [{"name": nonce, "path": "/kept"}] if volume else []
        if volume:
            words.insert(0, "echo ran >> /kept/ran")
            config["volumes"] = volumes
        if caches:
            words.insert(0, "[ ! -e /cache/n ] || cmp -s /cache/n /cache/check || echo poisoned; date +%s%N > /cache/n")
            words.append("cp /cache/n /cache/check")
            config["cache"] = [{"name": "shared", "path": "/cache"}]
        if ttl:
            then, config["serve"] = f"exec python3 -c '{HTTP}'", {**SERVE, "ttl_seconds": ttl}
        if services:
            service = {"image": self.plane.image, "command": ["python3", "-c", SERVES], "health": HEALTH}
            config["services"] = [{"name": name, **service} for name in names]
            config["services"][0]["volumes"] = volumes
        if waits:
            words.append("while [ ! -e /tmp/go ]; do sleep 0.05; done")
        size = max(1, -(-lines // 10) if pause else lines)
        for first in range(1, lines + 1, size):
            words.append(f"seq -f '{nonce} %.0f' {first} {min(lines, first + size - 1)}")
            words += [f"sleep {pause}"] if pause else []
        files = {"ran": b"ran\n", "deep/numbers": numbers(1000)}
        words.append("mkdir /artifacts/deep; seq 1 1000 > /artifacts/deep/numbers")
        if big:
            words.append("seq 1 200000 > /artifacts/big")
            files["big"] = numbers(200_000)
        words += [f"printf '{LAST}'", then, f"exit {exit_code}"]
        run_id = await self.plane.shell("\n".join(words), **config)
        said = [*("served" for _ in names), UP, *(f"{nonce} {n}" for n in range(1, lines + 1)), LAST]
        kept = self.plane.volume(nonce) if volume else None
        return Job(run_id, said, files, exit_code, self.plane.container(run_id), services, kept)

    @asynccontextmanager
    async def worker(
        self, *flags: str, name: str = "a", points: str = "", **environ: str
    ) -> AsyncIterator[WorkerProcess]:
        """A worker process of that name; ``points`` as in tests/faults/doomed.py."""
        words = (
            "--lease", str(LEASE), "--worker-id", f"{self.plane.name}-{name}", "--allowed-volumes", "*", *flags
        )  # fmt: skip
        ours = {"OPS_FAULT_POINTS": points, "OPS_WORKER_DOCKER_HOST": f"unix://{self.engine.path}"}
        async with self.plane.worker(*words, **{**ours, **environ}) as worker:
            self.workers.append(worker)
            yield worker

    async def work(self, *flags: str, name: str = "a") -> WorkerProcess:
        """A worker that works until the queue is empty; expects exit code 0."""
        async with self.worker("--until-idle", *flags, name=name) as worker:
            assert await worker.wait() == 0, worker.output.read_text()
        return worker

    async def killed(self, *flags: str, points: str, name: str = "a") -> None:
        """A worker that works until it kills itself; its runs stay its own, however slowly other workers start."""
        async with self.worker(*LONG_LEASE, *flags, points=points, name=name) as worker:
            assert await worker.wait() == -signal.SIGKILL, worker.output.read_text()
        self.note_volumes()

    async def release(self, job: Job) -> None:
        await self.plane.release(job.run_id)

    async def until_up(self, job: Job) -> None:
        await self.plane.until_logged(job.run_id, UP)

    async def until_final(self, *jobs: Job) -> None:
        for job in jobs:
            await self.plane.until(job.run_id, *FINAL)

    async def cancel(self, job: Job) -> None:
        await self.plane.cancel(job.run_id)

    async def later(self, seconds: float) -> None:
        """Moves the database's clock."""
        await shift_clock(self.plane.db, seconds)

    async def reconnect(self) -> None:
        """The test's own connection, after it was cut."""
        self.plane.db.terminate()
        self.plane.db = await asyncpg.connect(self.cluster.url(self.name))

    async def until_gone(self) -> None:
        """Waits until no container and no network of this database is left."""
        await self.plane.until_containers(0)
        await until(lambda: not self.networks())
        await until(lambda: set(self.plane.caches()) == self.plane.kept_caches())

    def networks(self) -> list[str]:
        """The networks of this database's runs."""
        label = f"label=ops-worker.database-id={self.plane.identity}"
        return self.plane.docker("network", "ls", "--quiet", "--filter", label).split()

    async def adoptions(self, job: Job) -> list[str]:
        """The names of the workers that took the run over, in order."""
        payloads = [event["payload"] for event in await self.plane.events(job.run_id, "info")]
        return [said["worker_id"].rpartition("-")[2] for said in payloads if "previous_worker_id" in said]

    async def until_ready(self, job: Job) -> None:
        """Waits until a served run is ready."""

        async def is_ready() -> bool:
            return (await self.plane.run(job.run_id))["ready_at"] is not None

        await until(is_ready)

    def note_volumes(self) -> None:
        """Remembers the volumes of the containers that are there, so that their absence can be shown later."""
        words = ("--filter", f"label=ops-worker.database-id={self.plane.identity}", "--format", "{{.Mounts}}")
        named = self.plane.docker("ps", "-a", "--no-trunc", *words)
        self.volumes.update(name for line in named.splitlines() for name in line.split(",") if name)

    # --- what must hold ---------------------------------------------------------------------------------------------

    async def holds(
        self,
        job: Job,
        status: str = "succeeded",
        reason: str = "succeeded",
        *,
        log: str = "whole",
        ran: bool | None = True,
    ) -> None:
        """The run ended like this, and nothing of it was lost, doubled or disordered.

        ``log``: ``whole``, or ``begun`` when it was ended on the way. ``ran``: whether its container was started;
        None when that is not known.
        """
        run = await self.plane.run(job.run_id)
        ended = (run["status"], run["reason"], run["exit_code"])
        code = {"succeeded": 0, "exit_code": job.exit_code}.get(reason, run["exit_code"])
        assert ended == (status, reason, code), run["error_message"]
        await self._log_holds(job, "empty" if ran is False else log)
        await self._events_hold(job, status, reason)
        infos = [event["message"] for event in await self.plane.events(job.run_id, "info")]
        assert infos.count("ready") == int(run["ready_at"] is not None)
        if log == "whole" and ran:
            await self._artifacts_hold(job)
        if job.volume is not None and ran:
            words = ("run", "--rm", "--network", "none", "--volume", f"{job.volume}:/x:ro", self.plane.image)
            assert self.plane.docker(*words, "cat", "/x/ran") == "ran\n", "it stays, and the run ran once"
        if self.events is not None:
            await self._executed(job, times=int(ran is True), most=int(ran is not False))

    async def nothing_is_left(self) -> None:
        """No container, network, volume or lease; and no worker ever took more memory than it may."""
        assert await self.plane.containers() == []
        assert self.networks() == []
        left = set(self.plane.docker("volume", "ls", "--quiet").split())
        mounted = {record["Actor"]["ID"] for record in self._said("volume", "mount")}
        gone = {name for name in self.volumes | mounted if not name.startswith((VOLUME_PREFIX, CACHE_PREFIX))}
        assert not gone & left
        assert set(self.plane.caches()) == self.plane.kept_caches(), "no run is left that could keep another"
        assert await self.plane.db.fetch("select * from ops_private.leases") == []
        assert self.peak < MEMORY_BOUND, f"{self.peak >> 20} MiB"

    async def _log_holds(self, job: Job, how: str) -> None:
        rows = await self.plane.log(job.run_id)
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        said = [row["message"] for row in rows]
        expected = {"whole": list(job.lines), "begun": list(job.lines[: len(said)]), "empty": []}[how]
        if how == "begun" and said and expected[-1].startswith(said[-1]):  # ended in the middle of a line
            expected[-1] = said[-1]
        differing = next((n for n, (one, other) in enumerate(zip(said, expected, strict=False)) if one != other), None)
        assert said == expected, f"{len(said)} lines for {len(expected)}, the first that differs: {differing}"

    async def _events_hold(self, job: Job, status: str, reason: str) -> None:
        changes = await self.plane.events(job.run_id, "state_change")
        chain = [(change["payload"]["previous_status"], change["payload"]["new_status"]) for change in changes]
        path = [new for _, new in chain]
        assert [old for old, _ in chain[1:]] == path[:-1], "each change begins where the one before ended"
        assert [state for state in path if state in FINAL] == [status]
        assert path.count("running") <= 1, path
        assert changes[-1]["payload"].get("reason") == reason
        if status == "failed":
            errors = await self.plane.events(job.run_id, "error")
            assert [error["payload"]["reason"] for error in errors] == [reason]

    async def _artifacts_hold(self, job: Job) -> None:
        artifacts = await self.plane.artifacts(job.run_id)
        assert sorted(artifacts) == sorted(job.files), sorted(artifacts)
        for path, content in job.files.items():
            row = artifacts[path]
            assert row["checksum"] == f"sha256:{hashlib.sha256(content).hexdigest()}", path
            assert row["size_bytes"] == len(content)
            assert self.plane.stored(row).read_bytes() == content

    async def _executed(self, job: Job, times: int, most: int) -> None:
        """How often the engine started a container for the run: ``times`` to ``most``."""
        await until(lambda: self._starts()[job.container] >= times)  # the engine's events come a little later
        assert self._starts()[job.container] <= most
        for n in range(job.services):
            starts = self._starts()[service_container(job.container, f"s{n}")]
            assert times <= starts <= 1, "a service is started before its run, and once"

    def _starts(self) -> Counter[str]:
        return Counter(record["Actor"]["Attributes"]["name"] for record in self._said("container", "start"))

    def _said(self, kind: str, action: str) -> list[dict[str, Any]]:
        """The engine's events about containers of this database, or about volumes mounted into one of them."""
        lines = [] if self.events is None else self.events.read_text().splitlines()
        records = [record for line in lines if (record := json.loads(line))["Type"] == kind]
        mine = {run["Actor"]["ID"] for run in self._said("container", "create")} if kind == "volume" else set()
        return [
            record
            for record in records
            if record["Action"] == action
            and (
                record["Actor"]["Attributes"].get("container") in mine
                or record["Actor"]["Attributes"].get("ops-worker.database-id") == str(self.plane.identity)
            )
        ]

    async def _watch_memory(self) -> None:
        while True:
            for worker in self.workers:
                with suppress(OSError, IndexError):  # it is gone
                    self.peak = max(self.peak, worker.peak_memory)
            await asyncio.sleep(0.1)


def numbers(last: int) -> bytes:
    """What ``seq 1 last`` prints."""
    return "".join(f"{n}\n" for n in range(1, last + 1)).encode()


@asynccontextmanager
async def new_scene(
    cluster: Cluster, image: str, folder: Path, engine: str, *, own: bool = False
) -> AsyncIterator[Scene]:
    """A scene on a database of its own; ``engine`` is the engine's socket, ``own`` whether it is the tests' own."""
    async with AsyncExitStack() as stack:
        name = stack.enter_context(cluster.database(cluster.template()))
        db = await asyncpg.connect(cluster.url(name))
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ops-r-")))  # a short path
        database = Relay(f"{cluster.directory}/.s.PGSQL.{cluster.port}")
        relay = Relay(engine, sockets / "docker.sock")
        await stack.enter_async_context(database.running())
        await stack.enter_async_context(relay.running())
        url = f"postgresql://127.0.0.1:{database.port}/{name}?sslmode=disable"
        plane = await new_plane(db, url, image, folder)
        plane.url = plane.login(url)
        plane.program = "tests.faults.doomed"
        plane.engine = f"unix://{engine}" if own else None
        said = None if own else stack.enter_context(_events(folder / "engine-events"))
        scene = Scene(plane, cluster, name, f"{plane.name}_host", database, relay, said)
        watch = asyncio.create_task(scene._watch_memory())
        try:
            yield scene
        finally:
            watch.cancel()
            with suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
                if scene.plane.db.is_closed():
                    await scene.reconnect()
                if left := await plane.containers():
                    plane.docker("rm", "-fv", *left)
                if networks := scene.networks():
                    plane.docker("network", "rm", *networks)
                plane.remove_volumes()
            scene.plane.db.terminate()


@contextmanager
def _events(output: Path) -> Iterator[Path]:
    """The engine's events about containers and volumes, from now on, a line of JSON each."""
    words = ["docker", "events", "--since", str(time.time()), "--format", "{{json .}}"]
    for condition in ("type=container", "type=volume", "event=create", "event=start", "event=mount"):
        words += ["--filter", condition]
    with output.open("wb") as sink, subprocess.Popen(words, stdout=sink) as process:
        try:
            yield output
        finally:
            process.kill()
