"""``db verify``: it names what is missing in the schema, different or ambiguous."""

from __future__ import annotations

import asyncpg
import pytest

from tests.conftest import Connect
from tests.support import schema
from worker.database import catalog

RENAMED_ARGUMENT = """
drop function ops.heartbeat;
create function ops.heartbeat(
    p_id text, p_instance_id uuid, p_lease_seconds int default 300, p_disk_free bigint default null,
    p_disk_total bigint default null
) returns jsonb
return null::jsonb;
"""


async def test_verify_on_an_empty_database_names_every_table(empty_db_url: str, connect: Connect) -> None:
    findings = [str(each) for each in await catalog.verify(await connect(empty_db_url))]
    assert {f"missing table ops.{name}" for name in schema.TABLES} <= set(findings)
    assert not [finding for finding in findings if finding.startswith("missing column")]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("drop function ops.heartbeat", "missing function ops.heartbeat(text, uuid, integer, bigint, bigint)"),
        ("drop policy {policy} on ops.workflows", "missing policy ops.workflows.{policy}"),
        ("drop index ops.{index}", "missing index ops.runs.{index}"),
        ("drop trigger enforce_run_status_transition on ops.runs",
         "missing trigger ops.runs.enforce_run_status_transition"),
        ("drop table ops.tools cascade", "missing table ops.tools"),
        ("alter table ops.projects drop column description", "missing column ops.projects.description"),
        ("alter table ops.projects drop constraint projects_slug_format",
         "missing constraint ops.projects.projects_slug_format"),
        ("alter table ops.projects alter column description type varchar(20)",
         "different column ops.projects.description"),
        ("alter table ops.runs disable trigger enforce_run_status_transition",
         "different trigger ops.runs.enforce_run_status_transition"),
        ("alter table ops.runs disable row level security", "different table ops.runs"),
        ("alter policy {policy} on ops.workflows using (true)", "different policy ops.workflows.{policy}"),
        ("grant execute on function ops.heartbeat to public",
         "different function ops.heartbeat(text, uuid, integer, bigint, bigint)"),
        ("revoke execute on function ops.heartbeat from ops_worker",
         "different function ops.heartbeat(text, uuid, integer, bigint, bigint)"),
        ("grant select on ops.runs to ops_webhook", "different table ops.runs"),
        ("grant select on ops.runs to anon", "different table ops.runs"),
        (RENAMED_ARGUMENT,
         "different function ops.heartbeat(text, uuid, integer, bigint, bigint)"),
        ("create or replace function ops.current_user_id() returns uuid return null::uuid",
         "different function ops.current_user_id()"),
        ("drop schema ops cascade", "missing table ops.runs"),
        ("create function ops.claim_next_run(text) returns int return 1",
         "ambiguous function ops.claim_next_run(text)"),
    ],
)  # fmt: skip
async def test_verify_names_what_is_missing_or_different(db: asyncpg.Connection, change: str, finding: str) -> None:
    named = {
        "policy": await db.fetchval(
            "select polname from pg_policy where polrelid = 'ops.workflows'::regclass and polcmd = 'r'"
        ),
        "index": await db.fetchval(
            "select indexrelid::regclass::text from pg_index as i where indrelid = 'ops.runs'::regclass"
            " and not exists (select from pg_constraint as c where c.conindid = i.indexrelid) limit 1"
        ),
    }
    named["index"] = named["index"].removeprefix("ops.")
    await db.execute(change.format(**named))
    findings = await catalog.verify(db)
    assert finding.format(**named) in [str(each).splitlines()[0] for each in findings]


async def test_verify_leaves_what_others_added_alone(db: asyncpg.Connection) -> None:
    await db.execute(
        "create table ops.another_program_s (id int); create index on ops.runs (exit_code);"
        " create role build_host; grant execute on function ops.heartbeat to build_host"
    )
    assert await catalog.verify(db) == []
