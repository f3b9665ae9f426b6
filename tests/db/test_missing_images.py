"""A worker that cannot get an image leaves the runs that need it to other hosts, and the queue names the image."""

from __future__ import annotations

import json
import re
import uuid

import pytest

from tests.db.world import INSTANCE, OTHER_INSTANCE, WORKER, World, call, new_workflow, shift_clock, use

HOSTS = {WORKER: INSTANCE, "host-b": OTHER_INSTANCE}
FULL = "docker.io/library/odoo:19"


async def lacks(world: World, worker: str = WORKER, *, tool: str = "odoo:19", image: str = FULL) -> None:
    """Lets a run fail because that worker could not get the image."""
    await world.db.execute("delete from ops.tools")
    await world.db.execute(
        "insert into ops.tools (tool_name, version, docker_image) values ('odoo', '19.0', $1), ('odoo', '18.0', 'x')",
        tool,
    )
    instance = HOSTS[worker]
    run = await world.running(worker=worker, instance=instance)
    details = {"p_exit_code": None, "p_reason": "image_missing", "p_details": json.dumps({"image": image})}
    assert (await use(world.db, "complete_workflow_run", run, worker, instance, **details))["success"]


async def register(world: World) -> None:
    for worker, instance in HOSTS.items():
        await call(world.db, "register_worker", worker, instance, p_lease_seconds=900)


async def claimed_by(world: World, worker: str) -> uuid.UUID | None:
    found = (await world.claim(worker, HOSTS[worker]))["run_id"]
    return None if found is None else uuid.UUID(found)


async def test_run_is_left_to_a_host_that_may_have_its_image(world: World) -> None:
    other = await new_workflow(world.db, world.project, "other", {"version": "18.0"})
    await lacks(world)
    run, of_another_image = await world.queue(), await world.queue(workflow_id=other)
    assert await claimed_by(world, WORKER) == of_another_image
    answer = await world.claim()
    assert (answer["run_id"], answer["waiting"]) == (None, True)
    assert await claimed_by(world, "host-b") == run


async def test_queue_names_the_image_that_every_worker_lacks(world: World) -> None:
    await register(world)

    async def waits_for() -> str:
        return str(await world.db.fetchval("select waits_for from ops.list_queued_runs()"))

    await lacks(world)
    run = await world.queue()
    assert await waits_for() == "worker: the next one that is free", "host-b may have it"
    await world.db.execute("update ops.runs set scheduled_at = now() + interval '1 hour' where id = $1", run)
    await lacks(world, "host-b")
    await world.db.execute("update ops.runs set scheduled_at = null where id = $1", run)
    says = r"image: odoo:19 is missing on every worker, which try again from \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(says, await waits_for())
    assert [await claimed_by(world, worker) for worker in HOSTS] == [None, None]
    await call(world.db, "drain_worker", "host-b")
    await call(world.db, "drain_worker", WORKER)
    assert await waits_for() == "worker: each that has its labels is drained"
    await call(world.db, "drain_worker", WORKER, p_drain=False)
    await shift_clock(world.db, 61)
    assert await waits_for() == "worker: the next one that is free"
    assert await claimed_by(world, WORKER) == run


@pytest.mark.parametrize("mended", ["the worker starts again", "the tool names another image"])
async def test_worker_tries_again_at_once_when(world: World, mended: str) -> None:
    await lacks(world)
    run = await world.queue()
    assert await claimed_by(world, WORKER) is None
    if mended == "the worker starts again":
        await call(world.db, "register_worker", WORKER, INSTANCE)
    else:
        await world.db.execute("update ops.tools set docker_image = 'odoo:19.1' where version = '19.0'")
    assert await claimed_by(world, WORKER) == run


@pytest.mark.parametrize(
    ("tool", "image", "counts"),
    [
        ("odoo:19", FULL, True), ("odoo", "docker.io/library/odoo:latest", True),
        ("acme/odoo:19", "docker.io/acme/odoo:19", True), ("ghcr.io/acme/odoo:19", "ghcr.io/acme/odoo:19", True),
        ("odoo:19", "ghcr.io/acme/odoo:19", False), ("odoo:19", "docker.io/library/postgres:16", False),
    ],
)  # fmt: skip
async def test_only_the_image_of_the_tool_counts(world: World, tool: str, image: str, *, counts: bool) -> None:
    await lacks(world, tool=tool, image=image)
    run = await world.queue()
    assert await claimed_by(world, WORKER) == (None if counts else run)
