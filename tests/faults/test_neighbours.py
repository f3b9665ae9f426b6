"""A run that prints more than it should, beside ordinary ones on the same worker."""

from __future__ import annotations

import pytest

from tests.faults.scene import Scene

ENDLESS = {
    "lines": "seq -f '%0100.0f' 1 100000000",
    "empty lines": "yes ''",
    "no newline": "tr '\\0' x < /dev/zero",
    "binary": "cat /dev/urandom",
}


@pytest.mark.parametrize("noise", ENDLESS)
async def test_endless_output_ends_at_its_limit_and_the_neighbours_lose_nothing(scene: Scene, noise: str) -> None:
    loud = await scene.plane.shell(f"trap '' TERM; {ENDLESS[noise]}", resources={"output": "4m"})
    quiet = await scene.job(2_000, pause=0.1, big=True)
    await scene.work("--max-log", "1m")
    await scene.holds(quiet)
    run = await scene.plane.run(loud)
    assert (run["status"], run["reason"]) == ("failed", "output_limit")
    log = await scene.plane.log(loud)
    assert [row["seq"] for row in log] == sorted({row["seq"] for row in log})
    assert sum(len(row["message"].encode()) for row in log) < 4 << 20, "head, tail, and what masks bytes"


async def test_a_million_lines_are_stored_as_far_as_the_host_keeps_them(scene: Scene) -> None:
    last = 1_000_000
    loud = await scene.plane.shell(f"seq 1 {last}")
    quiet = await scene.job(500, pause=0.2)
    await scene.work("--max-log", "4m")
    await scene.holds(quiet)
    assert (await scene.plane.run(loud))["status"] == "succeeded"
    log = [(row["seq"], row["message"]) for row in await scene.plane.log(loud)]
    [gap] = [n for n, (seq, message) in enumerate(log) if message != str(seq)]
    head, tail = log[:gap], log[gap + 1 :]
    assert [seq for seq, _ in head] == list(range(1, gap + 1))
    assert [seq for seq, _ in tail] == list(range(tail[0][0], last + 1))
    assert log[gap][0] == gap + 1
    [cut] = [e["payload"] for e in await scene.plane.events(loud, "warning")]
    assert (cut["reason"], cut["lines"], cut["omitted_lines"]) == ("log_cut", last, tail[0][0] - gap - 1)
