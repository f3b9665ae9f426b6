"""A file that describes tools: every mistake is named by its key, with what was expected."""

from __future__ import annotations

import pytest

from tests.support.docker import ROOT
from worker.errors import SpecError
from worker.model.tools import tools_of

ONE = '[[tools]]\ntool_name = "odoo"\nversion = "19.0"\ndocker_image = "odoo:19"\n'
IMAGE = "expected the name of an image, such as odoo:19.0 or registry.example/team/odoo:19.0"


def test_the_file_of_the_odoo_tools_is_right() -> None:
    tools = tools_of((ROOT / "deploy/tools/odoo/tools.toml").read_text())
    assert {(tool["tool_name"], tool["version"]) for tool in tools} >= {
        ("odoo-tool", "19.0"),
        ("odoo-postgres", "19.0"),
    }
    assert [tools_of(ONE)[0][key] for key in ("docker_image", "config")] == ["odoo:19", {}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[tools]\n", "expected TOML: Expected ']]' at the end of an array declaration (at line 1, column 8)"),
        ("", "tools: expected a table [[tools]] for each version of a tool"),
        ("[tools]\n", "tools: expected a table [[tools]] for each version of a tool"),
        ("[[tool]]\n", "'tool': unknown key; expected only [[tools]]"),
        (f"{ONE}name = 'x'\n", "tools[0], name: unknown key; did you mean tool_name?"),
        (ONE.replace('"19.0"', "19.0"), "tools[0], version: expected text, got 19.0"),
        (ONE.replace('version = "19.0"', ""), "tools[0], version: field required"),
        (ONE.replace('"odoo:19"', '"Odoo 19"'),
         f"tools[0], docker_image: {IMAGE}, got 'Odoo 19'"),
        (f"{ONE}[[tools]]\n", "tools[1], tool_name: field required"),
        (f"{ONE}config = 3\n", "tools[0], config: expected an object, got 3"),
        (f"{ONE}[tools.config]\ncomand = []\n", "tools[0].config, comand: unknown key; did you mean command?"),
        (f"{ONE}[tools.config.resources]\ncpus = '2'\n", "tools[0].config, resources.cpus: expected a number, got '2'"),
        (f"{ONE}[tools.config]\ntimeout_seconds = inf\n",
         "tools[0].config, timeout_seconds: expected a number, got Infinity"),
        (f"{ONE}[tools.config]\npriority = 3\n", "tools[0].config, priority: unknown key"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(text: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        tools_of(text)
    assert str(caught.value) == problem
