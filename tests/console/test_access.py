"""Who sees and does what in the console: the same as by a command (tests/db/test_action_commands.py)."""

from __future__ import annotations

import asyncio
import re
import uuid

import pytest

from tests.console.browser import AS_BROWSER, FROM_HERE, SIGNS_IN, bearer, form_key, served, token
from tests.db.crowd import ADMINS, DEVELOPERS, ROLES, Crowd

READS = (
    "/runs/acme/1", "/runs/acme/1/log", "/runs/acme/1/log.txt", "/runs/acme/1/found?q=hello", "/runs/acme/1/groups",
    "/projects/acme",
)  # fmt: skip


@pytest.mark.parametrize("who", [*ROLES, "stranger", "anon"])
async def test_who_may_see_and_do_what_by_console(crowd: Crowd, console_url: str, who: str) -> None:
    world = crowd.world
    others, ended = await world.queue(), await world.run_in("failed")
    number = {run: (await world.row(run))["run_number"] for run in (others, ended)}
    headers = {} if who == "anon" else bearer(crowd.users[who])
    async with served(console_url, *SIGNS_IN) as client:
        for path in (*READS, f"/runs/{crowd.run}"):
            done = await client.get(path, headers=headers, follow_redirects=True)
            assert (path, done.status_code) == (path, 200 if who in ROLES else 401 if who == "anon" else 404)
            if who not in ROLES:
                assert "hello" not in done.text
        for path, fields, who_may in (
            ("/projects/acme/run", {"workflow": str(world.workflow)}, DEVELOPERS),
            (f"/runs/acme/{number[others]}/cancel", {"reason": "no longer wanted"}, ADMINS),
            (f"/runs/acme/{number[ended]}/retry", {}, ADMINS),
            ("/projects/acme/pause", {"reason": "a release"}, ADMINS),
            ("/projects/acme/resume", {}, ADMINS),
        ):
            before = await world.db.fetch("select * from ops.runs order by id")
            done = await client.post(path, data=fields, headers=headers)
            refused = {"anon": 401, "stranger": 404}.get(who, 403)
            assert (path, done.status_code) == (path, 303 if who in who_may else refused), done.text
            if who not in who_may:
                assert await world.db.fetch("select * from ops.runs order by id") == before


@pytest.mark.parametrize("who", ROLES)
async def test_the_page_offers_what_the_role_may_do(crowd: Crowd, console_url: str, who: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        run = (await client.get("/runs/acme/1", headers=AS_BROWSER | bearer(crowd.users[who]))).text
        project = (await client.get("/projects/acme", headers=AS_BROWSER | bearer(crowd.users[who]))).text
    assert ("/runs/acme/1/cancel" in run, "/projects/acme/pause" in project) == (who in ADMINS,) * 2
    assert ("/projects/acme/run" in project) == (who in DEVELOPERS)
    assert "/runs/acme/1/retry" not in run  # it has not ended


async def test_a_developer_cancels_and_retries_an_own_run(crowd: Crowd, console_url: str) -> None:
    headers = AS_BROWSER | bearer(crowd.users["developer"])
    async with served(console_url, *SIGNS_IN) as client:
        key = {"workflow": str(crowd.world.workflow), "key": "once"}
        paths = {(await client.post("/projects/acme/run", data=key, headers=headers)).headers["location"] for _ in "12"}
        assert paths == {"/runs/acme/2"}  # the button pressed twice
        assert "/runs/acme/2/cancel" in (await client.get("/runs/acme/2", headers=headers)).text
        await client.post("/runs/acme/2/cancel", data={"reason": "<no>"}, headers=headers)
        shown = await client.post("/runs/acme/2/retry", headers=headers)
        assert shown.headers["location"] == "/runs/acme/3"
    assert (await crowd.world.db.fetchval("select status from ops.runs where run_number = 2")) == "canceled"
    assert (
        await crowd.world.db.fetchval("select created_by from ops.runs where run_number = 3")
        == crowd.users["developer"]
    )


@pytest.mark.parametrize("who", [*ROLES, "stranger", "queued it"])
async def test_an_admin_who_did_not_queue_a_run_approves_or_rejects_it(
    crowd: Crowd, console_url: str, who: str
) -> None:
    world, by_another = crowd.world, who in ADMINS
    await world.db.execute("""update ops.workflows set config = '{"approval": true}'""")
    queued_by = crowd.users["admin" if who in ("owner", "queued it") else "owner"]
    user = queued_by if who == "queued it" else crowd.users[who]
    fields = {"workflow": str(world.workflow)}
    async with served(console_url, *SIGNS_IN) as client:
        for action, status in (("approve", "queued"), ("reject", "canceled")):
            new = await client.post("/projects/acme/run", data=fields, headers=bearer(queued_by))
            path = new.headers["location"]
            shown = await client.get(path, headers=AS_BROWSER | bearer(user))
            assert (f"{path}/{action}" in shown.text) == by_another
            done = await client.post(f"{path}/{action}", data={"reason": "not today"}, headers=bearer(user))
            assert done.status_code == (303 if by_another else 404 if who == "stranger" else 403)
            run = await world.db.fetchrow("select status, approval from ops.runs order by run_number desc limit 1")
            assert run is not None
            expected = (status, f"{action}d".replace("td", "ted")) if by_another else ("queued", "pending")
            assert tuple(run) == expected


async def test_no_request_inherits_the_rights_of_another(crowd: Crowd, console_url: str) -> None:
    """More requests than connections, of two users with different projects, and of none."""
    async with served(console_url, *SIGNS_IN) as client:

        async def seen(who: str) -> tuple[str, set[str]]:
            headers = bearer(crowd.users[who]) if who else {}
            page = await client.get("/projects", headers=AS_BROWSER | headers)
            return who, set(re.findall(r'href="/projects/(\w+)"', page.text))

        found = await asyncio.gather(*(seen(who) for who in ("viewer", "stranger", "", "owner") * 8))
    assert {(who, *projects) for who, projects in found} == {
        ("viewer", "acme"), ("stranger", "elsewhere"), ("",), ("owner", "acme")
    }  # fmt: skip


async def test_a_member_who_is_removed_sees_nothing_more(crowd: Crowd, console_url: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        await crowd.world.db.execute("delete from ops.project_memberships where role = 'viewer'")
        assert (await client.get("/runs/acme/1", headers=bearer(crowd.users["viewer"]))).status_code == 404


# --- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "key", "status"),
    [
        (FROM_HERE, "right", 303), (AS_BROWSER | {"Sec-Fetch-Site": "same-origin"}, "right", 303),
        (FROM_HERE, "", 403), (FROM_HERE, "x" * 43, 403), (AS_BROWSER, "right", 403),
        (AS_BROWSER | {"Origin": "https://evil.example"}, "right", 403),
        (AS_BROWSER | {"Origin": "null"}, "right", 403),
        (AS_BROWSER | {"Sec-Fetch-Site": "same-site"}, "right", 403), (FROM_HERE, "right" + "x" * 20_000, 413),
    ],
)  # fmt: skip
async def test_only_a_page_of_the_console_can_send_a_form(
    crowd: Crowd, console_url: str, headers: dict[str, str], key: str, status: int
) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        right = await form_key(client)
        client.cookies.set("ops_session", token(crowd.users["admin"]))
        done = await client.post("/runs/acme/1/cancel", data={"form_key": key.replace("right", right)}, headers=headers)
    assert done.status_code == status
    asked = await crowd.world.db.fetchval("select cancel_requested_at from ops.runs where run_number = 1")
    assert (asked is not None) == (status == 303)


async def test_a_form_key_of_another_browser_is_refused(crowd: Crowd, console_url: str) -> None:
    async with served(console_url, *SIGNS_IN) as one, served(console_url, *SIGNS_IN) as other:
        await form_key(one)
        one.cookies.set("ops_session", token(crowd.users["admin"]))
        done = await one.post("/runs/acme/1/cancel", data={"form_key": await form_key(other)}, headers=FROM_HERE)
    assert done.status_code == 403


@pytest.mark.parametrize(
    "path", ["/projects/acme/run", "/projects/acme/nothing", "/runs/acme/1/nothing", "/runs/acme/99/cancel"]
)
async def test_a_wrong_action_is_refused(crowd: Crowd, console_url: str, path: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        done = await client.post(path, data={"workflow": "x"}, headers=bearer(crowd.users["admin"]))
        other = await client.post(
            "/projects/acme/run", data={"workflow": str(uuid.uuid4())}, headers=bearer(crowd.users["admin"])
        )
    assert (done.status_code, other.status_code) == (400 if path.endswith("run") else 404, 404)
