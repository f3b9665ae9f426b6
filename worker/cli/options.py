"""The options of the commands that are not settings: no variable and no line of a file sets them.

An option has the same form and meaning for every command that reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

BAD = ("failed", "canceled")
FINAL = ("succeeded", *BAD)
STATUSES = ("queued", "claimed", "running", *FINAL)
LEVELS = ("debug", "info", "warn", "error")
ROLES = ("viewer", "developer", "admin", "owner")
DEVELOPERS, ADMINS = ROLES[1:], ROLES[2:]
"""The roles that may do what a developer may, and what an admin may."""
MOST_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``read`` turns its text into a value and raises ``ValueError`` with what was expected."""

    metavar: str
    """Empty for a switch."""
    meaning: str
    read: Callable[[str], Any] = str
    short: str = ""
    many: bool = False
    """It may be given several times; its value is a tuple."""
    choices: tuple[str, ...] = ()


def _text(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError("expected a text")
    return value


def _count(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 0 < int(value) <= MOST_ROWS:
        raise ValueError(f"expected a whole number from 1 to {MOST_ROWS}")
    return int(value)


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", value) or not float(value):
        raise ValueError("expected a number of seconds above 0")
    return float(value)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return value

    return read


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TIME = "expected a duration such as 90s, 10m, 2h or 3d, or a time such as 2026-02-13T12:00:00Z"


def _duration(value: str) -> timedelta | None:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


def _moment(value: str, sign: int) -> datetime:
    """A time, or one that is that long before (-1) or after (1) now. A time without a zone is UTC."""
    if (span := _duration(value)) is not None:
        return datetime.now(UTC) + sign * span
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(_TIME) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _assignment(value: str) -> tuple[str, str]:
    name, equals, text = value.partition("=")
    if not (name and equals) or "\0" in value:
        raise ValueError("expected NAME=VALUE")
    return name, text


def _commit(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{7,64}", value):
        raise ValueError("expected 7 to 64 hexadecimal digits")
    return value


def _object(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - what was expected, for the caller
    return found


OPTIONS: dict[str, Option] = {
    "project": Option("SLUG", "of this project only", _text),
    "workflow": Option("NAME", "of the workflows with this name or type only", _text),
    "status": Option("STATUS", "with this status only", _one_of(*STATUSES), choices=STATUSES),
    "limit": Option("N", "how many rows or lines at most", _count),
    "follow": Option("", "print new lines until the run has ended", short="-f"),
    "level": Option("LEVEL", "lines of this level and above", _one_of(*LEVELS), choices=LEVELS),
    "since": Option("TIME", "lines since then, such as 10m or 2026-02-13T12:00:00Z", lambda it: _moment(it, -1)),
    "grep": Option("WORDS", "lines that full-text search finds, such as: traceback or warning", _text),
    "timeout": Option("SECONDS", "wait for this long at most", _seconds),
    "ref": Option("REF", "branch or tag, instead of the workflow's", _text),
    "commit": Option("SHA", "commit, instead of the workflow's", _commit),
    "arg": Option("ARG", "append this argument to the command", many=True),
    "env": Option("NAME=VALUE", "a variable that the workflow allows (run_env)", _assignment, many=True),
    "metadata": Option("JSON", "an object with more metadata of the run", _object),
    "key": Option("KEY", "the same key queues the run only once", _text),
    "at": Option("TIME", "do not start before then, such as 2h or 2026-02-13T12:00:00Z", lambda it: _moment(it, 1)),
    "reason": Option("TEXT", "shown to those who ask why", _text),
    "undo": Option("", "let the worker claim runs again"),
    "wait": Option("", "return when the worker has no runs any more"),
    "note": Option("TEXT", "shown with the error from now on", _text),
    "forget": Option("", "mark as no longer known"),
    "json": Option("", "print JSON"),
}
