"""What people and programs read after a run: ``summary.md`` and JUnit; pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from .odoo_log import Record, Result

FAILED = ("error", "failed")
LIMIT = 1_000_000  # bytes of a summary; the worker reads 1 MiB
NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Report:
    """The result of a run of tests. ``problems`` are the warnings and errors of the log outside of tests."""

    tests: Sequence[Result]
    problems: Sequence[Record] = ()
    ended_badly: Sequence[str] = ()
    """what else makes the run fail, such as an exit code of Odoo"""
    facts: Sequence[str] = field(default_factory=list)
    """lines such as times and coverage"""

    @property
    def failed(self) -> list[Result]:
        return [test for test in self.tests if test.outcome in FAILED]

    @property
    def succeeded(self) -> bool:
        return not self.failed and not self.ended_badly


def counts(tests: Sequence[Result]) -> str:
    """Such as ``1 failed, 12 passed, 0 skipped``."""
    outcomes = [test.outcome for test in tests]
    failed = sum(map(outcomes.count, FAILED))
    return f"{failed} failed, {outcomes.count('passed')} passed, {outcomes.count('skipped')} skipped"


def summary(report: Report) -> str:
    """``summary.md``: a line for each failing test, before anything else; then what else failed, counts, details."""
    lines = [f"- **FAILED** `{test.module}` `{test.name}`: {one_line(test.message)}" for test in report.failed]
    lines += [f"- **FAILED** {one_line(text)}" for text in report.ended_badly]
    lines += ["", f"# {counts(report.tests)}", "", *(f"- {fact}" for fact in report.facts)]
    if report.problems:
        lines += ["", f"## {len(report.problems)} warnings and errors in the log", ""]
        lines += [f"- {each.level} `{each.logger}`: {one_line(each.message)}" for each in report.problems]
    for test in report.failed:
        lines += ["", f"## `{test.module}` `{test.name}`", "", "```text", test.text.replace("```", "'''"), "```"]
    skipped = [test for test in report.tests if test.outcome == "skipped"]
    if skipped:
        lines += ["", "## Skipped", "", *(f"- `{test.module}` `{test.name}`: {test.message}" for test in skipped)]
    return cut("\n".join(lines).lstrip("\n") + "\n")


def one_line(text: str) -> str:
    return " ".join(text.split())[:500] or "no message"


def cut(text: str) -> str:
    """The text, or its beginning if it is longer than the worker reads."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= LIMIT else data[:LIMIT].decode("utf-8", "ignore") + "\n\n(cut)\n"


def junit(tests: Sequence[Result]) -> bytes:
    """A JUnit file; each module is a suite."""
    root = ET.Element("testsuites", _totals(tests))
    for module in dict.fromkeys(test.module for test in tests):
        own = [test for test in tests if test.module == module]
        suite = ET.SubElement(root, "testsuite", {"name": module, **_totals(own)})
        for test in own:
            class_name, _, name = test.name.rpartition(".")
            case = ET.SubElement(
                suite,
                "testcase",
                {"classname": f"{module}.{class_name}", "name": clean(name), "time": f"{test.seconds:.3f}"},
            )
            if test.outcome == "skipped":
                ET.SubElement(case, "skipped", {"message": clean(test.message)})
            elif test.outcome in FAILED:
                kind = "failure" if test.outcome == "failed" else "error"
                ET.SubElement(case, kind, {"message": clean(test.message)}).text = clean(test.text)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _totals(tests: Sequence[Result]) -> dict[str, str]:
    outcomes = [test.outcome for test in tests]
    return {
        "tests": str(len(tests)),
        "failures": str(outcomes.count("failed")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
        "time": f"{sum(test.seconds for test in tests):.3f}",
    }


def clean(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return NOT_IN_XML.sub("�", text)
