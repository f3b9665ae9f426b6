"""Descriptions as TOML: what is written is read again."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model.toml import written

SHOP = {
    "slug": "shop",
    "config": {"push": {"repository": "acme/shop", "branches": [{"match": "main", "run": ["test"]}]}},
    "workflows": [
        {"workflow_type": "test", "name": "unit", "config": {"command": ["make", "test"], "env": {"A.B": "c\n\x7f"}}},
        {"workflow_type": "deploy", "name": "live", "enabled": False},
    ],
}
WRITTEN = r"""slug = "shop"

[config]

[config.push]
repository = "acme/shop"
branches = [{match = "main", run = ["test"]}]

[[workflows]]
workflow_type = "test"
name = "unit"

[workflows.config]
command = ["make", "test"]
env = {"A.B" = "c\n\u007f"}

[[workflows]]
workflow_type = "deploy"
name = "live"
enabled = false
"""

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


def test_tables_stand_below_each_other() -> None:
    assert written(SHOP) == WRITTEN


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_written_is_read_again(description: dict[str, Any]) -> None:
    assert tomllib.loads(written(description)) == description


@pytest.mark.parametrize("value", [None, {"b": None}, [None]])
def test_null_is_left_out(value: object) -> None:
    assert tomllib.loads(written({"a": value})) in ({}, {"a": {}}, {"a": []})
