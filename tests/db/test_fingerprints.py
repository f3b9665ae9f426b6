"""Fingerprints of failed runs: what counts as the same error, and who learns what of it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.conftest import Connect
from tests.db.persons import as_role, ops
from tests.db.world import INSTANCE, WORKER, World, call, new_project, new_workflow, sign_in

NORMALISED = [
    (
        "2026-02-13 12:00:00,123 4711 ERROR ci_pr_17 odoo.sql_db: bad query: INSERT INTO x VALUES (17, 'a b')",
        "odoo.sql_db: bad query: INSERT INTO x VALUES (<n>, <text>)",
    ),
    (
        "2026-02-13 12:00:00,123 4711 CRITICAL db odoo.service.server: Failed to initialize database `db`.",
        "odoo.service.server: Failed to initialize database `db`.",
    ),
    (
        'psycopg2.errors.NotNullViolation: null value in column "partner_id" of relation "sale_order" violates',
        'psycopg<n>.errors.NotNullViolation: null value in column "partner_id" of relation "sale_order" violates',
    ),
    (
        'psycopg2.OperationalError: connection to server at "10.0.0.5", port 5432 failed: FATAL: database "ci-42" gone',
        "psycopg<n>.OperationalError: connection to server at <text>, port <n> failed: FATAL: database <text> gone",
    ),
    ("KeyError: 'res.partner'", "KeyError: 'res.partner'"),
    ("ValueError: External ID not found: base.user_17", "ValueError: External ID not found: base.user_<n>"),
    ("odoo.exceptions.MissingError: Record does not exist (Record: res.partner(12, 13), User: 2)",
     "odoo.exceptions.MissingError: Record does not exist (Record: res.partner(<n>, <n>), User: <n>)"),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/tmp/x1/a.csv'",
     "FileNotFoundError: [Errno <n>] No such file or directory: <text>"),
    ("While parsing /opt/addons/sale/views/a.xml:17, somewhere inside", "While parsing <path>:<n>, somewhere inside"),
    ("<Foo object at 0x7f3a2b> is not callable", "<Foo object at <id>> is not callable"),
    ("revision 3f2504e04f89 of 3F2504E0-4F89-41D3-9A0C-0305E82C3301 at 2026-02-13T12:00:00Z",
     "revision <id> of <id> at <time>"),
    ("GET https://user:pw@host.example/a?b=1 took 12.5 s at 10:15", "GET <url> took <n> s at <time>"),
    ("\x1b[1;31mAssertionError\x1b[0m: 3 != 4,5\t(x)", "AssertionError: <n> != <n> (x)"),
    ("can't adapt type 'dict', don't try", "can't adapt type 'dict', don't try"),
    ("deadbeef and facade stay words", "deadbeef and facade stay words"),
    ("x" * 5000, "x" * 300),
]  # fmt: skip


@pytest.mark.parametrize(("line", "normalised"), NORMALISED, ids=lambda value: str(value)[:30])
async def test_what_differs_from_run_to_run_is_taken_out_of_an_error(world: World, line: str, normalised: str) -> None:
    assert await world.db.fetchval("select ops_private.normalized_error($1)", line) == normalised
    assert await world.db.fetchval("select ops_private.normalized_error($1)", normalised) == normalised


async def failed(world: World, *errors: str, failing: tuple[str, ...] = (), **outcome: Any) -> uuid.UUID:
    """A run that printed these errors, and had these failing tests."""
    run = await world.running()
    for line in errors:
        await call(world.db, "append_run_log", run, "error", line)
    if failing:
        tests = {"passed": 0, "failed": len(failing), "skipped": 0, "failing": failing}
        await call(world.db, "record_report", run, WORKER, INSTANCE, p_tests=json.dumps(tests))
    reason = {"p_reason": "exit_code", "p_error_message": "exit code 1"} | outcome
    answer = await call(world.db, "complete_workflow_run", run, 1, p_instance_id=INSTANCE, **reason)
    assert answer["success"]
    return run


async def lines(world: World, run: uuid.UUID) -> list[str]:
    return [row["line"] for row in await world.db.fetch("select line from ops.run_fingerprints($1)", run)]


async def test_failing_tests_are_told_else_the_last_errors_else_the_reason(world: World) -> None:
    tests = tuple(f"t.test_{n}" for n in range(7))
    assert await lines(world, await failed(world, "KeyError: 'x'", failing=tests)) == [f"new: {t}" for t in tests[:5]]
    noise = ("Traceback (most recent call last):", '  File "/a.py", line 3, in f', "")
    run = await failed(world, "E1: a", "E2: b", "E3: c", *noise, "E4: d", "E4: d", "2 failed, 0 error(s) of 9 tests")
    assert await lines(world, run) == ["new: E<n>: d", "new: E<n>: c", "new: E<n>: b"]
    run = await failed(world, p_reason="image_missing", p_error_message="image odoo:17 is not on this host")
    assert await lines(world, run) == ["new: image_missing: image odoo:<n> is not on this host"]
    assert await lines(world, await failed(world)) == []  # "exit code 1" tells nothing


async def test_only_a_failed_run_has_fingerprints_and_they_go_with_it(world: World) -> None:
    run = await world.running()
    await call(world.db, "append_run_log", run, "error", "KeyError: 'x'")
    await call(world.db, "complete_workflow_run", run, 0)
    await failed(world, "KeyError: 'x'")
    count = "select count(*) from ops_private.run_fingerprints"
    assert await world.db.fetchval(count) == 1
    await world.db.execute("delete from ops.runs")
    assert await world.db.fetchval(count) == 0


async def test_a_reader_learns_since_when_and_how_often_of_the_own_projects_only(
    world: World, connect: Connect, db_url: str
) -> None:
    beta = await new_project(world.db, "beta")
    other = World(world.db, beta, await new_workflow(world.db, beta))
    await failed(other, "KeyError: 'x'")
    first = await failed(world, "2026-02-13 12:00:00,123 1 ERROR a odoo.x: Record 1 is gone")
    await failed(world, "KeyError: 'x'")
    again = await failed(world, "2026-02-14 12:00:00,123 9 ERROR b odoo.x: Record 9 is gone", "KeyError: 'x'")
    assert await lines(world, again) == [
        "known since beta#1, 3 times, in 2 projects: KeyError: 'x'",
        "known since acme#1, 2 times, in 1 project: odoo.x: Record <n> is gone",
    ]
    member, stranger = await sign_in(world, connect, "viewer"), await sign_in(world, connect, "owner", beta)
    ask = "select line, first_run_id, times, projects from ops.run_fingerprints($1)"
    one, two = await member.fetch(ask, again)
    assert (one["line"], one["times"], one["projects"]) == (
        "known since acme#2, 2 times, in 1 project: KeyError: 'x'", 2, 1,
    )  # fmt: skip
    assert two["first_run_id"] == first
    assert await stranger.fetch(ask, again) == []
    summary = "select ops.run_summary($1)"
    assert await member.fetchval(summary, again) == f"> {one['line']}\n> {two['line']}\n\n"
    assert await stranger.fetchval(summary, again) is None
    url = as_role(db_url, "authenticated", await member.fetchval("select ops.current_user_id()"))
    shown = (await ops(url, "runs", "show", str(again))).out.splitlines()
    assert shown[:3] == ["New or known", f"  {one['line']}", f"  {two['line']}"]
    assert "Summary" not in shown


async def test_the_summary_of_the_program_follows_behind_the_errors(world: World, db_url: str) -> None:
    run = await world.running()
    await call(world.db, "append_run_log", run, "error", "KeyError: 'x'")
    await call(world.db, "record_report", run, WORKER, INSTANCE, p_summary="# mine\n")
    await call(world.db, "complete_workflow_run", run, 1, "exit code 1", WORKER, INSTANCE, "exit_code")
    assert await world.db.fetchval("select ops.run_summary($1)", run) == "> new: KeyError: 'x'\n\n# mine\n"
    shown = (await ops(db_url, "runs", "show", str(run))).out
    assert "\nSummary\n  # mine\n" in shown


async def test_an_error_is_marked_as_known_in_its_project_until_it_is_forgotten(world: World, db_url: str) -> None:
    await failed(world, "KeyError: 'x'", "IndexError: y")
    run = await failed(world, "KeyError: 'x'", "IndexError: y")
    done = await ops(db_url, "runs", "known", "acme#2", "--note", "see the wiki\x07")
    assert done.out.splitlines() == [
        "known since acme#1, 2 times, in 1 project, noted: see the wiki: IndexError: y",
        "known since acme#1, 2 times, in 1 project, noted: see the wiki: KeyError: 'x'",
    ]  # fmt: skip
    first, second = (await ops(db_url, "runs", "show", "acme#2", "--json")).json["fingerprints"]
    assert (first["note"], first["marked_by"]) == ("see the wiki", "postgres")
    document = (await ops(db_url, "runs", "known", "acme#2", first["fingerprint"], "--forget", "--json")).json
    assert [(error["fingerprint"], error["note"]) for error in document["errors"]] == [(first["fingerprint"], None)]
    assert document["known"] is False
    await call(world.db, "mark_known", run, second["fingerprint"])
    assert await lines(world, run) == [
        "known since acme#1, 2 times, in 1 project: IndexError: y",
        "known since acme#1, 2 times, in 1 project, marked as known: KeyError: 'x'",
    ]
    for argv, status in ((("acme#2", "0" * 16), 6), (("acme#3",), 5), (("acme#2", "--note", "x" * 1001), 6)):
        assert (await ops(db_url, "runs", "known", *argv)).status == status
