"""The level of a line: its own, that of the record that it continues, or its stream's."""

from __future__ import annotations

import pytest

from tests.unit.journal import ERR, OUT, frame, read

ODOO = "2026-01-01 00:00:00,000 12"


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (f"{ODOO} DEBUG db odoo.http: x", "debug"),
        (f"{ODOO} INFO ? odoo: x", "info"),
        (f"{ODOO} WARNING db odoo.modules: x", "warn"),
        (f"{ODOO} ERROR db odoo.sql_db: x", "error"),
        (f"{ODOO} CRITICAL db odoo.service: x", "error"),
        (f"{ODOO} \x1b[1;31m\x1b[1;49mERROR\x1b[0m db odoo: x", "error"),
        (f"{ODOO} INFORMAL db odoo: x", None),
        (f"x {ODOO} ERROR db odoo: x", None),
        ("2026-01-01 ERROR", None),
        ("٣٣٣٣-01-01 00:00:00,000 1 ERROR db", None),
        ('{"level": "debug"}', "debug"),
        ('{"levelname": "WARNING", "msg": "x"}', "warn"),
        ('{"severity": "Critical"}', "error"),
        ('{"level": "notice"}', "info"),
        ('{"level": 30, "severity": "fatal"}', "error"),
        ('{"level": 30}', None),
        ('{"level": {"a": 1}}', None),
        ('{"level": "error"', None),
        ('{"msg": "level"}', None),
        ("ERROR: it broke", "error"),
        ("ERROR it broke", "error"),
        ("WARNING: x", "warn"),
        ("WARNING:root:x", "warn"),
        ("CRITICAL", "error"),
        ("INFO: x", "info"),
        ("DEBUG x", "debug"),
        ("\x1b[31mERROR\x1b[0m: x", "error"),
        ("\x1b[1m\x1b[31mE       assert 1 == 2\x1b[0m", "error"),
        ("E   assert 1 == 2", "error"),
        ("FAILED tests/test_x.py::test_y - assert 1 == 2", "error"),
        ("ERROR tests/test_x.py - ImportError", "error"),
        ("=========== 1 failed, 2 passed in 0.12s ===========", "error"),
        ("\x1b[31m==== \x1b[31m\x1b[1m1 failed\x1b[0m, \x1b[32m2 passed\x1b[0m\x1b[31m in 0.12s\x1b[0m ====", "error"),
        ("12 failed, 2 passed, 1 error in 65.12s (0:01:05)", "error"),
        ("2 passed, 1 error in 0.12s", "error"),
        ("!!!!!!!!!! Interrupted: 1 error during collection !!!!!!!!!!", "error"),
        ("=========== 3 passed, 1 warning in 0.12s ===========", None),
        ("npm ERR! code E404", "error"),
        ("npm error code E404", "error"),
        ("npm WARN deprecated x", "warn"),
        ("npm warn deprecated x", "warn"),
        ("npm notice New version", "info"),
        ("ERRORS", None),
        ("INFORMATION: x", None),
        ("ERR! x", None),
        ("E  x", None),
        ("npm errors", None),
        ("10 failed", None),
        ("0 failed, 3 passed in 0.12s", None),
        ("0 errors in 3 files", None),
        ("10 errors in 3 files", "error"),
        ("123456", None),
        ("1%\rWARNING: x", "warn"),
        ("WARNING: x\rdone      ", None),
        ('{"a": ' + "[" * 20_000, None),
        ('{"a": ' + "9" * 5_000 + "}", None),
        ("error: it broke", None),
        ("", None),
    ],
)
def test_the_level_is_what_the_line_says_else_the_stream_s(line: str, level: str | None) -> None:
    levels = [read(frame(kind, line.encode() + b"\n"))[0].level for kind in (OUT, ERR)]
    assert levels == ([level, level] if level else ["info", "warn"])


CHAIN = f"""{ODOO} ERROR db odoo.http: Exception during request

Traceback (most recent call last):
  File "/odoo/http.py", line 1, in x
    y()
    ~^^
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/odoo/http.py", line 2, in z
psycopg2.errors.UniqueViolation: duplicate key
DETAIL:  Key (id)=(1) already exists.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/odoo/http.py", line 3, in z
odoo.exceptions.ValidationError"""


@pytest.mark.parametrize(
    ("record", "level"),
    [
        (CHAIN, "error"),
        (CHAIN.replace("ERROR", "WARNING", 1), "warn"),
        (CHAIN.partition("\n\n")[2], "error"),
        (f'{ODOO} ERROR db x: y\n  File "a.py", line 1\n    a b\nSyntaxError: invalid', "error"),
        ("WARNING: x\n  more\n\tof it\n\n  and more", "warn"),
        ("E   assert 1\n  x", "error"),
    ],
)
@pytest.mark.parametrize("kind", [OUT, ERR])
def test_what_continues_a_record_has_its_level_and_the_next_line_the_stream_s(
    kind: int, record: str, level: str
) -> None:
    data = b"".join(frame(kind, line.encode() + b"\n") for line in [*record.split("\n"), "1", "  2"])
    stream = ("", "info", "warn")[kind]
    levels = [line.level for line in read(data)]
    assert levels == [level] * (len(levels) - 2) + [stream] * 2
    for skip in range(len(levels)):
        assert [line.level for line in read(data, skip=skip)] == levels[skip:], "after a restart too"


@pytest.mark.parametrize(
    "record", [f"{ODOO} INFO db odoo: x", "INFO: x", "DEBUG: x\n  more", f"{ODOO} DEBUG db odoo: x"]
)
@pytest.mark.parametrize("kind", [OUT, ERR])
def test_a_traceback_after_a_record_that_is_no_alarm_is_an_error(kind: int, record: str) -> None:
    crash = ["Traceback (most recent call last):", '  File "a.py", line 1, in x', "    y()", "ValueError: z"]
    data = b"".join(frame(kind, line.encode() + b"\n") for line in [*record.split("\n"), *crash])
    assert [line.level for line in read(data)][-4:] == ["error"] * 4


def test_a_record_is_continued_by_no_more_than_500_lines() -> None:
    data = b"".join(frame(OUT, text) for text in [f"{ODOO} ERROR db odoo: x\n".encode(), *[b"  x\n"] * 501])
    assert [line.level for line in read(data)] == ["error"] * 501 + ["info"]


def test_the_lines_of_two_streams_and_of_json_leave_a_record_open() -> None:
    script = [
        (ERR, "starting", "warn"),
        (ERR, f"{ODOO} INFO db odoo: x", "info"),
        (ERR, "more of it", "info"),
        (ERR, f"{ODOO} ERROR db odoo: x", "error"),
        (OUT, "beside", "info"),
        (ERR, "Traceback (most recent call last):", "error"),
        (ERR, '{"level": "debug"}', "debug"),
        (ERR, "ValueError: x", "error"),
        (ERR, "no more of it", "warn"),
        (ERR, f"{ODOO} DEBUG db odoo: x", "debug"),
    ]
    data = b"".join(frame(kind, line.encode() + b"\n") for kind, line, _ in script)
    assert [line.level for line in read(data)] == [level for *_, level in script]
