"""How a page shows things: the look of a state, times, sizes, lines of a log. Pure; templates call these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jinja2

from worker.cli.render import iso, safe, shown_span, span_between
from worker.console import ansi
from worker.database.control_plane import Row
from worker.database.runs import APPENDED

GROUP, ENDGROUP = "::group::", "::endgroup::"


@dataclass(frozen=True, slots=True)
class Look:
    """The look of a state: the name of its colour and sign, and its words."""

    name: str
    words: str


_LOOKS = {
    "queued": Look("queued", "queued"),
    "claimed": Look("running", "claimed"),
    "running": Look("running", "running"),
    "succeeded": Look("green", "succeeded"),
    "failed": Look("red", "failed"),
    "canceled": Look("grey", "canceled"),
}
_WARNED = Look("yellow", "succeeded with warnings")


def look(run: Row) -> Look:
    """The look of a run: yellow if it succeeded and its log has warnings or errors."""
    if run["status"] == "succeeded" and (run.get("warnings") or run.get("errors")):
        return _WARNED
    return _LOOKS[run["status"]]


def took(run: Row) -> str:
    return span_between(run["started_at"], run["finished_at"], datetime.now(UTC))


def waited(run: Row) -> str:
    """From when the run was due until it started, or until now."""
    due = max(filter(None, (run["created_at"], run["scheduled_at"])))
    return span_between(due, run["started_at"] or run["finished_at"], datetime.now(UTC))


def age(moment: datetime) -> str:
    span = (datetime.now(UTC) - moment).total_seconds()
    shown = shown_span(abs(span)).split(" ")[0]
    return f"in {shown}" if span < 0 else f"{shown} ago"


def moment(value: datetime) -> str:
    """A time to the second, in UTC, for a person."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int | None) -> str:
    number, unit = float(count or 0), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the last one is used
        if number < 1000:  # noqa: PLR2004 - decimal units
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"  # noqa: PLR2004 - 3 digits


def web_link(url: str) -> str | None:
    """The address, if a browser may follow it: http or https, and no other scheme."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.hostname else None


def log_line(line: Row) -> dict[str, Any]:
    """A line as the page and its scripts show it: number, time, level, parts with styles, and how much is cut."""
    message = line["message"]
    kind = "group" if message.startswith(GROUP) else "end" if message.startswith(ENDGROUP) else ""
    if kind:
        message = message.removeprefix(GROUP).removeprefix(ENDGROUP) or "end of the group"
    return {
        "n": line["seq"],
        "appended": line["seq"] >= APPENDED,
        "t": iso(line["timestamp"]),
        "level": line["level"],
        "kind": kind,
        "parts": ansi.parts(message),
        "cut": max((line.get("size") or 0) - len(line["message"]), 0),
    }


def log_lines(lines: Sequence[Row]) -> list[dict[str, Any]]:
    return [log_line(line) for line in lines]


def environment() -> jinja2.Environment:
    """The templates: every value is escaped, and a name that does not exist is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters.update(
        safe_text=safe, age=age, moment=moment, iso=iso, size=size, web_link=web_link, path=lambda text: quote(text, "")
    )
    found.globals.update(look=look, took=took, waited=waited)
    return found
