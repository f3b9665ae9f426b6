"""Measures the worker, each figure beside its baseline from the same call on the same machine.

    python -m tests.bench [--only log_store,queue] [--rounds 3] [--scale 1] [--postgres 15,18] [--output FILE]

The first version of PostgreSQL runs every case, each further one the cases in ``BRIEF`` of the chosen groups.
All groups at full scale write docs/benchmarks.md; other calls write build/benchmarks/benchmarks.md. A figure that does
not reach its mark is no error, a case that raises an error is one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import docker
import structlog
from rich.console import Console

from tests.bench import log_store, policies, queue, runs
from tests.bench.harness import SETTINGS, Bench
from tests.bench.report import GROUPS, Failure, Figure, Report
from tests.support.docker import ROOT
from tests.support.postgres import MAJORS, Cluster

Case = Callable[[Bench], Awaitable[list[Figure]]]
CASES: Mapping[str, Sequence[Case]] = {
    "log_store": log_store.CASES,
    "queue": queue.CASES,
    "runs": runs.CASES,
    "policies": policies.CASES,
}
BRIEF: Sequence[Case] = (log_store.appending, log_store.storage, queue.life, queue.inserts)
"""The cases that run on a second version of PostgreSQL, too."""

DOCUMENT = ROOT / "docs" / "benchmarks.md"
PARTIAL = ROOT / "build" / "benchmarks" / "benchmarks.md"


def groups(text: str) -> list[str]:
    """The names of groups, in the order of the table."""
    names = text.split(",")
    if unknown := [name for name in names if name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"unknown group {unknown[0]!r}: expected some of {','.join(GROUPS)}")
    return [name for name in GROUPS if name in names]


def versions(text: str) -> list[int]:
    """Major versions of PostgreSQL."""
    if unknown := [word for word in text.split(",") if word not in map(str, MAJORS)]:
        raise argparse.ArgumentTypeError(
            f"unknown version {unknown[0]!r}: expected some of {','.join(map(str, MAJORS))}"
        )
    return [int(word) for word in text.split(",")]


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="measures the worker")
    parser.add_argument(
        "--only", type=groups, default=list(GROUPS), metavar="GROUPS", help=f"some of {','.join(GROUPS)}"
    )
    parser.add_argument("--case", metavar="NAME", help="only the case of that name")
    parser.add_argument("--rounds", type=int, default=3, help="how often each pair is measured (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of lines and runs (default: 1)")
    parser.add_argument("--postgres", type=versions, default=[15, 18], help="its versions (default: 15,18)")
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="after these a case ends after its first round (default: 15)"
    )
    parser.add_argument("--output", type=Path, help="the document to write")
    options = parser.parse_args(argv)
    names = [_name(case) for group in options.only for case in CASES[group]]
    if options.case is not None and options.case not in names:
        parser.error(f"argument --case: unknown case {options.case!r}: expected one of {', '.join(names)}")
    if options.output is None:
        whole = options.only == list(GROUPS) and options.case is None and options.scale >= 1
        options.output = DOCUMENT if whole else PARTIAL
    return options


async def measure(options: argparse.Namespace, console: Console) -> Report:
    """Runs the cases one after another; an error of one does not end the others."""
    report = Report(docker.APIClient(version="auto").version()["Version"], options.scale, options.rounds)
    chosen = [(group, case) for group in options.only for case in CASES[group] if options.case in (None, _name(case))]
    deadline = time.monotonic() + options.minutes * 60
    for number, major in enumerate(options.postgres):
        with tempfile.TemporaryDirectory() as folder, Cluster(major, settings=SETTINGS) as cluster:
            [(server,)] = cluster.execute("show server_version")
            report.postgres.append(server.split()[0])
            bench = Bench(cluster, Path(folder), options.rounds, options.scale, deadline)
            for group, case in chosen:
                if number == 0 or case in BRIEF:
                    title = GROUPS[group] + f", PostgreSQL {major}" * (number > 0)
                    figures = report.groups.setdefault(title, [])
                    figures += await measured(bench, f"{group}.{_name(case)}", case, console)
    return report


def _name(case: Case) -> str:
    return str(getattr(case, "__name__", case))


async def measured(bench: Bench, name: str, case: Case, console: Console) -> list[Figure | Failure]:
    """One case, with its progress on the terminal, or a line at its end."""
    began = time.monotonic()
    outcome = "done"
    found: list[Figure | Failure]
    with console.status(name) as status:
        bench.say = lambda text: status.update(f"{name}: {text}") if console.is_terminal else None
        try:
            found = [*await case(bench)]
        except Exception as error:  # noqa: BLE001 - the edge of a case: the others are measured all the same
            console.print(traceback.format_exc(), markup=False, highlight=False)
            outcome = "failed"
            found = [Failure(name, repr(error)[:200])]
    line = f"case\t{name}\t{outcome}\t{time.monotonic() - began:.1f} s"
    console.print(line.expandtabs(4) if console.is_terminal else line, markup=False, highlight=False, soft_wrap=True)
    return found


def main() -> int:
    options = parsed()
    console = Console()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    report = asyncio.run(measure(options, console))
    report.show(console)
    report.write(options.output)
    console.print(f"written: {options.output}", markup=False, highlight=False, soft_wrap=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
