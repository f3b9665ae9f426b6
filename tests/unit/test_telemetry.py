"""The worker's own log lines and figures, and its messages to systemd over real sockets."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
import structlog
from prometheus_client.metrics import MetricWrapperBase

from tests.support.docker import ROOT
from tests.support.markdown import Document
from worker import telemetry
from worker.telemetry import Metrics, _watchdog_seconds, configure_logging, notify_systemd

SECRET = "hunter22"  # noqa: S105 - what must not be seen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail_with(password: str) -> None:
    """Raises while frames hold a secret: as an argument, and as a local below another."""
    token = {"password": password}
    try:
        int("".join(["not", " a number"]))
    except ValueError as error:
        raise RuntimeError(f"broken in {len(token)} place") from error


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_where_and_why_but_no_variables(
    log_format: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", log_format)
    try:
        fail_with("".join(["hunter", "22"]))
    except RuntimeError:
        structlog.get_logger().exception("it failed")
    said = capsys.readouterr().err
    assert SECRET not in said
    for expected in ("it failed", "broken in 1 place", "ValueError", "fail_with"):
        assert expected in said


def test_json_is_one_object_a_line_also_with_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    log = structlog.get_logger().bind(run_id="r1")
    log.info("run claimed", run_number=7, text="two\nlines")
    try:
        fail_with(SECRET)
    except RuntimeError:
        log.exception("it failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first | {"timestamp": ""} == {
        "event": "run claimed", "level": "info", "run_id": "r1", "run_number": 7, "text": "two\nlines", "timestamp": "",
    }  # fmt: skip
    assert first["timestamp"].endswith("Z")
    assert second["exception"][0]["exc_type"] == "RuntimeError"


def test_what_json_does_not_know_does_not_stop_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger().info("odd", value=object(), error=ValueError("x"))
    assert json.loads(capsys.readouterr().err)["event"] == "odd"


@pytest.mark.parametrize(
    ("log_format", "sink", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("console", io.StringIO, False),
    ],
)
def test_a_terminal_gets_lines_for_a_person_unless_told_otherwise(
    log_format: Literal["auto", "json", "console"],
    sink: type[io.StringIO],
    is_json: bool,  # noqa: FBT001 - a table's column
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = sink()
    monkeypatch.setattr(sys, "stderr", target)
    configure_logging("info", log_format)
    structlog.get_logger().info("hello")
    assert target.getvalue().startswith("{") == is_json
    assert "hello" in target.getvalue()


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_less_than_the_level_is_not_said(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level, "json")
    levels = ["debug", "info", "warning", "error"]
    for name in levels:
        getattr(structlog.get_logger(), name)("said")
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == levels[levels.index(level) :]


def test_figures_count_runs_by_type_and_status() -> None:
    metrics = Metrics()
    metrics.active.set(2)
    metrics.finished("build", "succeeded", active=1, seconds=3)
    metrics.finished("build", "succeeded", active=0, seconds=90)
    metrics.finished("deploy", "failed", active=0, seconds=1)
    metrics.finished("deploy", "detached", active=0)
    value = metrics.registry.get_sample_value
    assert value("ops_worker_runs_total", {"workflow_type": "build", "status": "succeeded"}) == 2
    assert value("ops_worker_runs_total", {"workflow_type": "deploy", "status": "failed"}) == 1
    assert value("ops_worker_active_runs") == 0
    for workflow_type, most, runs in (("build", "5.0", 1), ("build", "120.0", 2), ("deploy", "+Inf", 1)):
        where = {"workflow_type": workflow_type, "le": most}
        assert value("ops_worker_run_duration_seconds_bucket", where) == runs


def test_the_guide_lists_every_figure_with_its_labels() -> None:
    figures = {}
    for it in vars(Metrics()).values():
        if isinstance(it, MetricWrapperBase):
            name = f"{it._name}_total" if it._type == "counter" else it._name
            figures[name + (f"{{{', '.join(it._labelnames)}}}" if it._labelnames else "")] = it._type
    rows = Document(ROOT / "docs" / "guide.md").table("name")
    assert {row[0]: row[1] for row in rows} == figures


def test_two_workers_in_one_process_do_not_share_figures() -> None:
    Metrics().finished("build", "succeeded", active=5)
    assert Metrics().registry.get_sample_value("ops_worker_active_runs") == 0


def test_idle_connections_to_the_metrics_take_no_threads_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "CONNECTION_SECONDS", 2.0)
    port = Metrics().serve("127.0.0.1", 0)
    before = threading.active_count()
    with ExitStack() as clients:
        idle = [clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(150)]
        idle[-1].sendall(b"GET /metrics HTTP/1.1\r\nX: ")  # and one that is slow
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                assert b"ops_worker_active_runs 0.0" in answer.read()
            assert threading.active_count() - before <= 8
        assert [client.recv(1) for client in idle] == [b""] * 150
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before, "every place is free again"


# --- systemd ---


@pytest.fixture(autouse=True)
def _without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def channel() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(10)
        yield bound


def test_states_arrive_as_lines_of_one_message(
    channel: socket.socket, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = socket_folder / "notify"
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


@pytest.mark.parametrize("address", ["", "/no/such/socket", "@not-bound", "/" + 200 * "x"])
def test_an_unreachable_systemd_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify_systemd("READY=1")


@pytest.mark.timeout(20)
def test_a_full_socket_does_not_block(channel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ops-worker-test-{uuid.uuid4().hex}"
    channel.bind(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    for n in range(2000):  # the kernel's queue holds about ten, and none is read
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
