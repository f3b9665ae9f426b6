"""Scripted neighbours: an engine, a queue, a store and a disk for a run or a daemon; connections for the queue."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import anyio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from tests.unit.claims import make_claim
from tests.unit.journal import LogLine, frame, rows
from worker.daemon import Daemon, DaemonOptions, Timings
from worker.errors import EngineError, EngineUnavailable, Refused
from worker.model.claim import Adoption, Artifact, Claim, DiskSpace, Heartbeat, LogLines, NextRun, NotAdopted
from worker.model.config import ArtifactRule
from worker.model.container import (
    LABEL_SERVICE,
    LABEL_TERMS,
    ContainerState,
    Image,
    Networks,
    ProjectNetwork,
    RunNetwork,
    Secret,
    Written,
)
from worker.model.outcome import Outcome, Stop
from worker.model.report import CaseCounts, Report
from worker.model.spec import Bound, ContainerSpec, HostPolicy, RunSpec, ServiceSpec, resolve
from worker.model.volume import CacheVolume, ProjectVolume
from worker.run.lifecycle import Run
from worker.run.ports import RunContext, RunTimings
from worker.run.preparation import container_name
from worker.run.pulls import PullLimits, Pulls
from worker.run.quota import DiskQuota
from worker.run.services import service_container
from worker.tar import END_MARK
from worker.telemetry import Metrics

AWAY = EngineUnavailable("cannot be reached")
RUN_ID = uuid.UUID(int=7)
DATABASE = uuid.UUID(int=99)
NAME = container_name(RUN_ID, DATABASE)
CONTAINER = "c0ffee"
PATIENCE = 30.0
FOREVER = 3600.0
PULL_LIMITS = PullLimits(60.0, 60.0, 0.01)
LINES = [(1, "one"), (2, "two"), (1, "three"), (1, ""), (2, "fünf"), (1, "six")]
FRAMES = [frame(stream, f"{text}\n".encode()) for stream, text in LINES]
JOURNAL = b"".join(FRAMES)
SAID = [(n, text) for n, (_, text) in enumerate(LINES, 1)]


class Quiet:
    """A stream that says nothing more, and does not end."""


QUIET, END = Quiet(), b""
Step = bytes | Exception | Quiet | anyio.Event
"""What a stream does next; an event is waited for."""


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():
            await anyio.sleep(0.001)


def beat(
    *runs: uuid.UUID, cancel: tuple[uuid.UUID, ...] = (), registered: bool = True, draining: bool = False
) -> Heartbeat:
    return Heartbeat(registered, frozenset(runs), frozenset(cancel), draining)


class Scripted:
    """Records its calls in ``story``. ``faults`` are raised by the call of that name, one each time."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.faults: dict[str, list[Exception]] = {}

    async def call(self, call: str) -> None:
        await checkpoint()
        self.reached(call)

    def reached(self, call: str) -> None:
        self.story.append(call)
        if faults := self.faults.get(call):
            raise faults.pop(0)


class ScriptedEngine(Scripted):
    """An engine with one image and one container, whose program has ended by the first look at it.

    ``readings`` are the log streams to come; beyond them each is the whole journal. ``owned`` and ``written`` answer
    from what the test sets, for any number of runs.
    """

    def __init__(self, story: list[str]) -> None:
        super().__init__(story)
        self.readings: list[list[Step]] = []
        self.frames = FRAMES
        self.follows_short = False
        """Whether a stream that follows ends before the log does, as Podman's for a container that has ended."""
        self.exit_code = 0
        self.lasts = False
        self.restarted = False
        self.ignores_sigterm = False
        self.here = True
        self.pulls: Callable[[], Awaitable[None]] | None = None
        self.reports: list[Mapping[str, Any]] = []
        self.status: str | None = None
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None
        terms = resolve(make_claim(), HostPolicy()).terms
        self.labels: Mapping[str, str] = {LABEL_TERMS: terms.model_dump_json()}
        self.follows = 0
        self.grace_seconds: float | None = None
        self.artifacts: Path | None = None
        self.left_nothing = False
        self.created: tuple[Image, RunSpec, tuple[Secret, ...]] | None = None
        self.held: tuple[Secret, ...] = ()
        self.changed = anyio.Event()
        self.containers: set[uuid.UUID] = set()
        self.done: list[tuple[str, str]] = []
        self.written_bytes: dict[str, Written] = {}
        self.services: dict[str, ScriptedService] = {}
        self.network: RunNetwork | None = None
        self.networks: dict[str, Networks] = {}
        """Those of each container, by the service's name; the run's has none."""
        self.published: tuple[str, int] | None = ("127.0.0.1", 40_001)
        self.log_began: datetime | None = None
        self.tail = b""
        self.volumes: list[ProjectVolume] = []
        self.caches: list[CacheVolume] = []
        self.beside_removed: list[tuple[uuid.UUID, uuid.UUID]] = []

    def become(self, status: str | None) -> None:
        self.status = status
        self.changed.set()
        self.changed = anyio.Event()

    def earlier(self, status: str = "exited", *, ago: timedelta = timedelta(), **config: Any) -> None:
        """Makes the container one that an earlier worker created and started so long ago."""
        self.become(status)
        self.started_at = datetime.now(UTC) - ago
        self.labels = {LABEL_TERMS: resolve(make_claim(config=config), HostPolicy()).terms.model_dump_json()}

    async def image(self, reference: str) -> Image | None:
        await self.call("image")
        return Image(reference, "sha256:1", None, "") if self.here else None

    async def pull(self, reference: str, on_report: Callable[[Mapping[str, Any]], object]) -> None:
        await self.call("pull")
        for report in self.reports:
            on_report(report)
        self.here = True
        if self.pulls is not None:
            await self.pulls()

    async def create(
        self,
        name: str,
        image: Image,
        spec: ContainerSpec,
        labels: Mapping[str, str],
        secrets: Sequence[Secret],
        networks: Networks,
    ) -> ScriptedContainer:
        assert networks.own == self.network
        self.networks[spec.name if isinstance(spec, ServiceSpec) else ""] = networks
        if isinstance(spec, ServiceSpec):
            await self.call(f"create {spec.name}")
            assert (name, labels[LABEL_SERVICE]) == (service_container(NAME, spec.name), spec.name)
            self.service(spec.name).created = (spec, tuple(secrets))
            return self.container(name)
        assert isinstance(spec, RunSpec)
        await self.call("create")
        self.created = (image, spec, tuple(secrets))
        self.labels = labels
        assert name == NAME
        if self.status is None:
            self.become("created")
        return self.container(CONTAINER)

    async def started_after(self, moment: datetime) -> bool:
        await self.call("started_after")
        return self.restarted

    async def owned(self, database_id: uuid.UUID) -> set[uuid.UUID]:
        await self.call("owned")
        assert database_id == DATABASE
        return set(self.containers)

    async def written(self) -> dict[str, Written]:
        self.reached("written")
        return self.written_bytes

    def container(self, ref: str) -> ScriptedContainer:
        run, dash, service = ref.partition(f"{NAME}-")
        return self.service(service) if dash and not run else ScriptedContainer(self, ref)

    def service(self, name: str) -> ScriptedService:
        return self.services.setdefault(name, ScriptedService(self, name))

    async def create_volume(self, volume: ProjectVolume) -> None:
        await self.call(f"create volume {volume.name}")
        self.volumes.append(volume)

    async def fill_cache(self, cache: CacheVolume, image: Image, *, copies: bool = True) -> int:
        await self.call(f"fill {cache.name}" if copies else f"empty {cache.name}")
        self.caches.append(cache)
        return 2**20 if copies else 0

    async def keep_cache(self, cache: CacheVolume) -> None:
        await self.call(f"keep {cache.name}")
        assert cache in self.caches

    async def trim_caches(self, database_id: uuid.UUID, limit: int) -> None:
        await self.call(f"trim to {limit}")

    async def create_network(self, network: RunNetwork, labels: Mapping[str, str]) -> None:
        await self.call("create network")
        self.network = network

    async def create_project_network(self, network: ProjectNetwork) -> None:
        await self.call("create project network")

    async def trim_project_networks(self, database_id: uuid.UUID) -> None:
        await self.call("trim project networks")
        assert database_id == DATABASE

    async def remove_beside(self, database_id: uuid.UUID, run_id: uuid.UUID) -> None:
        await self.call("remove beside")
        self.beside_removed.append((database_id, run_id))
        self.network = None


class ScriptedContainer:
    """The handle of a container."""

    def __init__(self, engine: ScriptedEngine, ref: str) -> None:
        self._engine = engine
        self.ref = ref

    async def start(self) -> bool:
        await self._engine.call("start")
        starts = self._engine.status == "created"
        if starts:
            self._engine.started_at = datetime.now(UTC)
            self._engine.become("running" if self._engine.lasts else "exited")
        return starts

    async def inspect(self) -> ContainerState | None:
        await self._engine.call("inspect")
        if self._engine.status is None:
            return None
        times = self._engine.started_at, self._engine.finished_at
        folder = self._engine.artifacts
        return ContainerState(
            self._engine.status, self._engine.exit_code, False, "", *times, self._engine.labels, folder,
            published=self._engine.published if self._engine.status == "running" else None,
        )  # fmt: skip

    async def stop(self, grace_seconds: float) -> None:
        await self._engine.call("stop")
        self._engine.done.append(("stop", self.ref))
        self._engine.grace_seconds = grace_seconds
        if self._engine.status == "running" and (grace_seconds == 0 or not self._engine.ignores_sigterm):
            self._engine.exit_code = 143
            self._engine.become("exited")

    async def remove(self) -> None:
        await self._engine.call("remove")
        self._engine.done.append(("remove", self.ref))
        if self.ref == NAME:
            self._engine.become(None)
        gone = {run_id for run_id in self._engine.containers if container_name(run_id, DATABASE) == self.ref}
        self._engine.containers -= gone

    async def secrets(self, names: Sequence[str]) -> tuple[Secret, ...]:
        await self._engine.call("secrets")
        return tuple(secret for secret in self._engine.held if secret.name in names)

    async def left_nothing(self) -> bool:
        await self._engine.call("left_nothing")
        return self._engine.left_nothing

    async def tail(self, entries: int) -> bytes:
        await self._engine.call("tail")
        return self._engine.tail

    async def log_began(self) -> datetime | None:
        await self._engine.call("log_began")
        return self._engine.log_began

    async def last_entry(self) -> bytes:
        await self._engine.call("last_entry")
        return self._engine.frames[-1] if self._engine.frames and self._engine.started_at is not None else b""

    @asynccontextmanager
    async def follow(self, *, ended: bool) -> AsyncIterator[Reading]:
        assert not (ended and self._engine.status == "running")
        self._engine.follows += 1
        await self._engine.call("follow")
        script = self._engine.readings.pop(0) if self._engine.readings else None
        if self._engine.follows_short and not ended:
            script = [*self._engine.frames[:2], END]
        yield Reading(self._engine, script)

    @contextmanager
    def archive(self) -> Iterator[Iterator[bytes]]:
        self._engine.reached("archive")
        yield iter((END_MARK,))


class ScriptedService(ScriptedContainer):
    """A container beside the run's. ``states`` are what is found of it, one after the other; the last one stays."""

    def __init__(self, engine: ScriptedEngine, name: str) -> None:
        super().__init__(engine, service_container(NAME, name))
        self.name = name
        self.states: list[ContainerState | None] = [service_state()]
        self.journal = b""
        self.created: tuple[ServiceSpec, tuple[Secret, ...]] | None = None
        self.held: tuple[Secret, ...] = ()

    async def start(self) -> bool:
        await self._engine.call(f"start {self.name}")
        return True

    async def inspect(self) -> ContainerState | None:
        await self._engine.call(f"inspect {self.name}")
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def stop(self, grace_seconds: float) -> None:
        await self._engine.call(f"stop {self.name}")

    async def secrets(self, names: Sequence[str]) -> tuple[Secret, ...]:
        await self._engine.call(f"secrets {self.name}")
        return tuple(secret for secret in self.held if secret.name in names)

    async def tail(self, entries: int) -> bytes:
        await self._engine.call(f"tail {self.name}")
        if self.states[0] is None:
            raise EngineError(404, "No such container")
        return self.journal


def service_state(
    health: str | None = None, *, exit_code: int | None = None, ago: float = 0.0, **known: Any
) -> ContainerState:
    """A service that is running, or that ended with that exit code so many seconds ago."""
    now = datetime.now(UTC)
    status, ended = ("running", None) if exit_code is None else ("exited", now - timedelta(seconds=ago))
    state = ContainerState(status, exit_code or 0, False, "", now - timedelta(hours=1), ended, {}, health=health)
    return replace(state, **known)


class Reading:
    """One stream of the journal."""

    def __init__(self, engine: ScriptedEngine, script: list[Step] | None) -> None:
        self._engine = engine
        started = engine.started_at is not None
        self._steps: list[Step] = (list(engine.frames) if started else []) if script is None else script

    async def receive(self) -> bytes:
        if not self._steps:
            while self._engine.status == "running":
                await self._engine.changed.wait()
            return END
        if isinstance(self._steps[0], anyio.Event):
            await self._steps[0].wait()
            self._steps.pop(0)
        if isinstance(self._steps[0], Quiet):
            await anyio.sleep_forever()
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, bytes)
        return step


class ScriptedQueue(Scripted):
    """Takes what a run reports, and gives out what the test queued."""

    def __init__(self, story: list[str]) -> None:
        super().__init__(story)
        self.lines: list[LogLine] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.report: tuple[CaseCounts | None, str | None] | None = None
        self.artifacts: list[Artifact] = []
        self.outcome: Outcome | None = None
        self.ready: list[str] = []
        self.storing: Callable[[], Awaitable[None]] | None = None
        self.queued: list[Claim | Exception] = []
        self.waiting = self.repeated = False
        self.adoptions: dict[uuid.UUID, Claim | str | Exception] = {}
        self.adopted: list[uuid.UUID] = []
        self.held: set[uuid.UUID] = set()
        self.beats: list[Heartbeat | Exception] = []
        self.disks: list[DiskSpace | None] = []
        self.drained = False
        self.beating: Callable[[], Awaitable[None]] | None = None
        self.swept: dict[str, object] | None = {}
        self.released: list[uuid.UUID] = []
        self.registered: list[bool] = []
        self.listening = False
        self.hears = True
        self.gate = anyio.Event()
        self.gate.set()
        self.subscribing: Callable[[], Awaitable[None]] | None = None
        self.on_queue: Callable[[], None] = lambda: None
        self.on_cancel: Callable[[uuid.UUID], None] = lambda _: None

    async def start(self, run_id: uuid.UUID) -> None:
        await self.call("claim→running")

    async def mark_ready(self, run_id: uuid.UUID, url: str) -> None:
        await self.call("mark_ready")
        self.ready.append(url)

    async def complete(self, run_id: uuid.UUID, outcome: Outcome) -> str:
        await self.call("complete")
        assert self.outcome is None
        self.outcome = outcome
        if outcome.reason == "canceled":
            return "canceled"
        return "succeeded" if outcome.exit_code == 0 else "failed"

    async def record_container(self, run_id: uuid.UUID, container_id: str, details: dict[str, Any]) -> None:
        await self.call("record_container")
        self.events.append(("info", "container created", {**details, "container_id": container_id}))

    async def append_logs(self, run_id: uuid.UUID, lines: LogLines) -> None:
        await self.call("append_logs")
        if self.storing is not None:
            await self.storing()
        self.lines += rows([lines])

    async def add_artifact(self, run_id: uuid.UUID, artifact: Artifact) -> None:
        await self.call("add_artifact")
        if self.storing is not None:
            await self.storing()
        self.artifacts.append(artifact)

    async def record_report(self, run_id: uuid.UUID, tests: CaseCounts | None, summary: str | None) -> None:
        await self.call("record_report")
        self.report = (tests, summary)

    async def add_event(self, run_id: uuid.UUID, event_type: str, message: str, payload: dict[str, Any]) -> None:
        await self.call("add_event")
        self.events.append((event_type, message, payload))

    async def claim(self, *, served: bool = True) -> NextRun:
        self.reached("claim")
        if self.drained:
            return NextRun(None, waiting=False, draining=True)
        fits = [each for each in self.queued if served or not (isinstance(each, Claim) and each.served)]
        found = fits[0] if fits else None
        if found is not None:
            self.queued.remove(found)
        await self.gate.wait()
        if isinstance(found, Exception):
            raise found
        repeated, self.repeated = self.repeated, False
        return NextRun(found, waiting=found is None and self.waiting, repeated=repeated)

    async def release(self, run_id: uuid.UUID) -> None:
        self.reached("release")
        self.released.append(run_id)

    async def adopt(self, run_id: uuid.UUID) -> Adoption:
        self.adopted.append(run_id)
        await self.gate.wait()
        found = self.adoptions[run_id]
        if isinstance(found, Exception):
            raise found
        return Adoption(found) if isinstance(found, Claim) else Adoption(why_not=NotAdopted(found))

    async def adoptable(self) -> set[uuid.UUID]:
        return self.held

    async def heartbeat(self, disk: DiskSpace | None) -> Heartbeat:
        self.disks.append(disk)
        if self.beating is not None:
            await self.beating()
        if not self.beats:
            await anyio.sleep_forever()
        answer = self.beats.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def register(self, *, takeover: bool) -> uuid.UUID:
        self.registered.append(takeover)
        raise Refused("worker_id_taken", "another has it")

    async def reap(self) -> dict[str, object] | None:
        self.reached("reap")
        return self.swept

    async def listen(self, on_queue: Callable[[], None], on_cancel: Callable[[uuid.UUID], None]) -> bool:
        if self.subscribing is not None:
            await self.subscribing()
        self.on_queue, self.on_cancel, self.listening = on_queue, on_cancel, self.hears
        return self.hears


class ScriptedStore:
    """Finds one artifact, then does what the test wants."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.warns: list[str] = []
        self.waits: anyio.Event | None = None
        self.prefix = ""
        self.rules: Sequence[ArtifactRule] = ()
        self.redact: Callable[[str], str] = str
        self.files: dict[str, bytes] = {}

    async def collect(
        self,
        archive: Callable[[], AbstractContextManager[Iterator[bytes]]],
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        on_artifact: Callable[[Artifact], Awaitable[None]],
        on_warning: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str],
        report: Report,
    ) -> int:
        self.prefix, self.rules, self.redact = key_prefix, rules, redact
        if self.waits is not None:
            await self.waits.wait()
        with archive():
            for message in self.warns:
                await on_warning(message)
            if self.errors:
                raise self.errors.pop(0)
            for path, content in self.files.items():
                if (reader := report.reader(path, len(content))) is not None:
                    reader.feed(content)
                    reader.feed(b"")
            key = f"{key_prefix}a.txt"
            await on_artifact(Artifact("a.txt", key, f"file:///{key}", "text/plain", 1, "sha256:00", None))
        return 1


class World:
    """A run's neighbours, and all that they were asked for, in order."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.engine = ScriptedEngine(self.story)
        self.queue = ScriptedQueue(self.story)
        self.store = ScriptedStore()
        policy = HostPolicy()
        self.context = RunContext(
            self.queue, self.engine, self.store, policy, "host-a", DATABASE, 3, Pulls(self.engine, PULL_LIMITS), 2**30,
            timings=RunTimings(quiet=0.01, ended_poll=0.0, service_start_poll=0.001, service_poll=0.001),
        )  # fmt: skip

    def set(self, **changed: Any) -> None:
        """Changes fields of the context, or of its timings."""
        timings = {name: changed.pop(name) for name in RunTimings.__slots__ if name in changed}
        self.context = replace(self.context, timings=replace(self.context.timings, **timings), **changed)

    def limit_output(self, size: int) -> None:
        self.set(policy=HostPolicy(output=Bound(size)))

    def run(self, **claim: Any) -> Run:
        return Run(make_claim(RUN_ID, **claim), self.context)

    async def execute(self, run: Run | None = None, **claim: Any) -> str | None:
        with anyio.fail_after(PATIENCE):
            async with self.context.pulls.opened():
                return await (run or self.run(**claim)).execute()

    @asynccontextmanager
    async def executing(self, run: Run | None = None, **claim: Any) -> AsyncIterator[tuple[Run, list[str | None]]]:
        """Executes a run while the block goes on; the list gets the status. The block waits for the end."""
        run, result = run or self.run(**claim), list[str | None]()

        async def execute() -> None:
            result.append(await self.execute(run))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute)
                await wait_all_tasks_blocked()
                yield run, result

    @property
    def said(self) -> list[tuple[int, str]]:
        return [(line.seq, line.message) for line in self.queue.lines]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """The reason and the message of each warning event."""
        return [(payload["reason"], message) for kind, message, payload in self.queue.events if kind == "warning"]

    @property
    def outcome(self) -> tuple[str, int | None]:
        assert self.queue.outcome is not None
        return str(self.queue.outcome.reason), self.queue.outcome.exit_code

    @property
    def message(self) -> str:
        assert self.queue.outcome is not None
        return self.queue.outcome.message or ""

    @property
    def artifacts_error(self) -> str:
        assert self.queue.outcome is not None
        return str(self.queue.outcome.details["artifacts_error"])

    def did(self, *calls: str) -> list[str]:
        """Those of the calls that were made, in order."""
        return [call for call in self.story if call in calls]


class ScriptedRun:
    """A run that lasts until the test ends it."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.served = claim.served
        self.stops: list[Stop] = []
        self.quota = DiskQuota(self.stop)
        self.lost = False
        self.result: str | Exception | None = "succeeded"
        self.ended = anyio.Event()
        self.detached = False

    def stop(self, why: Stop) -> None:
        self.stops.append(why)

    def lose(self) -> None:
        self.lost = True
        self.end(None)

    def end(self, result: str | Exception | None = "succeeded") -> None:
        self.result = result
        self.ended.set()

    async def execute(self) -> str | None:
        try:
            await self.ended.wait()
        except BaseException:
            self.detached = True
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class ScriptedDisk:
    """A disk with ``left`` bytes, which is short below its floor."""

    left, floor, why = 2**62, 1000 * 2**20, "10m left on the disk of /var/lib/docker"

    def shortage(self) -> str | None:
        return self.why if self.left < self.floor else None

    def short_of(self) -> int | None:
        return self.left if self.left < self.floor else None

    def space(self) -> DiskSpace:
        return DiskSpace(self.left, 2**62)


class DaemonWorld:
    """A daemon between scripted neighbours. ``runs`` are the runs that it began."""

    def __init__(self) -> None:
        neighbours = World()
        self.story, self.queue, self.engine = neighbours.story, neighbours.queue, neighbours.engine
        self._context = neighbours.context
        self.metrics = Metrics()
        self.disk = ScriptedDisk()
        self.runs: dict[uuid.UUID, ScriptedRun] = {}
        self.finished = False

    def begin(self, claim: Claim, _context: RunContext) -> ScriptedRun:
        """Takes the place of ``Run``."""
        assert claim.run_id not in self.runs or self.runs[claim.run_id].ended.is_set(), "a run was begun twice"
        self.runs[claim.run_id] = ScriptedRun(claim)
        return self.runs[claim.run_id]

    def daemon(self, **changed: Any) -> Daemon:
        values = {
            "concurrency": 2,
            "max_served": 1,
            "until_idle": False,
            "lease": FOREVER,
            "poll": FOREVER,
            "drain": None,
        } | changed
        options = DaemonOptions(**{"timings": Timings(claim=0.1, disk=0.01, hint=0.0), **values})
        queue, engine = cast("Any", self.queue), cast("Any", self.engine)
        return Daemon(self._context, queue, engine, self.metrics, options, cast("Any", self.disk))

    @asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[Daemon]:
        """The daemon at work, until the block ends; ``finished`` tells whether it ended by itself."""
        daemon = self.daemon(**options)

        async def work() -> None:
            await daemon.run()
            self.finished = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await wait_all_tasks_blocked()
            yield daemon
            tasks.cancel_scope.cancel()

    def push(self, **changed: Any) -> uuid.UUID:
        """Queues a run."""
        claim = make_claim(**changed)
        self.queue.queued.append(claim)
        return claim.run_id

    def leave(self, status: str = "running") -> uuid.UUID:
        """Makes a run that this worker may adopt."""
        claim = make_claim(status=status)
        self.queue.adoptions[claim.run_id] = claim
        return claim.run_id

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"ops_worker_{name}", labels)

    def count(self, status: str) -> float:
        return self.metric("runs_total", workflow_type="build", status=status) or 0


SILENCE = object()
"""No answer, ever."""


class Raw(str):
    """An answer as it is."""

    __slots__ = ()


class ScriptedConnection:
    """Answers each statement with what the script holds next; an exception is raised."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.statements: list[tuple[str, tuple[object, ...]]] = []
        self.listeners: dict[str, Callable[..., None]] = {}
        self.closed = False

    async def fetchval(self, sql: str, *args: object) -> object:
        self.statements.append((sql, args))
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is SILENCE:
            await anyio.sleep_forever()
        return answer if isinstance(answer, Raw) else json.dumps(answer)

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        self.listeners[channel] = callback

    def notify(self, channel: str, payload: str) -> None:
        self.listeners[channel](self, 1, channel, payload)

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True


class ScriptedPool(ScriptedConnection):
    """A pool whose connections all follow one script; what they notify reaches ``audience``."""

    audience: ScriptedConnection | None = None
    prepared = 0
    """How many statements each of its next connections keeps prepared."""

    async def execute(self, sql: str, *args: object) -> None:
        if self.audience is not None:
            self.audience.notify(cast("str", args[0]), "")

    def set_connect_args(self, dsn: str, **options: object) -> None:
        self.prepared = cast("int", options["statement_cache_size"])

    async def expire_connections(self) -> None:
        """All follow one script."""

    @asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator[ScriptedConnection]:  # noqa: ASYNC109 - asyncpg's
        yield self
