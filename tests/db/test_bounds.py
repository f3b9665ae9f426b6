"""How much a caller may write into one row."""

from __future__ import annotations

import json

import asyncpg
import pytest

from tests.db.crowd import Crowd
from tests.db.world import World, new_workflow
from worker.cli.settings import Settings
from worker.model.config import MAX_DEPTH, MAX_LABEL, MAX_LABELS, MAX_TEXT
from worker.model.service import MAX_SERVICES


def nested(depth: int) -> str:
    """An object with arrays in it, so many levels deep."""
    return f'{{"a": {"[" * depth}{"]" * depth}}}'


def sized(size: int) -> str:
    """An object of so many bytes."""
    return json.dumps({"a": "x" * (size - len('{"a": ""}'))})


async def test_every_document_is_bounded_in_size_and_depth_as_the_worker_bounds_it(crowd: Crowd) -> None:
    db = crowd.world.db
    await db.execute("alter table ops.run_events disable trigger keep_run_events")
    columns = await db.fetch(
        """select table_name, column_name from information_schema.columns
           where table_schema = 'ops' and data_type = 'jsonb'"""
    )
    assert len(columns) == 8
    for table, column in columns:
        update = f"update ops.{table} set {column} = $1"
        for document in (nested(MAX_DEPTH), sized(MAX_TEXT)):
            await db.execute(update, document)
        deep, big = "32_deep", "256_kib"
        for document, bound in ((nested(MAX_DEPTH + 1), deep), (nested(5000), deep), (sized(MAX_TEXT + 1), big)):
            with pytest.raises(asyncpg.CheckViolationError) as refused:
                await db.execute(update, document)
            assert refused.value.constraint_name == f"{table}_{column}_at_most_{bound}"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("projects", "name", "x" * 201), ("projects", "slug", "x" * 101), ("projects", "workspace_key", "x" * 101),
        ("workflows", "name", "x" * 201), ("workflows", "git_ref", "--upload-pack=x"),
        ("workflows", "git_ref", "x" * 256), ("workflows", "git_commit", "-x"), ("workflows", "git_commit", "a" * 65),
        ("tools", "docker_image", ""), ("tools", "docker_image", "a b"), ("tools", "docker_image", "x" * 513),
        ("tools", "tool_name", "x" * 201), ("tools", "version", "1" * 101),
        ("runs", "idempotency_key", "x" * 301), ("runs", "claimed_by", "x" * 201),
        ("runs", "error_message", "x" * 10_001), ("runs", "container_id", "x" * 201),
        ("run_artifacts", "artifact_url", "x" * 8193), ("run_artifacts", "content_type", "x" * 256),
        ("runs", "labels", ["x"] * (MAX_LABELS + 1)), ("runs", "labels", ["x" * (MAX_LABEL + 1)]),
        ("runs", "labels", ["\n".join(["x" * 90] * 23)]),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
async def test_every_text_is_bounded(crowd: Crowd, table: str, column: str, value: object) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await crowd.world.db.execute(f"update ops.{table} set {column} = $1", value)


async def test_a_run_may_have_the_labels_that_the_worker_lets_a_workflow_have(crowd: Crowd) -> None:
    await crowd.world.db.execute("update ops.runs set labels = $1", ["x" * MAX_LABEL] * MAX_LABELS)


async def test_a_workflow_cannot_give_its_runs_more_labels_than_that(world: World) -> None:
    workflow = await new_workflow(world.db, world.project, "w", {"labels": [f"l{n}" for n in range(20_000)]})
    with pytest.raises(asyncpg.CheckViolationError, match="labels: expected at most 20 entries"):
        await world.queue(workflow_id=workflow)


@pytest.mark.parametrize(
    ("services", "message"),
    [({}, "services: expected a list"), ([{}] * (MAX_SERVICES + 1), f"at most {MAX_SERVICES} entries")],
)
async def test_a_run_with_services_of_another_form_is_not_queued(world: World, services: object, message: str) -> None:
    workflow = await new_workflow(world.db, world.project, "w", {"services": services})
    with pytest.raises(asyncpg.CheckViolationError, match=message):
        await world.queue(workflow_id=workflow)


async def test_the_default_lease_is_the_worker_s(world: World) -> None:
    default = Settings.model_fields["lease"].default
    rows = await world.db.fetch(
        """select proname, substring(pg_get_function_arguments(oid), 'p_lease_seconds integer DEFAULT (\\d+)')::int
           from pg_proc where pronamespace = 'ops'::regnamespace and 'p_lease_seconds' = any (proargnames)"""
    )
    functions = {"claim_next_run": default, "heartbeat": default, "adopt_run": default}
    assert dict(map(tuple, rows)) == functions | {"register_worker": 60}
    run = await world.queue()
    await world.set_status(run, "claimed")
    assert await world.db.fetchval("select lease_seconds from ops_private.leases") == default


async def test_a_huge_git_ref_is_refused_by_its_length(world: World) -> None:
    await world.db.execute("set statement_timeout = '5s'")
    assert not await world.db.fetchval("select ops_private.is_git_ref(repeat('a', 20000000))")
