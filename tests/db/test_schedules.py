"""Schedules: when a cron line is due, compared with cronsim, and what happens when it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from cronsim import CronSim
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import Connect
from tests.db.persons import ops
from tests.db.world import World, call, freeze_clock, new_project, new_workflow, sign_in
from tests.support.postgres import Cluster
from worker.errors import SpecError
from worker.model.config import WorkflowConfig, read

NEXT = "select ops_private.next_time($1, $2, $3)"


# When a line is due -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        # In Brussels the clock goes from 2:00 to 3:00 on 29 March 2026, and from 3:00 to 2:00 on 25 October; 1:00 UTC
        ("30 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("0,30 2 29 mar *", "2026-03-28T12:00", ["2026-03-29T01:00", "2027-03-29T00:00"]),
        ("30 * * * *", "2026-03-29T00:00", ["2026-03-29T00:30", "2026-03-29T01:30"]),
        ("30 2 * * *", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("30 * * * *", "2026-10-25T00:00", ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30"]),
        ("*/30 2 * * *", "2026-10-24T12:00", [
            "2026-10-25T00:00", "2026-10-25T00:30", "2026-10-25T01:00", "2026-10-25T01:30", "2026-10-26T01:00",
        ]),
        ("0 0 13 * fri", "2026-02-01T00:00", ["2026-02-05T23:00", "2026-02-12T23:00", "2026-02-19T23:00"]),
        ("0 0 */13 * fri", "2026-01-01T00:00", ["2026-02-26T23:00", "2026-03-26T23:00"]),
        ("0 0 29 2 *", "2026-01-01T00:00", ["2028-02-28T23:00", "2032-02-28T23:00"]),
        ("0 12 1 jan,jul 7", "2026-06-30T00:00", ["2026-07-01T10:00", "2026-07-05T10:00"]),
    ],
)  # fmt: skip
async def test_when_a_line_is_due(db: asyncpg.Connection, cron: str, after: str, due: list[str]) -> None:
    found, moment = [], datetime.fromisoformat(f"{after}+00:00")
    for _ in due:
        moment = await db.fetchval(NEXT, cron, "Europe/Brussels", moment)
        found.append(f"{moment:%Y-%m-%dT%H:%M}")
    assert found == due


@pytest.fixture(scope="module")
def server(cluster: Cluster) -> Iterator[tuple[asyncio.Runner, asyncpg.Connection]]:
    with cluster.database(cluster.template()) as name, asyncio.Runner() as runner:
        db = runner.run(asyncpg.connect(cluster.url(name)))
        yield runner, db
        runner.run(db.close())


def field(least: int, most: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    """A field of a cron line: a star, values, ranges and steps."""
    number = st.integers(least, most)
    value = number.map(str) | st.sampled_from(names) if names else number.map(str)
    span = st.tuples(number, number).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: f"{pair[0]}-{pair[1]}")
    stepped = st.tuples(st.just("*") | span | number.map(str), st.integers(1, most)).map(lambda it: f"{it[0]}/{it[1]}")
    return st.just("*") | st.lists(value | span | stepped, min_size=1, max_size=3).map(",".join)


MONTHS = ("jan", "FEB", "mar", "oct", "Nov")
LINES = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12, MONTHS), field(0, 7, ("sun", "Mon", "sat")))
ZONES = ("UTC", "Europe/Brussels", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns")
CHANGES = ("2026-03-29T01:00", "2026-10-25T01:00", "2026-03-08T07:00", "2026-11-01T06:00", "2026-04-04T15:00",
           "2026-10-03T15:30", "2026-03-08T05:30")  # fmt: skip
"""About when the clocks of these zones change."""


def passed_over(theirs: CronSim, after: datetime, expected: datetime, zone: ZoneInfo) -> datetime | None:
    """The first minute of the line that cronsim missed.

    Where a star begins the minute or the hour, it goes on by whole hours. After a change of half an hour (Lord Howe) it
    then comes to each hour in the middle.
    """
    before = (after - timedelta(hours=1)).astimezone(zone).utcoffset()  # it goes on from the beginning of the hour
    change = expected.astimezone(zone).utcoffset() - before  # type: ignore[operator]
    if theirs.fixup_tz is not None or not change % timedelta(hours=1):
        return None
    minute = max(after, expected - timedelta(hours=25)) + timedelta(minutes=1)
    while minute < expected:
        here = minute.astimezone(zone)
        fits = here.minute in theirs.minutes and here.hour in theirs.hours and here.month in theirs.months
        if fits and theirs.match_day(here):
            return here
        minute += timedelta(minutes=1)
    return None


@example(line="* 0 * * *", zone="Australia/Lord_Howe", change="2026-04-04T15:00", minutes=-1)
@example(line="10 */5 * * *", zone="Australia/Lord_Howe", change="2026-04-04T15:00", minutes=-1)
@example(line="* 0 * * *", zone="Australia/Lord_Howe", change="2026-10-03T15:30", minutes=0)
@given(
    line=LINES.map(" ".join),
    zone=st.sampled_from(ZONES),
    change=st.sampled_from(CHANGES),
    minutes=st.integers(-3000, 3000),
)
def test_a_line_is_due_when_an_independent_reader_says(
    server: tuple[asyncio.Runner, asyncpg.Connection], line: str, zone: str, change: str, minutes: int
) -> None:
    """Not from within a repeated hour: there the other reader begins again with the first of the two."""
    runner, db = server
    moment = datetime.fromisoformat(f"{change}+00:00") + timedelta(minutes=minutes)
    here = moment.astimezone(ZoneInfo(zone))
    if here.fold:
        moment = moment + timedelta(hours=2)
        here = moment.astimezone(ZoneInfo(zone))
    theirs = CronSim(line, here)
    for _ in range(3):
        expected = next(theirs).astimezone(UTC)
        if expected <= moment:  # it gives the first minute after a gap once for each time in the gap
            continue
        if earlier := passed_over(theirs, moment, expected, ZoneInfo(zone)):
            theirs, expected = CronSim(line, earlier), earlier.astimezone(UTC)
        moment = runner.run(db.fetchval(NEXT, line, zone, moment))
        assert moment == expected


BAD_LINES = {
    "* * * *": "expected five fields: minute, hour, day of month, month, day of week",
    "60 * * * *": 'minute: expected numbers from 0 to 59, as a list, a range or steps, got "60"',
    "* 24 * * *": 'hour: expected numbers from 0 to 23, as a list, a range or steps, got "24"',
    "* * 0 * *": 'day of month: expected numbers from 1 to 31, as a list, a range or steps, got "0"',
    "* * * foo *": 'month: expected numbers from 1 to 12, as a list, a range or steps, got "foo"',
    "* * * * 8": 'day of week: expected numbers from 0 to 7, as a list, a range or steps, got "8"',
    "5-1 * * * *": 'minute: expected numbers from 0 to 59, as a list, a range or steps, got "5-1"',
    "*/0 * * * *": 'minute: expected numbers from 0 to 59, as a list, a range or steps, got "*/0"',
    "1,,2 * * * *": 'minute: expected numbers from 0 to 59, as a list, a range or steps, got "1,,2"',
    "@daily": "expected five fields: minute, hour, day of month, month, day of week",
    "0 0 30 2 *": "expected a day that exists",
}


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        *(([{"cron": "0 0 * * *"}, {"cron": line}], f"schedule.1.cron, {says}") for line, says in BAD_LINES.items()),
        ({}, "schedule: expected a list"), ([{"cron": "0 0 * * *"}] * 21, "schedule: expected at most 20 entries"),
        ([{"cron": 5}], "schedule.0.cron: expected a text"), ([{}], "schedule.0.cron: expected a text"),
        ([{"cron": "0 0 * * *", "zone": 1}], "schedule.0: expected cron, timezone and catch_up"),
        ([{"cron": "0 0 * * *", "timezone": "Mars/Olympus"}],
         "schedule.0.timezone: expected a name such as Europe/Brussels"),
        ([{"cron": "0 0 * * *", "catch_up": "all"}], "schedule.0.catch_up: expected one of skip, once"),
    ],
)  # fmt: skip
async def test_a_wrong_schedule_is_refused_where_the_workflow_is_written(
    world: World, connect: Connect, schedule: Any, says: str
) -> None:
    developer = await sign_in(world, connect, "developer")
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await new_workflow(developer, world.project, "wrong", {"schedule": schedule})
    assert refused.value.message == f"workflow config, {says}"
    if "cron, " not in says and "Mars" not in json.dumps(schedule):  # what a worker checks too
        with pytest.raises(SpecError, match=r"^workflow config, schedule"):
            read(WorkflowConfig, "workflow config", {"schedule": schedule})


# What happens then ------------------------------------------------------------------------------------------

START = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DUE = datetime(2026, 6, 2, 3, 0, tzinfo=UTC)
"""The next time of ``0 3 * * *``."""


async def scheduled(world: World, **line: str) -> World:
    """The same project, at noon, with a workflow that has this line."""
    await freeze_clock(world.db, START)
    workflow = await new_workflow(world.db, world.project, "nightly", {"schedule": [{"cron": "0 3 * * *"} | line]})
    return World(world.db, world.project, workflow)


async def at(world: World, moment: datetime) -> None:
    await world.db.execute("update public.clock set now = $1", moment)


async def fired(world: World) -> list[str]:
    """For when the runs were queued, in their order."""
    rows = await world.db.fetch("select metadata ->> 'scheduled_for' as due from ops.runs order by run_number")
    return [row["due"] for row in rows]


async def next_at(world: World) -> datetime | None:
    moment: datetime | None = await world.db.fetchval(
        "select next_at from ops.workflow_overview() where workflow_id = $1", world.workflow
    )
    return moment


async def test_a_worker_that_finds_no_run_queues_the_one_that_is_due(world: World) -> None:
    night = await scheduled(world, timezone="Europe/Brussels")
    due = datetime(2026, 6, 2, 1, 0, tzinfo=UTC)
    assert await next_at(night) == due
    await at(world, due - timedelta(seconds=1))
    assert (await world.claim())["run_id"] is None
    await at(world, due)
    assert (await world.claim())["metadata"] == {"scheduled_for": "2026-06-02T01:00:00Z"}
    assert await next_at(night) == due + timedelta(days=1)
    await at(world, due + timedelta(days=1, minutes=1))
    assert (await call(world.db, "reap"))["woken"] == 1
    assert (await call(world.db, "reap"))["woken"] == 0
    assert await fired(world) == ["2026-06-02T01:00:00Z", "2026-06-03T01:00:00Z"]


async def test_two_workers_at_once_queue_it_once(world: World, connect: Connect) -> None:
    night = await scheduled(world)
    await at(world, DUE - timedelta(seconds=1))
    await call(world.db, "reap")  # makes the partitions of that week
    await at(world, DUE)
    other = await connect()
    async with other.transaction():
        assert (await call(other, "reap"))["woken"] == 1
        assert (await call(world.db, "reap"))["woken"] == 0  # and it did not wait
    assert (await call(world.db, "reap"))["woken"] == 0
    await world.db.execute("update ops_private.schedules set next_at = $1", DUE)
    assert (await call(night.db, "reap"))["woken"] == 0  # the same time again


async def test_a_client_that_keeps_an_older_run_locked_stops_no_claim_and_no_sweep(
    world: World, connect: Connect
) -> None:
    night = await scheduled(world)
    await world.db.execute(
        """update ops.workflows set config = config || '{"concurrency_key": "prod", "on_newer": "newest"}'
           where id = $1""",
        night.workflow,
    )
    old = await night.queue()
    await at(world, DUE)
    holder = await connect()
    async with holder.transaction():
        await holder.execute("select from ops.runs where id = $1 for update", old)
        assert (await asyncio.wait_for(world.claim(), 10))["run_id"] is None
        assert (await call(world.db, "reap"))["woken"] == 0
    assert (await call(world.db, "reap"))["woken"] == 1
    assert await world.db.fetchval("select status from ops.runs where id = $1", old) == "canceled"


@pytest.mark.parametrize(
    ("catch_up", "line", "runs"),
    [
        ("once", "0 3 * * *", ["2026-06-02T03:00:00Z"]), ("skip", "0 3 * * *", []),
        ("skip", "*/4 * * * *", ["2026-06-04T11:52:00Z"]), ("once", "*/4 * * * *", ["2026-06-01T12:04:00Z"]),
    ],
)  # fmt: skip
async def test_what_becomes_of_times_that_were_missed(world: World, catch_up: str, line: str, runs: list[str]) -> None:
    night = await scheduled(world, catch_up=catch_up, cron=line)
    now = START + timedelta(days=3)
    await at(world, now)
    await call(world.db, "reap")
    assert await fired(night) == runs
    moment = await next_at(night)
    assert moment is not None
    assert moment > now
    await call(world.db, "reap")
    assert await fired(night) == runs


@pytest.mark.parametrize(
    ("change", "problem", "shown"),
    [
        ("update ops.workflows set enabled = false", "the workflow is disabled", False),
        ("update ops.projects set status = 'archived'", "the project is archived", False),
        (
            "update ops_private.control set max_queued_runs = 1",
            "the queue of the project is full: at most 1 runs",
            True,
        ),
    ],
)
async def test_why_a_schedule_queued_no_run_is_shown(
    world: World, db_url: str, change: str, problem: str, *, shown: bool
) -> None:
    night = await scheduled(world)
    await world.queue(priority=1)
    await world.db.execute(change)
    await at(world, DUE)
    await call(world.db, "reap")
    assert (await next_at(night) is not None) == shown
    assert await fired(night) == [None]
    assert problem in (await ops(db_url, "workflows", "acme")).out


async def test_a_time_zone_that_the_server_no_longer_knows_stops_no_claim_and_no_sweep(world: World) -> None:
    night = await scheduled(world)
    later = await new_workflow(world.db, world.project, "later", {"schedule": [{"cron": "0 3 * * *"}]})
    await world.db.execute(
        "update ops_private.schedules set timezone = 'US/Nowhere' where workflow_id = $1", night.workflow
    )
    await at(world, DUE)
    assert (await world.claim())["workflow_id"] == str(later)
    assert await next_at(night) == DUE + timedelta(hours=1)
    problem = "select schedule_problem from ops.workflow_overview() where workflow_id = $1"
    assert await world.db.fetchval(problem, night.workflow) == 'time zone "US/Nowhere" not recognized'
    await at(world, DUE + timedelta(hours=1))
    assert (await call(world.db, "reap"))["woken"] == 0
    await world.db.execute("update ops_private.schedules set timezone = 'UTC'")  # known again
    await at(world, DUE + timedelta(hours=2))
    assert (await call(world.db, "reap"))["woken"] == 0  # 5:00 is no time of the line
    assert await next_at(night) == DUE + timedelta(days=1)
    assert await world.db.fetchval(problem, night.workflow) is None


async def test_a_line_keeps_its_time_until_it_changes(world: World, db_url: str) -> None:
    night = await scheduled(world)
    before = await next_at(night)
    await at(world, START + timedelta(days=2))
    change = "update ops.workflows set config = $2 where id = $1"
    lines = [{"cron": "0 3 * * *", "catch_up": "once"}, {"cron": "0 4 * * *"}]
    await world.db.execute(change, night.workflow, json.dumps({"schedule": lines, "priority": 1}))
    assert await next_at(night) == before
    assert "2026-06-02T03:00:00.000Z" in (await ops(db_url, "workflows", "acme")).out
    await world.db.execute(change, night.workflow, '{"schedule": [{"cron": "0 5 * * *"}]}')
    assert await next_at(night) == datetime(2026, 6, 4, 5, tzinfo=UTC)
    await world.db.execute(change, night.workflow, "{}")
    assert await next_at(night) is None


async def test_a_project_without_a_run_yet_has_its_schedule_too(world: World) -> None:
    night = await scheduled(World(world.db, await new_project(world.db, "fresh"), world.workflow))
    await at(world, DUE + timedelta(minutes=1))
    assert (await call(world.db, "reap"))["woken"] == 1
    assert (await world.claim())["project_id"] == str(night.project)
