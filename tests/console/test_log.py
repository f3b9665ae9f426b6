"""The log of a run: pages by number, gaps, search, levels, groups, text; and what a program printed stays text."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tests.console.browser import AS_BROWSER, SIGNS_IN, bearer, served
from tests.console.world import ODOO, append, many_lines
from tests.db.crowd import Crowd
from tests.db.world import INSTANCE, WORKER, call
from worker.console import ansi
from worker.console.bounds import STREAMS, STREAMS_OF_ONE, Streams
from worker.console.live import Followed, paired
from worker.database import builds, runs
from worker.database.control_plane import ControlPlane, Row
from worker.database.runs import APPENDED

RED = "\x1b[31m"


async def got(client: httpx.AsyncClient, crowd: Crowd, path: str, status: int = 200) -> httpx.Response:
    done = await client.get(f"/runs/acme/1{path}", headers=AS_BROWSER | bearer(crowd.users["viewer"]))
    assert done.status_code == status, done.text
    return done


async def test_a_page_has_its_lines_by_number(crowd: Crowd, console_url: str) -> None:
    await append(crowd.world.db, crowd.run, [f"i line {n}" for n in range(1, 1201)])
    async with served(console_url, *SIGNS_IN) as client:
        for path, first, last in (
            ("?from=501&to=1000", 501, 1000), ("", 1, 1000), ("?from=1&to=99999", 1, 1000), ("?from=1150", 1150, 1200),
            ("?from=5&to=5", 5, 5),
        ):  # fmt: skip
            page = (await got(client, crowd, f"/log{path}")).json()
            assert ([line["n"] for line in page["lines"]], page["gap"]) == (list(range(first, last + 1)), None)
            assert page["lines"][0]["parts"] == [["", f"line {first}"]]
        appended = (await got(client, crowd, "/log?after=0")).json()["lines"]
        assert [(line["n"] >= APPENDED, line["appended"], line["parts"]) for line in appended] == [
            (True, True, [["", "hello"]])
        ]
        for wrong in ("from=-1", "from=x", "from=1e3", "after=٣", f"from={'9' * 30}"):
            assert "expected a whole number" in (await got(client, crowd, f"/log?{wrong}", 400)).text


async def test_a_gap_is_named_as_far_as_nothing_is_stored(crowd: Crowd, console_url: str) -> None:
    """A log that is longer than its host keeps has its beginning and its end."""
    for first, count in ((1, 300), (2_000_001, 10)):
        await crowd.world.db.execute(
            """insert into ops.run_logs (run_id, project_id, seq, log_level, message)
               select id, project_id, n, 'info', n::text from ops.runs, generate_series($2::bigint, $3::bigint) as n
               where id = $1""",
            crowd.run, first, first + count - 1,
        )  # fmt: skip
    async with served(console_url, *SIGNS_IN) as client:
        for path in ("?from=1&to=500", "?from=1000001&to=1000500", "?from=1999501&to=2000100"):
            assert (await got(client, crowd, f"/log{path}")).json()["gap"] == [301, 2_000_000]
        assert (await got(client, crowd, "/log?from=2000001&to=2000500")).json()["gap"] is None  # not printed yet
        text = (await got(client, crowd, "/log.txt?from=299&to=2000002")).text
    assert [line.split()[-1] for line in text.splitlines()] == ["299", "300", "2000001", "2000002"]


async def test_search_levels_and_groups(crowd: Crowd, console_url: str) -> None:
    await append(crowd.world.db, crowd.run, ODOO)
    async with served(console_url, *SIGNS_IN) as client:
        for path, lines in (
            ("q=lost", [9, 11, 12]),
            ("q=%22loading+42%22", [3]),
            ("level=error", [9, 10, 11, 12]),
            ("level=warn&after=9", [10, 11, 12]),
        ):
            assert [line["n"] for line in (await got(client, crowd, f"/found?{path}")).json()["lines"]] == lines
        assert (await got(client, crowd, "/groups")).json()["groups"] == [
            {"first": 2, "last": 6, "title": "Install modules"}, {"first": 7, "last": 13, "title": "Run the tests"}
        ]  # fmt: skip
        await got(client, crowd, "/found?level=loud", 400)
        await got(client, crowd, "/found?q=-", 400)


async def test_a_long_log_is_read_only_where_it_answers(crowd: Crowd, console_url: str) -> None:
    """100,000 lines, one of them an error: each query reads about what it returns."""
    db, run = crowd.world.db, crowd.run
    await many_lines(db, run, 100_000)
    await db.execute("update ops.run_logs set message = '::group::one' where run_id = $1 and seq = 50000", run)
    await db.execute("analyze ops.run_logs")

    class Explained(ControlPlane):
        async def rows(self, query: str, *args: object) -> list[Row]:
            plan = json.loads(await self.use(lambda it: it.fetchval(f"explain (analyze, format json) {query}", *args)))
            reads.append(_rows_read(plan[0]["Plan"]))
            return await super().rows(query, *args)

    reads: list[float] = []
    user = await crowd.sign_in("viewer")
    plane = Explained.on("test", user)
    assert [row["seq"] for row in await builds.lines_of_levels(plane, run, ["warn", "error"], 0, 200)] == [100_000]
    assert [row["seq"] for row in await runs.last_lines(plane, run, 12, ["error"])] == [100_000]
    assert [row["seq"] for row in await builds.group_marks(plane, run, 5000)] == [50_000]
    assert max(reads) < 20, reads


def _rows_read(plan: dict[str, Any]) -> float:
    """The rows that the scans of a plan looked at."""
    looked_at = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    is_scan = plan.get("Relation Name", "").startswith("run_logs")
    own = plan["Actual Loops"] * sum(plan.get(name, 0) for name in looked_at) if is_scan else 0
    return float(own + sum(map(_rows_read, plan.get("Plans", ()))))


def test_a_group_ends_with_the_next_one_or_with_the_log() -> None:
    marks = [(1, "::group::a"), (5, "::group::b"), (9, "::endgroup::"), (11, "::endgroup::"), (12, "::group::c")]
    found = paired([{"seq": seq, "message": message} for seq, message in marks])
    assert [(it["first"], it["last"], it["title"]) for it in found] == [(1, 4, "a"), (5, 9, "b"), (12, None, "c")]


async def test_a_long_line_is_cut_and_the_text_has_all_of_it(crowd: Crowd, console_url: str) -> None:
    await append(crowd.world.db, crowd.run, ["i " + "x" * 60_000])
    async with served(console_url, *SIGNS_IN) as client:
        (line,) = (await got(client, crowd, "/log")).json()["lines"]
        assert (len(line["parts"][0][1]), line["cut"]) == (4000, 56_000)
        assert "56000 more characters" in (await got(client, crowd, "")).text
        assert len((await got(client, crowd, "/log.txt?from=1&to=1")).text) > 60_000


# --- colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("plain", [("", "plain")]), (f"a{RED}b\x1b[0mc", [("", "a"), ("f1", "b"), ("", "c")]),
        ("\x1b[1;4;92;41mx\x1b[22;24my\x1b[39;49mz", [("bold underline f10 b1", "x"), ("f10 b1", "y"), ("", "z")]),
        ("\x1b[38;5;196mx\x1b[48;2;0;0;0my", [("f9", "x"), ("f9 b0", "y")]), ("\x1b[38;5;244mx", [("f8", "x")]),
        ("\x1b[mx\x1b[99m\x1b[38mx\x1b[38;5mx", [("", "x"), ("", "x"), ("", "x")]), ("", []), (RED, []),
        ("\x1b]0;title\x07a\x1b[2Kb\x07", [("", "ab\\x07")]), ("\u202egnp.exe", [("", "\\u202egnp.exe")]),
        ("\x1b[<script>mx", [("", "cript>mx")]),
    ],
)  # fmt: skip
def test_colours_become_names_of_styles(line: str, parts: list[tuple[str, str]]) -> None:
    assert ansi.parts(line) == parts


# --- what a program printed -----------------------------------------------------------------------------------------

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "javascript:alert(1)",
    "</style><svg onload=alert(1)>",
)


class Elements(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


async def hostile(crowd: Crowd) -> None:
    """Puts the attacks wherever a program, a member or a worker can write."""
    db, run = crowd.world.db, crowd.run
    await append(db, run, [f"{letter} {attack}" for letter in "iwe" for attack in ATTACKS])
    for n, attack in enumerate(ATTACKS):
        await call(
            db,
            "add_run_artifact",
            run,
            f"{n}/{attack}",
            attack,
            "text/html",
            1,
            f"sha256:{'0' * 64}",
            None,
            "{}",
            WORKER,
            INSTANCE,
        )
        await call(
            db, "add_run_event", run, "error", attack, json.dumps({"why": attack, "actor": attack}), WORKER, INSTANCE
        )
    every = " ".join(ATTACKS)
    tests = {"passed": 0, "failed": 1, "skipped": 0, "failing": [every]}
    await call(db, "record_report", run, WORKER, INSTANCE, json.dumps(tests), every)
    await db.execute("update ops.projects set name = $1", every)
    await db.execute("update ops.workflows set name = $1, description = $1", every)
    await db.execute("update ops.runs set metadata = $1", json.dumps({"git_ref": every, "git_commit": every}))
    await call(db, "pause_project", crowd.world.project, every)
    await call(db, "register_worker", every, uuid.uuid4(), p_version=every)
    await call(db, "complete_workflow_run", run, 1, every, WORKER, INSTANCE)


async def test_what_others_wrote_stays_text_on_every_page(crowd: Crowd, console_url: str) -> None:
    await hostile(crowd)
    await crowd.world.queue()
    async with served(console_url, *SIGNS_IN) as client:
        for path in ("/", "/queue", "/workers", "/projects", "/projects/acme", "/runs/acme/1", "/nothing?<script>"):
            page = await client.get(path, headers=AS_BROWSER | bearer(crowd.users["admin"]))
            found = Elements(page.text)
            assert found.names.isdisjoint({"img", "style", "iframe", "object", "embed", "base"}), path
            assert [name for name, _ in found.attributes if name.startswith("on") or name in ("style", "srcdoc")] == []
            assert [
                value
                for name, value in found.attributes
                if name in ("href", "src", "action") and not value.startswith(("/", "#", "https://files"))
            ] == []
            scripts = [value for name, value in found.attributes if name == "src"]
            assert set(scripts) <= {"/static/page.js", "/static/run.js"}


async def test_only_web_addresses_of_artifacts_are_links(crowd: Crowd, console_url: str) -> None:
    for n, url in enumerate(
        (
            "https://files.example/a?b=c&d",
            "http://files.example/",
            "file:///etc/passwd",
            "s3://b/k",
            "HTTPS://x",
            "data:text/html,x",
            "https:///x",
        )
    ):
        await call(crowd.world.db, "add_run_artifact", crowd.run, f"key{n}", url)
    async with served(console_url, *SIGNS_IN) as client:
        found = Elements((await got(client, crowd, "")).text)
    links = [value for name, value in found.attributes if name == "href" and not value.startswith(("/", "#"))]
    assert links == ["https://files.example/a?b=c&d", "http://files.example/", "HTTPS://x"]


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_user_follows_a_bounded_number_of_logs() -> None:
    streams = Streams()
    for owner, most in (("ada", STREAMS_OF_ONE), *((f"user {n}", 1) for n in range(STREAMS - STREAMS_OF_ONE))):
        for _ in range(most):
            streams.begin(owner)
    for owner in ("ada", "another"):
        with pytest.raises(Exception, match="429"):
            streams.begin(owner)
    streams.end("ada")
    streams.begin("another")


async def test_a_stream_whose_client_is_gone_at_once_does_not_count() -> None:
    async def events() -> AsyncIterator[bytes]:
        yield b""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise OSError

    streams = Streams()
    for _ in range(STREAMS_OF_ONE + 1):
        streams.begin("ada")
        with pytest.raises(ClientDisconnect):
            await Followed(events(), streams, "ada")({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)


async def test_a_lost_database_is_said_and_the_next_page_tries_again(crowd: Crowd, console_url: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        for _ in "12":
            await got(client, crowd, "/log")
            await crowd.world.db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ops_console'"
            )
        await crowd.world.db.execute("alter role ops_console nologin")
        lost = await client.get("/runs/acme/1", headers=AS_BROWSER | bearer(crowd.users["viewer"]))
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "5")
        await crowd.world.db.execute("alter role ops_console login")
        await got(client, crowd, "/log")
