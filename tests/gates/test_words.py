"""Words and idioms that the project does not use, since most readers are not native speakers of English."""

from __future__ import annotations

import re

import pytest

from tests.support.docker import ROOT

PLACES = (
    "worker", "sql", "scripts", "deploy", "docs", "spec", "README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile",
    "Dockerfile", "tests/conftest.py", "tests/bench", "tests/console", "tests/db", "tests/docker", "tests/faults",
    "tests/matrix", "tests/odoo", "tests/unit",
)  # fmt: skip
HISTORY = "docs/history/"  # the records stay as they were written
IDIOMS = re.compile(
    r"""\b(
        somebody | anybody | whoever | he | his | him
        | (?<!["'`/]) nobody (?!-)  # in quotes, or in a URL, it is the name of a user
        | is\ had | tells?\ apart | told\ apart | in\ peace | (gives?|gave)\ way
        | looks?\ around | lets?\ go | says?\ so | (takes?|took)\ up (?!\ to\b)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


@pytest.mark.parametrize("place", PLACES)
def test_no_idiom_is_used(place: str) -> None:
    found = []
    for path in [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*")):
        name = str(path.relative_to(ROOT))
        if not path.is_file() or name.startswith(HISTORY) or b"\0" in (content := path.read_bytes()):
            continue  # only texts
        text = re.sub(r"_|\s+(?:#|--)?\s*", " ", content.decode())  # names count; a phrase may go on in the next line
        found += [f"{name}: {text[max(match.start() - 30, 0) : match.end() + 30]}" for match in IDIOMS.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "idiom"),
    [
        ("Nobody waits.", "Nobody"), ("the key, whoever has it", "whoever"), ("takes up the run", "takes up"),
        ("takes up to 1,024 times as much", None), ('getpwnam("nobody")', None), ("the user `nobody`", None),
    ],
)  # fmt: skip
def test_the_words_are_found_and_names_are_not(text: str, idiom: str | None) -> None:
    match = IDIOMS.search(text)
    assert (match and match[0]) == idiom
