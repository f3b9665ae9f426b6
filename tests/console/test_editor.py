"""Adding and editing a project by console: a check changes nothing, and what was checked is applied."""

from __future__ import annotations

import html
import json
import re
import uuid

import httpx
import pytest

from tests.console.browser import AS_BROWSER, FROM_HERE, SIGNS_IN, bearer, form_key, served
from tests.db.crowd import ADMINS, DEVELOPERS, ROLES, Crowd
from worker.console.editor import EXAMPLE

WORKFLOW = '\n[[workflows]]\nworkflow_type = "deploy"\nname = "live"\nconfig = {approval = true}\n'


def text_of(page: httpx.Response) -> str:
    """What the text area has."""
    (found,) = re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", page.text, re.DOTALL)
    return html.unescape(found)


def changes(page: httpx.Response) -> list[tuple[str, str]]:
    return re.findall(r'<td><b class="\w+-text">(\w+)</b></td><th scope="row">([^<]+)</th>', page.text)


async def test_an_operator_adds_a_project_and_edits_it(crowd: Crowd, db_url: str) -> None:
    db = crowd.world.db
    async with served(db_url) as client:
        key = {"form_key": await form_key(client)}

        async def send(path: str, text: str, do: str = "check") -> httpx.Response:
            return await client.post(path, data={"text": text, "do": do} | key, headers=FROM_HERE)

        assert "/add-project" in (await client.get("/projects", headers=AS_BROWSER)).text
        assert text_of(await client.get("/add-project", headers=AS_BROWSER)) == EXAMPLE
        checked = await send("/add-project", EXAMPLE.replace("\n", "\r\n"))  # as a browser sends it
        assert changes(checked) == [("added", "shop"), ("added", "test/unit")]
        assert "The tool odoo 19.0 is not registered" not in checked.text
        assert text_of(checked) == EXAMPLE
        assert await db.fetchval("select count(*) from ops.projects where slug = 'shop'") == 0
        (kept,) = re.findall(r'name="text" value="([^"]*)"', checked.text)
        applied = await send("/add-project", html.unescape(kept), "apply")
        assert (applied.status_code, applied.headers["location"]) == (303, "/projects/shop")

        path = "/projects/shop/edit"
        text = text_of(await client.get(path, headers=AS_BROWSER))
        unchanged = await send(path, text)
        assert (changes(unchanged), "Apply" in unchanged.text) == (
            [("unchanged", "shop"), ("unchanged", "test/unit")], False
        )  # fmt: skip
        text = text.replace('"Shop"', '"The <shop>"').replace("unit", "all") + WORKFLOW
        assert changes(await send(path, text)) == [
            ("changed", "shop"), ("added", "test/all"), ("added", "deploy/live"), ("disabled", "test/unit"),
        ]  # fmt: skip
        await send(path, text, "apply")
        assert text_of(await client.get(path, headers=AS_BROWSER)).count("[[workflows]]") == 2
    row = await db.fetchrow("select name, config from ops.projects where slug = 'shop'")
    assert row is not None
    assert (row["name"], json.loads(row["config"])["push"]["repository"]) == ("The <shop>", "acme/shop")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slug = ", "expected TOML"), ("", "slug: expected"), ('slug = "other"', "the project that this page edits"),
        ('slug = "acme"', "project.name: expected a text"), ("slug = 2020-01-01", "slug"),
        ('slug = "acme"\nname = "A"\nodoo_version = "18.0"\nworkflows = [{workflow_type = "tests", name = "x"}]',
         "project.workflows[0].workflow_type: expected build, test"),
        ('slug = "acme"\nworkflows = [{config = {command = 1}}]', "workflows[0].config, command: expected a list"),
    ],
)  # fmt: skip
async def test_a_text_that_is_wrong_is_shown_again_with_the_reason(
    crowd: Crowd, db_url: str, text: str, says: str
) -> None:
    async with served(db_url) as client:
        fields = {"form_key": await form_key(client), "text": text, "do": "apply"}
        done = await client.post("/projects/acme/edit", data=fields, headers=FROM_HERE)
    assert (done.status_code, says in html.unescape(done.text), text_of(done)) == (400, True, text), done.text


@pytest.mark.parametrize("who", [*ROLES, "stranger"])
async def test_who_edits_a_project(crowd: Crowd, console_url: str, who: str) -> None:
    headers = AS_BROWSER | bearer(crowd.users[who])
    async with served(console_url, *SIGNS_IN) as client:
        assert "/add-project" not in (await client.get("/projects", headers=headers)).text
        added = await client.post("/add-project", data={"text": EXAMPLE, "do": "apply"}, headers=headers)
        assert (added.status_code, "only service_role creates" in added.text) == (404, True)
        page = (await client.get("/projects/acme", headers=headers)).text
        assert ("/projects/acme/edit" in page) == (who in DEVELOPERS)
        shown = await client.get("/projects/acme/edit", headers=headers)
        assert shown.status_code == (404 if who == "stranger" else 200)
        if who == "stranger":
            return
        for text, status in (
            (text_of(shown) + WORKFLOW, 303 if who in DEVELOPERS else 403),
            (text_of(shown).replace("Acme", "Other").replace('name = "acme"', 'name = "other"') + WORKFLOW,
             303 if who == "owner" else 403),
        ):  # fmt: skip
            done = await client.post("/projects/acme/edit", data={"text": text, "do": "apply"}, headers=headers)
            assert done.status_code == status, html.unescape(done.text)


@pytest.mark.parametrize("who", [*ROLES, "stranger"])
async def test_an_admin_adds_and_removes_a_member(crowd: Crowd, console_url: str, who: str) -> None:
    headers, new, may = AS_BROWSER | bearer(crowd.users[who]), uuid.uuid4(), who in ADMINS
    refused = 404 if who == "stranger" else 403
    async with served(console_url, *SIGNS_IN) as client:

        async def send(**fields: str) -> int:
            return (await client.post("/projects/acme/member", data=fields, headers=headers)).status_code

        assert ("/projects/acme/member" in (await client.get("/projects/acme", headers=headers)).text) == may
        for role, status in (
            ("viewer", 303),
            ("admin", 303),
            ("everything", 400),
            ("owner", 303 if who == "owner" else 403),
        ):
            assert await send(user=f"{new}", role=role) == (status if may else refused), role
        assert await send(user="x", role="viewer") == (400 if who != "stranger" else 404)
        if may:
            assert await send(user=f"{crowd.users['viewer']}") == 303
            assert (
                await crowd.world.db.fetchval("select count(*) from ops.project_memberships where role = 'viewer'") == 0
            )
