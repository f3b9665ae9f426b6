"""A run that prints more than it should, beside ordinary ones on the same worker."""

from __future__ import annotations

from tests.faults.scene import Scene

ENDLESS = {
    "lines": "seq -f '%0100.0f' 1 100000000",
    "empty lines": "yes ''",
    "no newline": "tr '\\0' x < /dev/zero",
    "binary": "cat /dev/urandom",
}


async def test_endless_output_ends_at_its_limit_and_the_neighbours_lose_nothing(scene: Scene) -> None:
    config = {"resources": {"output": "4m", "cpus": 0.5}}
    loud = {what: await scene.plane.shell(f"trap '' TERM; {script}", **config) for what, script in ENDLESS.items()}
    quiet = await scene.job(2_000, pause=0.1, big=True)
    await scene.work("--max-log", "1m", "--concurrency", "5")
    await scene.holds(quiet)
    for what, run_id in loud.items():
        run = await scene.plane.run(run_id)
        assert (run["status"], run["reason"], run["exit_code"]) == ("failed", "output_limit", 137), what
        assert run["error_message"] == "stopped: it printed more than 4m (resources.output)"
        log = await scene.plane.log(run_id)
        assert [row["seq"] for row in log] == sorted({row["seq"] for row in log}), what
        assert sum(len(row["message"].encode()) for row in log) < 4 << 20, "head, tail, and what masks bytes"
        cut = {event["payload"].get("reason") for event in await scene.plane.events(run_id)}
        assert what == "no newline" or "log_cut" in cut, what


async def test_a_log_over_the_host_s_limit_keeps_head_and_tail_and_counts_the_rest(scene: Scene) -> None:
    last = 200_000
    loud = await scene.plane.shell(f"seq 1 {last}")
    quiet = await scene.job(500, pause=0.1)
    await scene.work("--max-log", "1m")
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
