"""The gate ``validate-docs``: the documents exist, their links are valid, and docs/coverage.md is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import cast

import pytest

from tests.support.docker import ROOT
from tests.support.markdown import Document, broken_links, files, missing
from tests.support.schema import TABLES
from worker.cli.settings import Settings
from worker.model.outcome import Reason
from worker.model.reasons import EXPLANATIONS
from worker.telemetry import Metrics

DOCS = (
    "implementation/supabase-ops-setup.md", "guide.md", "upgrading-agent-tables.md", "coverage.md",
    *(f"odooops-sh/{name}.md" for name in ("ARCHITECTURE", "RUN_LIFECYCLE", "RUNNER", "RELIABILITY", "SECURITY")),
)  # fmt: skip
COVERAGE = Document(ROOT / "docs" / "coverage.md")
ARCHITECTURE = Document(ROOT / "docs" / "odooops-sh" / "ARCHITECTURE.md")
GUIDE = Document(ROOT / "docs" / "guide.md")
SECURITY = Document(ROOT / "docs" / "odooops-sh" / "SECURITY.md")
LIFECYCLE = Document(ROOT / "docs" / "odooops-sh" / "RUN_LIFECYCLE.md")
FUNCTIONS = (
    "claim_next_run(worker_id)", "start_workflow_run(run_id, worker_id)",
    "complete_workflow_run(run_id, exit_code, error)", "append_run_log(run_id, level, message, metadata)",
    "add_run_artifact(run_id, key, url, ...)", "list_queued_runs()", "current_user_id()",
    "current_user_role(project_id)",
)  # fmt: skip
STATES = ("queued", "claimed", "running", "succeeded", "failed", "canceled")
FILES = (
    "docs/implementation/supabase-ops-setup.md", "spec/odooops-sh/constitution.md", "spec/odooops-sh/prd.md",
    "spec/odooops-sh/plan.md", "docs/odooops-sh/ARCHITECTURE.md", "docs/odooops-sh/RUN_LIFECYCLE.md",
    "docs/odooops-sh/SECURITY.md", "spec/odooops-sh/schema.mmd", "spec/odooops-sh/schema.dbml",
    "lib/database.types.ts", "odooops-sh-spec-gates.yml", "scripts/odooops/env_create.sh",
    "scripts/odooops/env_wait_ready.sh", "scripts/odooops/env_destroy.sh",
    *(f"20260213_{version}" for version in ("000001", "000100", "000200", "000300", "000400")),
)  # fmt: skip
"""The files that the summary names."""
JOBS = ("validate-spec-kit", "validate-schema", "validate-prisma", "validate-docs")


@pytest.mark.parametrize("name", DOCS)
def test_the_document_exists_and_begins_with_its_title(name: str) -> None:
    assert re.match(r"# \S", (ROOT / "docs" / name).read_text())


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_is_valid(path: Path) -> None:
    assert broken_links(Document(path)) == []


def test_the_readme_links_to_every_document() -> None:
    linked = {link.partition("#")[0] for link in Document(ROOT / "README.md").links}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")} <= linked


@pytest.mark.parametrize("name", ["docs/coverage.md", "SECURITY.md"])
def test_what_these_name_exists(name: str) -> None:
    assert missing(Document(ROOT / name).code(first_column=False)) == []


def test_every_line_of_the_summary_has_its_answer() -> None:
    rows = [row for table in COVERAGE.tables() for row in table]
    asked = {row[0] for row in rows}
    expected = {*(f"ops.{name}" for name in (*TABLES, *FUNCTIONS)), *STATES, *JOBS}
    assert sorted(expected - asked) == []
    assert [file for file in FILES if not any(file in cell for cell in asked)] == []
    assert [row for row in rows if not row[1]] == [], "a row without an answer"


def test_every_reason_is_defined_and_has_its_advice() -> None:
    migrations = "".join(path.read_text() for path in (ROOT / "sql" / "migrations").iterdir())
    queued_again = {"released", "lease_expired", "shut_out"}
    found = re.findall(r"\b(?:p_)?reason =>? (?:case [\w.]+ when '\w+' then '(\w+)' else )?'(\w+)'", migrations)
    written_by_sql = {word for pair in found for word in pair if word} - queued_again
    assert {"poison", "worker_lost", "database_copied"} <= written_by_sql
    reasons = set(Reason) | written_by_sql | {"failed"}  # for a status without a reason
    assert first_words(LIFECYCLE.table("reason")) == reasons
    assert first_words(GUIDE.table("reason")) == reasons - {Reason.SUCCEEDED}
    assert set(EXPLANATIONS) == reasons - {Reason.SUCCEEDED}


def first_words(rows: list[list[str]]) -> set[str]:
    return {word for row in rows for word in row[0].split(", ")}


def test_every_metric_is_in_the_guide() -> None:
    documented = {row[0].partition("{")[0].removesuffix("_total") for row in GUIDE.table("name")}
    assert documented == {metric.name for metric in Metrics().registry.collect()}


def test_every_row_policy_is_explained() -> None:
    catalog = (ROOT / "sql" / "catalog.txt").read_text()
    policies = set(re.findall(r"^policy ops\.\w+\.(\w+)", catalog, re.MULTILINE))
    assert policies
    assert first_words(SECURITY.table("policy")) == policies


def test_the_architecture_lists_the_rooms_as_imports_go() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    layer_of = {module: n for n, layer in enumerate(layers) for module in layer.split(" | ")}
    listed = [module for row in ARCHITECTURE.table("room") for module in row[0].split(", ")]
    assert sorted(listed) == sorted(layer_of)
    assert listed == sorted(listed, key=layer_of.__getitem__)


def test_the_table_of_settings_says_what_the_help_says() -> None:
    shown = {}
    for row in Document(ROOT / "docs" / "configuration.md").table("flag"):
        if row[0].startswith("--"):
            flag, _, metavar = row[0].partition(" ")
            shown[flag.removeprefix("--").replace("-", "_")] = (metavar, row[1].replace("`", ""))
    assert shown == {
        name: (cast("dict[str, str]", field.json_schema_extra)["metavar"], str(field.description).split(" (default")[0])
        for name, field in Settings.model_fields.items()
    }


BROKEN = """\
# A `b`-c, d!

# A `b`-c, d!

| `no/such` | `make nothing` | `sql/*.sql` |
|---|---|---|
| | `ops.runs` | `--concurency 2` |

[](#a-b-c-d) [](#a-b-c-d-1) [](#a-b-c-d-2) [](x.md#a-b-c-d) [](x.md#b)
[](nowhere.md) [](../../etc/passwd) [](//x.example)
"""


def test_the_checker_finds_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text(BROKEN)
    document = Document(tmp_path / "x.md")
    assert missing(document.code(first_column=False)) == ["make nothing", "--concurency 2"]
    assert missing(document.code()) == ["no/such", "make nothing", "--concurency 2"]
    assert broken_links(document, tmp_path) == ["#a-b-c-d-2", "x.md#b", "nowhere.md", "../../etc/passwd"]
