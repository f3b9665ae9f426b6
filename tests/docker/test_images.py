"""Which image a run gets: pulled with whose credentials, made of which id, and what is recorded of it."""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from docker import APIClient

from tests.support.archives import entry, tar
from tests.support.docker import Plane, docker
from tests.support.registry import Registry, client_config, serving
from tests.unit.claims import make_claim
from worker.engine.create import MAX_PASSWD
from worker.engine.engine import Engine
from worker.errors import EngineError
from worker.model.container import Secret
from worker.model.spec import HostPolicy, resolve
from worker.tar import END_MARK

PASSWORD = "-".join(["only", "in", "config.json"])
# The image has no program; the init that the engine brings is one, and static.
INIT = ["/sbin/docker-init", "--version"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving(Registry("builder", PASSWORD)) as started:
        yield started
        images = docker("images", "-q", "--filter", f"reference={started.address}/*/*").split()
        if images:
            docker("rmi", "-f", *images)


async def use(plane: Plane, image: str) -> uuid.UUID:
    """Queues a run of an image without a program."""
    await plane.db.execute("update ops.tools set docker_image = $1", image)
    return await plane.queue(await plane.workflow({"command": INIT}))


async def stored(plane: Plane) -> str:
    """Every row of both schemas."""
    tables = await plane.db.fetch(
        "select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname like 'ops%'"
    )
    found = [await plane.db.fetchval(f"select jsonb_agg(t)::text from {table['name']} as t") for table in tables]
    return "\n".join(filter(None, found))


async def test_a_private_image_is_pulled_with_the_client_s_credentials_which_show_nowhere(
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


@pytest.mark.parametrize("password", ["wrong-" + PASSWORD, None])
async def test_without_the_right_credentials_the_image_is_missing(
    plane: Plane, registry: Registry, password: str | None
) -> None:
    registry.push("team/private", "1")
    run_id = await use(plane, f"{registry.address}/team/private:1")
    folder = plane.folder / "docker"
    config = client_config(folder, registry, password) if password else str(folder)
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


@pytest.mark.parametrize("spelling", ["{id}", "{short}", "sha256:{id}", "evil.example/ops-worker/base:x"])
async def test_no_spelling_gets_around_the_allow_list(plane: Plane, spelling: str) -> None:
    identity = docker("image", "inspect", "-f", "{{.Id}}", plane.image).strip().removeprefix("sha256:")
    run_id = await use(plane, spelling.format(id=identity, short=identity[:12]))
    await plane.work("--allowed-images", "ops-worker/*")
    assert (await plane.run(run_id))["reason"] == "image_not_allowed"


async def test_the_id_of_a_local_image_is_no_name_even_where_all_are_allowed(plane: Plane) -> None:
    identity = docker("image", "inspect", "-f", "{{.Id}}", plane.image).strip().removeprefix("sha256:")
    run_id = await use(plane, identity[:12])
    await plane.work()
    run = await plane.run(run_id)
    assert run["reason"] == "image_missing"
    assert f"docker.io/library/{identity[:12]}:latest" in run["error_message"]


async def test_a_tag_that_moves_after_it_was_resolved_changes_nothing() -> None:
    name = f"ops-worker-tests/moved:{uuid.uuid4().hex[:12]}"
    first, second = imported(name, "first"), imported(f"{name}-2", "second")
    tool = {"tool_name": "t", "version": "1", "docker_image": name, "config": {}}
    spec = resolve(make_claim(tool=tool), HostPolicy())
    engine, container = Engine(None, streams=1), f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
    try:
        image = await engine.image(spec.image)
        assert image is not None
        docker("tag", f"{name}-2", name)
        await engine.create(container, image, spec, {})
        assert docker("inspect", "-f", "{{.Image}}", container).strip() == first == image.image_id
        again = await engine.image(spec.image)
        assert again is not None
        assert again.image_id == second
        await engine.create(container, again, spec, {})  # the one that never ran is made again
        assert docker("inspect", "-f", "{{.Image}}", container).strip() == second
    finally:
        await engine.container(container).remove()
        engine.close()
        docker("rmi", "-f", first, second)


async def test_a_container_that_has_run_is_not_replaced(image: str) -> None:
    tool = {"tool_name": "t", "version": "1", "docker_image": image, "config": {"command": ["true"]}}
    spec = resolve(make_claim(tool=tool), HostPolicy())
    engine, container = Engine(None, streams=1), f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
    found = await engine.image(spec.image)
    assert found is not None
    try:
        first = await engine.create(container, found, spec, {})
        await first.start()
        docker("wait", container)
        again = await engine.create(container, found, spec, {})
        assert again.ref == first.ref
        assert docker("inspect", "-f", "{{.Id}}", container).strip() == first.ref
    finally:
        await engine.container(container).remove()
        engine.close()


@pytest.mark.parametrize("config", [{"User": "a\0b"}, {"WorkingDir": "/a\0b"}], ids=str)
async def test_a_nul_in_the_configuration_of_an_image_fails_its_run(plane: Plane, config: dict[str, str]) -> None:
    repository, tag = "ops-worker-tests/nul", uuid.uuid4().hex[:12]
    name = f"{repository}:{tag}"
    base = imported(name, "base")
    with closing(APIClient(version="auto")) as client:
        container = client.create_container(base, command=["none"])["Id"]
        client.commit(container, repository, tag, conf={"Cmd": ["none"], **config})
        client.remove_container(container)
    try:
        run_id = await use(plane, name)
        await plane.work()
    finally:
        docker("rmi", "-f", name, base)
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "engine_error")
    assert "a\ufffdb" in run["error_message"]


async def test_a_huge_passwd_of_an_image_is_not_read() -> None:
    image = imported("ops-worker-tests/passwd", "huge", tar(entry("etc/passwd", content=bytes(MAX_PASSWD + 1))))
    tool = {"tool_name": "t", "version": "1", "docker_image": "ops-worker-tests/passwd", "config": {"user": "named"}}
    spec = resolve(make_claim(tool=tool), HostPolicy())
    engine, container = Engine(None, streams=1), f"ops-worker-tests-{uuid.uuid4().hex[:12]}"
    found = await engine.image(spec.image)
    assert found is not None
    try:
        with pytest.raises(EngineError, match="/etc/passwd is no plain file of at most 1 MiB"):
            await engine.create(container, found, spec, {}, [Secret("token", b"hunter22")])
    finally:
        await engine.container(container).remove()
        engine.close()
        docker("rmi", "-f", image)


def imported(name: str, note: str, root: bytes = END_MARK) -> str:
    """A new image with these files only; returns its id."""
    command = ["docker", "import", "--change", f"LABEL note={note}", "--change", 'CMD ["none"]', "-", name]
    return subprocess.run(command, input=root, check=True, capture_output=True).stdout.decode().strip()
