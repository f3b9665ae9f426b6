"""Odoo's log becomes tests and problems, and these become the summary and JUnit."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from deploy.tools.odoo.odoo_tool import odoo_log, reports
from deploy.tools.odoo.odoo_tool.odoo_log import Result, problems, records, results, without_warnings
from worker.model.report import Report

T = "odoo.addons.library.tests.test_book"


def line(second: float, level: str, logger: str, message: str) -> str:
    return f"2026-11-27 03:17:{second:06.3f}".replace(".", ",") + f" 25 {level} shard_1 {logger}: {message} \n"


CHAINED = """Traceback (most recent call last):
  File x
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File y
psycopg2.errors.NotNull: no
DETAIL:  Key (id)=(1)"""
LOG = [
    "printed before the first record\n",
    line(1, "INFO", T, "Starting TestBook.test_good ..."),
    line(2.5, "INFO", T, "Starting TestBook.test_bad ..."),
    line(2.6, "INFO", T, "=" * 70),
    line(2.6, "ERROR", T, "FAIL: TestBook.test_bad"),
    "Traceback (most recent call last):\n",
    '  File "/src/library/tests/test_book.py", line 7, in test_bad\n',
    "    self.assertEqual(1, 2)\n",
    "AssertionError: 1 != 2 : <not> equal\n",
    "\x00 details\n",
    line(3, "INFO", T, "Starting TestBook.test_parts ..."),
    line(3.1, "ERROR", T, "ERROR: Subtest TestBook.test_parts (part='b')"),
    "Traceback (most recent call last):\n",
    "ValueError\n",
    line(3.2, "INFO", T, "Starting TestBook.test_not_here ..."),
    line(3.2, "INFO", T, "skipped TestBook.test_not_here : no browser"),
    line(3.3, "WARNING", "odoo.models", "field x: unknown parameter"),
    "  which continues\n",
    line(3.4, "ERROR", "odoo.modules.loading", "Module library: 1 failures, 1 errors of 4 tests"),
    line(4, "ERROR", "odoo.tests.result", "1 failed, 1 error(s) of 4 tests when loading database 'shard_1'"),
    line(4, "ERROR", "odoo.tests.suite", "ERROR: setUpClass (odoo.addons.shop.tests.test_shop.TestShop)"),
    "KeyError: 'shop'\n",
]


def test_each_test_has_its_outcome_time_and_message() -> None:
    found = results(records(LOG))
    assert [(each.module, each.name, each.outcome, each.message) for each in found] == [
        ("library", "TestBook.test_good", "passed", ""),
        ("library", "TestBook.test_bad", "failed", "AssertionError: 1 != 2 : <not> equal"),
        ("library", "TestBook.test_parts", "error", "ValueError"),
        ("library", "TestBook.test_not_here", "skipped", "no browser"),
        ("shop", "setUpClass (odoo.addons.shop.tests.test_shop.TestShop)", "error", "KeyError: 'shop'"),
    ]
    assert [round(each.seconds, 1) for each in found] == [1.5, 0.5, 0.2, 0.2, 0.0]


def test_problems_are_what_is_not_said_of_a_test_already() -> None:
    assert [(each.level, each.message, each.text) for each in problems(records(LOG))] == [
        ("WARNING", "field x: unknown parameter", "  which continues")
    ]


def test_the_log_without_warnings_has_no_line_of_them() -> None:
    kept = without_warnings(LOG)
    assert [each for each in LOG if each not in kept] == LOG[16:18]


@pytest.mark.parametrize(
    ("traceback", "last"),
    [
        ("Traceback (most recent call last):\n  File x\nodoo.Error: no\nsecond line", "odoo.Error: no"),
        ("AssertionError: {'a': 1} != {}\n- {'a': 1}\n+ {}", "AssertionError: {'a': 1} != {}"),
        (CHAINED, "psycopg2.errors.NotNull: no"),
        ("only text", "only text"), ("", ""),
    ],
)  # fmt: skip
def test_the_exception_of_a_traceback_is_found(traceback: str, last: str) -> None:
    assert odoo_log.last_words(traceback) == last


def test_the_summary_begins_with_the_failing_tests() -> None:
    report = reports.Report(results(records(LOG)), problems(records(LOG)), ["shard_2: Odoo ended with exit code 255"])
    lines = reports.summary(report).splitlines()
    assert lines[0] == "- **FAILED** `library` `TestBook.test_bad`: AssertionError: 1 != 2 : <not> equal"
    assert [each.split("`")[1] for each in lines[1:3]] == ["library", "shop"]
    assert lines[3] == "- **FAILED** shard_2: Odoo ended with exit code 255"
    assert lines[5] == "# 3 failed, 1 passed, 1 skipped"
    assert "- WARNING `odoo.models`: field x: unknown parameter" in lines
    assert not report.succeeded


def test_a_summary_is_cut_at_what_the_worker_reads() -> None:
    text = reports.summary(reports.Report([Result("m", "T.t", "failed", text="é" * 2_000_000)]))
    assert len(text.encode()) < 1 << 20
    assert text.endswith("(cut)\n")


def test_the_worker_counts_what_the_tool_reports() -> None:
    found, read = results(records(LOG)), Report()
    for name, content in (("junit.xml", reports.junit(found)), ("summary.md", b"x" * reports.LIMIT)):
        reader = read.reader(name, len(content))
        assert reader
        reader.feed(content)
        reader.feed(b"")
    assert read.tests
    assert (read.tests.passed, read.tests.failed, read.tests.skipped) == (1, 3, 1)
    assert read.tests.failing[0] == "library.TestBook.test_bad"
    assert read.summary


def test_a_run_without_a_failure_succeeds() -> None:
    report = reports.Report([Result("m", "T.t")], facts=["coverage: 90 %"])
    assert report.succeeded
    assert reports.summary(report) == "# 0 failed, 1 passed, 0 skipped\n\n- coverage: 90 %\n"


def test_junit_has_a_suite_for_each_module() -> None:
    root = ET.fromstring(reports.junit(results(records(LOG))))  # noqa: S314 - written by the line before
    assert root.attrib["tests"] == "5"
    assert [(suite.attrib["name"], suite.attrib["failures"], suite.attrib["errors"]) for suite in root] == [
        ("library", "1", "1"),
        ("shop", "0", "1"),
    ]
    good, bad, parts, skipped = root[0]
    assert (good.attrib["classname"], good.attrib["name"], list(good)) == ("library.TestBook", "test_good", [])
    assert bad[0].tag == "failure"
    assert "� details" in str(bad[0].text)
    assert parts[0].tag == "error"
    assert skipped[0].attrib == {"message": "no browser"}
