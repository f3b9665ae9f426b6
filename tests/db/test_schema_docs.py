"""The documents of the schema: as ``make schema-docs`` writes them now, and readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import npm
from tests.support.schema_docs import NAMES, SOURCES, TYPES, write

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("schema-docs")]


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the documents as they are written now."""
    folder = tmp_path_factory.mktemp("docs")
    write(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_document_is_not_stale(current: Path, name: str) -> None:
    assert (npm.ROOT / name).read_text(encoding="utf-8") == (current / name).read_text(encoding="utf-8"), (
        f"{name} is stale: run `make schema-docs`, and commit the result"
    )


def test_prisma_and_the_others_can_read_their_documents() -> None:
    npm.run("check.mjs", *(npm.ROOT / name for name in SOURCES))


def test_prisma_and_the_others_would_refuse_a_document_with_a_fault(tmp_path: Path) -> None:
    for name in SOURCES:
        text = (npm.ROOT / name).read_text(encoding="utf-8")
        faulty = tmp_path / Path(name).name
        faulty.write_text(text.replace("{", "", 1), encoding="utf-8")

    with pytest.raises(RuntimeError) as refused:
        npm.run("check.mjs", *tmp_path.iterdir())

    assert all(f"{tmp_path / Path(name).name}: " in str(refused.value) for name in SOURCES)


def test_the_types_compile_and_say_what_a_client_relies_on() -> None:
    npm.run("tsc", "--noEmit", "--strict", "--module", "nodenext", "--allowImportingTsExtensions",
            npm.TOOLS / "types-in-use.ts", npm.ROOT / TYPES)  # fmt: skip
