"""Odoo's log: its records, and the result of each test. Odoo 14 to 19 write the same format. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

RECORD = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \d+ (?P<level>[A-Z]+) (?P<db>\S+) "
    r"(?P<logger>\S+): (?P<message>.*?)\s*$"
)
TEST_LOGGER = re.compile(r"odoo\.addons\.(?P<module>\w+)\.tests\.")
STARTING = re.compile(r"Starting (?P<test>.+) \.\.\.$")
SKIPPED = re.compile(r"skipped (?P<test>\S+)(?: : | )?(?P<reason>.*)$")
BAD = re.compile(r"(?P<flavour>FAIL|ERROR): (?:Subtest )?(?P<test>.+)$")
END = ("odoo.modules.loading", "odoo.tests.result", "odoo.tests.stats", "odoo.service.server")
LAST_LINE = re.compile(r"[A-Za-z_][\w.]*(?::|$)")
COUNTS = re.compile(r"Module \w+: \d+ failures|At least one test failed|\d+ failed, \d+ error")
PROBLEMS = ("WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class Record:
    """A record of the log; ``text`` is what follows the message's first line."""

    time: datetime
    level: str
    logger: str
    message: str
    text: str = ""


@dataclass(frozen=True)
class Result:
    """One test, and how it ended."""

    module: str
    name: str
    """Class and method, or what Odoo calls the place of an error outside of a test"""
    outcome: str = "passed"
    """passed, skipped, failed (an assertion), error (an exception)"""
    seconds: float = 0.0
    message: str = ""
    text: str = ""


def records(lines: Iterable[str]) -> Iterator[Record]:
    """The records of a log. Lines before the first one are left out; other lines continue the record before them."""
    current: Record | None = None
    more: list[str] = []
    for line in lines:
        match = RECORD.match(line)
        if match is None:
            more.append(line.rstrip("\n"))
            continue
        if current is not None:
            yield replace(current, text="\n".join(more))
        more = []
        current = Record(
            datetime.strptime(match["time"], "%Y-%m-%d %H:%M:%S,%f"),  # noqa: DTZ007 - only differences count
            match["level"],
            match["logger"],
            match["message"],  # Odoo writes a space after it
        )
    if current is not None:
        yield replace(current, text="\n".join(more))


def results(log: Iterable[Record]) -> list[Result]:
    """The tests of a log, in the order in which they began."""
    found: dict[tuple[str, str], Result] = {}
    running: tuple[str, str] | None = None
    begun: datetime | None = None
    for record in log:
        logger = TEST_LOGGER.match(record.logger)
        starting = STARTING.match(record.message) if logger else None
        if running and begun and (starting or record.logger in END):
            seconds = found[running].seconds + (record.time - begun).total_seconds()
            found[running] = replace(found[running], seconds=seconds)
            running = begun = None
        if logger and starting:
            running, begun = (logger["module"], starting["test"]), record.time
            found.setdefault(running, Result(*running))
            continue
        if bad := BAD.match(record.message) if record.level in PROBLEMS and logger_of_tests(record.logger) else None:
            _note(found, module_of(record.logger, bad["test"]), bad, record.text, running)
        elif logger and (skipped := SKIPPED.match(record.message)):
            key = (logger["module"], skipped["test"])
            found[key] = replace(found.get(key, Result(*key)), outcome="skipped", message=skipped["reason"])
    return list(found.values())


def logger_of_tests(logger: str) -> bool:
    return TEST_LOGGER.match(logger) is not None or logger.startswith("odoo.tests.")


def module_of(logger: str, test: str) -> str:
    """The module of a failure: by its logger, or by the name of a class whose set-up failed."""
    match = TEST_LOGGER.match(logger) or re.search(r"odoo\.addons\.(?P<module>\w+)\.", test)
    return match["module"] if match else "odoo"


def _note(
    found: dict[tuple[str, str], Result], module: str, bad: re.Match[str], text: str, running: tuple[str, str] | None
) -> None:
    """Adds a failure to its test. That of a subtest goes to the test that runs."""
    name = bad["test"]
    if running and name.startswith(running[1]):
        name = running[1]
    before = found.get((module, name), Result(module, name))
    outcome = "error" if bad["flavour"] == "ERROR" or before.outcome == "error" else "failed"
    found[module, name] = replace(
        before,
        outcome=outcome,
        message=before.message or last_words(text),
        text=f"{before.text}\n{text}".strip("\n"),
    )


def last_words(traceback: str) -> str:
    """The exception of a traceback with its message's first line."""
    lines = traceback.strip().splitlines() or [""]
    heads = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if heads:  # the last one is that of the exception which ended the test
        return next((line for line in lines[heads[-1] + 1 :] if line and not line[0].isspace()), lines[-1])
    return next((line for line in lines if LAST_LINE.match(line)), lines[-1])


def problems(log: Iterable[Record]) -> list[Record]:
    """Warnings and errors of the log which are not those of a test, and do not count such."""
    return [
        record
        for record in log
        if record.level in PROBLEMS
        and not (logger_of_tests(record.logger) and BAD.match(record.message))
        and not (record.logger in END and COUNTS.match(record.message))
    ]


def without_warnings(lines: Iterable[str]) -> list[str]:
    """The log without its warnings and the lines that continue them."""
    kept = []
    keep = True
    for line in lines:
        match = RECORD.match(line)
        keep = match["level"] != "WARNING" if match else keep
        if keep:
            kept.append(line)
    return kept
