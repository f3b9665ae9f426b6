"""Row policies ask once per statement who the user is, not once per row, and leave the planner its indexes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import asyncpg

from tests.conftest import Connect
from tests.support.policies import LAST_LINES, MEMBER, populate

PROTECTED = {
    "projects": "select id from ops.projects",
    "workflows": "select id from ops.workflows",
    "runs": "select id from ops.runs",
    "run_events": "select id from ops.run_events",
    "run_artifacts": "select id from ops.run_artifacts",
    "run_logs": "select seq from ops.run_logs",
    "project_memberships": "select id from ops.project_memberships",
    "an update": "update ops.workflows set name = name",
    "a delete": "delete from ops.project_memberships",
}


async def plan_of(member: asyncpg.Connection, statement: str) -> dict[str, Any]:
    """The plan, with what came of it; the statement is taken back."""
    transaction = member.transaction()
    await transaction.start()
    text = await member.fetchval(f"explain (analyze, costs off, verbose, format json) {statement}")
    await transaction.rollback()
    plan: dict[str, Any] = json.loads(text)[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def test_the_policy_asks_once_per_statement(db: asyncpg.Connection, connect: Connect) -> None:
    await populate(db, projects=20, member_of=5, lines=3)
    member = await connect(role="authenticated")
    await member.execute(f"set request.jwt.claim.sub = '{MEMBER}'")
    for what, statement in PROTECTED.items():
        plan = await plan_of(member, statement)
        asking = [node for node in nodes(plan) if node["Node Type"] == "ProjectSet"]
        assert (what, {node["Parent Relationship"] for node in asking}) == (what, {"InitPlan"})
        assert all(node["Actual Loops"] <= 1 for node in asking)
        # and nowhere else, as it would be in the filter of a scan
        assert json.dumps(plan).count("my_projects") == len(asking)


async def test_the_last_lines_of_a_run_are_read_backwards_from_its_end(
    db: asyncpg.Connection, connect: Connect
) -> None:
    run = await populate(db, projects=20, member_of=5, lines=400)
    member = await connect(role="authenticated")
    await member.execute(f"set request.jwt.claim.sub = '{MEMBER}'")
    plan = await plan_of(member, LAST_LINES.replace("$1", f"'{run}'"))
    (scan,) = [node for node in nodes(plan) if node.get("Relation Name") == "run_logs_other"]
    assert (scan["Node Type"], scan["Scan Direction"]) == ("Index Scan", "Backward")
    assert scan["Actual Rows"] == 50
