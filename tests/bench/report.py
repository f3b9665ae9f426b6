"""The figures of `make bench`: the table on the terminal, and docs/benchmarks.md with its plots.

A figure has one value for each round, and, where it is compared, the baseline's value of the same round. Its ratio is
the median of the rounds' ratios, so a machine that becomes slower during the measurement does not change it.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

GROUPS: Mapping[str, str] = {
    "log_store": "Log store",
    "queue": "Queue",
    "runs": "Runs",
    "policies": "Row policies",
}
"""The groups by the names of their modules, in the order of the table."""

_WORSE_COLOUR, _BETTER_COLOUR = "#c0392b", "#2e7d5b"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a figure has to reach: at least, or at most, ``limit``; of its ratio or of its value."""

    sign: Literal["≥", "≤"]
    limit: float
    of: Literal["ratio", "value"] = "ratio"

    def reached(self, number: float) -> bool:
        return number >= self.limit if self.sign == "≥" else number <= self.limit

    def share(self, number: float) -> float:
        """How much of the mark the number uses: 1 is the mark, and less is better."""
        above, below = (self.limit, number) if self.sign == "≥" else (number, self.limit)
        return above / below if below else (0.0 if above == 0 else float("inf"))


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    unit: str
    values: Sequence[float]
    baseline: str = ""
    """What the baseline does; empty where there is none."""
    baseline_values: Sequence[float] = ()
    mark: Mark | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.values, self.baseline_values, strict=False)  # a slow case may stop after a few rounds
        return [value / bare for value, bare in pairs if bare]

    @property
    def marked(self) -> list[float]:
        """In each round, the number that the mark is about."""
        return self.ratios if self.mark is None or self.mark.of == "ratio" else list(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the mark; None where there is no mark, or no ratio."""
        return self.mark.reached(statistics.median(self.marked)) if self.mark and self.marked else None

    def cells(self) -> list[str]:
        """What, baseline, value, ratio, least to most, mark, reached."""
        ratios, mark = self.ratios, self.mark
        limit = "" if mark is None else f"{mark.sign} {number(mark.limit)}{f' {self.unit}' * (mark.of == 'value')}"
        return [
            self.what,
            f"{number(statistics.median(self.baseline_values))}: {self.baseline}" if self.baseline_values else "",
            f"{number(self.value)} {self.unit}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
            f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "",
            limit,
            {None: "", True: "yes", False: "no"}[self.reached],
        ]


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that raised an error."""

    what: str
    error: str

    def cells(self) -> list[str]:
        return [self.what, "", f"failed: {self.error}", "", "", "", "no"]


HEADINGS = ("what", "baseline", "measured", "ratio", "least to most", "to reach", "reached")


@dataclass
class Report:
    """All figures of one call, by the title of their group."""

    docker: str
    scale: float
    rounds: int
    postgres: list[str] = field(default_factory=list)
    """The versions; the first one ran every case."""
    groups: dict[str, list[Figure | Failure]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(isinstance(one, Failure) for figures in self.groups.values() for one in figures)

    @property
    def machine(self) -> str:
        return (
            f"{os.cpu_count()} CPUs ({cpu_model()}), Python {platform.python_version()}, Docker {self.docker}, "
            f"PostgreSQL {' and '.join(self.postgres)} with durable settings (`fsync` on), rounds: {self.rounds}, "
            f"scale {self.scale:g}"
        )

    def show(self, console: Console) -> None:
        """The table, on a terminal; elsewhere one line for each figure, with tabs between the cells."""
        if not console.is_terminal:
            for group, figures in self.groups.items():
                for figure in figures:
                    print("figure", group, *figure.cells(), sep="\t", flush=True)  # noqa: T201 - for programs
            return
        console.print(self.machine, markup=False, highlight=False)
        for group, figures in self.groups.items():
            table = Table(title=group, title_justify="left")
            for heading in HEADINGS:
                table.add_column(heading, justify="left" if heading in ("what", "baseline") else "right")
            for figure in figures:
                table.add_row(*figure.cells())
            console.print(table)

    def write(self, path: Path) -> None:
        """Writes the document, and the plot of each group beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [_HEAD.format(machine=self.machine)]
        for group, figures in self.groups.items():
            picture = path.with_name(f"{path.stem}-{re.sub('[^a-z0-9]+', '-', group.lower())}.svg")
            parts += ["", f"## {group}", ""]
            marked = [figure for figure in figures if isinstance(figure, Figure) and figure.reached is not None]
            if marked:
                plot(picture, marked)
                parts += [f"![{group}: each figure against its mark]({picture.name})", ""]
            parts += [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * 2}{'--:|' * 5}"]
            parts += [f"| {' | '.join(cell.replace('|', '/') for cell in figure.cells())} |" for figure in figures]
        path.write_text("\n".join(parts) + "\n", encoding="utf-8")


_HEAD = """\
# Benchmarks

`make bench` writes this page and its plots. Each case measures its baseline in the same call, in
the same database server or on the same engine: in alternating rounds, but for long queues, waking, retention, sizes
and memory, where one comes after the other. A value is the median of the rounds; a ratio is the median of the
rounds' ratios, the worker's number divided by the baseline's. No test asserts on measured time.
[performance.md](performance.md) says what the figures include.

Measured on {machine}.

The plots show how much of its mark each figure uses, on a logarithmic scale: 1 is the mark, and less is better. The
thin line spans the rounds."""


def plot(path: Path, figures: Sequence[Figure]) -> None:
    """Draws how much of its mark each figure uses."""
    import matplotlib as mpl  # noqa: PLC0415 - it takes a second to load, and the test servers do not need it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "ops-worker", "font.size": 9}
    shares = []
    for figure in figures:
        assert figure.mark is not None
        each = [max(figure.mark.share(one), 0.01) for one in figure.marked]
        shares.append((min(max(figure.mark.share(statistics.median(figure.marked)), 0.01), 100), min(each), max(each)))
    canvas, axes = plt.subplots(figsize=(9, 0.8 + 0.28 * len(figures)), layout="constrained")
    places = range(len(figures))
    colours = [_BETTER_COLOUR if figure.reached else _WORSE_COLOUR for figure in figures]
    axes.hlines(places, [low for _, low, _ in shares], [min(high, 100) for *_, high in shares], color="#999999", lw=1)
    axes.scatter([middle for middle, *_ in shares], places, color=colours, zorder=3, s=22)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(places, [figure.what for figure in figures])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.008, 125)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("share of the mark (1 is the mark; left of it is better)")
    axes.grid(visible=True, axis="x", color="#dddddd", lw=0.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(canvas)
    text = path.read_text(encoding="utf-8")
    path.write_text("".join(f"{line.rstrip()}\n" for line in text.splitlines()), encoding="utf-8")


def number(value: float) -> str:
    """Three digits that matter: 0.0123, 1.23, 12.3, 123, 1,234."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def cpu_model() -> str:
    """The name of this machine's processor."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
