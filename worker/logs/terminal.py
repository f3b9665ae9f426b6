"""What a terminal shows of a line with carriage returns and control sequences. Pure."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_ERASE_LINE, _ERASE_REST = ("\x1b[2K",), ("\x1b[K", "\x1b[0K")


def as_shown(line: bytes) -> bytes:
    """What a terminal shows of a line once all of it is written.

    A carriage return goes back to the first column, and what follows overwrites what is there, one character per
    column. The sequences that erase the line, or the rest of it, do so. Every other control sequence, as for colours,
    stays with the character that it is written before.
    """
    cells: list[str] = []
    for part in line.decode("utf-8", "surrogateescape").split("\r"):
        if "\x1b" in part:
            _overwrite(cells, part)
        else:
            cells[: len(part)] = part
    return "".join(cells).encode("utf-8", "surrogateescape")


def _overwrite(cells: list[str], part: str) -> None:
    """Writes a part with control sequences over the cells, from the first column on."""
    column = at = 0
    controls = ""
    for control in _CONTROL.finditer(part):
        text = part[at : control.start()]
        if text:
            cells[column : column + len(text)] = [controls + text[0], *text[1:]]
            column, controls = column + len(text), ""
        if control[0] in _ERASE_LINE:
            del cells[:]
            column = 0
        elif control[0] in _ERASE_REST:
            del cells[column:]
        else:
            controls += control[0]
        at = control.end()
    text = part[at:]
    if text:
        cells[column : column + len(text)] = [controls + text[0], *text[1:]]
    elif controls and column:
        cells[column - 1] += controls
