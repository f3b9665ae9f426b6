"""Sizes in bytes: read from settings and configurations, and written in messages. Pure."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_SIZE = re.compile(r"(\d{1,40}(?:\.\d{1,40})?)\s*(?:([kmgt])i?)?b?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MAX_SIZE = 2**50


def parse_size(value: object) -> int:
    """Reads a number of bytes, or a text such as ``512m`` or ``2 GiB`` (factor 1024). Raises ``ValueError``."""
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(float(match[1]) * _FACTORS[(match[2] or "").lower()])
    if not 0 < size <= _MAX_SIZE:
        raise ValueError("expected bytes or a size such as 512m or 2g, above 0 and not above 1024t")
    return size


def rounded_size(size: float) -> str:
    """A size in whole MiB, for a message about what was measured."""
    return f"{size / 2**20:,.0f}m"


def shown_size(size: float) -> str:
    """A size as a setting takes it: exact, in GiB or MiB."""
    return f"{size / 2**30:.12g}g" if size % 2**30 == 0 else f"{size / 2**20:.12g}m"


Size = Annotated[int, BeforeValidator(parse_size)]
"""A field with a size, in the forms that :func:`parse_size` reads."""
