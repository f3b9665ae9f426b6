"""``ops-worker tools sync FILE`` and ``ops.sync_tools`` against a real database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.db.crowd import ROLES, Crowd
from tests.db.persons import Said, as_role, ops
from tests.db.world import World, call

TOOL = '[[tools]]\ntool_name = "{}"\nversion = "19.0"\ndocker_image = "{}"\n'
SELECT = "select tool_name, version, docker_image, config, updated_at from ops.tools order by 1, 2"
NEW = {"tool_name": "new", "version": "1", "docker_image": "new:1"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tools.toml"
    path.write_text(TOOL.format("odoo", "odoo:20") + TOOL.format("check", "check:1") + 'config = {network = "none"}\n')
    return path


def replace(file: Path, text: str, other: str) -> None:
    file.write_text(file.read_text().replace(text, other))


async def test_a_sync_adds_and_changes_what_differs_and_nothing_else(world: World, db_url: str, file: Path) -> None:
    await world.db.execute(
        "insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', 'odoo:19'), ('x', '1', 'x:1')"
        " on conflict (tool_name, version) do update set docker_image = excluded.docker_image"
    )
    before = await world.db.fetch(SELECT)
    sync = ("tools", "sync", str(file))
    expected = ["changed odoo 19.0 odoo:20 odoo:19", "added check 19.0 check:1"]
    dry = await ops(db_url, *sync, "--dry-run")
    assert [" ".join(line.split()) for line in dry.out.splitlines()[1:]] == expected
    assert dry.err == "a dry run: nothing was changed\n"
    assert await world.db.fetch(SELECT) == before

    done = await ops(db_url, *sync)
    assert (done.status, done.out, done.err) == (0, dry.out, "")
    after = await world.db.fetch(SELECT)
    assert [tuple(row)[:4] for row in after] == [
        ("check", "19.0", "check:1", '{"network": "none"}'), ("odoo", "19.0", "odoo:20", "{}"), ("x", "1", "x:1", "{}"),
    ]  # fmt: skip

    again = (await ops(db_url, *sync, "--json")).json
    assert [row["change"] for row in again] == ["unchanged", "unchanged"]
    assert await world.db.fetch(SELECT) == after, "the time of the last change stays, too"

    replace(file, "none", "bridge")
    [_, other] = (await ops(db_url, *sync)).out.splitlines()[1:]
    assert other.split(maxsplit=4)[-1] == "other config: network"


@pytest.mark.parametrize("who", [*ROLES, "stranger", "anon", "service_role"])
async def test_who_may_sync_tools(crowd: Crowd, db_url: str, file: Path, who: str) -> None:
    url = (
        as_role(db_url, who) if who in ("anon", "service_role")
        else as_role(db_url, "authenticated", crowd.users[who])
    )  # fmt: skip
    before = await crowd.world.db.fetch(SELECT)
    for words in (["--dry-run"], []):
        done = await ops(url, "tools", "sync", str(file), *words)
        if who == "service_role":
            assert done.status == 0
        else:
            assert (done.status, done.out, len(done.err.splitlines())) == (6, "", 1)
            assert await crowd.world.db.fetch(SELECT) == before


async def test_a_file_that_is_wrong_or_missing_changes_nothing(world: World, db_url: str, file: Path) -> None:
    before = await world.db.fetch(SELECT)
    replace(file, "network", "netwrok")
    wrong = f"FILE {file}: tools[1].config, netwrok: unknown key; did you mean network?\n"
    assert await ops(db_url, "tools", "sync", str(file)) == Said(2, "", wrong)
    missing = await ops(db_url, "tools", "sync", f"{file}.x")
    assert missing == Said(2, "", f"FILE: cannot read {file}.x: No such file or directory\n")
    assert await world.db.fetch(SELECT) == before


@pytest.mark.parametrize(
    ("tools", "error"),
    [
        ({}, "the tools must be an array of objects"),
        ([], "the tools must be 1 to 1000 objects"),
        ([NEW, 1], "tools[1] must be an object"),
        (
            [{**NEW, "image": "x"}],
            "tools[0].image: unknown key; expected one of tool_name, version, docker_image, config",
        ),
        ([NEW, {**NEW, "version": 19.0}], "tools[1].version must be a text of at least one character"),
        ([NEW, {"version": "1"}], "tools[1].tool_name must be a text of at least one character"),
        ([{**NEW, "config": []}], "tools[0].config must be an object"),
        ([NEW, NEW], "tools[1]: an earlier one has the same tool_name and version"),
        ([NEW, {**NEW, "version": "x" * 101}], "tools[1] breaks the rule tools_texts_fit"),
        ([NEW, {**NEW, "version": "2", "docker_image": "a b"}], "tools[1] breaks the rule tools_docker_image_format"),
    ],
)
async def test_a_call_with_a_mistake_names_it_and_changes_nothing(world: World, tools: object, error: str) -> None:
    before = await world.db.fetch(SELECT)
    for dry_run in (True, False):
        answer = await call(world.db, "sync_tools", json.dumps(tools), dry_run)
        assert answer == {"success": False, "code": "bad_argument", "error": error}
    assert await world.db.fetch(SELECT) == before
