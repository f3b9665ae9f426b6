"""The worker behind a real pgbouncer, in either mode."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.support.docker import WAITS, Plane
from tests.support.pgbouncer import pooler
from tests.support.postgres import Cluster

POLLING = "notifications do not arrive (a transaction pooler?), polling"


def database(plane: Plane) -> str:
    return urlsplit(plane.url).path.removeprefix("/")


async def test_through_a_session_pooler_a_notification_wakes_the_worker(plane: Plane, cluster: Cluster) -> None:
    with pooler(cluster, "session", database=database(plane), user=f"{plane.name}_host") as url:
        async with plane.worker("--poll-interval", "3600", OPS_WORKER_DATABASE_URL=url) as worker:
            first = await plane.shell("true")  # after it the worker finds nothing, and would sleep for an hour
            await plane.until(first, "succeeded")
            await plane.until_containers(0)
            run_id = await plane.shell("echo hello")
            await plane.until(run_id, "succeeded")
            assert [line for line in worker.said if line["event"] == POLLING] == []
    assert await plane.messages(run_id) == ["hello"]


async def test_through_a_transaction_pooler_the_worker_polls_and_logs_that_once(plane: Plane, cluster: Cluster) -> None:
    user = f"{plane.name}_host"
    # Idle clients are sent away, so the worker connects and subscribes again and again.
    with pooler(cluster, "transaction", database=database(plane), user=user, idle_seconds=1) as url:
        async with plane.worker("--lease", "15", OPS_WORKER_DATABASE_URL=url) as worker:
            await worker.until_said(POLLING)
            runs = [await plane.shell("seq 1000; echo kept > /artifacts/a.txt") for _ in range(4)]
            for run_id in runs:
                assert (await plane.until(run_id, "succeeded", "failed"))["status"] == "succeeded"
                assert await plane.messages(run_id) == [str(n) for n in range(1, 1001)]
                assert list(await plane.artifacts(run_id)) == ["a.txt"]
            asked = await plane.shell(WAITS)
            await plane.until_logged(asked, "up")
            await plane.cancel(asked)
            await plane.until(asked, "canceled")
            assert len([line for line in worker.said if line["event"] == POLLING]) == 1
