"""The image of a run: the credentials of its pull, its id, and its record."""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing

import pytest
from docker import APIClient

from tests.support.archives import entry, tar
from tests.support.docker import FINAL, Plane, docker
from tests.support.registry import INIT, Registry, client_config, registry_with_images_removed
from tests.unit.claims import make_claim
from worker.engine.create import MAX_PASSWD
from worker.engine.engine import Engine
from worker.errors import EngineError
from worker.model.container import Image, Secret
from worker.model.spec import HostPolicy, RunSpec, resolve
from worker.tar import END_MARK

PASSWORD = "-".join(["only", "in", "config.json"])


@pytest.fixture
def registry() -> Iterator[Registry]:
    with registry_with_images_removed(PASSWORD) as started:
        yield started


async def use(plane: Plane, image: str) -> uuid.UUID:
    """Queues a run of an image without a program."""
    return await plane.queue(await plane.workflow({"command": INIT, "version": await plane.tool(image)}))


async def stored(plane: Plane) -> str:
    """Every row of both schemas."""
    tables = await plane.db.fetch(
        "select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname like 'ops%'"
    )
    found = [await plane.db.fetchval(f"select jsonb_agg(t)::text from {table['name']} as t") for table in tables]
    return "\n".join(filter(None, found))


async def test_a_private_image_is_pulled_with_the_client_s_credentials_and_shows_none(
    plane: Plane, registry: Registry
) -> None:
    digest = registry.push("team/private", "1")
    image = f"{registry.address}/team/private:1"
    run_id = await use(plane, image)
    config = client_config(plane.folder / "docker", registry, PASSWORD)
    worker = await plane.work("--allowed-images", f"{registry.address}/team/*", DOCKER_CONFIG=config)
    run = await plane.run(run_id)
    assert (run["status"], run["error_message"]) == ("succeeded", None)
    [created] = [e["payload"] for e in await plane.events(run_id, "info") if e["message"] == "container created"]
    assert (created["image"], created["digest"]) == (image, f"{registry.address}/team/private@{digest}")
    assert registry.served
    [facts] = json.loads(docker("image", "inspect", image))
    assert facts["Id"] == created["image_id"]
    login = base64.b64encode(f"{registry.user}:{PASSWORD}".encode()).decode()
    for place in (await stored(plane), worker.output.read_text(), json.dumps(facts)):
        assert PASSWORD not in place
        assert login not in place


async def test_without_the_right_credentials_the_image_is_missing(plane: Plane, registry: Registry) -> None:
    registry.push("team/private", "1")
    run_id = await use(plane, f"{registry.address}/team/private:1")
    config = client_config(plane.folder / "docker", registry, f"wrong-{PASSWORD}")
    worker = await plane.work(DOCKER_CONFIG=config)
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "image_missing")
    assert "could not be pulled" in run["error_message"]
    assert registry.refused
    assert not [path for path in registry.served if "manifests" in path]
    assert PASSWORD not in await stored(plane) + worker.output.read_text()


async def test_an_image_by_digest_is_exactly_that(plane: Plane, registry: Registry) -> None:
    wanted = registry.push("team/private", "1", note="wanted")
    registry.push("team/private", "1", note="the tag moved on")
    image = f"{registry.address}/team/private@{wanted}"
    run_id = await use(plane, f"{registry.address}/team/private:1@{wanted}")
    config = client_config(plane.folder / "docker", registry, PASSWORD)
    await plane.work("--allowed-images", image, DOCKER_CONFIG=config)
    assert (await plane.run(run_id))["status"] == "succeeded"
    [created] = [e["payload"] for e in await plane.events(run_id, "info") if e["message"] == "container created"]
    assert (created["image"], created["digest"]) == (image, image)


async def test_no_spelling_of_an_image_bypasses_the_allow_list(plane: Plane, served: Plane) -> None:
    identity = docker("image", "inspect", "-f", "{{.Id}}", plane.image).strip().removeprefix("sha256:")
    spellings = (identity, identity[:12], f"sha256:{identity}", "evil.example/ops-worker/base:x")
    refused = [await use(plane, spelling) for spelling in spellings]
    by_id = await use(served, identity[:12])
    await plane.work("--allowed-images", "ops-worker/*", "--concurrency", "4")
    for run_id in refused:
        assert (await plane.run(run_id))["reason"] == "image_not_allowed"
    run = await served.until(by_id, *FINAL)
    assert run["reason"] == "image_missing", "an id is no name even where all names are allowed"
    assert f"docker.io/library/{identity[:12]}:latest" in run["error_message"]


Creating = Callable[..., AbstractAsyncContextManager[tuple[Engine, str, RunSpec]]]


@pytest.fixture
def creating() -> Creating:
    """An engine of ours, the name of a container that is removed at the end, and the specification of its run."""

    @asynccontextmanager
    async def started(image: str, *images: str, **config: object) -> AsyncIterator[tuple[Engine, str, RunSpec]]:
        tool = {"tool_name": "t", "version": "1", "docker_image": image, "config": config}
        engine, container = Engine(None, streams=1), f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
        try:
            yield engine, container, resolve(make_claim(tool=tool), HostPolicy())
        finally:
            await engine.container(container).remove()
            engine.close()
            if images:
                docker("rmi", "-f", *images)

    return started


async def found(engine: Engine, spec: RunSpec) -> Image:
    image = await engine.image(spec.image)
    assert image is not None
    return image


async def test_a_tag_that_moves_after_it_was_resolved_changes_nothing(creating: Creating) -> None:
    name = f"ops-worker-tests/moved:{uuid.uuid4().hex[:12]}"
    first, second = imported(name, "first"), imported(f"{name}-2", "second")
    async with creating(name, first, second) as (engine, container, spec):
        image = await found(engine, spec)
        docker("tag", f"{name}-2", name)
        await engine.create(container, image, spec, {})
        assert docker("inspect", "-f", "{{.Image}}", container).strip() == first == image.image_id
        again = await found(engine, spec)
        assert again.image_id == second
        await engine.create(container, again, spec, {})  # the one that never ran is made again
        assert docker("inspect", "-f", "{{.Image}}", container).strip() == second


async def test_a_container_that_has_run_is_not_replaced(creating: Creating, image: str) -> None:
    async with creating(image, command=["true"]) as (engine, container, spec):
        first = await engine.create(container, await found(engine, spec), spec, {})
        await first.start()
        docker("wait", container)
        again = await engine.create(container, await found(engine, spec), spec, {})
        assert again.ref == first.ref
        assert docker("inspect", "-f", "{{.Id}}", container).strip() == first.ref


async def test_a_huge_passwd_of_an_image_is_not_read(creating: Creating) -> None:
    image = imported("ops-worker-tests/passwd", "huge", tar(entry("etc/passwd", content=bytes(MAX_PASSWD + 1))))
    async with creating("ops-worker-tests/passwd", image, user="named") as (engine, container, spec):
        with pytest.raises(EngineError, match="/etc/passwd is no plain file of at most 1 MiB"):
            await engine.create(container, await found(engine, spec), spec, {}, [Secret("token", b"hunter22")])


async def test_a_nul_in_the_configuration_of_an_image_fails_its_run(served: Plane) -> None:
    repository = "ops-worker-tests/nul"
    base = imported(f"{repository}:base", "base")
    images = [base]
    try:
        with closing(APIClient(version="auto")) as client:
            container = client.create_container(base, command=["none"])["Id"]
            for config in ({"User": "a\0b"}, {"WorkingDir": "/a\0b"}):
                images.append(f"{repository}:{uuid.uuid4().hex[:12]}")
                client.commit(container, repository, images[-1].rpartition(":")[2], conf={"Cmd": ["none"], **config})
            client.remove_container(container)
        for name in images[1:]:
            run = await served.until(await use(served, name), *FINAL)
            assert (run["status"], run["reason"]) == ("failed", "engine_error")
            assert "a\ufffdb" in run["error_message"]
    finally:
        docker("rmi", "-f", *reversed(images))  # the base of the others last


def imported(name: str, note: str, root: bytes = END_MARK) -> str:
    """A new image with these files only; returns its id."""
    command = ["docker", "import", "--change", f"LABEL note={note}", "--change", 'CMD ["none"]', "-", name]
    return subprocess.run(command, input=root, check=True, capture_output=True).stdout.decode().strip()
