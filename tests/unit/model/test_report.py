"""What the files in /artifacts say about a run."""

from __future__ import annotations

import pytest

from worker.model import report
from worker.model.report import CaseCounts, Report

CASES = """<testsuites><testsuite name="s">
<testcase classname="odoo.addons.sale.TestSale" name="test_one"/>
<testcase classname="odoo.addons.sale.TestSale" name="test_two"><failure message="no">trace</failure></testcase>
<testcase name="test_three"><skipped/></testcase>
<testcase name="test_four"><error/><skipped/></testcase>
</testsuite></testsuites>"""
COUNTED = CaseCounts(1, 2, 1, ["odoo.addons.sale.TestSale.test_two", "test_four"])


def read(*files: tuple[str, bytes], piece: int = 7) -> Report:
    """The report after these files, each read in pieces of that many bytes."""
    found = Report()
    for path, content in files:
        if (reader := found.reader(path, len(content))) is not None:
            for at in range(0, len(content), piece):
                reader.feed(content[at : at + piece])
            reader.feed(b"")
    return found


def test_the_tests_of_all_junit_files_are_counted() -> None:
    one = b'<?xml version="1.0" encoding="utf-8"?><testsuite><testcase name="\xc3\xa9"/></testsuite>'
    found = read(("a/junit.XML", CASES.encode()), ("b.xml", one), ("c.txt", one))
    assert found.tests == CaseCounts(2, 2, 1, COUNTED.failing)
    assert found.summary is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not xml",
        CASES[:-3],  # cut
        "<coverage><testcase name='x'/></coverage>",
        '<!DOCTYPE t [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>',
        "<testsuite>" + "<testcase name='x'/>" * 3 + "</testsuites>",
    ],
)
def test_a_file_that_is_no_whole_junit_file_counts_nothing(content: str) -> None:
    assert read(("a.xml", content.encode())).tests is None
    assert read(("a.xml", content.encode()), ("b.xml", CASES.encode())).tests == COUNTED


def test_few_names_are_kept_and_long_ones_cut() -> None:
    many = "".join(f"<testcase name='{'x' * 1000}{n}'><failure/></testcase>" for n in range(30))
    tests = read(("a.xml", f"<testsuite>{many}</testsuite>".encode()), ("b.xml", CASES.encode())).tests
    assert tests is not None
    assert (tests.failed, tests.failing) == (32, ["x" * 300] * 20)


def test_files_beyond_the_bounds_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_JUNIT", 2 * len(CASES) - 1)
    found = read(("a.xml", CASES.encode()), ("b.xml", CASES.encode()), ("summary.md", b"x" * (2**20 + 1)))
    assert (found.tests, found.summary) == (COUNTED, None)


def test_the_summary_is_the_file_of_that_name_at_the_top() -> None:
    found = read(("docs/summary.md", b"no"), ("summary.md", "# é\n".encode() + b"\xff"))
    assert found.summary == "# é\n\ufffd"
