"""``ops.sync_project``: the rows of a project become what its description says."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from tests.db.crowd import ROLES, Crowd
from tests.db.world import World, blocked, call

PUSH = {"repository": "acme/shop", "branches": [{"match": "main", "run": ["build"]}]}
WORKFLOWS: list[dict[str, Any]] = [
    {"workflow_type": "build", "name": "image", "config": {"then": ["test/unit"], "priority": 1}},
    {"workflow_type": "test", "name": "unit", "git_ref": "main", "config": {"then": ["live"]}},
    {"workflow_type": "deploy", "name": "live", "config": {"approval": True}},
]
SHOP: dict[str, Any] = {
    "slug": "shop-1", "name": "Shop", "odoo_version": "19.0", "config": {"push": PUSH, "note": 1},
    "limits": {"max_active_runs": 2}, "workflows": WORKFLOWS,
}  # fmt: skip
PROJECT_KEYS = {*SHOP, "description", "status", "workspace_key"}
WORKFLOW_KEYS = {"workflow_type", "name", "description", "enabled", "git_ref", "git_commit", "config"}
SELECT = """select p.*, w.*, k.* from ops.projects as p left join ops.workflows as w on w.project_id = p.id
    left join ops_private.project_limits as k on k.project_id = p.id order by p.slug, w.workflow_type, w.name"""


def shop(*changes: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The shop with other values: of the workflows, in their order, and of the project."""
    pairs = zip(WORKFLOWS, [*changes, {}, {}, {}], strict=False)
    return SHOP | {"workflows": [workflow | change for workflow, change in pairs]} | keys


async def sync(db: asyncpg.Connection, project: object, *, dry_run: bool = False) -> dict[str, Any]:
    return await call(db, "sync_project", json.dumps(project), dry_run)


def said(answer: dict[str, Any]) -> list[str]:
    """What became of the project and of each workflow, and which keys have changed."""
    assert answer["success"], answer
    rows = [{"name": "project"} | answer["project"], *answer["workflows"]]
    return [" ".join((row["change"], row["name"], *row["fields"])) for row in rows]


async def test_a_description_is_written_once(world: World) -> None:
    added = ["added project", "added image", "added unit", "added live"]
    before = await world.db.fetch(SELECT)
    dry = await sync(world.db, SHOP, dry_run=True)
    assert said(dry) == added
    assert {dry["project"]["project_id"], *(row["workflow_id"] for row in dry["workflows"])} == {None}
    assert await world.db.fetch(SELECT) == before
    done = await sync(world.db, SHOP)
    assert said(done) == added
    ids = await world.db.fetch("select id::text from ops.workflows where name <> 'build'")
    assert {row["workflow_id"] for row in done["workflows"]} == {row["id"] for row in ids}
    found = await world.db.fetch(
        """select p.workspace_key, p.status, p.config as project, k.max_active_runs, k.max_queued_runs,
               w.workflow_type, w.name, w.git_ref, w.enabled, w.config
           from ops.projects as p join ops.workflows as w on w.project_id = p.id
           join ops_private.project_limits as k on k.project_id = p.id where p.slug = 'shop-1'
           order by w.config ? 'approval', w.workflow_type"""
    )
    for row, workflow in zip(found, WORKFLOWS, strict=True):
        assert tuple(row)[:2] == ("shop_1", "active")
        assert (json.loads(row["project"]), *tuple(row)[3:5]) == (SHOP["config"], 2, None)
        assert tuple(row)[5:9] == (workflow["workflow_type"], workflow["name"], workflow.get("git_ref"), True)
        assert json.loads(row["config"]) == workflow["config"]

    before = await world.db.fetch(SELECT)
    assert said(await sync(world.db, SHOP)) == [text.replace("added", "unchanged") for text in added]
    assert await world.db.fetch(SELECT) == before, "the time of the last change stays, too"


async def test_what_differs_is_changed_and_what_is_not_named_is_disabled(world: World) -> None:
    await sync(world.db, SHOP)
    other = shop({"config": {"priority": 2, "labels": ["big"]}}, {"git_ref": None}, config={"note": 1}, limits={})
    other["workflows"].pop()
    other["workflows"][1].pop("config")
    expected = [
        "changed project config.push limits", "changed image config.labels config.priority config.then",
        "changed unit config.then git_ref", "disabled live enabled",
    ]  # fmt: skip
    assert said(await sync(world.db, other, dry_run=True)) == expected
    assert said(await sync(world.db, other)) == expected
    assert said(await sync(world.db, other)) == ["unchanged project", "unchanged image", "unchanged unit"]
    assert said(await sync(world.db, SHOP))[3] == "changed live enabled", "it is enabled again"


async def test_status_and_limits_that_are_not_named_stay(world: World) -> None:
    await sync(world.db, SHOP | {"status": "archived"})
    silent = {key: value for key, value in SHOP.items() if key != "limits"}
    assert said(await sync(world.db, silent))[0] == "unchanged project"
    assert said(await sync(world.db, SHOP | {"status": "active"}))[0] == "changed project status"


async def test_a_chain_may_turn_round(world: World) -> None:
    """A name in ``then`` may be that of a later workflow, and no cycle is seen that is none in the end."""
    await sync(world.db, SHOP)
    turned = shop({"config": {}}, {"config": {"then": ["image"]}}, {"config": {"then": ["unit"], "approval": True}})
    assert said(await sync(world.db, turned))[1:] == [
        "changed image config.priority config.then", "changed unit config.then", "changed live config.then",
    ]  # fmt: skip
    assert said(await sync(world.db, SHOP))[1:] == [
        "changed image config.priority config.then", "changed unit config.then", "changed live config.then",
    ]  # fmt: skip


async def test_a_tool_that_is_not_registered_is_named(world: World) -> None:
    await world.db.execute("insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', 'x')")
    answer = await sync(world.db, shop({"config": {"tool": "shell", "version": "1"}}))
    assert [row["missing_tool"] for row in answer["workflows"]] == ["shell 1", None, None]


def wrong_workflow(**keys: Any) -> dict[str, Any]:
    return shop({}, keys)


@pytest.mark.parametrize(
    ("project", "error"),
    [
        ([], "project: expected an object"),
        (SHOP | {"url": "x"}, f"project.url: unknown key; expected one of {', '.join(sorted(PROJECT_KEYS))}"),
        (SHOP | {"name": ""}, "project.name: expected a text of 1 to 200 characters"),
        (SHOP | {"description": 1}, "project.description: expected a text of 0 to 10000 characters"),
        (SHOP | {"slug": None}, "project.slug: expected a text of 1 to 100 characters"),
        (SHOP | {"slug": "Shop"}, "project.slug: expected lower case letters, digits and -"),
        (SHOP | {"workspace_key": "a-b"}, "project.workspace_key: expected lower case letters, digits and _"),
        (SHOP | {"odoo_version": "19"}, "project.odoo_version: expected a version such as 19.0"),
        (SHOP | {"status": "new"}, "project.status: expected active or archived"),
        (SHOP | {"config": None}, "project.config: expected an object"),
        (SHOP | {"config": {"x": "x" * 262144}}, "project breaks the rule projects_config_at_most_256_kib"),
        (SHOP | {"config": {"push": 1}}, "project: project config, push: expected repository and branches"),
        (SHOP | {"config": {"push": PUSH | {"branches": [{"match": "x", "run": ["unit", "nuit"]}]}}},
         'project.config.push.branches.0.run: the project has no workflow "nuit"'),
        (SHOP | {"limits": {"max": 1}}, "project.limits: expected max_active_runs and max_queued_runs"),
        (SHOP | {"limits": {"max_queued_runs": 0}},
         "project.limits.max_queued_runs: expected a whole number of at least 1"),
        (SHOP | {"workflows": {}}, "project.workflows: expected an array"),
        (SHOP | {"workflows": [{}] * 201}, "project.workflows: expected at most 200"),
        (SHOP | {"workflows": [*WORKFLOWS, WORKFLOWS[0]]},
         "project.workflows: two have the type and the name build/image"),
        (SHOP | {"workflows": [1]}, "project.workflows[0]: expected an object"),
        (wrong_workflow(then=[]),
         f"project.workflows[1].then: unknown key; expected one of {', '.join(sorted(WORKFLOW_KEYS))}"),
        (wrong_workflow(name=None), "project.workflows[1].name: expected a text of 1 to 200 characters"),
        (wrong_workflow(enabled=1), "project.workflows[1].enabled: expected a boolean"),
        (wrong_workflow(workflow_type="x"),
         "project.workflows[1].workflow_type: expected build, test, deploy, backup or upgrade"),
        (wrong_workflow(git_ref="a b"), "project.workflows[1].git_ref: expected the name of a branch, a tag or a ref"),
        (wrong_workflow(git_commit="a-b"), "project.workflows[1].git_commit: expected letters and digits"),
        (wrong_workflow(config={"retry": 1}), "project.workflows[1]: workflow config, retry: expected an object"),
        (wrong_workflow(config={"then": ["x"]}),
         'project.workflows[1]: workflow config, then: the project has no workflow "x"'),
        (wrong_workflow(config={"then": ["image"]}),
         "project.workflows[1]: workflow config, then: expected no cycle, got test/unit -> build/image -> test/unit"),
        (wrong_workflow(config={"schedule": 1}), "project.workflows[1]: workflow config, schedule: expected a list"),
        (wrong_workflow(config={"x": "x" * 262144}),
         "project.workflows[1] breaks the rule workflows_config_at_most_256_kib"),
    ],
)  # fmt: skip
async def test_a_mistake_is_named_and_nothing_changes(world: World, project: object, error: str) -> None:
    before = await world.db.fetch(SELECT)
    for dry_run in (True, False):
        answer = await sync(world.db, project, dry_run=dry_run)
        assert answer == {"success": False, "code": "bad_argument", "error": error}
    assert await world.db.fetch(SELECT) == before


async def test_a_workspace_key_is_that_of_one_project_and_stays(world: World) -> None:
    taken = await sync(world.db, SHOP | {"workspace_key": "acme"})
    assert taken["error"] == "project.workspace_key: another project has it"
    await sync(world.db, SHOP)
    moved = await sync(world.db, SHOP | {"workspace_key": "other"})
    assert moved["error"] == "project.workspace_key: a project keeps it; expected shop_1"


# Who may ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [*ROLES, "stranger"])
async def test_a_member_changes_what_the_policies_permit(crowd: Crowd, who: str) -> None:
    """A workflow as a developer, the settings as an owner; the limits and a new project are for operators."""
    acme = SHOP | {"slug": "acme", "limits": {}}
    await sync(crowd.world.db, acme)
    member = await crowd.sign_in(who)
    errors = []
    for project in (
        acme | {"workflows": WORKFLOWS[:2]}, acme | {"name": "Other"}, acme | {"limits": {"max_active_runs": 9}},
        acme | {"slug": "new"},
    ):  # fmt: skip
        answer = await sync(member, project, dry_run=True)
        errors.append("" if answer["success"] else f"{answer['code']}: {answer['error']}")
    nothing = "not_found: there is no such project, and only service_role creates one"
    never = "not_allowed: a viewer may not change the workflows of a project"
    limits = "not_allowed: only service_role changes the limits of a project"
    settings = f"not_allowed: a {who} may not edit the settings of a project: name"
    assert errors == {
        "stranger": [nothing] * 4, "viewer": [never] * 3 + [nothing],
        "owner": ["", "", limits, nothing],
    }.get(who, ["", settings, limits, nothing])  # fmt: skip


async def test_only_an_admin_takes_an_approval_away(crowd: Crowd) -> None:
    await sync(crowd.world.db, SHOP | {"slug": "acme"})
    without = shop({}, {}, {"config": {}}, slug="acme")
    answer = await sync(await crowd.sign_in("developer"), without)
    assert (answer["code"], answer["error"]) == (
        "not_allowed", "project.workflows[2]: workflow config, approval: only an admin may remove it",
    )  # fmt: skip
    assert said(await sync(await crowd.sign_in("admin"), without))[3] == "changed live config.approval"


async def test_two_who_sync_one_project_take_turns(world: World, crowd: Crowd) -> None:
    await sync(world.db, SHOP)
    other = await crowd.connect(role="service_role")
    async with world.db.transaction():
        await sync(world.db, shop({"config": {}}))
        waiting = await blocked(crowd.world.db, other, sync(other, shop({"config": {"priority": 3}})))
    assert said(await waiting)[1] == "changed image config.priority"


async def test_a_project_that_is_deleted_meanwhile_is_not_made_again(crowd: Crowd) -> None:
    developer = await crowd.sign_in("developer")
    async with crowd.world.db.transaction():
        await crowd.world.db.execute("delete from ops.projects where slug = 'acme'")
        waiting = await blocked(crowd.world.db, developer, sync(developer, SHOP | {"slug": "acme"}))
    assert (await waiting)["code"] == "not_found"
    assert await crowd.world.db.fetchval("select count(*) from ops.projects where slug = 'acme'") == 0
