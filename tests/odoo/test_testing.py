"""The type ``test`` on real Odoo: an OCA add-on's own tests, broken tests, the cache of dependencies, shards."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from tests.odoo.conftest import Bench, Done, Project, writable

pytestmark = pytest.mark.timeout(1200)

BROKEN = """
from odoo.tests import TransactionCase
from odoo.tests.common import tagged

class TestBroken(TransactionCase):
    def test_adds(self):
        self.assertEqual(1 + 1, 3)

    def test_passes(self):
        self.env["res.partner"].create({"name": "x"})

@tagged("post_install", "-at_install")
class TestLater(TransactionCase):
    def test_raises(self):
        self.env["no.such.model"]
"""
NOISY = """
import logging
from odoo.tests import TransactionCase

class TestNoisy(TransactionCase):
    def test_logs(self):
        logging.getLogger("shop").LEVEL("stock is low")
"""


def names(done: Done) -> list[str]:
    """The tests in the JUnit file, in alphabetical order."""
    root = ET.fromstring((done.artifacts / "junit.xml").read_bytes())  # noqa: S314 - our own tool wrote it
    return sorted(f"{case.attrib['classname']}.{case.attrib['name']}" for case in root.iter("testcase"))


@pytest.mark.parametrize("series", ["19", "14"])
def test_the_tests_of_an_oca_addon_pass_and_dependencies_come_from_the_cache(
    benches: Callable[[str], Bench], project: Project, series: str
) -> None:
    bench = benches(series)
    project.of(series).add("module_auto_update")
    cache = writable(bench.folder / "cache")
    first = bench.run("test", source=project.folder, cache=cache)
    assert first.code == 0, first.output
    assert first.summary.startswith("# 0 failed, 13 passed, 0 skipped\n"), first.summary
    assert "==> dependencies: installing 1 modules: base" in first.output
    assert ET.fromstring((first.artifacts / "coverage.xml").read_bytes()).attrib["line-rate"] > "0.5"  # noqa: S314

    again = bench.run("test", "--no-coverage", source=project.folder, cache=cache)
    assert again.code == 0, again.output
    assert "==> dependencies: 1 modules from the cache" in again.output
    assert names(again) == names(first)
    assert len(names(first)) == 13
    assert not (again.artifacts / "coverage.xml").exists()


def test_shards_run_each_test_of_larger_addons_once(bench: Bench, project: Project) -> None:
    project.add("base_exception")
    project.add("sale_exception")
    cache = writable(bench.folder / "cache")
    first = bench.run("test", source=project.folder, cache=cache)
    assert first.code == 0, first.output
    assert first.summary.startswith("# 0 failed, 19 passed, 0 skipped\n"), first.summary
    (cache / "timings.json").write_text('{"/base_exception:TestBaseException": 1000}')
    second = bench.run("test", "--shards", "2", source=project.folder, cache=cache)
    assert second.code == 0, second.output
    assert "22 modules from the cache" in second.output
    assert names(second) == names(first)
    logs = [path.read_text() for path in sorted(second.artifacts.glob("odoo-shard_*.log"))]
    assert [log.count(": Starting TestBaseException.") > 0 for log in logs] == [True, True], "it is the longest one"
    assert "- shard_2: " in second.summary


@pytest.mark.parametrize("series", ["19", "14"])
def test_broken_tests_fail_the_run_and_begin_the_summary(
    benches: Callable[[str], Bench], project: Project, series: str
) -> None:
    bench, project = benches(series), project.of(series)
    project.module("shop", ["base"], test_shop=BROKEN)
    automatic = project.module("shop_automatic", ["base"], test_automatic=NOISY.replace("LEVEL", "info"))
    manifest = automatic / "__manifest__.py"
    manifest.write_text(manifest.read_text().replace("}", ", 'auto_install': True}"))  # so it is in the template
    done = bench.run("test", source=project.folder, cache=writable(bench.folder / "cache"))
    assert done.code == 1, done.output
    lines = done.summary.splitlines()
    assert lines[0] == "- **FAILED** `shop` `TestBroken.test_adds`: AssertionError: 2 != 3"
    assert lines[1] == "- **FAILED** `shop` `TestLater.test_raises`: KeyError: 'no.such.model'"
    assert lines[3] == "# 2 failed, 2 passed, 0 skipped"
    assert "ERROR: `shop` `TestBroken.test_adds`: AssertionError: 2 != 3" in done.output


def test_a_module_that_does_not_load_is_the_first_line_of_the_summary(bench: Bench, project: Project) -> None:
    (project.module("shop", ["base"]) / "__init__.py").write_text("import no_such_library\n")
    done = bench.run("test", source=project.folder, cache=writable(bench.folder / "cache"))
    assert done.code == 1, done.output
    first = done.summary.splitlines()[0]
    assert first.startswith("- **FAILED** shard_1: Odoo ended with exit code 255")
    assert first.endswith("ModuleNotFoundError: No module named 'no_such_library'")


@pytest.mark.parametrize(
    ("level", "flags", "code"), [("error", [], 1), ("warning", [], 0), ("warning", ["--fail-on-warnings"], 1)]
)
def test_the_log_is_checked(bench: Bench, project: Project, level: str, flags: list[str], code: int) -> None:
    project.module("shop", ["base"], test_shop=NOISY.replace("LEVEL", level))
    done = bench.run("test", *flags, source=project.folder, cache=writable(bench.folder / "cache"))
    assert done.code == code, done.output
    assert f"- {level.upper()} `shop`: stock is low" in done.summary
    if code:
        assert done.summary.startswith("- **FAILED** shard_1: ")


def test_a_database_that_is_missing_is_named(bench: Bench, project: Project) -> None:
    project.add("module_auto_update")
    done = bench.run("test", source=project.folder, network="none")
    assert done.code == 1
    assert "ERROR: PostgreSQL db: it did not answer" in done.output
    assert done.summary.startswith("- **FAILED** PostgreSQL db: it did not answer")
