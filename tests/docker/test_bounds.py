"""The limits of a host's work: free disk space, and the attempts of a run."""

from __future__ import annotations

from tests.support.docker import FINAL, Plane, until


async def test_until_idle_with_a_short_disk_claims_nothing_and_exits_with_1(plane: Plane) -> None:
    """tests/faults/test_engine.py tests that a worker waits and claims again later."""
    run_id = await plane.shell("true")
    async with plane.worker("--min-free-disk", "1000t", "--until-idle") as worker:
        assert await worker.wait() == 1
    last = worker.output.read_text().splitlines()[-1]
    assert last.startswith("ops-worker: nothing is claimed: ")
    assert "min_free_disk" in last.replace("-", "_")
    assert (await plane.run(run_id))["status"] == "queued"


async def test_a_retry_is_a_new_run_until_one_succeeds_or_the_attempts_are_used(served: Plane) -> None:
    retry = {"max_attempts": 2, "on": ["failed"], "delay_seconds": 0}
    outcomes = {"test $OPS_RUN_NUMBER -gt 2": ["failed", "succeeded"], "exit 7": ["failed", "failed"]}
    runs = {script: await served.shell(script, retry=retry) for script in outcomes}
    chain = """with recursive chain as (
        select id, attempt, status from ops.runs where id = $1
        union all select r.id, r.attempt, r.status from ops.runs as r join chain as c on r.retry_of = c.id)
        select status from chain order by attempt"""
    unfinished = "select count(*) from ops.runs where project_id = $1 and finished_at is null"
    for run_id in runs.values():
        await served.until(run_id, *FINAL)

    async def all_finished() -> bool:
        return not await served.db.fetchval(unfinished, served.project_id)

    await until(all_finished)
    for script, expected in outcomes.items():
        assert [row["status"] for row in await served.db.fetch(chain, runs[script])] == expected
