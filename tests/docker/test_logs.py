"""The log of a run is the container's output: each line once, in order, whatever the bytes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
import structlog

from tests.support.docker import FINAL, PATIENCE, Plane, docker, until
from tests.unit.fakes import World
from worker.engine import containers
from worker.engine.engine import Engine
from worker.run.engine_retry import EngineRetry
from worker.run.journal import JournalReader, LogLimits
from worker.run.quota import DiskQuota
from worker.run.reporter import Reporter

BYTES = r"import os; os.write(1, b'a\x00b\n\xff\xfe\ncaf\xc3\xa9\n\xe2\x82\n')"
LINES: dict[str, list[str]] = {
    "true": [],
    "printf 'one\\n\\ntwo'": ["one", "", "two"],
    "python3 -c \"print('0123456789' * 6_000)\"": ["0123456789" * 6_000],  # of many fragments
    f'python3 -c "{BYTES}"': ["a�b", "��", "café", "��"],
}


async def test_every_line_is_stored_whole_whatever_its_bytes(served: Plane) -> None:
    runs = {script: await served.shell(script) for script in LINES}
    megabyte = await served.python("print('a' * 1_000_000); print('next')")
    for script, expected in LINES.items():
        await served.until(runs[script], *FINAL)
        assert await served.messages(runs[script]) == expected, script
    await served.until(megabyte, *FINAL)
    long, after = await served.messages(megabyte)
    assert 60_000 < len(long.encode()) <= 65_600
    assert long.startswith("aaaa")
    assert long.endswith("[line cut, 1000000 bytes]")
    assert after == "next"


async def test_each_stream_keeps_its_order_and_its_level(served: Plane) -> None:
    run_id = await served.python("import os\nfor n in range(1000): os.write(1 + n % 2, b'%d\\n' % n)")
    await served.until(run_id, *FINAL)
    lines = await served.log(run_id)
    assert [line["seq"] for line in lines] == list(range(1, 1001))
    for parity, (stream, level) in enumerate((("stdout", "info"), ("stderr", "warn"))):
        its = [line for line in lines if line["stream"] == stream]
        assert [int(line["message"]) for line in its] == list(range(parity, 1000, 2))
        assert {line["log_level"] for line in its} == {level}


Printing = Callable[[str], AbstractAsyncContextManager[tuple[Engine, str]]]


@pytest.fixture
def printing(image: str) -> Printing:
    """A container with that script, and an engine of ours to read its log."""

    @asynccontextmanager
    async def started(script: str) -> AsyncIterator[tuple[Engine, str]]:
        name = f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
        docker("run", "--detach", "--name", name, "--network", "none", image, "sh", "-c", script)
        engine = Engine(None, streams=1)
        try:
            yield engine, name
        finally:
            docker("rm", "--force", name)
            engine.close()

    return started


async def test_a_connection_whose_stream_was_closed_half_read_is_not_used_again(
    printing: Printing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that had arrived are read to a clean end, although the socket is closed already."""
    monkeypatch.setattr(containers, "STREAM_BUFFER", 1)
    async with printing("seq 20") as (engine, name):
        docker("wait", name)
        for _ in range(2):
            async with engine.container(name).follow(ended=False) as journal:
                assert await journal.receive()  # the thread has more bytes and waits


async def test_a_log_that_is_not_followed_is_read_as_it_is(printing: Printing) -> None:
    async with printing("seq 100000; sleep 300") as (engine, name):

        async def reading(*, ended: bool) -> bytes:
            data = b""
            async with engine.container(name).follow(ended=ended) as journal:
                while chunk := await journal.receive():
                    data += chunk
            return data

        async def all_printed() -> bool:
            return (await engine.container(name).last_entry()).endswith(b" 100000\n")

        await until(all_printed)
        so_far = await reading(ended=True)  # ends although the container runs on
        docker("kill", name)
        assert so_far.count(b"\n") == 100_000
        assert await reading(ended=True) == await reading(ended=False) == so_far


async def test_a_log_that_the_engine_ends_too_early_is_read_again(printing: Printing) -> None:
    """Docker 20.10 ends a followed log after what was in it at first, if the container ends before all that is sent."""
    script = "trap 'seq 60001 100000; exit' USR1; seq 60000; while :; do sleep 0.1; done"
    async with printing(script) as (engine, name):
        container, world, gate = engine.container(name), World(), anyio.Event()
        queue, calls = world.queue, EngineRetry(structlog.get_logger())
        queue.storing = gate.wait
        world.set(quiet=PATIENCE)
        reader = JournalReader(
            container, world.context, Reporter(queue, uuid.UUID(int=1)), DiskQuota(print), calls, print,
            LogLimits(0, 1 << 30, 1 << 30), structlog.get_logger(),
        )  # fmt: skip

        async def printed() -> bool:
            return (await container.last_entry()).endswith(b" 60000\n")

        await until(printed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.run, uuid.UUID(int=1))
            await until(lambda: "append_logs" in world.story)
            docker("kill", "--signal", "USR1", name)
            docker("wait", name)
            gate.set()
    assert world.said == [(n, str(n)) for n in range(1, 100_001)]
