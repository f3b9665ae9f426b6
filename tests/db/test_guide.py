"""The SQL of ``docs/guide.md``, run as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import uuid

import pytest

from tests.conftest import Connect
from tests.db.crowd import gather
from tests.db.persons import as_role, ops
from tests.db.world import World, new_workflow
from tests.support.docker import PATIENCE, ROOT
from tests.support.markdown import Document
from tests.support.scripts import environ_of

SQL = Document(ROOT / "docs" / "guide.md").blocks("sql")


def block(function: str) -> str:
    """The one block that calls it."""
    [found] = [sql for sql in SQL if function in sql]
    return found


def psql(url: str, sql: str, role: str, user: uuid.UUID | None = None) -> str:
    """What psql prints, rows alone, when that role says it."""
    options = f"-c role={role}" + (f" -c request.jwt.claim.sub={user}" if user else "")
    done = subprocess.run(
        ["psql", "--no-psqlrc", "-tA", "-v", "ON_ERROR_STOP=1", url],
        input=sql, env=environ_of(PGOPTIONS=options), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_developer_can_say_what_the_guide_says(world: World, connect: Connect, db_url: str) -> None:
    crowd = await gather(world, connect)
    await world.db.execute("update ops.upgrade_advisories set from_version = '17.0', to_version = '18.0'")
    said = psql(db_url, block("ops.applicable_advisories"), "authenticated", crowd.users["developer"])
    assert said == "17.0|18.0|high|Mind this\n"


async def test_a_developer_can_run_the_commands_of_the_guide(world: World, connect: Connect, db_url: str) -> None:
    crowd = await gather(world, connect)
    await new_workflow(world.db, world.project, "hello")
    url = as_role(db_url, "authenticated", crowd.users["developer"])
    [lines] = [text for text in Document(ROOT / "docs" / "guide.md").blocks("sh") if "runs enqueue" in text]
    run = ""
    for line in lines.splitlines():
        words = shlex.split(
            line.replace("run=$(", "").replace(")   #", "   #").replace('"$run"', f"'{run}'"), comments=True
        )
        if "-f" in words:
            await world.db.execute("update ops.runs set status = 'canceled' where idempotency_key is not null")
        done = await ops(url, *words[1:])
        assert (line, done.status) == (line, 3 if "-f" in words else 0), done.err
        run = run or done.out.strip()


async def test_service_role_queues_a_run_for_later(world: World, db_url: str) -> None:
    await new_workflow(world.db, world.project, "hello")
    said = psql(db_url, block("insert into ops.runs"), "service_role")
    assert said.splitlines()[0].endswith("|1")
    [run] = await world.db.fetch("select priority, scheduled_at > now() as later from ops.runs")
    assert tuple(run) == (5, True)


async def test_anon_receives_webhooks_after_the_grant_of_the_guide(world: World, connect: Connect) -> None:
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    [grant] = re.findall(r"`(grant usage on schema ops to anon; [^`]*)`", text)
    await world.db.execute(grant)
    anon = await connect(role="anon")
    answer = json.loads(await anon.fetchval("select ops.receive_webhook('{}')"))
    assert answer["code"] == "bad_argument"


@pytest.mark.parametrize("statement", ["min(created_at) from ops.runs", "pg_terminate_backend"])
async def test_an_operator_asks_what_the_guide_asks(world: World, db_url: str, statement: str) -> None:
    await world.db.execute("create role build1")
    try:
        psql(db_url, block(statement), "none")
    finally:
        await world.db.execute("drop role if exists build1")
