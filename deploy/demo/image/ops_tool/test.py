"""Test: run the add-on's unit tests and write junit.xml and summary.txt.

With ``DEMO_BREAK=1`` a defect is put into a copy of the add-on first, so that a run of the demo fails, for real.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import types
import unittest
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from .context import Context, ToolError

DEFECT = ("charged = days_late(due, returned) - GRACE_DAYS", "charged = days_late(due, returned)")
"""A line of rules.py, and what it becomes: the days of grace are forgotten."""


def run(context: Context, log: logging.Logger) -> None:
    """Raises ``ToolError`` when a test does not pass."""
    addon = context.addon
    if os.environ.get("DEMO_BREAK") == "1":
        addon = seed_defect(addon, log)
    suite = load(addon)
    log.info("%s unit tests of %s", suite.countTestCases(), addon.name)
    result = Result(log)
    started = time.perf_counter()
    suite.run(result)
    seconds = time.perf_counter() - started

    summary = f"{result.testsRun} tests in {seconds:.2f} s: {len(result.bad)} failed"
    context.write("summary.txt", "\n".join([summary, *(f"FAIL {test.id()}" for test, _ in result.bad)]) + "\n")
    ET.ElementTree(result.junit(addon.name, seconds)).write(
        context.artifacts / "junit.xml", encoding="utf-8", xml_declaration=True
    )
    if result.bad:
        raise ToolError(summary)
    log.info(summary)


def seed_defect(addon: Path, log: logging.Logger) -> Path:
    """A copy of the add-on with one wrong line."""
    copy = Path("/tmp/addons") / addon.name  # noqa: S108 - the container's own
    shutil.copytree(addon, copy)
    rules = copy / "rules.py"
    right, wrong = DEFECT
    text = rules.read_text(encoding="utf-8")
    if right not in text:
        raise ToolError(f"DEMO_BREAK: rules.py has no line {right!r}")
    rules.write_text(text.replace(right, wrong), encoding="utf-8")
    log.warning("DEMO_BREAK=1: this run fails on purpose. The days of grace are taken out of rules.py:")
    log.warning("- %s", right)
    log.warning("+ %s", wrong)
    return copy


def load(addon: Path) -> unittest.TestSuite:
    """The add-on's tests. Its package is entered without running its ``__init__``, which would import Odoo."""
    package = types.ModuleType(addon.name)
    package.__path__ = [str(addon)]
    sys.modules[addon.name] = package
    return unittest.TestLoader().discover(str(addon / "tests"), top_level_dir=str(addon.parent))


class Result(unittest.TestResult):
    """Logs each test as it ends, as Odoo does, and remembers it for junit.xml."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log
        self._started = 0.0
        self._cases: dict[str, tuple[unittest.TestCase, float]] = {}

    @property
    def bad(self) -> list[tuple[unittest.TestCase, str]]:
        """Failures and errors, with the traceback."""
        return [*self.failures, *self.errors]

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().startTest(test)
        self._started = time.perf_counter()

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self._cases[test.id()] = (test, time.perf_counter() - self._started)
        name = test.id().removeprefix(f"{test.__module__}.")
        if trace := next((text for each, text in self.bad if each is test), None):
            self._log.error("FAIL: %s\n%s", name, trace.rstrip())
        else:
            self._log.info("ok: %s", name)

    def addSubTest(  # noqa: N802
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any
    ) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._log.error("FAIL: %s", subtest)

    def junit(self, suite: str, seconds: float) -> ET.Element:
        """The report that CI servers read."""
        root = ET.Element(
            "testsuite", name=suite, tests=str(self.testsRun), failures=str(len(self.failures)),
            errors=str(len(self.errors)), time=f"{seconds:.3f}",
        )  # fmt: skip
        for test, took in self._cases.values():
            group, _, name = test.id().rpartition(".")
            case = ET.SubElement(root, "testcase", classname=group, name=name, time=f"{took:.3f}")
            for kind, found in (("failure", self.failures), ("error", self.errors)):
                for each, trace in found:
                    if each is test or getattr(each, "test_case", None) is test:
                        ET.SubElement(case, kind, message=trace.strip().splitlines()[-1]).text = trace
        return root
