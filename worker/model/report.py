"""What the files in /artifacts say about a run: the text of ``summary.md``, and the tests in JUnit files.

A run's program wrote the files, so none of it is trusted: a file that is no JUnit file, or a broken one, counts
nothing, entities are refused, and what is kept is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol
from xml.parsers import expat

SUMMARY = "summary.md"
MAX_SUMMARY = 1 << 20
"""Bytes of a summary; a larger one is left out."""

MAX_JUNIT = 64 << 20
"""Bytes of all JUnit files of a run; those beyond are left out."""

MAX_FAILING = 20
"""How many names of failing tests are kept."""

MAX_NAME = 300
"""Characters of a test's name."""


@dataclass
class CaseCounts:
    """The tests of a run; the names of the first that failed, in the order of the files."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failing: list[str] = field(default_factory=list)

    def add(self, other: CaseCounts) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failing = (self.failing + other.failing)[:MAX_FAILING]


class Report:
    """Filled file by file; each file is read in pieces, as it comes out of the archive."""

    def __init__(self) -> None:
        self.summary: str | None = None
        self.tests: CaseCounts | None = None
        self._junit_left = MAX_JUNIT

    def reader(self, path: str, size: int) -> FileReader | None:
        """Reads the file of that path below /artifacts and size in bytes; None if it says nothing about the run."""
        if path == SUMMARY and size <= MAX_SUMMARY:
            return _SummaryReader(self)
        if PurePosixPath(path).suffix.lower() == ".xml" and size <= self._junit_left:
            self._junit_left -= size
            return _JUnitReader(self)
        return None


class FileReader(Protocol):
    """Takes the pieces of one file; an empty piece is its end."""

    def feed(self, piece: bytes) -> None: ...


class _SummaryReader:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._pieces: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if not piece:
            self._report.summary = b"".join(self._pieces).decode(errors="replace")


class _NotJUnit(Exception):
    """The file is XML of another kind, or declares entities."""


class _JUnitReader:
    """Counts ``testcase`` elements below ``testsuites`` or ``testsuite``: as every writer of JUnit files does."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._tests = CaseCounts()
        self._root: str | None = None
        self._case: str | None = None
        self._outcome = "passed"
        self._broken = False
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.EntityDeclHandler = self._refuse

    def feed(self, piece: bytes) -> None:
        if self._broken:
            return
        try:
            self._parser.Parse(piece, not piece)
        except (expat.ExpatError, _NotJUnit):
            self._broken = True
            return
        if not piece:
            self._report.tests = self._report.tests or CaseCounts()
            self._report.tests.add(self._tests)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._root is None:
            self._root = name
            if name not in ("testsuites", "testsuite"):
                raise _NotJUnit
        if name == "testcase":
            self._case = ".".join(part for part in map(attributes.get, ("classname", "name")) if part)
            self._outcome = "passed"
        elif self._case is not None and name in ("failure", "error"):
            self._outcome = "failed"
        elif self._case is not None and name == "skipped" and self._outcome == "passed":
            self._outcome = "skipped"

    def _end(self, name: str) -> None:
        if name != "testcase" or self._case is None:
            return
        setattr(self._tests, self._outcome, getattr(self._tests, self._outcome) + 1)
        if self._outcome == "failed" and len(self._tests.failing) < MAX_FAILING:
            self._tests.failing.append(self._case[:MAX_NAME])
        self._case = None

    def _refuse(self, *_: object) -> None:
        raise _NotJUnit
