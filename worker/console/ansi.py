"""A log line with the colours of a terminal → parts with the names of styles. Pure.

The page has a style for each name, so no line writes HTML or CSS of its own. Colours end with the line: a page of a log
begins anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from worker.cli.render import safe

Part = tuple[str, str]
"""The names of the styles, separated by spaces, and the text."""

_SGR = re.compile(r"\x1b\[([0-9;:]{0,64})m")
_FLAGS = {1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike"}
_ENDS = {22: ("bold", "dim"), 23: ("italic",), 24: ("underline",), 27: ("inverse",), 29: ("strike",)}
_EXTENDED = {38: True, 48: False}
"""The codes of a colour of 256 or a full one, and whether it is that of the text."""

_LEVELS = (0, 95, 135, 175, 215, 255)
_BASIC = (
    (0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229),
    (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255),
    (255, 255, 255),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Style:
    flags: frozenset[str] = frozenset()
    front: int | None = None
    back: int | None = None

    @property
    def names(self) -> str:
        colours = [f"{kind}{n}" for kind, n in (("f", self.front), ("b", self.back)) if n is not None]
        return " ".join([*sorted(self.flags), *colours])


def parts(line: str) -> list[Part]:
    """The parts of a line; their texts are safe as those of ``worker.cli.render.safe``."""
    found: list[Part] = []
    style, at = _Style(), 0
    for control in _SGR.finditer(line):
        _add(found, style, line[at : control.start()])
        style, at = _changed(style, control[1]), control.end()
    _add(found, style, line[at:])
    return found


def _add(found: list[Part], style: _Style, text: str) -> None:
    if text and (shown := safe(text)):
        found.append((style.names, shown))


def _changed(style: _Style, codes: str) -> _Style:
    """The style behind a sequence; codes that no page can show are ignored."""
    numbers = [int(code or 0) for code in re.split("[;:]", codes)]
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            style = _Style()
        elif code in _FLAGS:
            style = replace(style, flags=style.flags | {_FLAGS[code]})
        elif code in _ENDS:
            style = replace(style, flags=style.flags.difference(_ENDS[code]))
        else:
            style = _coloured(style, code, numbers)
    return style


def _coloured(style: _Style, code: int, rest: list[int]) -> _Style:
    """The style with the colour of a code; takes the numbers of a colour of 256, or of a full one, from the rest."""
    if code in _EXTENDED:
        colour = _extended(rest)
        return style if colour is None else _set(style, _EXTENDED[code], colour)
    for front, first, bright in ((True, 30, 90), (False, 40, 100)):
        if first <= code < first + 8:
            return _set(style, front, code - first)
        if bright <= code < bright + 8:
            return _set(style, front, code - bright + 8)
        if code == first + 9:
            return _set(style, front, None)
    return style


def _set(style: _Style, front: bool, colour: int | None) -> _Style:  # noqa: FBT001 - a column of a table
    return replace(style, front=colour) if front else replace(style, back=colour)


def _extended(rest: list[int]) -> int | None:
    """The nearest of the 16 colours."""
    kind = rest.pop(0) if rest else None
    if kind == 5 and rest:  # noqa: PLR2004 - as terminals number it
        return _of_256(rest.pop(0))
    if kind == 2 and len(rest) >= 3:  # noqa: PLR2004 - as terminals number it
        red, green, blue = rest[:3]
        del rest[:3]
        return _nearest(red, green, blue)
    return None


def _of_256(number: int) -> int:
    if number < 16:  # noqa: PLR2004 - the first 16 are the basic ones
        return number
    if number >= 232:  # noqa: PLR2004 - the last 24 are greys
        grey = 8 + 10 * (min(number, 255) - 232)
        return _nearest(grey, grey, grey)
    number -= 16
    return _nearest(_LEVELS[number // 36], _LEVELS[number // 6 % 6], _LEVELS[number % 6])


def _nearest(*colour: int) -> int:
    distances = [sum((a - b) ** 2 for a, b in zip(colour, basic, strict=True)) for basic in _BASIC]
    return distances.index(min(distances))
