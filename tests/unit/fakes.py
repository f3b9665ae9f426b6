"""A scripted engine, queue and store, between which one run is carried out."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from tests.unit.claims import make_claim
from tests.unit.journal import frame
from worker.errors import EngineUnavailable
from worker.model.claim import Adoption, Artifact, LogLine
from worker.model.config import ArtifactRule
from worker.model.container import LABEL_TERMS, ContainerState, Image, Secret
from worker.model.outcome import Outcome
from worker.model.spec import Bound, HostPolicy, RunSpec, resolve
from worker.run.lifecycle import Run, container_name
from worker.run.ports import RunContext
from worker.tar import END_MARK

AWAY = EngineUnavailable("cannot be reached")
RUN_ID = uuid.UUID(int=7)
NAME = container_name(RUN_ID, uuid.UUID(int=99))
CONTAINER = "c0ffee"
PATIENCE = 30.0
LINES = [(1, "one"), (2, "two"), (1, "three"), (1, ""), (2, "fünf"), (1, "six")]
FRAMES = [frame(stream, f"{text}\n".encode()) for stream, text in LINES]
JOURNAL = b"".join(FRAMES)
SAID = [(n, text) for n, (_, text) in enumerate(LINES, 1)]


class Quiet:
    """A stream that says nothing more, and does not end."""


QUIET, END = Quiet(), b""
Step = bytes | Exception | Quiet | anyio.Event
"""What a stream does next; an event is waited for."""


def made_with(**config: Any) -> dict[str, str]:
    """The labels of a container that was made by an earlier worker, as far as the next one reads them."""
    return {LABEL_TERMS: resolve(make_claim(config=config), HostPolicy()).terms.model_dump_json()}


class ScriptedEngine:
    """An engine with one image and one container, whose program has ended by the first look at it.

    ``faults`` are raised by the call of that name, one each time, before it does anything. ``readings`` are the
    log streams to come; beyond them each is the whole journal.
    """

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.faults: dict[str, list[Exception]] = {}
        self.readings: list[list[Step]] = []
        self.frames = FRAMES
        self.follows_short = False
        """Whether a stream that follows ends before the log does, as Podman's for a container that has ended."""
        self.exit_code = 0
        self.lasts = False
        self.restarted = False
        self.deaf = False
        """Whether the program lets SIGTERM pass."""
        self.here = True
        self.pulls: Callable[[], Awaitable[None]] | None = None
        self.status: str | None = None
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None
        self.labels: Mapping[str, str] = made_with()
        self.follows = 0
        self.grace_seconds: float | None = None
        self.created: tuple[Image, RunSpec, tuple[Secret, ...]] | None = None
        self.held: tuple[Secret, ...] = ()
        self.changed = anyio.Event()

    async def call(self, call: str) -> None:
        await checkpoint()
        self.reached(call)

    def reached(self, call: str) -> None:
        self.story.append(call)
        if faults := self.faults.get(call):
            raise faults.pop(0)

    def become(self, status: str | None) -> None:
        self.status = status
        self.changed.set()
        self.changed = anyio.Event()

    async def image(self, reference: str) -> Image | None:
        await self.call("image")
        return Image(reference, "sha256:1", None, "") if self.here else None

    async def pull(self, reference: str) -> None:
        await self.call("pull")
        if self.pulls is not None:
            await self.pulls()
        self.here = True

    async def create(
        self, name: str, image: Image, spec: RunSpec, labels: Mapping[str, str], secrets: Sequence[Secret]
    ) -> ScriptedContainer:
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

    def container(self, ref: str) -> ScriptedContainer:
        return ScriptedContainer(self, ref)


class ScriptedContainer:
    """The handle of that one container."""

    def __init__(self, engine: ScriptedEngine, ref: str) -> None:
        self._engine = engine
        self.ref = ref

    async def start(self) -> None:
        await self._engine.call("start")
        if self._engine.status == "created":
            self._engine.started_at = datetime.now(UTC)
            self._engine.become("running" if self._engine.lasts else "exited")

    async def inspect(self) -> ContainerState | None:
        await self._engine.call("inspect")
        if self._engine.status is None:
            return None
        times = self._engine.started_at, self._engine.finished_at
        return ContainerState(self._engine.status, self._engine.exit_code, False, "", *times, self._engine.labels)

    async def stop(self, grace_seconds: float) -> None:
        await self._engine.call("stop")
        self._engine.grace_seconds = grace_seconds
        if self._engine.status == "running" and (grace_seconds == 0 or not self._engine.deaf):
            self._engine.exit_code = 143
            self._engine.become("exited")

    async def remove(self) -> None:
        await self._engine.call("remove")
        assert self.ref == NAME
        self._engine.become(None)

    async def secrets(self, names: Sequence[str]) -> tuple[Secret, ...]:
        await self._engine.call("secrets")
        return tuple(secret for secret in self._engine.held if secret.name in names)

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


class ScriptedQueue:
    """Takes what a run says; ``faults`` as the engine's."""

    def __init__(self, story: list[str]) -> None:
        self.story = story
        self.faults: dict[str, list[Exception]] = {}
        self.lines: list[LogLine] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.artifacts: list[Artifact] = []
        self.outcome: Outcome | None = None
        self.storing: Callable[[], Awaitable[None]] | None = None

    async def _call(self, call: str) -> None:
        await checkpoint()
        self.story.append(call)
        if faults := self.faults.get(call):
            raise faults.pop(0)

    async def adopt(self, run_id: uuid.UUID) -> Adoption:
        raise NotImplementedError

    async def start(self, run_id: uuid.UUID) -> None:
        await self._call("claim→running")

    async def complete(self, run_id: uuid.UUID, outcome: Outcome) -> str:
        await self._call("complete")
        assert self.outcome is None
        self.outcome = outcome
        if outcome.reason == "canceled":
            return "canceled"
        return "succeeded" if outcome.exit_code == 0 else "failed"

    async def record_container(self, run_id: uuid.UUID, container_id: str, details: dict[str, Any]) -> None:
        await self._call("record_container")
        self.events.append(("info", "container created", {**details, "container_id": container_id}))

    async def append_logs(self, run_id: uuid.UUID, lines: Sequence[LogLine]) -> None:
        await self._call("append_logs")
        if self.storing is not None:
            await self.storing()
        self.lines += lines

    async def add_artifact(self, run_id: uuid.UUID, artifact: Artifact) -> None:
        await self._call("add_artifact")
        self.artifacts.append(artifact)

    async def add_event(self, run_id: uuid.UUID, event_type: str, message: str, payload: dict[str, Any]) -> None:
        await self._call("add_event")
        self.events.append((event_type, message, payload))


class ScriptedStore:
    """Finds one artifact, then does what the test wants."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.warns: list[str] = []
        self.waits: anyio.Event | None = None
        self.prefix = ""
        self.rules: Sequence[ArtifactRule] = ()
        self.redact: Callable[[str], str] = str

    async def collect(
        self,
        archive: Callable[[], AbstractContextManager[Iterator[bytes]]],
        rules: Sequence[ArtifactRule],
        key_prefix: str,
        on_artifact: Callable[[Artifact], Awaitable[None]],
        on_warning: Callable[[str], Awaitable[None]],
        redact: Callable[[str], str],
    ) -> int:
        self.prefix, self.rules, self.redact = key_prefix, rules, redact
        if self.waits is not None:
            await self.waits.wait()
        with archive():
            for message in self.warns:
                await on_warning(message)
            if self.errors:
                raise self.errors.pop(0)
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
        self.output_bytes = self.log_bytes = 2**30
        self.pull_seconds = 60.0

    def run(self, **claim: Any) -> Run:
        return Run(make_claim(RUN_ID, **claim), self.context())

    def context(self) -> RunContext:
        policy = HostPolicy(output=Bound(self.output_bytes))
        return RunContext(
            self.queue,
            self.engine,
            self.store,
            policy,
            "host-a",
            uuid.UUID(int=99),
            3,
            self.pull_seconds,
            self.log_bytes,
        )

    async def execute(self, run: Run | None = None, **claim: Any) -> str | None:
        with anyio.fail_after(PATIENCE):
            return await (run or self.run(**claim)).execute()

    @asynccontextmanager
    async def executing(self, run: Run) -> AsyncIterator[list[str | None]]:
        """Executes while the block goes on; the list gets the status. The block waits for the end."""
        result: list[str | None] = []

        async def execute() -> None:
            result.append(await run.execute())

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(execute)
                await wait_all_tasks_blocked()
                yield result

    @property
    def said(self) -> list[tuple[int, str]]:
        return [(line.seq, line.message) for line in self.queue.lines]

    @property
    def outcome(self) -> tuple[str, int | None]:
        assert self.queue.outcome is not None
        return str(self.queue.outcome.reason), self.queue.outcome.exit_code

    @property
    def message(self) -> str:
        assert self.queue.outcome is not None
        return self.queue.outcome.message or ""

    def did(self, *calls: str) -> list[str]:
        """Those of the calls that were made, in order."""
        return [call for call in self.story if call in calls]
