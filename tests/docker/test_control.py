"""What ends, moves or hands over a run from outside, with real workers as processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import uuid
from contextlib import AsyncExitStack

from tests.support.docker import FINAL, PATIENCE, WAITS, Plane, docker
from tests.support.relay import relayed

DEAF = "trap '' TERM; echo up; while :; do sleep 0.1; done"


async def cancel(plane: Plane, run_id: uuid.UUID) -> str:
    answer = json.loads(await plane.db.fetchval("select ops.cancel_run($1)", run_id))
    assert answer["success"]
    status: str = answer["status"]
    return status


async def test_cancel_of_a_queued_run_is_final_and_no_worker_touches_it(plane: Plane) -> None:
    run_id = await plane.shell("echo ran")
    assert await cancel(plane, run_id) == "canceled"
    await plane.work()
    assert (await plane.run(run_id))["status"] == "canceled"
    assert await plane.log(run_id) == []


async def test_cancel_of_a_claimed_run_makes_its_worker_let_go(plane: Plane) -> None:
    run_id = await plane.shell("echo ran")
    await plane.db.fetchval("select ops.claim_next_run('another')")
    assert await cancel(plane, run_id) == "canceled"
    started = json.loads(await plane.db.fetchval("select ops.start_workflow_run($1, 'another')", run_id))
    assert not started["success"]


async def test_cancel_of_a_running_run_keeps_its_log_and_artifacts(plane: Plane) -> None:
    run_id = await plane.shell(f"echo kept > /artifacts/a.txt; {WAITS}")
    async with plane.worker("--until-idle", "--poll-interval", "600") as worker:
        await plane.until_logged(run_id, "up")
        assert await cancel(plane, run_id) == "running"
        assert await worker.wait() == 0
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("canceled", "canceled")
    assert await plane.messages(run_id) == ["up"]
    assert list(await plane.artifacts(run_id)) == ["a.txt"]
    assert await plane.containers() == []


async def test_cancel_ends_a_program_that_ignores_the_signal(plane: Plane) -> None:
    run_id = await plane.shell(DEAF)
    async with plane.worker("--until-idle", "--stop-grace", "1") as worker:
        await plane.until_logged(run_id, "up")
        await cancel(plane, run_id)
        assert await worker.wait() == 0
    run = await plane.run(run_id)
    assert (run["status"], run["exit_code"]) == ("canceled", 137)


async def test_cancel_without_notifications_arrives_with_the_heartbeat(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker("--until-idle", "--lease", "15") as worker:
        await plane.until_logged(run_id, "up")
        await plane.db.execute("alter table ops.runs disable trigger record_run_change")  # so no notification either
        await plane.db.execute("update ops.runs set cancel_requested_at = now() where id = $1", run_id)
        await plane.db.execute("alter table ops.runs enable trigger record_run_change")
        assert await worker.wait() == 0
    assert (await plane.run(run_id))["status"] == "canceled"


async def test_a_run_over_its_time_is_stopped_and_fails(plane: Plane) -> None:
    run_id = await plane.shell(DEAF, timeout_seconds=1)
    await plane.work("--stop-grace", "1")
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "timeout")
    assert "1 s" in run["error_message"]
    assert await plane.messages(run_id) == ["up"]
    assert await plane.containers() == []


async def test_a_notification_wakes_a_worker_that_would_not_poll_for_an_hour(plane: Plane) -> None:
    async with plane.worker("--poll-interval", "3600") as worker:
        await worker.until_said("worker started")
        await asyncio.sleep(1)  # it has looked once by now, and found nothing
        run_id = await plane.shell("true")
        await plane.until(run_id, "succeeded")


async def test_an_empty_queue_ends_a_worker_that_runs_until_idle(plane: Plane) -> None:
    worker = await plane.work()
    assert worker.said[-1]["event"] == "worker stopped"


async def test_labels_choose_the_host(plane: Plane) -> None:
    run_id = await plane.shell("true", labels=["gpu", "big"])
    worker = await plane.work("--labels", "gpu")
    assert (await plane.run(run_id))["status"] == "queued"
    left = await worker.until_said("runs are left that ask for labels this worker lacks (--labels)")
    assert (left["runs"], left["labels"]) == (1, ["big"])
    await plane.work("--labels", "big, gpu, more")
    assert (await plane.run(run_id))["status"] == "succeeded"


async def test_priority_goes_first_and_one_concurrency_key_runs_alone(plane: Plane) -> None:
    script = "date +%s%N; sleep 0.3; date +%s%N"
    low = [await plane.shell(script, concurrency_key="deploy") for _ in range(3)]
    high = await plane.shell(script, priority=5)
    await plane.work("--concurrency", "4")
    spans = sorted([tuple(int(m) for m in await plane.messages(run_id)) for run_id in low])
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    claimed = {run_id: (await plane.run(run_id))["claimed_at"] for run_id in [*low, high]}
    assert min(claimed, key=lambda run_id: claimed[run_id]) == high


async def test_the_first_signal_drains(plane: Plane) -> None:
    first = await plane.shell(WAITS)
    async with plane.worker("--concurrency", "1") as worker:
        await plane.until_logged(first, "up")
        second = await plane.shell("true")
        worker.signal(signal.SIGTERM)
        await worker.until_said(
            "stopping: no more claims, waiting for the runs; once more to leave them to the next worker"
        )
        await plane.release(first)
        assert await worker.wait() == 0
    assert (await plane.run(first))["status"] == "succeeded"
    assert await plane.messages(first) == ["up", "down"]
    assert (await plane.run(second))["status"] == "queued"


async def test_the_second_signal_leaves_the_container_to_the_next_worker(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker() as worker:
        await plane.until_logged(run_id, "up")
        worker.signal(signal.SIGINT)
        await worker.until_said(
            "stopping: no more claims, waiting for the runs; once more to leave them to the next worker"
        )
        worker.signal(signal.SIGINT)
        assert await worker.wait() == 0
    assert (await plane.run(run_id))["status"] == "running"
    await plane.release(run_id)
    await plane.work()
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert await plane.messages(run_id) == ["up", "down"]
    assert await plane.containers() == []


async def test_a_drain_that_takes_too_long_detaches(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker("--drain-timeout", "0.5") as worker:
        await plane.until_logged(run_id, "up")
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    assert (await plane.run(run_id))["status"] == "running"
    assert len(await plane.containers()) == 1


async def test_a_killed_worker_s_run_is_adopted_and_its_log_goes_on(plane: Plane) -> None:
    run_id = await plane.shell(f"seq 1 5000; {WAITS}; seq 1 5000; exit 3")
    async with plane.worker() as worker:
        await plane.until_logged(run_id, "up")
        worker.signal(signal.SIGKILL)
        await worker.wait()
    await plane.release(run_id)
    await plane.work()
    run = await plane.run(run_id)
    assert (run["status"], run["exit_code"]) == ("failed", 3)
    numbers = [str(n) for n in range(1, 5001)]
    assert await plane.messages(run_id) == [*numbers, "up", "down", *numbers]
    assert await plane.containers() == []


async def test_a_run_that_ended_while_no_worker_looked_is_completed(plane: Plane) -> None:
    run_id = await plane.shell(f"{WAITS}; echo late > /artifacts/late.txt")
    async with plane.worker() as worker:
        await plane.until_logged(run_id, "up")
        worker.signal(signal.SIGKILL)
        await worker.wait()
    await plane.release(run_id)
    docker("wait", plane.container(run_id))
    await plane.work()
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert list(await plane.artifacts(run_id)) == ["late.txt"]


async def test_a_second_worker_of_the_same_id_waits_and_touches_nothing(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker() as first:
        await plane.until_logged(run_id, "up")
        async with plane.worker() as second:
            await second.until_said("waiting: another worker works under this id (--worker-id)")
            await plane.release(run_id)
            await plane.until(run_id, "succeeded")
            first.signal(signal.SIGTERM)
            assert await first.wait() == 0
            await second.until_said("worker started")
    assert await plane.messages(run_id) == ["up", "down"]


async def test_a_worker_that_lost_its_lease_ends_the_container_and_writes_nothing(plane: Plane) -> None:
    run_id = await plane.shell("echo up; while :; do sleep 0.1; done")
    async with plane.worker("--lease", "15") as worker:
        await plane.until_logged(run_id, "up")
        await plane.db.execute("update ops.runs set status = 'failed', reason = 'worker_lost' where id = $1", run_id)
        await worker.until_said("lease lost, nothing more is written for this run")
        async with asyncio.timeout(PATIENCE):
            while await plane.containers():
                await asyncio.sleep(0.05)
    assert (await plane.run(run_id))["reason"] == "worker_lost"
    assert await plane.messages(run_id) == ["up"]


async def test_the_lease_is_renewed_while_the_run_lasts(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker("--until-idle", "--lease", "15") as worker:
        await plane.until_logged(run_id, "up")
        expiry = "select expires_at from ops_private.leases where run_id = $1"
        before = await plane.db.fetchval(expiry, run_id)
        async with asyncio.timeout(PATIENCE):
            while await plane.db.fetchval(expiry, run_id) == before:
                await asyncio.sleep(0.1)
        await plane.release(run_id)
        assert await worker.wait() == 0


async def test_three_workers_execute_each_of_two_hundred_runs_once(plane: Plane) -> None:
    workflow = await plane.workflow({"command": ["sh", "-c", "echo $OPS_RUN_NUMBER"], "artifacts": []})
    runs = [await plane.queue(workflow) for _ in range(200)]
    async with AsyncExitStack() as stack:
        for name in ("a", "b", "c"):
            worker = plane.worker("--until-idle", "--concurrency", "3", "--worker-id", f"{plane.name}-{name}")
            process = await stack.enter_async_context(worker)
            stack.push_async_callback(process.wait)
        for run_id in runs:
            await plane.until(run_id, *FINAL)
    assert await plane.db.fetchval("select count(*) from ops.runs where status = 'succeeded'") == 200
    said = await plane.db.fetch("select r.run_number, l.message from ops.runs r join ops.run_logs l on l.run_id = r.id")
    assert sorted((row["run_number"], row["message"]) for row in said) == [(n, str(n)) for n in range(1, 201)]
    created = "select count(*) from ops.run_events where message = 'container created'"
    assert await plane.db.fetchval(created) == 200
    by_worker = await plane.db.fetch("select claimed_by, count(*) from ops.runs group by 1")
    assert len(by_worker) == 3
    assert await plane.containers() == []


async def test_a_remote_engine_needs_nothing_of_this_host_s_files(plane: Plane) -> None:
    run_id = await plane.shell("echo far; echo kept > /artifacts/kept.txt")
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    async with relayed(socket) as port:
        await plane.work("--docker-host", f"tcp://127.0.0.1:{port}")
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert await plane.messages(run_id) == ["far"]
    [artifact] = (await plane.artifacts(run_id)).values()
    assert plane.stored(artifact).read_text() == "kept\n"


async def test_a_claim_whose_answer_was_lost_is_found_and_carried_out(plane: Plane) -> None:
    async with plane.worker("--poll-interval", "3600", "--lease", "15") as worker:
        await worker.until_said("worker started")
        me = await plane.db.fetchrow("select worker_id, instance_id from ops_private.workers")
        async with plane.db.transaction():  # so that the worker never sees it queued
            run_id = await plane.shell("echo found")
            await plane.db.execute(f"set local role {plane.name}_host")
            claim = await plane.db.fetchval("select ops.claim_next_run($1, $2)", me["worker_id"], me["instance_id"])
        assert json.loads(claim)["run_id"] == str(run_id)
        await plane.until(run_id, "succeeded")
    assert await plane.messages(run_id) == ["found"]


async def test_a_worker_whose_id_was_taken_leaves_its_containers_alone(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker("--lease", "15") as worker:
        await plane.until_logged(run_id, "up")
        await plane.db.execute("update ops_private.workers set instance_id = gen_random_uuid()")
        await worker.until_said("detaching: another worker has this worker id now (--worker-id)")
        assert await worker.wait() == 0
    assert (await plane.run(run_id))["status"] == "running"
    assert len(await plane.containers()) == 1


async def test_a_run_that_another_worker_adopted_keeps_its_container(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker("--lease", "15") as worker:
        await plane.until_logged(run_id, "up")
        await plane.db.execute("update ops_private.leases set worker_id = 'other', instance_id = gen_random_uuid()")
        await worker.until_said("lease lost, nothing more is written for this run")
        assert len(await plane.containers()) == 1
        assert (await plane.run(run_id))["status"] == "running"
        worker.signal(signal.SIGTERM)
        assert await worker.wait() == 0
    assert len(await plane.containers()) == 1


async def test_a_claim_of_a_worker_that_is_gone_goes_back_to_the_queue(plane: Plane) -> None:
    run_id = await plane.shell("echo second try")
    await plane.db.fetchval("select ops.claim_next_run('gone', gen_random_uuid(), '{}', 1)")
    async with plane.worker("--lease", "15"):
        await plane.until(run_id, "succeeded")
    assert await plane.messages(run_id) == ["second try"]
    assert (await plane.run(run_id))["claim_count"] == 2
