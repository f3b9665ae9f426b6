"""What users ask: search the logs, and the advisories of an upgrade."""

from __future__ import annotations

import asyncio
import uuid

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import Connect
from tests.db.world import World, new_project, sign_in


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


async def test_a_search_reads_the_full_text_index(world: World, connect: Connect) -> None:
    """As a member: with row policies the planner would have to look at every line first."""
    run = await world.queue()
    await logged(world, run, *(f"line {n}" for n in range(3000)))
    await world.db.execute("analyze ops.run_logs")
    member = await sign_in(world, connect, "viewer")
    await world.db.execute("select pg_stat_force_next_flush(), pg_stat_reset()")
    found = await search(member, "2718", p_project_id=world.project)
    assert len(found) == 1
    await member.execute("select pg_stat_force_next_flush()")
    await member.close()
    scans = "select idx_scan from pg_stat_user_indexes where indexrelname = 'run_logs_message_idx'"
    async with asyncio.timeout(10):
        while not await world.db.fetchval(scans):
            await asyncio.sleep(0.02)
    assert await world.db.fetchval("select seq_scan from pg_stat_user_tables where relname = 'run_logs'") == 0


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
