"""What the demo shows: steps, the runs' logs as they are stored, and the table at the end."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from rich import filesize
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

ODOO_PREFIX = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ [A-Z]+ \S+ \S+: ")
LEVEL_STYLES = {"debug": "dim", "info": "", "warn": "yellow", "error": "bold red"}
STATUS_STYLES = {"succeeded": "green", "failed": "red", "canceled": "yellow", "running": "cyan"}
MARKS = {"succeeded": "✓", "failed": "✗", "canceled": "-"}
RUN_STYLES = ("cyan", "magenta", "blue", "bright_cyan", "bright_magenta", "bright_blue")
NAME_WIDTH = 13
PLAIN_WIDTH = 120
WIDE = 100
LINES_AT_ONCE = 60
"""Of a run that prints more between two looks, the middle is counted instead of shown."""


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
    artifacts: int
    size: int
    reason: str = ""


@dataclass
class Active:
    """A run under way."""

    number: int
    name: str
    since: float = field(default_factory=time.monotonic)


class Screen:
    """A terminal gets colours and a moving last line; anything else gets plain lines."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=int(os.environ.get("COLUMNS", PLAIN_WIDTH)))
        self._active: dict[int, Active] = {}
        self._live: Live | None = None

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
        """While this lasts, a terminal's last lines show what runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._running, refresh_per_second=8, transient=True) as live:
            self._live = live
            yield
            self._live = None

    def begin(self, number: int, name: str) -> None:
        self._active[number] = Active(number, name)

    def end(self, number: int) -> None:
        self._active.pop(number, None)

    def lines(self, number: int, name: str, lines: Sequence[tuple[datetime, str, str]]) -> None:
        """Shows log lines: time, level, message."""
        skipped = len(lines) - LINES_AT_ONCE
        shown = deque(lines)
        if skipped > 0:
            shown = deque([*lines[: LINES_AT_ONCE // 2], *lines[-LINES_AT_ONCE // 2 :]])
        for at, (when, level, message) in enumerate(shown):
            if skipped > 0 and at == LINES_AT_ONCE // 2:
                self.note(number, name, f"… {skipped} more lines, all in the database …", "dim", when)
            text = ODOO_PREFIX.sub("", message, count=1)
            self._print(
                number, name, when, Text(f"{level.upper():<5} ", LEVEL_STYLES[level]) + Text(text, LEVEL_STYLES[level])
            )

    def note(self, number: int, name: str, text: str, style: str, when: datetime | None = None) -> None:
        """Shows what happened to a run."""
        self._print(number, name, when or datetime.now().astimezone(), Text(text, style))

    def _print(self, number: int, name: str, when: datetime, text: Text) -> None:
        clock = Text(f"{when.astimezone():%H:%M:%S} ", "dim")
        tag = Text(f"#{number:<2} {name:<{NAME_WIDTH}} ", RUN_STYLES[number % len(RUN_STYLES)])
        if not self.console.is_terminal:
            self.console.print(clock + tag + text, soft_wrap=True)
            return
        line = Table.grid(padding=0)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1, overflow="fold")
        line.add_row(clock + tag, text)
        self.console.print(line)

    def _running(self) -> RenderableType:
        now = time.monotonic()
        return Group(*(
            Spinner("dots", Text(f"#{each.number:<2} {each.name:<{NAME_WIDTH}} {now - each.since:4.1f} s", "dim"))
            for each in self._active.values()
        ))  # fmt: skip

    # --- the end ----------------------------------------------------------------------------------------------------

    def table(self, rows: Sequence[Row]) -> None:
        """The runs, and how they went."""
        table = Table(
            box=None,
            padding=(0, 1 if self.console.width < WIDE else 2, 0, 0),
            pad_edge=False,
            header_style="bold",
            expand=False,
        )
        table.add_column("run", justify="right", no_wrap=True)
        table.add_column("workflow", no_wrap=True)
        table.add_column("status", no_wrap=True)
        for title in ("took", "waited", "lines", "warn"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("artifacts", no_wrap=True)
        table.add_column("reason", overflow="fold")
        for row in rows:
            style = STATUS_STYLES.get(row.status, "")
            table.add_row(
                str(row.number),
                row.name,
                Text(f"{MARKS.get(row.status, '?')} {row.status}", style),
                seconds(row.took),
                seconds(row.waited),
                str(row.lines),
                Text(str(row.warnings), "yellow" if row.warnings else ""),
                f"{row.artifacts}, {size(row.size)}" if row.artifacts else "none",
                Text(row.reason),
            )
        self.console.print()
        self.console.print(table)

    def files(self, listing: Mapping[str, Sequence[str]]) -> None:
        """Folders with the files in them."""
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for folder, names in listing.items():
            table.add_row(f"  {escape(folder)}", escape(", ".join(names)))
        self.console.print(table)


class Step:
    """A step under way; ``result`` is what is left of it on the screen."""

    def __init__(self, screen: Screen, title: str) -> None:
        self.result = ""
        self._screen = screen
        self._title = title

    def say(self, text: str) -> None:
        """Tells what it is doing."""
        self._screen.console.print(Text(f"  {text.strip()}", "dim"), soft_wrap=True)


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def size(count: int) -> str:
    """Bytes for people."""
    return filesize.decimal(count).replace("bytes", "B")
