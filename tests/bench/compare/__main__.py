"""The same job on ops-worker and its peers, each broken in three ways; prints a table and writes docs/comparison.md.

    python -m tests.bench.compare [celery buildbot …] [--minutes 25]

Each peer is installed by pip into a virtual environment below ``build/compare``. A result is kept there too, so that
a call for one peer writes the page with the others' last results. Nothing here asserts anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.compare import airflow, buildbot, celery, dagster, ops_worker, prefect
from tests.bench.compare.bench import (
    LINES,
    MAJOR,
    ROOT,
    START,
    STOP,
    Bench,
    Peer,
    Seen,
    Site,
    StepFailed,
    database,
    until,
)
from tests.support.docker import base_image, docker
from worker import __version__

PEERS = {module.__name__.rpartition(".")[2]: module.PEER for module in (
    ops_worker, celery, buildbot, prefect, dagster, airflow,
)}  # fmt: skip
FAULTS = {"kill": "SIGKILL of the worker", "stop": "SIGTERM of the worker", "database": "database away for 20 s"}
BUILD = ROOT / "build" / "compare"
PAGE = ROOT / "docs" / "comparison.md"
MIDDLE = 8
"""The fault comes when the peer shows that many lines, or ``LATEST`` seconds after the job began."""
LATEST = 15.0
AWAY = 20.0
WATCHED = 150.0
"""Seconds after the fault within which the job has to end."""
INSTALL = 600.0
LONGEST = 600.0
"""Seconds that a peer takes at most when it is installed; a scenario that sets up longer is given up."""
AT_ONCE = 2
"""Peers, each with its three scenarios at the same time: they mostly wait."""
console = Console()


@dataclass(frozen=True)
class Row:
    """What came of one fault."""

    peer: str
    fault: str
    state: str
    kept: int = 0
    doubled: int = 0
    missing: int = 0
    left: str = ""
    date: str = ""


def main() -> None:
    """Play what was asked for, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; all if none is named")
    parser.add_argument("--minutes", type=float, default=25, help="a peer that could not end in that time is left out")
    asked = parser.parse_args()
    if unknown := set(asked.peers) - set(PEERS):
        parser.error(f"PEER: {', '.join(sorted(unknown))}: expected one of {', '.join(PEERS)}")
    deadline = time.monotonic() + 60 * asked.minutes
    image = base_image()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        keys = asked.peers or list(PEERS)
        for key, rows in zip(keys, pool.map(lambda key: play(PEERS[key], key, image, deadline), keys), strict=True):
            show(rows)
            keep(key, rows)
    PAGE.write_text(page(kept()), encoding="utf-8")


def play(peer: Peer, key: str, image: str, deadline: float) -> list[Row]:
    """The three faults at the same time, each on an installation of its own."""
    console.print(f"{peer.name}: {' '.join(peer.packages) or __version__}")
    try:
        venv = installed(key, peer.packages, min(INSTALL, deadline - LONGEST - time.monotonic()))
    except StepFailed as failed:
        return [Row(peer.name, fault, f"not installed: {failed}", date=today()) for fault in FAULTS]
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        return list(pool.map(lambda fault: scene(peer, fault, venv, image), FAULTS))


def installed(key: str, packages: tuple[str, ...], seconds: float) -> Path:
    """The peer's virtual environment, made within so many seconds; ours for ops-worker.

    Raises:
        StepFailed: pip could not install it, or there is no time left.
    """
    if seconds <= 0:
        raise StepFailed("the time of the whole command is over")
    if not packages:
        return Path(sys.prefix)
    venv, wanted = BUILD / key, "\n".join(packages)
    stamp = venv / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return venv
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *packages]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise StepFailed(f"pip took longer than {seconds:.0f} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise StepFailed(errors[-1] if errors else "pip failed")
    stamp.write_text(wanted)
    return venv


def scene(peer: Peer, fault: str, venv: Path, image: str) -> Row:
    """One fault on one installation, which is taken down afterwards."""
    # a server's Unix socket needs a short path
    with tempfile.TemporaryDirectory(prefix="compare-") as scratch, database() as cluster:
        bench = Bench(Path(scratch, "site"), venv, cluster, image)
        try:
            seen, left = observe(peer.site(bench), fault)
        except StepFailed as failed:
            return Row(peer.name, fault, f"not set up: {failed}", date=today())
        finally:
            bench.clear()
            logs = BUILD / "logs" / f"{peer.name}-{fault}"
            shutil.rmtree(logs, ignore_errors=True)
            logs.mkdir(parents=True)
            for log in bench.folder.glob("*.log"):
                shutil.copy(log, logs)
    counted = numbers(seen)
    doubled = sum(1 for count in counted.values() if count > 1)
    missing = LINES - len(counted)
    state = seen.state if seen.ended else f"{seen.state}, still after {WATCHED:.0f} s"
    return Row(peer.name, fault, state, len(counted), doubled, missing, left, today())


def numbers(seen: Seen) -> Counter[int]:
    """How often the log has each line of the job; a program may log more than the job's lines."""
    return Counter(int(found[1]) for line in seen.lines if (found := re.fullmatch(r"line (\d+)", line.strip())))


def observe(site: Site, fault: str) -> tuple[Seen, str]:
    """Set up, break, and watch until the job has ended and its processes too, or ``WATCHED`` is over.

    Raises:
        StepFailed: the job never began.
    """
    bench = site.bench
    site.prepare()
    worker = site.start_worker()
    site.submit()
    until("the job begins", lambda: bool(bench.jobs()), bench.seconds())
    with suppress(StepFailed):  # a peer may show no line before the end
        until("lines", lambda: len(numbers(site.look())) >= MIDDLE, LATEST)
    strike(site, fault, worker)
    seen = site.look()
    deadline = time.monotonic() + WATCHED
    while time.monotonic() < deadline and not (seen.ended and not bench.jobs()):
        time.sleep(1)
        seen = site.look()
    if seen.ended:
        time.sleep(5)  # a container is removed, and the last lines arrive, a moment after the end
    return site.look(), bench.left()


def strike(site: Site, fault: str, worker: subprocess.Popen[bytes]) -> None:
    """Do the fault, and what a service manager does after it."""
    bench = site.bench
    if fault == "database":
        bench.cluster.stop("fast")
        time.sleep(AWAY)
        bench.cluster.start()
        return
    if fault == "stop":
        worker.terminate()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(STOP)
    bench.kill(COMPARE_WORKER="1")
    worker.wait()
    time.sleep(2)
    site.start_worker()


# The table ------------------------------------------------------------------------------------------------


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def cells(row: Row) -> tuple[str, ...]:
    """The row as the table has it; what never began has no figures."""
    counts = map(str, (row.kept, row.doubled, row.missing)) if row.left else ("", "", "")
    return (row.peer, FAULTS[row.fault], row.state, *counts, row.left)


def show(rows: list[Row]) -> None:
    """Print the rows."""
    table = Table("peer", "fault", "state", "kept", "doubled", "missing", "left behind")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)


def keep(key: str, rows: list[Row]) -> None:
    """Keep a peer's rows for the page."""
    (BUILD / "results").mkdir(parents=True, exist_ok=True)
    (BUILD / "results" / f"{key}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


def kept() -> dict[str, list[Row]]:
    """The rows of all peers, in their order; the rows of a peer that was never played are `not tried`."""
    found = {}
    for key, peer in PEERS.items():
        path = BUILD / "results" / f"{key}.json"
        found[key] = [Row(peer.name, fault, "not tried") for fault in FAULTS]
        if path.exists():
            found[key] = [Row(**row) for row in json.loads(path.read_text())]
    return found


def page(results: dict[str, list[Row]]) -> str:
    """The text of docs/comparison.md."""
    head = "| | after | state | kept | doubled | missing | left behind |\n|---|---|---|---|---|---|---|\n"
    table = "".join(f"| {' | '.join(cells(row))} |\n" for rows in results.values() for row in rows)
    setups = "".join(
        textwrap.fill(
            f"- **{peer.name}** ({', '.join(peer.packages) or __version__}; {results[key][0].date or 'not tried'}): "
            f"{peer.setup}.",
            width=116, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False,
        ) + "\n"
        for key, peer in PEERS.items()
    )  # fmt: skip
    engine = docker("version", "--format", "{{.Server.Version}}").strip()
    return TEXT.format(
        table=head + table, setups=setups, lines=LINES, middle=MIDDLE, away=int(AWAY), stop=int(STOP),
        watched=int(WATCHED), start=int(START), cpus=os.cpu_count(), python=platform.python_version(), engine=engine,
        major=MAJOR,
    )  # fmt: skip


TEXT = """\
# Beside others

Written by `make compare`; do not edit. One job on ops-worker and on other programs that run jobs, each broken in
the same ways. It is one run of each, on a busy machine, with the simplest set-up that the program's own documents
describe. It shows what happens by default, not what an expert of that program could reach.

The job is a shell that prints `line 1` to `line {lines}`, one a second. The fault comes when the program shows
{middle} lines, or about half-way where it shows none.

- **SIGKILL of the worker**: all processes of the worker's unit are killed, as after the death of a service's main
  process under systemd; 2 s later the worker is started again.
- **SIGTERM of the worker**: the worker's main process gets SIGTERM and {stop} s to leave, as systemd's default; then
  the rest is killed, and 2 s later the worker is started again.
- **Database away**: the PostgreSQL that holds the program's state is stopped for {away} s and started again.

A container is not part of the worker's unit; a process of the worker is. `kept` counts the different lines in the log
that the program, or the task on it, shows in the end, `doubled` those among them that are there twice or more,
`missing` the rest of {lines}. The job had {watched} s after the fault to end, and the set-up
{start} s until the job began.

{table}
## How each was set up

{setups}
Machine: {cpus} shared CPUs, Python {python}, Docker {engine}, PostgreSQL {major}. `make compare` repeats all of it;
`make compare ARGS=celery` one, and keeps the others' last results. The programs' own logs are in `build/compare/logs`.
"""


if __name__ == "__main__":
    main()
