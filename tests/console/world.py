"""A project as a person would have it: branches with green, yellow, red and running runs, logs, tests, artifacts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg

from tests.db.world import INSTANCE, NOW, WORKER, call
from worker.database.words import words_of_blocks

ODOO = (
    "i 12:00:01 odoo: Odoo version 19.0",
    "i ::group::Install modules",
    "i odoo.modules.loading: loading 42 modules...",
    "w odoo.addons.library_loans: field 'due' has no help text",
    "i \x1b[32mregistry loaded\x1b[0m in \x1b[1;36m14.2 s\x1b[0m",
    "i ::endgroup::",
    "i ::group::Run the tests",
    "i odoo.addons.library_loans.tests: Starting TestLoans.test_loan",
    "e odoo.addons.library_loans.tests: FAIL: TestLoans.test_loan_of_a_lost_book",
    "e Traceback (most recent call last):",
    'e   File "/mnt/addons/library_loans/tests/test_loans.py", line 41, in test_loan_of_a_lost_book',
    "e AssertionError: 'lost' != 'available'",
    "i ::endgroup::",
    "i odoo.tests.result: \x1b[31m1 failed\x1b[0m, 41 passed of 42 tests",
)
"""Lines of a log, each with the letter of its level before it."""

BRANCHES = (
    ("main", "gggygg"), ("18.0-loans", "rrggr"), ("18.0-staging", "Rgyg"), ("19.0-migration", "qcrrg"),
)  # fmt: skip
"""Branches with their runs, the newest first: green, yellow, red, canceled, Running, queued."""


async def project(db: asyncpg.Connection, slug: str, name: str, version: str = "18.0") -> uuid.UUID:
    found: uuid.UUID = await db.fetchval(
        "insert into ops.projects (workspace_key, slug, name, odoo_version) values ($1, $2, $3, $4) returning id",
        slug.replace("-", "_"), slug, name, version,
    )  # fmt: skip
    return found


async def workflow(db: asyncpg.Connection, project_id: uuid.UUID, kind: str, name: str) -> uuid.UUID:
    found: uuid.UUID = await db.fetchval(
        "insert into ops.workflows (project_id, workflow_type, name, git_ref) values ($1, $2, $3, 'main') returning id",
        project_id, kind, name,
    )  # fmt: skip
    return found


async def append(db: asyncpg.Connection, run: uuid.UUID, lines: Sequence[str], first: int = 1) -> None:
    """Stores lines as a worker does."""
    texts = [line[2:] for line in lines]
    answer = await call(
        db, "append_run_logs", run, WORKER, INSTANCE, first, "\n".join(texts), "".join(line[0] for line in lines),
        [NOW + timedelta(milliseconds=30 * n) for n in range(len(lines))], words_of_blocks(texts),
    )  # fmt: skip
    assert answer["success"], answer


async def queued(db: asyncpg.Connection, project_id: uuid.UUID, workflow_id: uuid.UUID, ref: str = "main") -> uuid.UUID:
    found: uuid.UUID = await db.fetchval(
        "insert into ops.runs (project_id, workflow_id, status, metadata) values ($1, $2, 'queued', $3) returning id",
        project_id, workflow_id, json.dumps({"git_ref": ref, "git_commit": "4f2a91c07be1"}),
    )  # fmt: skip
    return found


async def started(
    db: asyncpg.Connection, project_id: uuid.UUID, workflow_id: uuid.UUID, ref: str = "main"
) -> uuid.UUID:
    """A running run, which the worker of the tests holds; no other run may be queued before it."""
    run = await queued(db, project_id, workflow_id, ref)
    claim = await call(db, "claim_next_run", WORKER, INSTANCE)
    assert claim["run_id"] == str(run), claim
    assert (await call(db, "start_workflow_run", run, WORKER, INSTANCE))["success"]
    return run


async def ended(db: asyncpg.Connection, run: uuid.UUID, code: int, reason: str | None = None) -> None:
    named: dict[str, Any] = {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_reason": reason}
    message = f"exit code {code}" if code else None
    answer = await call(db, "complete_workflow_run", run, p_exit_code=code, p_error_message=message, **named)
    assert answer["success"], answer


async def many_lines(db: asyncpg.Connection, run: uuid.UUID, count: int, first: int = 1) -> None:
    """That many lines at once, as no worker could; ``ops.appending`` spares the trigger that looks at each."""
    await db.execute("""select set_config('ops.appending', 'on', false)""")
    await db.execute(
        """insert into ops.run_logs (run_id, project_id, seq, log_level, message, "timestamp")
           select r.id, r.project_id, n, case when n % 100000 = 0 then 'error' else 'info' end,
               'line ' || n || ' of many: loading module library_' || n % 97, $4::timestamptz + n * interval '1 ms'
           from ops.runs as r, generate_series($2::bigint, $2 + $3::bigint - 1) as n where r.id = $1""",
        run, first, count, NOW,
    )  # fmt: skip


async def fill(db: asyncpg.Connection) -> None:
    """A project with runs of every kind."""
    await call(db, "register_worker", WORKER, INSTANCE, p_version="1.0", p_labels=["amd64", "big"])
    library = await project(db, "library", "City library")
    test, build = await workflow(db, library, "test", "unit tests"), await workflow(db, library, "build", "image")
    waiting = []
    for ref, kinds in BRANCHES:
        for place, kind in reversed(list(enumerate(kinds))):
            if kind in "qR":
                waiting.append((ref, kind))
            else:
                await _run(db, library, test if place % 2 else build, ref, kind)
    for ref, kind in sorted(waiting, key=lambda it: it[1]):  # a running one first: no run is queued before it
        if kind == "R":
            await append(db, await started(db, library, test, ref), ODOO[:8])
        else:
            await queued(db, library, test, ref)


async def _run(db: asyncpg.Connection, project_id: uuid.UUID, workflow_id: uuid.UUID, ref: str, kind: str) -> None:
    run = await started(db, project_id, workflow_id, ref)
    lines = {"g": [line for line in ODOO if line[0] == "i"], "y": [line for line in ODOO if line[0] != "e"]}
    await append(db, run, lines.get(kind, ODOO))
    if kind == "r":
        failing = ["library_loans.TestLoans.test_loan_of_a_lost_book"]
        tests = {"passed": 41, "failed": 1, "skipped": 0, "failing": failing}
        await call(
            db, "record_report", run, WORKER, INSTANCE, json.dumps(tests), "## Tests\n\n1 of 42 failed.\n",
        )  # fmt: skip
    for name, size in (("junit.xml", 9120), ("coverage/index.html", 48211)):
        await call(
            db, "add_run_artifact", run, name, f"https://files.example/library/{name}", "text/html", size,
            f"sha256:{'4f' * 32}", None, "{}", WORKER, INSTANCE,
        )  # fmt: skip
    if kind == "c":
        await call(db, "cancel_run", run, "superseded by a newer push")
        await ended(db, run, 137, "canceled")
    else:
        await ended(db, run, 1 if kind == "r" else 0, "exit_code" if kind == "r" else None)
