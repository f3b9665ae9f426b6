"""The tests on bare machines of other Debian releases, and one summary of everything; ``make test-matrix``.

    python -m tests.matrix [--ran PART POSTGRES LOG STATUS SECONDS]... [MACHINE...]

``scripts/machine`` makes the machines. They run side by side, since most tests wait for a container or a lease. Each
has an engine, a Python and a PostgreSQL that no other has, so no combination is tried twice; hypothesis tries few
examples, since ``make test`` searches for cases and the question here is the version. What they print is in
``build/matrix/MACHINE.log``. A part that fails does not stop the rest. A skipped test means that something is missing
and fails the matrix like a failed one.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "matrix"
TAIL_LINES = 60
CLOSING_LINE = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s\b", re.MULTILINE)
HEADINGS = ("machine", "part", "engine", "Python", "PostgreSQL", "passed", "failed", "skipped", "time")


@dataclass(frozen=True)
class Machine:
    """A Debian release, the PostgreSQL of its tests, and what runs there: commands by their name in the table.

    With ``python`` it is no machine but a clone of this checkout on this host, with that interpreter.
    """

    name: str
    postgres: int
    parts: Mapping[str, str]
    python: str = ""

    @property
    def ended_by(self) -> signal.Signals:
        """What ends it: ``scripts/machine`` tidies up on SIGTERM, and ``unshare`` blocks that one."""
        return signal.SIGKILL if self.python else signal.SIGTERM

    def command(self) -> list[str]:
        if not self.python:
            return [str(ROOT / "scripts" / "machine"), "run", self.name, "bash", "-c", script(self)]
        clone = 'rm -rf -- "$1" && git clone -q -- "$2" "$1" && cd -- "$1" || exit'
        alone = ["unshare", "--mount-proc", "--pid", "--fork", "--kill-child"]  # no process outlives it
        return [*alone, "bash", "-c", f"{clone}\n{script(self)}", "clone", str(FOLDER / self.name), ROOT.as_uri()]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    machine: str
    part: str
    engine: str
    python: str
    postgres: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    def cells(self) -> tuple[str, ...]:
        time_taken = f"{int(self.seconds) // 60}:{int(self.seconds) % 60:02}"
        counts = (str(self.passed), str(self.failed), str(self.skipped))
        return (self.machine, self.part, self.engine, self.python, self.postgres, *counts, time_taken)


PYTEST = ".venv/bin/pytest -q -n 3 --dist loadgroup --hypothesis-profile=brief --durations=15"
UNIT = f"scripts/setup && {PYTEST} tests/unit"
DB = f"scripts/setup && scripts/engine run {PYTEST} tests/db"
SQL = f"{DB} --ignore=tests/db/test_schema_docs.py --ignore=tests/db/test_supabase_cli.py"  # npm's tools run once
DOCKER = f"scripts/setup && scripts/engine run {PYTEST} tests/docker"
FAULTS = f"scripts/setup && scripts/engine run {PYTEST} tests/faults"
MAKE = "apt-get -qq update && apt-get -qq -y --no-install-recommends install git make"  # git made the clone
MACHINES = (
    # The README's promise: its first command, which must not wait for Enter here, then the tests of its second.
    Machine("bookworm", 15, {
        "make demo": f"{MAKE} && make demo ARGS=--no-wait",
        "unit": f"{UNIT} tests/test_packaging.py", "db": DB, "docker": DOCKER,
    }),
    # Newer engines and Pythons, and the PostgreSQL versions that are left.
    Machine("trixie", 17, {"unit": UNIT, "db": SQL, "docker": DOCKER, "faults": FAULTS}),
    Machine("sid", 16, {"unit": UNIT, "db": SQL, "docker": DOCKER, "faults": FAULTS}),
)  # fmt: skip


def machines() -> list[Machine]:
    """``MACHINES``, and Python 3.12, which no release has, where this host or its pyenv has it."""
    installed = [shutil.which("python3.12"), *map(str, Path.home().glob(".pyenv/versions/3.12.*/bin/python3.12"))]
    for python in filter(None, installed):
        if not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
            return [*MACHINES, Machine("python3.12", 18, {"unit": UNIT}, python)]
    say("there is no Python 3.12 here, on PATH or in ~/.pyenv: it is not tried")
    return list(MACHINES)


def script(machine: Machine) -> str:
    """What runs on the machine; lines that begin with ``==`` are for ``read``."""
    lines = [f"export OPS_TEST_POSTGRES={machine.postgres}"]
    if machine.python:
        lines += [f"export PYTHON={shlex.quote(machine.python)}"]
    for part, command in machine.parts.items():
        lines += [f"printf '\\n== begin %s\\n' {shlex.quote(part)}", f"( {command} )", "status=$?"]
        lines += [
            'printf \'\\n== engine %s\\n== python %s\\n\' "$(dockerd --version 2> /dev/null)" "$(.venv/bin/python -V)"'
        ]
        lines += ["printf '== end %s\\n' $status"]
    return "\n".join(lines)


def counted(output: str, status: int) -> tuple[int, int, int]:
    """Passed, failed and skipped by pytest's closing lines in the output; another command counts as one test."""
    counts: Counter[str] = Counter()
    for line in CLOSING_LINE.findall(output):
        for number, word in re.findall(r"(\d+) (\w+)", line):
            counts[word.removesuffix("s")] += int(number)
    failed = counts["failed"] + counts["error"] + counts["xpassed"]
    if status and not failed:
        failed = 1  # what failed is not a test
    passed = counts["passed"] or int(not counts and not status)
    return passed, failed, counts["skipped"] + counts["xfailed"]


def version(text: str) -> str:
    """The first number of that form in what ``--version`` printed."""
    found = re.search(r"\d+\.\d+[.\d]*", text)
    return found[0] if found else ""


def run(machine: Machine, started: list[tuple[Machine, subprocess.Popen[str]]]) -> list[Row]:
    """The machine's rows; its output goes into its log."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", machine.ended_by.name, *machine.command()],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    started.append((machine, process))
    rows = list(read(machine, process))
    status = process.wait()
    if status or len(rows) < len(machine.parts):
        say(f"{machine.name}: exit code {status}; see {FOLDER / machine.name}.log")
        rows.append(Row(machine.name, "the machine", "", "", "", 0, 1, 0, 0.0))
    return rows


def read(machine: Machine, process: subprocess.Popen[str]) -> Iterator[Row]:
    """A row at the end of each part."""
    assert process.stdout is not None
    facts: dict[str, str] = {}
    output: list[str] = []
    started = time.monotonic()
    with (FOLDER / f"{machine.name}.log").open("w", buffering=1) as log:
        for line in process.stdout:
            log.write(line)
            output.append(line)
            if not (mark := re.fullmatch(r"== (\w+) (.*)\n", line)):
                continue
            facts[mark[1]] = mark[2]
            if mark[1] == "begin":
                started = time.monotonic()
                output.clear()
            elif mark[1] == "end":
                counts = counted("".join(output), int(mark[2]))
                row = Row(
                    machine.name, facts["begin"], version(facts["engine"]), version(facts["python"]),
                    str(machine.postgres), *counts, time.monotonic() - started,
                )  # fmt: skip
                if row.failed or row.skipped:
                    say("".join(output[-TAIL_LINES:]))
                say("  ".join(cell for cell in row.cells() if cell))
                yield row


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def that_ran(part: str, postgres: str, log: Path, status: int, seconds: float) -> Row:
    """The row of a part that has run on this host before: `make test`, `make test-odoo`."""
    engine = subprocess.run(["dockerd", "--version"], capture_output=True, text=True, check=False).stdout
    counts = counted(log.read_text(errors="replace"), status)
    return Row("this host", part, version(engine), version(sys.version), postgres, *counts, seconds)


def print_table(rows: list[Row]) -> None:
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument(
        "--ran", nargs=5, action="append", default=[], metavar=("PART", "POSTGRES", "LOG", "STATUS", "SECONDS"),
        help="sum this up as well",
    )  # fmt: skip
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help="only these")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [
        that_ran(part, postgres, Path(log), int(status), float(seconds))
        for part, postgres, log, status, seconds in options.ran
    ]
    started: list[tuple[Machine, subprocess.Popen[str]]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [machine for machine in machines() if not options.machines or machine.name in options.machines]
    with ThreadPoolExecutor(len(chosen)) as pool:
        try:
            for found in list(pool.map(lambda machine: run(machine, started), chosen)):
                rows += found
        finally:
            for machine, process in started:
                process.send_signal(machine.ended_by)
    print_table(rows)
    passed, failed, skipped = (
        sum(counts) for counts in zip(*((r.passed, r.failed, r.skipped) for r in rows), strict=True)
    )
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return int(failed or skipped)


if __name__ == "__main__":
    sys.exit(main())
