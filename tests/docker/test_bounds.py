"""What one run may cost its neighbours and its host: output, log, disk; and what is tried again."""

from __future__ import annotations

import json
import uuid

from tests.support.docker import Plane, base_image, docker
from worker.run.lifecycle import container_name

LOUD = "while :; do printf '%0100d\\n' 1 2 3 4 5 6 7 8 9; done"


async def test_a_log_that_is_too_long_keeps_head_and_tail_and_counts_the_rest(plane: Plane) -> None:
    run_id = await plane.shell("seq 1 200000; echo the end")
    await plane.work("--max-log", "1m")
    run = await plane.run(run_id)
    assert run["status"] == "succeeded"
    log = [(line["seq"], line["message"]) for line in await plane.log(run_id)]
    (gap,) = [n for n, (seq, message) in enumerate(log) if message.endswith("longer than this host keeps]")]
    head, tail = log[:gap], log[gap + 1 :]
    assert head == [(n, str(n)) for n in range(1, gap + 1)]
    assert tail[-1] == (200_001, "the end")
    assert tail[:-1] == [(n, str(n)) for n in range(tail[0][0], 200_001)]
    left_out = tail[0][0] - log[gap][0]
    assert log[gap][1].startswith(f"[{left_out:,} lines")
    (event,) = [event for event in await plane.events(run_id, "warning") if event["payload"]["reason"] == "log_cut"]
    assert event["payload"]["omitted_lines"] == left_out


async def test_a_run_that_prints_without_end_is_stopped_and_its_neighbour_is_not_harmed(plane: Plane) -> None:
    loud = await plane.shell(f"trap '' TERM; {LOUD}", resources={"output": "20m"})
    quiet = await plane.shell("for n in $(seq 1 20); do echo $n; sleep 0.1; done; echo left > /artifacts/a.txt")
    worker = await plane.work("--concurrency", "2", "--max-log", "2m")
    run = await plane.run(loud)
    assert (run["status"], run["reason"], run["exit_code"]) == ("failed", "output_limit", 137)
    assert run["error_message"] == "stopped: it printed more than 20m (resources.output)"
    assert {event["payload"].get("reason") for event in await plane.events(loud)} >= {"output_limit", "log_cut"}
    assert await plane.messages(quiet) == [str(n) for n in range(1, 21)]
    assert list(await plane.artifacts(quiet)) == ["a.txt"]
    assert await plane.containers() == []
    assert worker.said[-1]["event"] == "worker stopped"


async def test_a_host_whose_disk_is_short_claims_nothing_and_says_why(plane: Plane) -> None:
    run_id = await plane.shell("true")
    async with plane.worker("--min-free-disk", "1000t") as worker:
        line = await worker.until_said("claiming nothing: the disk is short")
        assert "min_free_disk" in line["why"]
        assert (await plane.run(run_id))["status"] == "queued"
    async with plane.worker("--min-free-disk", "1000t", "--until-idle") as worker:
        assert await worker.wait() == 1
        assert worker.output.read_text().splitlines()[-1].startswith("ops-worker: nothing is claimed: ")
    await plane.work()
    assert (await plane.run(run_id))["status"] == "succeeded"


async def test_a_failed_run_is_tried_again_as_a_new_run_until_it_succeeds_or_has_had_its_attempts(plane: Plane) -> None:
    retry = {"max_attempts": 3, "on": ["failed"], "delay_seconds": 0}
    run_id = await plane.shell("test $OPS_RUN_NUMBER -gt 2", retry=retry)
    never = await plane.shell("exit 7", retry=retry)
    await plane.work()
    sql = """with recursive chain as (
        select id, attempt, status from ops.runs where id = $1
        union all select r.id, r.attempt, r.status from ops.runs as r join chain as c on r.retry_of = c.id)
        select attempt, status from chain order by attempt"""
    assert [tuple(row) for row in await plane.db.fetch(sql, run_id)] == [(1, "failed"), (2, "succeeded")]
    assert [tuple(row) for row in await plane.db.fetch(sql, never)] == [(n, "failed") for n in (1, 2, 3)]


async def test_the_container_of_a_run_that_is_in_the_database_no_more_is_removed(plane: Plane) -> None:
    run_id, other = uuid.uuid4(), uuid.uuid4()
    image = base_image("python3-minimal")
    mine, foreign = (container_name(run_id, database) for database in (plane.identity, other))
    for name, database in ((mine, plane.identity), (foreign, other)):
        labels = ("--label", f"ops-worker.run-id={run_id}", "--label", f"ops-worker.database-id={database}")
        docker("create", "--name", name, *labels, "-v", "/artifacts", image, "true")
    try:
        await plane.work()
        left = docker("ps", "-a", "--filter", f"label=ops-worker.run-id={run_id}", "--format", "{{.Names}}").split()
        assert left == [foreign]
    finally:
        docker("rm", "-fv", foreign)


async def test_bad_retry_fails_the_run_and_names_the_key(plane: Plane) -> None:
    run_id = await plane.shell("true")
    bad = {"retry": {"max_attempts": 3, "on": ["sometimes"]}}  # queued with that, the database would refuse it
    await plane.db.execute("update ops.workflows set config = config || $1", json.dumps(bad))
    await plane.work()
    run = await plane.run(run_id)
    assert run["reason"] == "invalid_config"
    assert "retry.on.0" in run["error_message"]
    assert json.loads(run["metadata"]) == {}
