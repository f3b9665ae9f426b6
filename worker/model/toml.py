"""Writes a description as TOML, which ``tomllib`` only reads: tables below each other, values in one line. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def written(description: Mapping[str, Any]) -> str:
    """The text from which ``tomllib`` reads the same, without the keys that are null, which TOML does not know.

    Tables, and tables in a list, come after the other keys of their table. Numbers must be finite.
    """
    return "".join(f"{line}\n" for line in _lines(description, ())).lstrip("\n")


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines, below = [], []
    for key, value in table.items():
        name = (*path, key)
        if isinstance(value, Mapping) and value and len(path) < 2:  # noqa: PLR2004 - deeper ones stay in one line
            below += ["", f"[{_path(name)}]", *_lines(value, name)]
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value) and not path:
            for each in value:
                below += ["", f"[[{_path(name)}]]", *_lines(each, name)]
        elif value is not None:
            lines.append(f"{_path((key,))} = {_inline(value)}")
    return [*lines, *below]


def _path(names: tuple[str, ...]) -> str:
    return ".".join(name if _BARE.fullmatch(name) else _inline(name) for name in names)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [f"{_path((key,))} = {_inline(each)}" for key, each in value.items() if each is not None]
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_inline(each) for each in value if each is not None)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value, allow_nan=False)
