"""The gate ``validate-spec-kit``: four files with their sections, which name only what exists."""

from __future__ import annotations

import pytest

from tests.support.docker import ROOT
from tests.support.markdown import Document, broken_links, missing

SECTIONS = {
    "constitution.md": ["What it is", "Principles", "Sources of truth", "What it will not become"],
    "prd.md": ["Problem", "Users", "User stories", "Requirements", "Out of scope", "How we know"],
    "plan.md": ["Approach", "Steps", "Risks"],
    "tasks.md": ["Done", "Open"],
}
SPEC = ROOT / "spec" / "odooops-sh"
GENERATED = {"schema.mmd", "schema.dbml"}


def test_the_folder_holds_these_four_files_and_the_generated_schema() -> None:
    assert {path.name for path in SPEC.iterdir()} == SECTIONS.keys() | GENERATED


@pytest.mark.parametrize("name", SECTIONS)
def test_it_has_its_sections_and_none_is_empty(name: str) -> None:
    title, *sections = Document(SPEC / name).headings
    assert title
    assert sections == SECTIONS[name]
    parts = (SPEC / name).read_text().split("\n## ")[1:]
    assert [part for part in parts if len(part.splitlines()) < 3] == []


@pytest.mark.parametrize("name", SECTIONS)
def test_what_it_names_exists(name: str) -> None:
    document = Document(SPEC / name)
    assert missing(document.code()) == []
    assert broken_links(document) == []
