"""The demo from its beginning to its end, as a person starts it: twice, and once interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from deploy.demo import cluster, control_plane, picture
from deploy.demo.__main__ import State
from tests.support.docker import PATIENCE, ROOT, docker

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("demo")]

EXPECTED = {
    "build": ("succeeded", 0),
    "test": ("succeeded", 0),
    "test (broken)": ("failed", 1),
    "backup": ("succeeded", 0),
    "upgrade": ("succeeded", 0),
    "deploy": ("succeeded", 0),
}
RUNS = (
    "select r.id, r.run_number, w.workflow_type, w.name, r.status, r.exit_code, r.error_message,"
    " r.created_at, r.finished_at from ops.runs as r join ops.workflows as w on w.id = r.workflow_id"
    " where r.run_number > $1 order by r.run_number"
)
TERMINAL_WIDTH = 80


def command(state: State, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "deploy" / "demo"), "--state", str(state.folder), *words]


def piped(state: State, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        command(state, *words), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def on_a_terminal(state: State) -> tuple[int, str, str]:
    """Exit code and output of the demo on a terminal of 80 columns, and the console's page before Enter is pressed."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, TERMINAL_WIDTH, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "NO_COLOR": ""}
    process = subprocess.Popen(command(state), cwd=ROOT, env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    output, page = b"", ""
    with contextlib.suppress(OSError):  # a terminal whose other end is closed
        while chunk := os.read(ours, 65536):
            output += chunk
            if not page and b"Press Enter" in output:
                (address,) = re.findall(r"http://127\.0\.0\.1:\d+", output.decode())
                with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                    page = answer.read().decode()
                os.write(ours, b"\n")
    os.close(ours)
    return process.wait(), output.decode(), page


def left_over(state: State) -> list[str]:
    """Containers, networks and processes of that demo."""
    mine = ["--filter", f"label=ops-worker.demo={state.name}"]
    found = docker("ps", "--all", "--format", "{{.Names}}", *mine).split()
    found += docker("network", "ls", "--format", "{{.Name}}", *mine).split()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(state.folder) in line:
                found.append(line)
    with state.locked() as alone:
        assert alone
    return found


async def read(state: State, sql: str, *args: object) -> list[asyncpg.Record]:
    with cluster.running(state.folder) as sockets:
        db = await asyncpg.connect(cluster.url(sockets, control_plane.DATABASE))
        try:
            rows: list[asyncpg.Record] = await db.fetch(sql, *args)
        finally:
            await db.close()
        return rows


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    made = State(tmp_path_factory.mktemp("demo").resolve() / "state")
    yield made
    assert left_over(made) == []


@pytest.fixture(scope="module")
def first(state: State) -> subprocess.CompletedProcess[str]:
    return piped(state)


@pytest.fixture(scope="module")
def second(state: State, first: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return on_a_terminal(state)


def test_the_first_demo_ends_as_expected(first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    assert "\x1b" not in first.stdout
    for number, (name, (status, _)) in enumerate(EXPECTED.items(), 1):
        assert re.search(rf"^ +{number}  {re.escape(name)} +. {status} ", first.stdout, re.MULTILINE), first.stdout
    assert re.search(r"test \(broken\) +✗ failed .* exit code 1 \(on purpose\)", first.stdout)
    assert "the one red run is red on purpose" in first.stdout.replace("\n", " ")
    table = re.findall(r"^ +(\d)  .* (\d+) +(\d+) +(\d+)  (?:\d, |none)", first.stdout, re.MULTILINE)
    assert [row[0] for row in table if row[3] != "0"] == ["3"], "errors are counted, and only of the red run"


def test_the_demo_fits_a_screen_and_no_time_goes_backwards(first: subprocess.CompletedProcess[str]) -> None:
    lines = first.stdout[first.stdout.index("Database") :].splitlines()  # before it, an image may have been built
    assert len(lines) <= 30 - 2
    times = [line[:8] for line in lines if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(times) == len(EXPECTED)
    assert times == sorted(times)


def test_each_next_step_works_when_it_is_pasted(state: State, first: subprocess.CompletedProcess[str]) -> None:
    steps = [line.split("#")[0] for line in first.stdout.split("Next\n")[1].splitlines()]
    said = [
        subprocess.run(["bash", "-c", step], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=True,
                       text=True).stdout
        for step in steps
    ]  # fmt: skip
    assert " error " in said[0]
    assert "FAIL" in said[0]
    assert f"{state.runs}/1-build:\n" in said[1]
    assert piped(state, "log", "4").stdout.count("the dump restores: 4 tables, 8,103 rows") == 1


async def test_the_database_holds_the_same_outcomes(state: State, first: subprocess.CompletedProcess[str]) -> None:
    runs = await read(state, RUNS, 0)
    assert {run["name"]: (run["status"], run["exit_code"]) for run in runs[:6]} == EXPECTED
    by_name = {run["name"]: run for run in runs[:6]}
    assert by_name["deploy"]["created_at"] >= by_name["build"]["finished_at"]
    states = await read(
        state,
        "select run_id, array_agg(payload ->> 'new_status' order by seq) as statuses from ops.run_events"
        " where event_type = 'state_change' group by run_id",
    )
    assert {row["run_id"]: row["statuses"][:2] for row in states} == {run["id"]: ["claimed", "running"] for run in runs}


async def test_each_log_is_whole_and_has_levels(state: State, first: subprocess.CompletedProcess[str]) -> None:
    logs = await read(
        state,
        "select w.name, array_agg(l.seq order by l.seq) as seqs, array_agg(distinct l.log_level) as levels"
        " from ops.run_logs as l join ops.runs as r on r.id = l.run_id join ops.workflows as w on w.id = r.workflow_id"
        " where r.run_number <= 6 group by w.name",
    )
    assert {log["name"] for log in logs} == EXPECTED.keys()
    for log in logs:
        assert log["seqs"] == list(range(1, len(log["seqs"]) + 1))
    levels = {log["name"]: set(log["levels"]) for log in logs}
    assert levels["test"] == {"info"}
    assert levels["test (broken)"] == {"info", "warn", "error"}
    assert levels["upgrade"] == {"info", "warn"}


async def test_each_artifact_is_the_file_that_the_database_describes(
    state: State, first: subprocess.CompletedProcess[str]
) -> None:
    rows = await read(
        state,
        "select r.run_number, w.workflow_type, a.artifact_key, a.size_bytes, a.checksum from ops.run_artifacts as a"
        " join ops.runs as r on r.id = a.run_id join ops.workflows as w on w.id = r.workflow_id"
        " where r.run_number <= 6",
    )
    files = {}
    for row in rows:
        name = Path(row["artifact_key"]).name
        path = state.runs / f"{row['run_number']}-{row['workflow_type']}" / name
        stored = control_plane.StoredArtifact(name, path, row["size_bytes"], row["checksum"])
        assert stored.problem() is None
        files[f"{row['run_number']} {name}"] = path
    assert sorted(files) == [
        "1 library_loans-18.0.1.2.0.zip", "1 manifest.json", "2 junit.xml", "2 summary.txt", "3 junit.xml",
        "3 summary.txt", "4 backup.dump", "4 restore-check.json", "5 upgrade-report.md", "6 deployment.json",
    ]  # fmt: skip
    manifest, deployment = (json.loads(files[name].read_text()) for name in ("1 manifest.json", "6 deployment.json"))
    assert deployment["files"] == {name: file["sha256"] for name, file in manifest["files"].items()}
    assert json.loads(files["4 restore-check.json"].read_text())["restores"] is True
    assert 'failures="2"' in files["3 junit.xml"].read_text()
    assert "`models/book.py:22`: `_sql_constraints = [`" in files["5 upgrade-report.md"].read_text()


async def test_the_second_demo_builds_nothing_and_continues(state: State, second: tuple[int, str, str]) -> None:
    code, output, page = second
    assert left_over(state) == []
    assert code == 0, output
    assert "already here" in output
    assert "building" not in output
    assert "up to date" in output
    assert "\x1b[" in output
    assert "last line" in output, "the runs are shown while they go on"
    assert 'href="/runs/library/12"' in page, "the console shows them until Enter is pressed"
    assert "deployed now: 18.0.1.2.0, by run 6" in piped(state, "log", "12").stdout
    assert [run["run_number"] for run in await read(state, RUNS, 6)] == list(range(7, 13))


def test_a_terminal_of_80_columns_is_enough(second: tuple[int, str, str]) -> None:
    _, output, _ = second
    output = output.partition("Next")[0]  # commands to paste are not broken
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).split("\n"):
        assert max(len(part) for part in line.split("\r")) <= TERMINAL_WIDTH, line


def test_psql_looks_into_the_database_afterwards(state: State, second: tuple[int, str, str]) -> None:
    done = piped(state, "psql", "-Atc", "select count(*) from ops.runs where status = 'succeeded'")
    assert int(done.stdout) >= 10, done.stderr


def test_an_interrupted_demo_cleans_up(state: State, second: tuple[int, str, str]) -> None:
    [before] = asyncio.run(read(state, "select max(run_number) as last from ops.runs"))
    process = subprocess.Popen(command(state), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "✓ succeeded in" in line:  # the others go on
            break
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # a further signal of either kind changes nothing
    rest = process.communicate()[0]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert left_over(state) == [], rest
    runs = asyncio.run(read(state, RUNS, before["last"]))
    assert {run["status"] for run in runs} <= {"succeeded", "failed", "canceled"}, rest
    assert "All went as expected" not in rest


def test_the_first_run_by_hand_works_as_it_stands_in_the_readme_and_again(
    state: State, first: subprocess.CompletedProcess[str]
) -> None:
    section = (ROOT / "README.md").read_text().split("## A first run by hand\n")[1]
    block = section.split("```sh\n")[1].split("```")[0]
    pasted = block.replace("deploy/demo/run with", f"deploy/demo/run --state {state.folder} with")
    for number in (1, 3):
        done = subprocess.run(["bash"], cwd=ROOT, input=pasted, capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stderr
        assert "running -> succeeded" in done.stdout, done.stdout
        assert f"The log: ops-worker runs logs hello#{number}\n" in done.stdout
        assert "hello world" in done.stdout
        assert re.search(rf"hello#{number + 1}\b.* approval: ", done.stdout), done.stdout
        assert "ERROR" not in done.stderr


def test_without_an_engine_it_fails_and_names_the_way_to_check(tmp_path: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    done = subprocess.run(
        command(State(tmp_path / "state")), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "docker version" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_picture_shows_what_a_terminal_has_at_the_end() -> None:
    left = picture.screen(
        "one\r\n\x1b[?25ltwo\x1b[2K\x1b[32m2\x1b[0m\r\nthree\x1b[1A\x1b[2K\x1b[1mlast\r\n\x1b[2K\x1b[?25h"
    )
    assert left == ["one", "\x1b[1mlast", ""]
    shown = picture.svg(left)
    assert ">last<" in shown
    assert "url(http" not in shown
