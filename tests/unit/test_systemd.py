"""What systemd is told, over real sockets."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.telemetry import _watchdog_seconds, notify_systemd


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def channel() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(10)
        yield bound


def test_states_arrive_as_lines_of_one_message(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short by law
        path = Path(folder) / "notify"
        channel.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notify_systemd("READY=1", "STATUS=waiting for runs")
        assert channel.recv(4096) == b"READY=1\nSTATUS=waiting for runs"


def test_an_abstract_socket_is_found(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ops-worker-test-{uuid.uuid4().hex}"
    channel.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify_systemd("WATCHDOG=1")
    assert channel.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@nobody-listens-here", "/" + 200 * "x"])
def test_nobody_there_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_systemd("READY=1")


@pytest.mark.timeout(20)
def test_a_full_socket_holds_nobody_up(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ops-worker-test-{uuid.uuid4().hex}"
    channel.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    for n in range(2000):  # the kernel's queue takes ten or so, and nobody reads
        notify_systemd(f"STATUS={n}")


def test_without_systemd_nothing_is_sent() -> None:
    notify_systemd("READY=1")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_the_watchdog_watches_the_process_that_it_names(
    environ: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert _watchdog_seconds() == seconds
