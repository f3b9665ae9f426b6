"""What the demo shows: steps, the runs as they go on, and the table at the end. All of it fits a screen."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from rich import filesize
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

ODOO_PREFIX = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ [A-Z]+ \S+ \S+: ")
STATUS_STYLES = {"succeeded": "green", "failed": "red", "canceled": "yellow", "running": "cyan"}
MARKS = {"succeeded": "✓", "failed": "✗", "canceled": "-", "running": "…"}
FINAL = ("succeeded", "failed", "canceled")
NAME_WIDTH = 13
PLAIN_WIDTH = 120
WIDE = 100


@dataclass
class Row:
    """A line of the final table."""

    number: int
    name: str
    status: str
    took: float | None
    waited: float | None
    lines: int
    warnings: int
    errors: int
    artifacts: int
    size: int
    reason: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    number: int
    name: str
    status: str
    took: float | None
    lines: int
    warnings: int
    errors: int
    last_line: str


class Screen:
    """A terminal gets colours and a moving last line; anything else gets plain lines."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=int(os.environ.get("COLUMNS", PLAIN_WIDTH)))
        self._progress: Sequence[Progress] = ()
        self._told: set[int] = set()

    # --- steps ------------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """One step of the preparation: what it is about while it lasts, and what came out of it."""
        step = Step(self, title)
        started = time.monotonic()
        with self.console.status(f"{title} …", spinner="dots"):
            yield step
        took = time.monotonic() - started
        mark = Text.assemble(("✓ ", "green"), (f"{title:<19}", "bold"), step.result)
        if took >= 1:
            mark.append(f"  {took:.0f} s", "dim")
        self.console.print(mark, soft_wrap=not self.console.is_terminal)

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, "bold"))

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=not self.console.is_terminal)

    def fail(self, text: str) -> None:
        self.console.print(Text(text, "bold red"), soft_wrap=True)

    # --- live -------------------------------------------------------------------------------------------------------

    @contextmanager
    def following(self) -> Iterator[None]:
        """While this lasts, a terminal shows a line for each run that changes with it."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._running, refresh_per_second=8, transient=True):
            yield

    def show(self, progress: Sequence[Progress]) -> None:
        """Shows how the runs stand; without a terminal, a line for each that has ended."""
        self._progress = progress
        if self.console.is_terminal:
            return
        for run in progress:
            if run.status in FINAL and run.number not in self._told:
                self._told.add(run.number)
                clock = datetime.now().astimezone().strftime("%H:%M:%S")
                text = f"{clock} #{run.number:<2} {run.name:<{NAME_WIDTH}} {_status(run.status)} in {seconds(run.took)}"
                self.console.print(Text(text), soft_wrap=True)

    def _running(self) -> Table:
        table = _table()
        for title, justify in (("run", "right"), ("workflow", "left"), ("status", "left"), ("time", "right"),
                               ("lines", "right"), ("warn", "right"), ("error", "right")):  # fmt: skip
            table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("last line", no_wrap=True, overflow="ellipsis", ratio=1)
        table.expand = True
        for run in self._progress:
            table.add_row(
                str(run.number), run.name, Text(_status(run.status), STATUS_STYLES.get(run.status, "dim")),
                seconds(run.took), str(run.lines), _count(run.warnings, "yellow"), _count(run.errors, "red"),
                Text(ODOO_PREFIX.sub("", run.last_line.partition("\n")[0], count=1), "dim"),
            )  # fmt: skip
        return table

    # --- the end ----------------------------------------------------------------------------------------------------

    def table(self, rows: Sequence[Row]) -> None:
        """The runs, and how they went."""
        wide = self.console.width >= WIDE
        table = _table(2 if wide else 1)
        table.add_column("run", justify="right", no_wrap=True)
        table.add_column("workflow", no_wrap=True)
        table.add_column("status", no_wrap=True)
        for title in ("took", *(["waited"] if wide else []), "lines", "warn", "error"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("artifacts", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for row in rows:
            table.add_row(
                str(row.number),
                row.name,
                Text(_status(row.status), STATUS_STYLES.get(row.status, "")),
                seconds(row.took),
                *([seconds(row.waited)] if wide else []),
                str(row.lines),
                _count(row.warnings, "yellow"),
                _count(row.errors, "red"),
                f"{row.artifacts}, {size(row.size)}" if row.artifacts else "none",
                Text(row.reason),
            )
        self.console.print()
        self.console.print(table)

    def next_steps(self, steps: Mapping[str, str]) -> None:
        """Commands to paste, and what each shows."""
        width = max(map(len, steps))
        for command, meaning in steps.items():
            self.console.print(Text.assemble(f"  {command:<{width}}", (f"  # {meaning}", "dim")), soft_wrap=True)


class Step:
    """A step under way; ``result`` is what is left of it on the screen."""

    def __init__(self, screen: Screen, title: str) -> None:
        self.result = ""
        self._screen = screen
        self._title = title

    def say(self, text: str) -> None:
        """Tells what it is doing."""
        self._screen.console.print(Text(f"  {text.strip()}", "dim"), soft_wrap=True)


def _table(gap: int = 1) -> Table:
    return Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")


def _status(status: str) -> str:
    return f"{MARKS.get(status, ' ')} {status}"


def _count(number: int, style: str) -> Text:
    return Text(str(number), style if number else "")


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def size(count: int) -> str:
    """Bytes for people."""
    return filesize.decimal(count).replace("bytes", "B")
