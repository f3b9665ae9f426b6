"""The benchmark itself at its smallest scale: the shape of the table, and no time in it."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench.report import GROUPS, HEADINGS, Figure, Mark
from tests.support.docker import ROOT

MARKED = {"Log store": 21, "Queue": 18, "Runs": 11, "Row policies": 0}
"""How many figures of each group have a mark."""


@pytest.mark.timeout(1200)
def test_the_benchmark_writes_each_group_with_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    command = [sys.executable, "-m", "tests.bench", "--scale", "0.001", "--rounds", "1", "--output", str(document)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("figure\t"):
            _, group, *cells = line.split("\t")
            assert len(cells) == len(HEADINGS)
            rows[group].append(cells)
    assert {group: sum(row[-1] in ("yes", "no") for row in rows[group]) for group in GROUPS.values()} == MARKED
    assert {group for group in rows if "PostgreSQL 18" in group} == {
        f"{GROUPS[name]}, PostgreSQL 18" for name in ("log_store", "queue")
    }
    text = document.read_text()
    for group, figures in rows.items():
        assert f"## {group}\n" in text
        assert all(f"| {figure[0]} |" in text for figure in figures)
    pictures = sorted(tmp_path.glob("*.svg"))
    assert len(pictures) == 5, "one for each section that has marks"
    for picture in pictures:
        assert ET.parse(picture).getroot().tag.endswith("svg")  # noqa: S314 - our own file
        assert picture.name in text
        assert picture.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("mark", "reached", "share"),
    [
        (Mark("≥", 0.5), True, 0.8),
        (Mark("≥", 0.7), False, 1.12),
        (Mark("≤", 10, "value"), False, 2.5),
        (Mark("≤", 50, "value"), True, 0.5),
        (None, None, None),
    ],
)  # fmt: skip
def test_a_mark_is_about_the_ratio_or_the_value(mark: Mark | None, reached: object, share: float | None) -> None:
    """The median of the rounds' ratios is 0.625, that of the values 25; the third round has no baseline."""
    figure = Figure("x", "s", [10, 25, 30], "y", [20, 33.333333333], mark)
    assert figure.ratios == pytest.approx([0.5, 0.75])
    assert figure.reached is reached
    if mark is not None:
        assert mark.share(0.625 if mark.of == "ratio" else 25) == pytest.approx(share)
