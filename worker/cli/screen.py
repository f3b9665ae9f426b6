"""Where the commands print: results to stdout, remarks to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from worker.cli.render import Cell, Look, plain, safe


def look_of(stream: TextIO, environ: Mapping[str, str]) -> Look:
    """What that stream can show: colours on a terminal, unless ``NO_COLOR`` is set or the terminal has none."""
    if not stream.isatty():
        return Look()
    color = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return Look(color, shutil.get_terminal_size().columns, terminal=True)


class Screen:
    """The output of one command. ``as_json``: a JSON document instead of text for a person."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.look = look_of(sys.stdout, os.environ)
        self.error_look = look_of(sys.stderr, os.environ)
        self.now = datetime.now(UTC)

    def json(self, value: Any) -> None:
        """One line of JSON on a pipe, indented on a terminal. Only ASCII, so no character can harm a terminal."""
        self.lines([json.dumps(plain(value), indent=2 if self.look.terminal else None)])

    def json_lines(self, values: Iterable[Any]) -> None:
        """A line of JSON for each value, as they come."""
        self.lines(json.dumps(plain(value)) for value in values)

    def lines(self, lines: Iterable[str]) -> None:
        """Prints lines that are safe already."""
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> None:
        self.lines(self.look.table(titles, rows))

    def more(self, cut: bool, limit: int) -> None:  # noqa: FBT001 - reads as a sentence
        """Says that rows were left out."""
        if cut:
            self.remark(f"there is more; --limit {min(limit * 5, 100_000)} shows it")

    def remark(self, text: str) -> None:
        """Tells a person something that is no part of the result."""
        self.remark_line(safe(text))

    def remark_line(self, line: str) -> None:
        """The same, with a line that is safe already."""
        sys.stdout.flush()
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
