"""Row policies: what they cost a user who is a member of 50 of 500 projects."""

from __future__ import annotations

import time

import asyncpg

from tests.bench.harness import Bench
from tests.bench.report import Figure
from tests.support import policies

READS = 200
"""Queries in a round; each takes well below a millisecond."""


async def member_reads(bench: Bench) -> list[Figure]:
    """50 log lines of 500 projects with 400 lines each, against the same query of the owner."""
    projects = bench.size(500, 20)
    async with bench.plane() as plane:
        member_of = max(projects // 10, 1)
        run = await policies.populate(plane.db, projects=projects, member_of=member_of, lines=bench.size(400, 50))
        member = await asyncpg.connect(plane.url)
        await member.execute(f"set role authenticated; set request.jwt.claim.sub = '{policies.MEMBER}'")
        own = [row["id"] for row in await member.fetch("select id from ops.projects")]

        async def timed(connection: asyncpg.Connection, query: str, *args: object) -> float:
            began = time.perf_counter()
            for _ in range(READS):
                assert len(await connection.fetch(query, *args)) == 50
            return (time.perf_counter() - began) * 1000 / READS

        last_owner, last_member, any_owner, any_member = await bench.alternate(
            lambda: timed(plane.db, policies.LAST_LINES, run),
            lambda: timed(member, policies.LAST_LINES, run),
            lambda: timed(plane.db, policies.OWN_LINES, own),
            lambda: timed(member, policies.ANY_LINES),
        )
        await member.close()
    return [
        Figure("the last 50 lines of a run", "ms", last_member, "without policies", last_owner),
        Figure("any 50 lines of the user's projects", "ms", any_member, "without policies", any_owner),
    ]


CASES = (member_reads,)
