"""Cancel, time limit and a lost lease, with real workers as processes; with faults: tests/faults."""

from __future__ import annotations

from tests.support.docker import ENGINE_SOCKET, FINAL, WAITS, Plane
from tests.support.relay import Relay

DEAF = "trap '' TERM; echo up; while :; do sleep 0.1; done"
LOST = "lease lost, nothing more is written for this run"


async def test_cancel_and_time_limit_end_the_container_and_keep_log_and_artifacts(served: Plane) -> None:
    willing = await served.shell(f"echo kept > /artifacts/a.txt; {WAITS}")
    deaf = await served.shell(DEAF)
    late = await served.shell(DEAF, timeout_seconds=1)
    for run_id in (willing, deaf):
        await served.until_logged(run_id, "up")
        assert await served.cancel(run_id) == "running"
    ended = {willing: ("canceled", "canceled"), deaf: ("canceled", "canceled"), late: ("failed", "timeout")}
    for run_id, expected in ended.items():
        run = await served.until(run_id, *FINAL)
        assert (run["status"], run["reason"]) == expected
        assert await served.messages(run_id) == ["up"]
    assert (await served.run(deaf))["exit_code"] == 137
    assert "1 s" in (await served.run(late))["error_message"]
    assert list(await served.artifacts(willing)) == ["a.txt"]


async def test_the_heartbeat_brings_a_cancel_and_a_lost_lease_without_a_notification(plane: Plane) -> None:
    to_cancel, lost, adopted = [await plane.shell(WAITS) for _ in range(3)]
    async with plane.worker("--lease", "15", "--concurrency", "3") as worker:
        for run_id in (to_cancel, lost, adopted):
            await plane.until_logged(run_id, "up")
        await plane.db.execute("alter table ops.runs disable trigger record_run_change")  # so no notification either
        await plane.db.execute("update ops.runs set cancel_requested_at = now() where id = $1", to_cancel)
        await plane.db.execute("alter table ops.runs enable trigger record_run_change")
        await plane.db.execute("update ops.runs set status = 'failed', reason = 'worker_lost' where id = $1", lost)
        taken = "update ops_private.leases set worker_id = 'other', instance_id = gen_random_uuid() where run_id = $1"
        await plane.db.execute(taken, adopted)
        await plane.until(to_cancel, "canceled")
        await worker.until_said(LOST)
        await plane.until_containers(1)
    assert {said["run_id"] for said in worker.said if said["event"] == LOST} == {str(lost), str(adopted)}
    assert plane.docker("ps", "--format", "{{.Names}}").split().count(plane.container(adopted)) == 1
    assert (await plane.run(lost))["reason"] == "worker_lost"
    assert (await plane.run(adopted))["status"] == "running"
    for run_id in (lost, adopted):
        assert await plane.messages(run_id) == ["up"]


async def test_a_remote_engine_needs_nothing_of_this_host_s_files(plane: Plane) -> None:
    run_id = await plane.shell("echo far; echo kept > /artifacts/kept.txt")
    async with Relay(ENGINE_SOCKET).running() as remote:
        await plane.work("--docker-host", f"tcp://127.0.0.1:{remote.port}")
    assert (await plane.run(run_id))["status"] == "succeeded"
    assert await plane.messages(run_id) == ["far"]
    [artifact] = (await plane.artifacts(run_id)).values()
    assert plane.stored(artifact).read_text() == "kept\n"
