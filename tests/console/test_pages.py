"""The console in Chromium: what a person sees and does, with a mouse, a keyboard, a phone, and without JavaScript."""

from __future__ import annotations

import re

import asyncpg
import pytest

from tests.console.browser import SIGNS_IN, token
from tests.console.scene import DESK, PHONE, console, opened, visitor
from tests.console.test_log import ATTACKS, hostile
from tests.console.world import ODOO, append, ended, fill, many_lines
from tests.db.crowd import Crowd
from tests.db.world import World
from tests.support.chromium import browser

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(600)]

MILLION = 1_000_000
LINE_HEIGHT = 20


async def test_axe_finds_nothing_and_no_page_is_wider_than_a_phone(db: asyncpg.Connection, db_url: str) -> None:
    await fill(db)
    red = await db.fetchval("select max(run_number) from ops.runs where status = 'failed' and tests is not null")
    paths = (
        "/",
        "/queue",
        "/workers",
        "/projects",
        "/projects/library",
        "/projects/library/edit",
        "/add-project",
        f"/runs/library/{red}#L9",
        "/runs/library/19",
        "/none",
    )
    async with console(db_url) as address, browser() as started:
        for size, scheme in ((DESK, "light"), (DESK, "dark"), (PHONE, "light")):
            async with visitor(started, address, size, color_scheme=scheme, reduced_motion="reduce") as it:
                for path in paths:
                    await it.open(path)
                    if path.startswith("/runs"):
                        await it.line("L8")
                    assert (path, scheme, await it.problems()) == (path, scheme, [])
                    for place in range(await it.page.locator("details.ask").count()):
                        await it.page.locator("details.ask > summary").nth(place).click()
                        assert (path, scheme, place, await it.problems()) == (path, scheme, place, [])
                        wide = await it.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
                        assert (path, size, place, wide <= 0) == (path, size, place, True)
                        await it.page.keyboard.press("Escape")
                    wide = await it.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
                    assert (path, size, wide <= 0) == (path, size, True)
                    it.troubles = [text for text in it.troubles if not (path == "/none" and "404" in text)]


async def test_a_million_lines_scroll_without_being_loaded(crowd: Crowd, db_url: str) -> None:
    await many_lines(crowd.world.db, crowd.run, MILLION)
    await ended(crowd.world.db, crowd.run, 0)
    await crowd.world.db.execute("update ops.runs set errors = 10")  # which a worker's batches count
    async with opened(db_url) as it:
        await it.open("/runs/acme/1")
        assert (await it.line("L1")).startswith("line 1 of many")
        view = it.page.locator("#view")
        await view.focus()
        await it.page.keyboard.press("End")
        assert (await it.line(f"L{MILLION}")).startswith(f"line {MILLION} of many")
        await it.page.keyboard.press("PageUp")
        await it.page.keyboard.press("ArrowUp")
        await it.line(f"L{MILLION - 40}")
        for number in (500_000, 123_456):
            await it.open(f"/runs/acme/1#L{number}")
            assert (await it.line(f"L{number}")).startswith(f"line {number} of many")
            assert "target" in (await it.page.locator(f"#L{number}").get_attribute("class") or "")
        await it.page.mouse.move(400, 700)
        await it.page.mouse.wheel(0, 50 * LINE_HEIGHT)  # each line is reached, though a pixel of the bar is several
        await it.line("L123500")
        assert await it.page.locator("#lines > li").count() < 150
        pages = [url for url in it.requests if "/log?" in url]
        assert len(pages) < 15
        await it.page.locator("[data-level=error]").click()
        await it.page.locator("#found .n", has_text="700000").click()
        await it.line("L700000")


async def test_a_log_is_followed_while_it_grows(crowd: Crowd, db_url: str) -> None:
    db = crowd.world.db
    async with opened(db_url) as it:
        await it.open("/runs/acme/1")
        assert await it.page.locator("#view .m").inner_text() == "hello"  # what a client appended
        for first in (1, 101, 201):
            await append(db, crowd.run, [f"i line {n}" for n in range(first, first + 100)], first)
            assert await it.line(f"L{first + 99}") == f"line {first + 99}"
        await it.page.locator("#view").focus()
        await it.page.keyboard.press("Home")
        await it.line("L1")
        await append(db, crowd.run, ["i line 301"], 301)
        await it.page.get_by_text("302 lines").wait_for()
        await it.line("L1")  # a reader is not moved
        await it.page.get_by_label("Follow").check()
        await it.line("L301")
        await ended(db, crowd.run, 1, "exit_code")
        await it.page.get_by_role("heading", name="exit code 1").wait_for()
        assert "failed" in await it.page.title()
        await it.page.get_by_role("button", name="Retry").wait_for()


async def test_search_levels_groups_and_links_with_the_keyboard(crowd: Crowd, db_url: str) -> None:
    await append(crowd.world.db, crowd.run, ODOO)
    await ended(crowd.world.db, crowd.run, 0)
    async with opened(db_url) as it:
        page = it.page
        await it.open("/runs/acme/1")
        await it.line("L1")
        await page.locator("#view").focus()
        await page.keyboard.type("/lost")
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="3 lines with lost").wait_for()
        await page.locator("#view").focus()
        for number in (9, 11, 12):
            await page.keyboard.press("n")
            await page.wait_for_url(f"**#L{number}")
        await page.get_by_role("button", name="Close").click()
        await page.locator("[data-level=warn]").click()
        await page.get_by_role("heading", name="5 lines of level warn and above").wait_for()
        assert await page.locator("#found li .n").all_inner_texts() == ["4", "9", "10", "11", "12"]
        await page.get_by_role("button", name="Fold groups").click()
        assert await page.locator("#lines > li .n").all_inner_texts() == ["1", "2", "7", "14", "+"]
        await page.locator("#L7 .toggle").press("Enter")
        assert await page.locator("#lines > li .n").all_inner_texts() == ["1", "2", *map(str, range(7, 15)), "+"]
        await page.locator("#found .n", has_text=re.compile("^4$")).click()  # in a folded group
        await it.line("L4")
        assert await page.locator("#L5 .m .f2").inner_text() == "registry loaded"
        await page.get_by_label("Go to a group").select_option("Run the tests")
        await page.wait_for_url("**#L7")


async def test_lines_that_are_not_stored_take_one_row(crowd: Crowd, db_url: str) -> None:
    for first in (1, 900_001):
        await many_lines(crowd.world.db, crowd.run, 400, first)
    await ended(crowd.world.db, crowd.run, 0)
    async with opened(db_url) as it:
        await it.open("/runs/acme/1#L400")
        await it.line("L400")
        await it.page.get_by_text("899,600 lines are not stored").wait_for()
        await it.line("L900001")
        await it.open("/runs/acme/1#L900300")
        await it.line("L900300")


async def test_what_a_program_printed_runs_nothing(crowd: Crowd, db_url: str) -> None:
    await hostile(crowd)
    async with opened(db_url) as it:
        await it.open("/runs/acme/1")
        for n, attack in enumerate(ATTACKS, 1):
            assert await it.line(f"L{n}") == attack
        for path in ("/", "/queue", "/workers", "/projects", "/projects/acme"):
            await it.open(path)


async def test_a_person_signs_in_acts_and_signs_out(crowd: Crowd, console_url: str) -> None:
    world: World = crowd.world
    async with opened(console_url, *SIGNS_IN) as it:
        page = it.page
        await it.open("/runs/acme/1")
        await page.get_by_label("Your access token").fill(token(crowd.users["admin"]))
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/runs/acme/1")
        await page.get_by_text("Cancel…").press("Enter")
        await page.get_by_label("Reason").fill("no longer wanted")
        await page.keyboard.press("Enter")
        await page.get_by_text("asked to stop").wait_for()
        await ended(world.db, crowd.run, 137, "canceled")
        await page.get_by_role("button", name="Retry").click()
        await page.wait_for_url("**/runs/acme/2")
        await page.get_by_role("link", name="acme", exact=True).click()
        await page.get_by_text("Pause…").click()
        await page.get_by_label("Reason").fill("a release")
        await page.get_by_role("button", name="Pause").click()
        await page.get_by_text(re.compile("paused by .*a release")).wait_for()
        await page.get_by_role("button", name="Resume").click()
        await page.get_by_role("button", name="Run build").click()
        await page.wait_for_url("**/runs/acme/3")
        await page.get_by_role("link", name="Queue").click()
        await page.get_by_role("link", name="acme#3").wait_for()
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_label("Your access token").wait_for()
        await page.go_back()
        await page.get_by_label("Your access token").wait_for()
    reasons = await world.db.fetch("select message, payload from ops.run_events where run_id = $1", crowd.run)
    assert any("no longer wanted" in f"{row}" for row in reasons)


async def test_without_javascript_the_log_can_be_read(crowd: Crowd, db_url: str) -> None:
    await append(crowd.world.db, crowd.run, [f"i line {n}" for n in range(1, 501)])
    async with opened(db_url, java_script_enabled=False) as it:
        await it.open("/runs/acme/1")
        for text, first in (("line 500", 301), ("Earlier", 101), ("Earlier", 1), ("Later", 201)):
            if text in ("Earlier", "Later"):
                await it.page.get_by_role("link", name=text).click()
            shown = await it.page.locator("#lines .n").all_inner_texts()
            assert shown[0] == str(first)
