"""What users ask: search the logs, and the advisories of an upgrade."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import Connect
from tests.db.world import INSTANCE, NOW, WORKER, World, call, new_project, sign_in
from worker.database.words import words, words_of_blocks


@pytest_asyncio.fixture
async def developer(world: World, connect: Connect) -> asyncpg.Connection:
    return await sign_in(world, connect, "developer")


# Search -----------------------------------------------------------------------------------------------------


async def logged(world: World, run: uuid.UUID, *messages: str, since: str = "2026-01-01") -> None:
    """Lines of that run, a second apart."""
    await world.db.execute(
        """insert into ops.run_logs (run_id, project_id, seq, log_level, message, "timestamp")
           select $1, $2, n, 'info', m, $4::timestamptz + n * interval '1 second'
           from unnest($3::text[]) with ordinality as u (m, n)""",
        run, world.project, list(messages), await world.db.fetchval("select $1::text::timestamptz", since),
    )  # fmt: skip


async def search(db: asyncpg.Connection, query: str | None, **named: object) -> list[asyncpg.Record]:
    places = "".join(f", {name} => ${n}" for n, name in enumerate(named, 2))
    rows: list[asyncpg.Record] = await db.fetch(
        f"select * from ops.search_run_logs($1{places})", query, *named.values()
    )
    return rows


async def test_a_search_finds_words_in_one_run_or_one_project(world: World, developer: asyncpg.Connection) -> None:
    first, second = await world.queue(), await world.queue()
    await logged(world, first, "module sale loaded", "module stock failed", "done")
    await logged(world, second, "Module SALE failed", since="2026-01-02")
    found = await search(developer, "module failed", p_project_id=world.project)
    assert [(row["run_id"], row["run_number"], row["seq"], row["message"]) for row in found] == [
        (second, 2, 1, "Module SALE failed"), (first, 1, 2, "module stock failed")
    ]  # fmt: skip
    assert [row["seq"] for row in await search(developer, "module", p_run_id=first)] == [2, 1]
    assert [row["seq"] for row in await search(developer, '"sale loaded" or done', p_run_id=first)] == [3, 1]
    assert [row["seq"] for row in await search(developer, "module -stock", p_run_id=first)] == [1]
    assert await search(developer, "nothing", p_project_id=world.project) == []


@pytest.mark.parametrize("where", ["p_project_id", "p_run_id"])
async def test_pages_give_every_line_once(world: World, developer: asyncpg.Connection, where: str) -> None:
    runs = [await world.queue() for _ in range(3 if where == "p_project_id" else 1)]
    for run in runs:
        await logged(world, run, *(["word"] * 5))
    await world.db.execute("""update ops.run_logs set "timestamp" = '2026-01-01' where seq between 2 and 4""")
    scope = {where: world.project if where == "p_project_id" else runs[0]}
    whole = await search(developer, "word", **scope)
    assert len(whole) == 5 * len(runs)
    assert whole == sorted(whole, key=lambda row: (row["timestamp"], row["run_id"], row["seq"]), reverse=True)
    pages: list[asyncpg.Record] = []
    after: dict[str, object] = {}
    while page := await search(developer, "word", p_limit=2, **scope, **after):
        pages += page
        last = page[-1]
        after = {
            "p_before": last["timestamp"], "p_before_run_id": last["run_id"], "p_before_seq": last["seq"]
        }  # fmt: skip
    assert pages == whole


async def test_to_a_stranger_there_is_nothing_to_find(world: World, connect: Connect) -> None:
    run = await world.queue()
    await logged(world, run, "word")
    stranger = await sign_in(world, connect, "owner", await new_project(world.db, "elsewhere"))
    for scope in ({"p_project_id": world.project}, {"p_run_id": run}, {"p_run_id": uuid.uuid4()}):
        assert await search(stranger, "word", **scope) == []
    assert len(await search(await sign_in(world, connect, "viewer"), "word", p_run_id=run)) == 1
    assert len(await search(await connect(role="service_role"), "word", p_project_id=world.project)) == 1


RUN: dict[str, object] = {"p_run_id": uuid.uuid4()}
WRONG: list[tuple[str | None, dict[str, object], str]] = [
    ("word", {}, "either a project_id or a run_id"),
    ("word", {"p_project_id": uuid.uuid4()} | RUN, "either a project_id or a run_id"),
    *(("word", RUN | {"p_limit": limit}, "the limit must be from 1 to 1000") for limit in (0, 1001, None)),
    ("word", RUN | {"p_before_seq": 1}, "before_run_id and before_seq go together"),
    *((query, RUN, "the query needs a word") for query in ("", " ", "-", '""', "!&|()", None)),
]


async def test_a_search_with_a_wrong_argument_is_an_error(developer: asyncpg.Connection) -> None:
    for query, named, complaint in WRONG:
        with pytest.raises(asyncpg.InvalidParameterValueError, match=complaint):
            await search(developer, query, **named)


NASTY = ["ab1.-_/:@+e2, ", "abcdef0123456789-", "a1.,:-e/<>&;=#%'|!\\", "htp:/w.a1-_?=&#@", "aé1ß.Я-/b2<>"]
LINES = st.lists(st.sampled_from(NASTY).flatmap(lambda some: st.text(some, max_size=25)), min_size=1, max_size=12)


@pytest.mark.usefixtures("world")
def test_the_words_of_a_block_are_those_of_its_lines_and_more(db_url: str) -> None:
    """Else a search would pass over a line. Both the worker and the server split lines that are joined."""

    async def both(messages: list[str]) -> tuple[set[str], set[str]]:
        of_lines = "select ops_private.words(tsvector_to_array(to_tsvector('simple', m))) from unnest($1::text[]) as m"
        needed = {word for row in await db.fetch(of_lines, messages) for word in row[0]}
        return needed, set(await db.fetchval("select ops_private.words_of_lines($1)", "\n".join(messages)))

    @settings(max_examples=300, deadline=None)
    @given(LINES)
    @example(["<a", "b>"])  # a tag, for PostgreSQL, if the lines are joined
    def check(messages: list[str]) -> None:
        needed, servers = loop.run_until_complete(both(messages))
        assert needed <= servers
        mine = words(messages)
        assert mine is None or needed <= set(mine.split())

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        db = runner.run(asyncpg.connect(db_url))
        try:
            check()
        finally:
            runner.run(db.close())


COMPARED = """
    select g.run_id, g.seq from ops.run_logs as g
    where g.project_id = $1 and to_tsvector('simple', left(g.message, 1000)) @@ websearch_to_tsquery('simple', $2)
    order by g."timestamp" desc, g.run_id desc, g.seq desc limit $3
"""
QUERIES = [
    "loading", "p3", "sale -p3", "p3 or p4", '"loading sale"', "-loading", "1.5.3", "a_b", "größe", "/_", "i7 p0"
]  # fmt: skip


async def test_a_search_finds_what_a_comparison_of_all_lines_finds(world: World, connect: Connect) -> None:
    """Whichever way the lines came: in batches with words or without, one by one, as rows, changed, after the end."""
    runs = [await world.running() for _ in range(3)]
    service = await connect(role="service_role")
    line = "insert into ops.run_logs (run_id, log_level, message) values ($1, 'info', $2)"
    await service.execute(line, runs[0], "early p3")
    for number, run in enumerate(runs):
        at = 1
        for count in (3, 700, 1, 400, 700, 30):
            numbers = range(at, at + count)
            other = "fit" if count == 700 else "Größe"  # the worker finds the words of an ASCII text only
            messages = [f"loading {'sale' if n % 3 else other} p{n % 7} 1.5.{n % 9} a_b i{n} /_" for n in numbers]
            times = [NOW + timedelta(seconds=n % 50) for n in numbers]
            for some in (300, 700) if count == 700 else (count,):  # of the whole batch, 300 are stored already
                await call(
                    world.db, "append_run_logs", run, WORKER, INSTANCE, p_first_seq=at,
                    p_messages="\n".join(messages[:some]), p_marks="i" * some, p_timestamps=times[:some],
                    p_words=words_of_blocks(messages) if some == 700 else None,
                )  # fmt: skip
            at += count
        for n in range(5):
            await call(world.db, "append_run_log", run, "info", f"single p{n}")
        if number > 0:
            await call(world.db, "complete_workflow_run", run, 0)
    assert await tails(world) == {runs[0]}

    async def check() -> None:
        for query in QUERIES:
            for limit in (1, 20, 1000):
                found = await search(world.db, query, p_project_id=world.project, p_limit=limit)
                expected = [tuple(row) for row in await world.db.fetch(COMPARED, world.project, query, limit)]
                assert (query, [(row["run_id"], row["seq"]) for row in found]) == (query, expected)

    await check()
    await service.execute(line, runs[1], "late p3")
    await service.execute("update ops.run_logs set message = 'p3 sale now' where run_id = $1 and seq = 900", runs[2])
    await service.execute("delete from ops.run_logs where seq between 1100 and 1300")
    await check()
    await world.db.fetchval("select ops.reap()")
    assert await tails(world) == {runs[0]}
    await check()


async def tails(world: World) -> set[uuid.UUID]:
    """The runs with lines that are in no block."""
    return {row["run_id"] for row in await world.db.fetch("select run_id from ops_private.log_tails")}


@pytest.mark.parametrize("by_worker", [False, True])
async def test_a_log_of_any_lines_ends_up_in_blocks(world: World, *, by_worker: bool) -> None:
    """Lines with as many different words as fit, more than the worker sends for a block; and a long log."""
    run = await world.running()
    full = [" ".join(f"{n:x}z{k:x}" for k in range(200))[:999] for n in range(1000)]
    parts = [" ".join(f"{1000 * n + k}z{n}z{k}" for k in range(60)) for n in range(1000)]
    links = [" ".join(f"a{n}.b{k}.example/c-{k}" for k in range(60))[:999] for n in range(1000)]
    short = [f"line {n}" for n in range(12_000)]
    at = 1
    for messages in (full, parts, links, short):
        times, marks = [NOW] * len(messages), "i" * len(messages)
        answer = await call(
            world.db, "append_run_logs", run, WORKER, INSTANCE, p_first_seq=at, p_messages="\n".join(messages),
            p_marks=marks, p_timestamps=times, p_words=words_of_blocks(messages) if by_worker else None,
        )  # fmt: skip
        assert answer["success"]
        at += len(messages)
    blocks = await world.db.fetch("select first_seq, last_seq, lines from ops_private.log_blocks order by first_seq")
    assert [row["first_seq"] for row in blocks] == [1, *(row["last_seq"] + 1 for row in blocks[:-1])]
    assert (blocks[-1]["last_seq"], max(row["lines"] for row in blocks)) == (at - 1, 250)
    await world.db.execute("delete from ops_private.log_blocks; update ops_private.log_tails set from_seq = 1")
    await call(world.db, "complete_workflow_run", run, 0)
    assert await world.db.fetchval("select from_seq from ops_private.log_tails") == 10_001
    await world.db.fetchval("select ops.reap()")
    assert await tails(world) == set()
    assert await world.db.fetchval("select sum(lines) from ops_private.log_blocks") == at - 1


async def test_pages_and_searches_of_a_million_lines_read_what_they_show(world: World, connect: Connect) -> None:
    """Of a member, on the full tables: a page, and words of all lines, of one, of one block's lines apart, of none."""
    run = await world.queue()
    await world.db.execute("set session_replication_role = replica")
    await world.db.execute(
        """insert into ops.run_logs (run_id, project_id, seq, log_level, message, "timestamp")
           select $1, $2, n, 'info', 'loading' || case n when 500000 then ' rare' when 1 then ' odd' else '' end,
               now() + n * interval '1 ms'
           from generate_series(1, 1000000) as n""",
        run, world.project,
    )  # fmt: skip
    await world.db.execute(
        """insert into ops_private.log_blocks (run_id, first_seq, last_seq, first_at, last_at, lines, words)
           select $1, n * 250 + 1, (n + 1) * 250, now() + n * interval '250 ms', now() + (n + 1) * interval '250 ms',
               250, array_to_tsvector(array['loading', $2, case n when 1999 then 'rare' when 0 then 'odd' else 'x' end])
           from generate_series(0, 3999) as n""",
        run, str(world.project),
    )  # fmt: skip
    await world.db.execute("reset session_replication_role; analyze ops.run_logs, ops_private.log_blocks")
    lines = await world.db.fetchval("select 'ops_private.run_logs_other'::regclass::oid")
    member = await sign_in(world, connect, "viewer")
    page = f"select * from ops.run_logs where run_id = '{run}'"
    project, one = f"p_project_id => '{world.project}'", f"p_run_id => '{run}'"
    for sql, shown, most in (
        (f"{page} order by seq desc limit 50", 50, 50),
        (f"{page} and seq > 700000 order by seq limit 100", 100, 100),
        (f"select * from ops.search_run_logs('loading', {project})", 100, 250),
        (f"select * from ops.search_run_logs('rare', {project})", 1, 250),
        (f"select * from ops.search_run_logs('rare', {one})", 1, 250),
        (f"select * from ops.search_run_logs('loading odd', {project})", 1, 250),
        (f"select * from ops.search_run_logs('odd rare', {project})", 0, 0),
        (f"select * from ops.search_run_logs('nothing', {project})", 0, 0),
    ):
        async with member.transaction():
            assert (sql, len(await member.fetch(sql))) == (sql, shown)
            scanned = await member.fetchval("select pg_stat_get_xact_tuples_returned($1)", lines)
            read = await member.fetchval("select pg_stat_get_xact_tuples_fetched($1)", lines)
        assert (sql, scanned, read) == (sql, 0, min(read, most))


# Advisories -------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def advisories(world: World) -> None:
    steps = [
        ("16.0", "17.0"), ("17.0", "18.0"), ("18.0", "19.0"), ("17.0", "19.0"), ("9.0", "10.0"), ("10.0", "11.0"),
        ("18", "18.0"), ("19.0", "18.0"), ("saas-17.2", "saas-17.4"), ("17.0", ""),
    ]  # fmt: skip
    await world.db.executemany(
        "insert into ops.upgrade_advisories (from_version, to_version, severity, title) values ($1, $2, 'low', 'x')",
        steps,
    )


UPGRADES = [
    ("17.0", "18.0", ["17.0 18.0", "18 18.0"]),
    ("17.0", "19.0", ["17.0 18.0", "17.0 19.0", "18 18.0", "18.0 19.0"]),
    ("17", "19.0.0", ["17.0 18.0", "17.0 19.0", "18 18.0", "18.0 19.0"]),
    ("16.0", "18.0", ["16.0 17.0", "17.0 18.0", "18 18.0"]),
    ("9.0", "11.0", ["9.0 10.0", "10.0 11.0"]),  # as text, 9.0 comes after 11.0
    ("10.0", "9.0", []),
    ("19.0", "19.0", []),
    ("8.0", "9.0", []),
]


async def test_an_upgrade_over_several_versions_has_the_advisories_of_each_step(
    world: World, advisories: None, connect: Connect
) -> None:
    user = await connect(role="authenticated")
    sql = "select from_version, to_version from ops.applicable_advisories($1, $2)"
    for start, end, expected in UPGRADES:
        assert [" ".join(row.values()) for row in await user.fetch(sql, start, end)] == expected
    await world.db.execute("alter table ops.upgrade_advisories add column more text")  # does no harm
    assert len(await world.db.fetch("select * from ops.applicable_advisories('17.0', '18.0')")) == 2


async def test_the_gravest_advisory_of_a_step_comes_first(world: World) -> None:
    await world.db.execute(
        """insert into ops.upgrade_advisories (from_version, to_version, severity, title)
           select '1', '2', s, s from unnest('{low,critical,medium,high}'::text[]) as s"""
    )
    rows = await world.db.fetch("select * from ops.applicable_advisories('1', '2')")
    assert [row["severity"] for row in rows] == ["critical", "high", "medium", "low"]


async def test_a_version_that_is_none_is_an_error(world: World) -> None:
    for wrong in ("", "seventeen", "17.", "saas-17.2", "17.0; drop", "9" * 10, None):
        for versions in ((wrong, "19.0"), ("17.0", wrong)):
            with pytest.raises(asyncpg.InvalidParameterValueError, match=r"17\.0 and 19\.0"):
                await world.db.fetch("select * from ops.applicable_advisories($1, $2)", *versions)
