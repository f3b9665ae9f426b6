"""How results look: what a terminal is protected from, tables, colours, times, JSON."""

from __future__ import annotations

import io
import json
import unicodedata
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.render import Cell, Look, columns_of, plain, safe, safe_lines, shortened, shown_span, span_between
from worker.cli.screen import look_of

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 漢字, ⚠️", "plain, ünïcode, 漢字, ⚠️"), ("a\tb", "a    b"), ("C:\\new", "C:\\new"),
        ("\x1b[31mred\x1b[0m", "red"), ("\x1b[2J\x1b[1;1Hgone", "gone"), ("a\x1b]0;title\x07b", "ab"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"), ("\x1b]52;c;not ended", "\\x1b]52;c;not ended"),
        ("\x1b(Bx", "x"), ("end\x1b", "end\\x1b"), ("\x1bc", ""), ("\x9b31m", "\\x9b31m"), ("\x00\x07\x08\x7f",
         "\\x00\\x07\\x08\\x7f"), ("a\nb\rc", "a\\nb\\rc"), ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066\u2069\u200f\u061c", "\\u2066\\u2069\\u200f\\u061c"), ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\u2028", "\\u2028"), ("\U000e0041", "\\U000e0041"), ("\udc9b", "\\udc9b"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_execute_or_hide_is_not_shown(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b[]()0;m\x07\\\x9b\u202e"), max_size=40))
def test_every_text_becomes_one_line_of_visible_characters(text: str) -> None:
    shown = safe(text)
    assert safe(shown) == shown
    assert {unicodedata.category(it) for it in shown} & {"Cc", "Cs", "Zl", "Zp"} == set()
    assert not any(unicodedata.bidirectional(it) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "FSI") for it in shown)


def test_lines_are_separated_by_newlines_only() -> None:
    assert safe_lines("a\r\nb\x0bc\n\x1b[1md") == ["a", "b\\x0bc", "d"]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"), ("abcd", 3, "ab…"), ("漢字漢", 5, "漢字…"), ("漢字漢", 4, "漢…"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
    ],
)  # fmt: skip
def test_a_text_is_shortened_by_the_columns_that_it_takes(text: str, width: int, shown: str) -> None:
    assert shortened(text, width) == shown
    assert columns_of(shown) <= width


ROWS = (("acme#1", Cell("failed", "red"), "a\x1b[1m b"), ("漢字", "ok", "x" * 40), ("acme#3", "", ""))


def test_a_table_in_a_pipe_has_plain_columns_and_is_not_cut() -> None:
    assert Look().table(("RUN", "STATUS", "TEXT"), ROWS) == [
        "RUN     STATUS  TEXT", "acme#1  failed  a b", f"漢字    ok      {'x' * 40}", "acme#3",
    ]  # fmt: skip


def test_a_table_on_a_terminal_has_colours_and_is_cut_at_its_edge() -> None:
    look = Look(color=True, width=30, terminal=True)
    assert look.table(("RUN", "STATUS", "TEXT"), ROWS) == [
        "\x1b[1mRUN\x1b[0m     \x1b[1mSTATUS\x1b[0m  \x1b[1mTEXT\x1b[0m",
        "acme#1  \x1b[31mfailed\x1b[0m  a b",
        f"漢字    ok      {'x' * 13}…",
        "acme#3",
    ]
    assert Look(width=30, terminal=True).table(("A",), [("y",)]) == ["A", "y"]


def test_fields_without_a_value_are_left_out() -> None:
    assert Look().fields([("Run", "a#1"), ("Worker", ""), ("Status", Cell("ok", "green"))]) == [
        "Run     a#1", "Status  ok",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "color", "terminal"),
    [
        (Terminal(), {}, True, True), (Terminal(), {"NO_COLOR": ""}, True, True),
        (Terminal(), {"NO_COLOR": "1"}, False, True), (Terminal(), {"TERM": "dumb"}, False, True),
        (io.StringIO(), {}, False, False),
    ],
)  # fmt: skip
def test_colours_are_for_terminals_that_want_them(
    stream: io.StringIO, environ: dict[str, str], *, color: bool, terminal: bool
) -> None:
    look = look_of(stream, environ)
    assert (look.color, look.terminal, look.width is not None) == (color, terminal, terminal)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.9, "59s"), (125, "2m 5s"), (3600, "1h 0m"), (187200, "2d 4h")]
)
def test_a_time_span_has_two_units(seconds: float, shown: str) -> None:
    assert shown_span(seconds) == shown
    assert Look(terminal=True).moment(NOW - timedelta(seconds=seconds), NOW) == f"{shown} ago"


def test_times_are_ages_on_a_terminal_and_iso_elsewhere() -> None:
    assert Look(terminal=True).moment(NOW + timedelta(seconds=90), NOW) == "in 1m 30s"
    assert Look().moment(NOW, NOW) == "2026-01-02T03:04:05.678Z"
    assert Look().moment(None, NOW) == ""
    assert (span_between(None, None, NOW), span_between(NOW, None, NOW + timedelta(seconds=9))) == ("", "9s")


def test_a_row_as_json() -> None:
    row = {"id": uuid.UUID(int=1), "at": NOW, "labels": ["a"], "n": 1, "none": None, "payload": {"x": True}}
    assert json.loads(json.dumps(plain([row]))) == [
        row | {"id": "00000000-0000-0000-0000-000000000001", "at": "2026-01-02T03:04:05.678Z"}
    ]
