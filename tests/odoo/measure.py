"""Measures the command ``test`` on real Odoo: N shards against one, and the first run against later ones.

``python -m tests.odoo.measure --shards 1,2 --rounds 5`` runs the tests of add-ons of the OCA; ``--addons`` chooses some
of addons-measure.txt. The cache of the first run is empty. Then the numbers of shards take turns, so that other
programs on the host slow all of them. Each figure is a median with its range, and a ratio to that of the first number.
``path`` is the processor time of the longest shard with its part of PostgreSQL's: what the tests take at least on a
host that has a free core for each shard. Other programs of the host change it less than the clock.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.odoo.conftest import Bench, Project, downloaded, image, writable
from tests.support.docker import docker

ADDONS = Path(__file__).with_name("addons-measure.txt")
LONG = ["auditlog", "base_exception", "base_tier_validation", "date_range"]  # with the longest tests
PARTS = re.compile(r"^- (dependencies|tests): ([\d.]+) s", re.MULTILINE)
SHARD = re.compile(r"^- shard_\d+: .* of processor time ([\d.]+) s$", re.MULTILINE)


def main() -> None:
    options = arguments()
    flags = options.flags.split()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(image("odoo"), image("postgres"), folder)
        project = Project(folder / "project", downloaded(ADDONS))
        for addon in options.addons:
            project.add(addon)
        cache = writable(folder / "cache")
        docker("network", "create", bench.name)
        try:
            bench.database()
            first = measure(bench, project, cache, [*flags, "--shards", str(options.shards[0])])
            show("first run", first)
            rounds: dict[int, list[dict[str, float]]] = {number: [] for number in options.shards}
            for number in options.shards * options.rounds:
                rounds[number].append(measure(bench, project, cache, [*flags, "--shards", str(number)]))
                show(f"{number} shards", rounds[number][-1])
        finally:
            for container in bench.started:
                docker("rm", "-f", "-v", container, check=False)
            docker("network", "rm", bench.name, check=False)
    baseline = rounds[options.shards[0]]
    for number, found in rounds.items():
        say(f"{number} shards, {len(found)} rounds")
        for part in first:
            values = [each[part] for each in found]
            median = statistics.median(values)
            ratio = median / statistics.median(each[part] for each in baseline)
            say(f"  {part}: {median:.1f} s ({min(values):.1f} to {max(values):.1f}), ratio {ratio:.2f}")
    later = {part: statistics.median(each[part] for each in baseline) for part in first}
    say("the first run against later ones: " + ", ".join(f"{part} {first[part] / later[part]:.1f}" for part in first))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2], metavar="N,N")
    parser.add_argument("--addons", type=lambda text: text.split(","), default=LONG, metavar="A,B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flags", default="", help="of the command test, such as --no-coverage")
    return parser.parse_args()


def measure(bench: Bench, project: Project, cache: Path, flags: Sequence[str]) -> dict[str, float]:
    """Seconds of a run and of its parts, and the processor time of its tests, with PostgreSQL's."""
    artifacts, output = writable(bench.folder / f"artifacts-{uuid.uuid4().hex[:8]}"), []
    command = bench.command("test", *flags, artifacts=artifacts, source=project.folder, cache=cache)
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            output.append(line)
            if line.startswith("==> tests"):
                served = processor(bench)
    assert process.returncode == 0, "".join(output)
    seconds, summary = {"run": time.monotonic() - began}, (artifacts / "summary.md").read_text()
    seconds |= {part: float(value) for part, value in PARTS.findall(summary)}
    shards = [float(value) for value in SHARD.findall(summary)]
    served = processor(bench) - served
    return seconds | {"path": max(shards) + served / len(shards), "processor": sum(shards) + served}


def processor(bench: Bench) -> float:
    """Seconds of processor time that PostgreSQL and its ended backends have used."""
    pid = docker("inspect", "-f", "{{.State.Pid}}", f"{bench.name}-db").strip()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def show(what: str, seconds: dict[str, float]) -> None:
    say(f"{what}: " + ", ".join(f"{part} {value:.1f} s" for part, value in seconds.items()))


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    main()
