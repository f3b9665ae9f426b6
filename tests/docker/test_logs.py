"""The log of a run is the container's output: each line once, in order, whatever the bytes."""

from __future__ import annotations

import uuid

import anyio
import pytest

from tests.support.docker import Plane, docker
from worker.engine import containers
from worker.engine.engine import Engine


async def test_no_output_is_no_line(plane: Plane) -> None:
    run_id = await plane.shell("true")
    await plane.work()
    assert await plane.log(run_id) == []


async def test_two_hundred_thousand_lines(plane: Plane) -> None:
    run_id = await plane.shell("seq 1 200000")
    await plane.work()
    assert (await plane.run(run_id))["status"] == "succeeded"
    wrong = await plane.db.fetchval(
        "select count(*) from ops.run_logs where run_id = $1 and message <> seq::text", run_id
    )
    count, last = await plane.db.fetchrow("select count(*), max(seq) from ops.run_logs where run_id = $1", run_id)
    assert (count, last, wrong) == (200_000, 200_000, 0)


async def test_a_line_of_a_megabyte_is_cut_and_says_so(plane: Plane) -> None:
    run_id = await plane.python("print('a' * 1_000_000); print('next')")
    await plane.work()
    long, after = await plane.messages(run_id)
    assert 60_000 < len(long.encode()) <= 65_600
    assert long.startswith("aaaa")
    assert long.endswith("[line cut, 1000000 bytes]")
    assert after == "next"


async def test_a_line_of_many_fragments_is_one_line(plane: Plane) -> None:
    run_id = await plane.python("print('0123456789' * 6_000)")
    await plane.work()
    assert await plane.messages(run_id) == ["0123456789" * 6_000]


async def test_bytes_that_postgresql_cannot_store_are_replaced(plane: Plane) -> None:
    run_id = await plane.python(r"import os; os.write(1, b'a\x00b\n\xff\xfe\ncaf\xc3\xa9\n\xe2\x82\n')")
    await plane.work()
    assert await plane.messages(run_id) == ["a�b", "��", "café", "��"]


async def test_the_last_line_needs_no_newline(plane: Plane) -> None:
    run_id = await plane.shell("printf 'one\\n\\ntwo'")
    await plane.work()
    assert await plane.messages(run_id) == ["one", "", "two"]


async def test_both_streams_keep_their_own_order(plane: Plane) -> None:
    script = "import os\nfor n in range(1000): os.write(1 + n % 2, b'%d\\n' % n)"
    run_id = await plane.python(script)
    await plane.work()
    lines = await plane.log(run_id)
    assert [line["seq"] for line in lines] == list(range(1, 1001))
    for parity, stream in ((0, "stdout"), (1, "stderr")):
        assert [int(line["message"]) for line in lines if line["stream"] == stream] == list(range(parity, 1000, 2))


async def test_levels_come_from_the_line_then_from_the_stream(plane: Plane) -> None:
    stamp = "2026-01-01 00:00:00,000 7"
    script = f"""
import sys
def say(line): print(line, file=sys.stderr)
say('starting')
say('{stamp} INFO db odoo.modules.loading: loading')
say('{stamp} WARNING db odoo.addons.base: old')
say('{stamp} ERROR db odoo.sql_db: bad query')
say('Traceback (most recent call last):')
say('{stamp} CRITICAL db odoo.service: down')
say('{stamp} DEBUG db odoo.http: detail')
"""
    run_id = await plane.python(script)
    json_run = await plane.shell("""echo '{"level": "warning", "msg": "x"}'; echo plain; echo '{broken'""")
    await plane.work()
    levels = [line["log_level"] for line in await plane.log(run_id)]
    assert levels == ["warn", "info", "warn", "error", "error", "error", "debug"]
    assert [line["log_level"] for line in await plane.log(json_run)] == ["warn", "info", "info"]


async def test_lines_arrive_while_the_program_runs(plane: Plane) -> None:
    run_id = await plane.shell("echo first; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last")
    async with plane.worker("--until-idle") as worker:
        await plane.until_logged(run_id, "first")
        assert (await plane.run(run_id))["status"] == "running"
        await plane.release(run_id)
        assert await worker.wait() == 0
    assert await plane.messages(run_id) == ["first", "last"]


async def test_times_are_those_of_the_writing(plane: Plane) -> None:
    run_id = await plane.shell("echo a; sleep 1; echo b")
    await plane.work()
    run = await plane.run(run_id)
    first, second = [line["timestamp"] for line in await plane.log(run_id)]
    assert run["started_at"] < first < second < run["finished_at"]
    assert (second - first).total_seconds() >= 0.9


async def test_a_connection_whose_stream_was_closed_half_read_is_not_used_again(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had arrived by then is read to its clean end from a socket that is closed already."""
    monkeypatch.setattr(containers, "STREAM_BUFFER", 1)
    name = f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
    docker("run", "--name", name, "--network", "none", image, "seq", "20")
    engine = Engine(None, streams=1)
    try:
        async with engine.container(name).follow(ended=False) as journal:
            assert await journal.receive()  # the thread has some more in its hands and waits
        async with engine.container(name).follow(ended=False) as journal:
            assert await journal.receive()
    finally:
        docker("rm", "--force", name)
        engine.close()


async def test_a_log_that_is_not_followed_is_read_as_it_is(image: str) -> None:
    name = f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
    docker("run", "--detach", "--name", name, "--network", "none", image, "sh", "-c", "seq 100000; sleep 300")
    engine = Engine(None, streams=1)

    async def reading(*, ended: bool) -> bytes:
        data = b""
        async with engine.container(name).follow(ended=ended) as journal:
            while chunk := await journal.receive():
                data += chunk
        return data

    try:
        with anyio.fail_after(60):
            while not (await engine.container(name).last_entry()).endswith(b" 100000\n"):
                await anyio.sleep(0.1)
            so_far = await reading(ended=True)  # ends although the container runs on
        docker("kill", name)
        assert so_far.count(b"\n") == 100_000
        assert await reading(ended=True) == await reading(ended=False) == so_far
    finally:
        docker("rm", "--force", name)
        engine.close()
