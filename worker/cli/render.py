"""How results look: text that is safe for a terminal, tables, colours, times. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, moves of the cursor
    r"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC and other strings: titles, links, the clipboard
    r"|[ -/]*[0-Z\\^-~])"
)
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)
"""Control characters, those that change the direction of text, and those that are not visible."""

STYLES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip
STATUS_STYLE = {
    "queued": "blue", "claimed": "cyan", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow",
}  # fmt: skip
LEVEL_STYLE = {"debug": "dim", "warn": "yellow", "error": "red"}

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def safe(text: object) -> str:
    r"""The text in one line, without anything that a terminal executes, reorders or hides.

    An escape sequence is dropped, a tab becomes spaces, and every other such character becomes its code: ``\x07``,
    ``\u202e``. A backslash stays as it is.
    """
    shown = _SEQUENCE.sub("", str(text)).replace("\t", "    ")
    return _UNSAFE.sub(lambda match: _code(match[0]), shown)


def safe_lines(text: str) -> list[str]:
    """The lines of a text, each safe; lines are separated by newlines only."""
    return [safe(line.removesuffix("\r")) for line in text.split("\n")]


def _code(character: str) -> str:
    if character == "\n":
        return "\\n"
    if character == "\r":
        return "\\r"
    point = ord(character)
    if point < 0x100:  # noqa: PLR2004 - two digits suffice
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"  # noqa: PLR2004 - four digits suffice


def columns_of(text: str) -> int:
    """How many columns of a terminal a safe text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, width: int) -> str:
    """The text in at most ``width`` columns; three dots stand for what is left out."""
    if columns_of(text) <= width:
        return text
    kept, taken = "", 0
    for character in text:
        taken += _columns(character)
        if taken > width - 1:
            break
        kept += character
    return kept + "…"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text of a table with a style."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What the output can show. ``width`` is None where nothing is cut: in a pipe or a file."""

    color: bool = False
    width: int | None = None
    terminal: bool = False

    def styled(self, text: str, style: str) -> str:
        """The safe text in that style."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self.color and style and text else text

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> list[str]:
        """The lines of a table. On a terminal the last column is cut at its edge."""
        cells = [[_cell(value) for value in row] for row in rows]
        shown = [[Cell(title, "bold") for title in titles], *cells]
        last = len(titles) - 1
        widths = [max(columns_of(row[n].text) for row in shown) for n in range(last)]
        left = None if self.width is None else max(self.width - sum(widths) - 2 * last, 8)
        lines = []
        for row in shown:
            texts = [self._padded(row[n], widths[n]) for n in range(last)]
            end = row[last].text if left is None else shortened(row[last].text, left)
            lines.append("  ".join([*texts, self.styled(end, row[last].style)]).rstrip())
        return lines

    def fields(self, pairs: Sequence[tuple[str, Cell | str]]) -> list[str]:
        """A line for each name and its value; values that are empty are left out."""
        given = [(name, _cell(value)) for name, value in pairs]
        given = [(name, cell) for name, cell in given if cell.text]
        width = max((len(name) for name, _ in given), default=0)
        return [
            f"{self.styled(name, 'bold')}{' ' * (width - len(name))}  {self.styled(it.text, it.style)}"
            for name, it in given
        ]

    def _padded(self, cell: Cell, width: int) -> str:
        return self.styled(cell.text, cell.style) + " " * (width - columns_of(cell.text))

    def moment(self, value: datetime | None, now: datetime) -> str:
        """A time: its age on a terminal, ISO 8601 elsewhere."""
        if value is None:
            return ""
        if not self.terminal:
            return iso(value)
        span = (now - value).total_seconds()
        return f"in {shown_span(-span)}" if span < 0 else f"{shown_span(span)} ago"


def _cell(value: Cell | str) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    return Cell(safe(cell.text), cell.style)


def status_cell(status: str) -> Cell:
    return Cell(status, STATUS_STYLE.get(status, ""))


def iso(value: datetime) -> str:
    """ISO 8601 in UTC, to the millisecond: ``2026-02-13T12:00:00.000Z``."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown_span(seconds: float) -> str:
    """A time span in its two greatest units: ``45s``, ``2m 5s``, ``3h 10m``, ``2d 4h``."""
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE}m"
    return f"{whole // _DAY}d {whole % _DAY // _HOUR}h"


def span_between(begin: datetime | None, end: datetime | None, now: datetime) -> str:
    """How long something took, or has taken until now; empty if it has not begun."""
    if begin is None:
        return ""
    return shown_span(max(((end or now) - begin) / timedelta(seconds=1), 0))


def plain(value: Any) -> Any:
    """A row as JSON can hold it: times in ISO 8601, ids as text."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def program_summary(text: str | None, known: Sequence[Mapping[str, Any]]) -> str | None:
    """The summary of a run without its lines about known errors, one for each and an empty one, shown elsewhere."""
    return text if text is None or not known else text.split("\n", len(known) + 1)[-1] or None
