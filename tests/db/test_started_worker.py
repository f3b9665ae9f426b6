"""``ops-worker`` as a process that stays: where its settings come from, and what it says about itself."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.support.command import started
from tests.support.docker import PATIENCE
from tests.support.postgres import free_port


async def test_a_flag_wins_over_the_environment_and_that_over_the_env_file(
    db_url: str, tmp_path: Path, connect: Connect
) -> None:
    env_file = tmp_path / "worker.env"
    env_file.write_text(
        "OPS_WORKER_WORKER_ID=from-file\nOPS_WORKER_CONCURRENCY=7\n"
        f"OPS_WORKER_LABELS=from-file\nOPS_WORKER_DATABASE_URL={db_url}\n"
    )
    environ = {
        "OPS_WORKER_ENV_FILE": str(env_file),
        "OPS_WORKER_WORKER_ID": "from-environment",
        "OPS_WORKER_CONCURRENCY": "5",
    }
    async with started(tmp_path, "--worker-id", "from-flag", **environ) as worker:
        said = await worker.until_said("worker started")
        assert (said["worker_id"], said["concurrency"]) == ("from-flag", 5)
        db = await connect(db_url)
        labels = await db.fetchval("select labels from ops_private.workers where worker_id = 'from-flag'")
        assert labels == ["from-file", "ops:serve"]


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


async def test_the_metrics_address_serves_metrics(db_url: str, tmp_path: Path) -> None:
    port = free_port()
    flags = ("--metrics-address", f"127.0.0.1:{port}")
    async with started(tmp_path, *flags, OPS_WORKER_DATABASE_URL=db_url) as worker:
        await worker.until_said("worker started")
        async with asyncio.timeout(PATIENCE):
            while True:
                said = await asyncio.to_thread(fetched, f"http://127.0.0.1:{port}/metrics")
                if re.search(r"^ops_worker_last_heartbeat_timestamp_seconds 1\.\d+e\+09$", said, re.MULTILINE):
                    break
                await asyncio.sleep(0.05)
        assert "ops_worker_active_runs 0.0" in said


class Systemd:
    """The socket of a service manager."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(PATIENCE)
        self.environ = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "300000"}

    async def until_told(self, state: str) -> list[str]:
        """What it was told until a line began with that."""
        told: list[str] = []
        while not any(line.startswith(state) for line in told):
            told += (await asyncio.to_thread(self._socket.recv, 4096)).decode().splitlines()
        return told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(socket_folder: Path) -> Iterator[Systemd]:
    made = Systemd(socket_folder)
    yield made
    made.close()


async def test_systemd_is_told_when_the_worker_is_ready_alive_and_stopping(
    manager: Systemd, db_url: str, tmp_path: Path
) -> None:
    async with started(tmp_path, OPS_WORKER_DATABASE_URL=db_url, **manager.environ) as worker:
        before = await manager.until_told("READY=1")
        assert before[-1] == "STATUS=waiting for runs"
        assert "worker started" in [line["event"] for line in worker.said]
        assert "STOPPING=1" not in before
        for _ in range(3):
            await manager.until_told("WATCHDOG=1")
        worker.signal(signal.SIGTERM)
        await manager.until_told("STOPPING=1")
        assert await worker.wait() == 0


async def test_systemd_is_told_what_a_worker_waits_for_and_that_it_has_started(
    manager: Systemd, tmp_path: Path
) -> None:
    # or `systemctl enable --now` would stand without a word for as long as the database is away
    url = "postgresql://worker:hunter22@127.0.0.1:9/ops"
    async with started(tmp_path, OPS_WORKER_DATABASE_URL=url, **manager.environ) as worker:
        told = await manager.until_told("READY=1")
        assert told[-1].startswith("STATUS=waiting for the database: cannot connect to the database: ")
        await manager.until_told("WATCHDOG=1")
        worker.signal(signal.SIGTERM)
        await worker.wait()
