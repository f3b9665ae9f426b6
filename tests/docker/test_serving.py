"""Served runs on a real engine: ready, reached at their URL, ended, adopted; and the network of a project."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import asyncpg
import pytest

from tests.docker.test_volumes import prune
from tests.support.docker import FINAL, UNTIL_RELEASED, Plane, docker, new_tenant, until
from worker.model.container import ProjectNetwork

SERVER = """\
import os, socket
server = socket.create_server(("", 8069))
print("listening", flush=True)
while not os.path.exists("/tmp/end"):
    with server.accept()[0] as caller:
        request = caller.recv(4096).split()
        if not request:  # the client has gone
            continue
        path = request[1].decode()
        if path == "/stop":
            raise SystemExit(int(os.environ.get("CODE", "0")))
        status = os.environ.get("STATUS", "302 Found") if os.path.exists("/tmp/go") else "503 Starting"
        status = status if path == "/up" else "200 OK"
        caller.sendall(f"HTTP/1.1 {status}\\r\\nLocation: /x\\r\\nContent-Length: 5\\r\\n\\r\\nhello".encode())
"""
READY_SERVER = f"open('/tmp/go', 'w')\n{SERVER}"
SERVE: dict[str, Any] = {"port": 8069, "health": {"path": "/up", "interval_seconds": 0.1}}


async def queued(plane: Plane, *, goes: bool = True, serve: dict[str, Any] | None = None, **config: Any) -> uuid.UUID:
    """A served run; its health path answers well from the beginning, or once it is released."""
    return await plane.python(READY_SERVER if goes else SERVER, serve=SERVE | (serve or {}), **config)


async def ready(plane: Plane, run_id: uuid.UUID) -> str:
    """Waits until the run is ready, and returns its URL."""

    async def look() -> asyncpg.Record | None:
        run = await plane.run(run_id)
        assert run["status"] not in FINAL, run["error_message"]
        return run if run["ready_at"] is not None else None

    return str((await until(look))["url"])


async def fetched(url: str) -> str:
    """What an HTTP client gets there; "nothing" if none can connect."""

    def fetch() -> str:
        try:
            with urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return "nothing"

    return await asyncio.to_thread(fetch)


async def test_a_served_run_is_ready_when_it_answers_and_is_reached_until_its_cancel(served: Plane) -> None:
    run_id = await queued(served, goes=False)
    await served.until_logged(run_id, "listening")
    assert (await served.run(run_id))["ready_at"] is None
    await served.release(run_id)
    url = await ready(served, run_id)
    assert url.startswith("http://127.0.0.1:")
    assert await fetched(url) == "hello"
    [event] = [each for each in await served.events(run_id, "info") if each["message"] == "ready"]
    assert event["payload"] == {"url": url}
    [facts] = json.loads(docker("inspect", served.container(run_id)))
    assert list(facts["HostConfig"]["PortBindings"]) == ["8069/tcp"]
    assert facts["HostConfig"]["PublishAllPorts"] is False
    assert [name for name in facts["Config"]["Labels"] if "traefik" in name or "caddy" in name] == []
    await served.cancel(run_id)
    run = await served.until(run_id, *FINAL)
    assert (run["status"], run["reason"], run["url"]) == ("canceled", "canceled", url)
    await served.until_containers(0)
    assert await fetched(url) == "nothing"


@pytest.mark.parametrize(
    ("config", "ends", "status", "reason"),
    [
        ({"serve": {"ttl_seconds": 5}, "timeout_seconds": 1}, "", "succeeded", "ttl"),
        ({}, "/stop", "failed", "serve_ended"),
        ({"env": {"CODE": "3"}}, "/stop", "failed", "exit_code"),
    ],
)
async def test_a_served_run_ends_by_its_time_or_by_dying(
    served: Plane, config: dict[str, Any], ends: str, status: str, reason: str
) -> None:
    run_id = await queued(served, **config)
    url = await ready(served, run_id)
    if ends:
        await fetched(url + ends)
    run = await served.until(run_id, *FINAL)
    assert (run["status"], run["reason"]) == (status, reason)


@pytest.mark.parametrize("environ", [{"STATUS": "404 Not Found"}, {"STATUS": "2000 OK"}])
async def test_a_served_run_that_does_not_answer_well_in_time_fails_with_its_last_lines(
    served: Plane, environ: dict[str, str]
) -> None:
    run_id = await queued(served, env=environ, serve={"ready_timeout_seconds": 8})  # on a busy machine Python takes 3
    run = await served.until(run_id, *FINAL)
    assert (run["status"], run["reason"], run["ready_at"]) == ("failed", "not_ready", None)
    [error] = await served.events(run_id, "error")
    assert error["payload"]["log"] == ["listening"]


async def test_a_restart_of_the_worker_interrupts_no_served_run_and_waits_for_none(plane: Plane) -> None:
    run_id = await queued(plane)
    flags = ("--concurrency", "1", "--max-served", "1", "--serve-url", "http://{slug}-{ref}.example:81")
    async with plane.worker(*flags) as first:
        assert await ready(plane, run_id) == f"http://{plane.name}-head.example:81"
        [facts] = json.loads(docker("inspect", plane.container(run_id)))
        labels = facts["Config"]["Labels"]
        assert labels[f"traefik.http.routers.{plane.container(run_id)}.rule"] == f"Host(`{plane.name}-head.example`)"
        waiting, ordinary = await queued(plane), await plane.shell("echo hello")
        assert (await plane.until(ordinary, *FINAL))["status"] == "succeeded", "a served run takes no slot of others"
        assert (await plane.run(waiting))["status"] == "queued", "one is served already"
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0, "it leaves the run to the next worker"
    await plane.cancel(waiting)
    for number in (signal.SIGKILL, None):
        async with plane.worker("--concurrency", "1") as next_one:  # the terms of the run are those of its start
            await next_one.until_said("run adopted")
            [port] = facts["NetworkSettings"]["Ports"]["8069/tcp"]
            assert await fetched(f"http://127.0.0.1:{port['HostPort']}") == "hello"
            assert (await plane.run(run_id))["status"] == "running"
            if number is None:
                await plane.cancel(run_id)
                await plane.until(run_id, *FINAL)
                await plane.until_containers(0)
            else:
                next_one.signal(number)
                await next_one.wait()
    assert (await plane.run(run_id))["status"] == "canceled"
    assert [event["message"] for event in await plane.events(run_id, "info")].count("ready") == 1


async def test_the_log_of_a_served_run_is_bounded_on_the_engine_and_goes_on_after_an_adoption(plane: Plane) -> None:
    prints = """\
import os, time
for n in range(40_000):
    print(f'line {n:06} ' + 'x' * 80, flush=n == 0)
    while n == 0 and not os.path.exists('/tmp/more'):
        time.sleep(0.1)
print('all', flush=True)
"""
    flags = ("--max-log", "64k")
    run_id = await plane.python(f"{prints}\n{READY_SERVER}", serve=SERVE, resources={"output": "1m"})
    async with plane.worker(*flags) as first:
        await plane.until_logged(run_id, f"line {0:06} {'x' * 80}")
        docker("exec", plane.container(run_id), "touch", "/tmp/more")  # noqa: S108 - inside it
        await ready(plane, run_id)
        await until(lambda: "listening" in docker("logs", "--tail", "1", plane.container(run_id)))
        first.signal(signal.SIGKILL)
        await first.wait()
    kept = docker("logs", plane.container(run_id)).splitlines()
    assert 1_000 < len(kept) < 20_000, "the engine dropped the oldest lines"
    stored = len(await plane.log(run_id))
    async with plane.worker(*flags) as second:
        await second.until_said("run adopted")
        await plane.cancel(run_id)
        assert (await plane.until(run_id, *FINAL))["status"] == "canceled"
    said = [line["message"] for line in await plane.log(run_id)]
    assert said[:stored] == [f"line {n:06} {'x' * 80}" for n in range(stored)]
    assert "left out here: the engine no longer had" in said[stored]
    assert said[-2:] == ["all", "listening"]
    last = [line["seq"] for line in await plane.log(run_id)]
    assert last == sorted(set(last))


# --- the network of a project -----------------------------------------------------------------------------------------

ASKS = """\
import socket, sys, time
def ask(host, port=8069):
    # twice: while the engine makes a network for another test, its rule between bridges has a gap (SECURITY.md)
    first = answer(host, port)
    time.sleep(0.5)
    return first if first == "nothing" else answer(host, port)
def answer(host, port):
    try:
        with socket.create_connection((host, port), 3) as server:
            server.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            return server.recv(999).decode().splitlines()[-1]
    except OSError:
        return "nothing"
"""


def networks(plane: Plane) -> list[str]:
    """The networks of that project on the engine, without those of its runs with services."""
    words = ("--filter", f"label=ops-worker.project-id={plane.project_id}", "--filter", "name=ops-project-")
    return docker("network", "ls", "-q", "--no-trunc", *words).split()


async def test_runs_of_one_project_reach_each_other_by_name_and_those_of_others_do_not(
    served: Plane, serving: Plane, image: str
) -> None:
    db = {"name": "db", "image": image, "command": ["python3", "-c", SERVER]}
    workflow = {"command": ["python3", "-c", READY_SERVER], "network": "project"}
    workflow_id = await served.workflow(workflow | {"serve": SERVE, "services": [db]}, name="Preview 1")
    run_id = await served.queue(workflow_id)
    await ready(served, run_id)
    names = ["run-1.project", "preview-1.project", "db.run-1.project"]
    [facts] = json.loads(docker("inspect", served.container(run_id)))
    networks_of_it = facts["NetworkSettings"]["Networks"]
    addresses = [each["IPAddress"] for each in networks_of_it.values()]
    assert len(addresses) == 2
    shared = networks_of_it[ProjectNetwork(served.identity, served.project_id).name]["IPAddress"]
    asks = f"{ASKS}\nfor each in {[*names, 'db', *addresses]}: print(ask(each))"
    inside = await served.python(asks, network="project")
    await served.until(inside, *FINAL)
    expected = ["hello" if address == shared else "nothing" for address in addresses]
    assert await served.messages(inside) == ["hello", "hello", "hello", "nothing", *expected], "db is that run's own"
    other = await new_tenant(serving, served.db)
    for plane, where in ((served, "bridge"), (other, "project"), (other, "bridge")):
        outside = await plane.python(asks, network=where)
        await plane.until(outside, *FINAL)
        assert await plane.messages(outside) == ["nothing"] * 6, (plane.name, where)
    assert len(networks(served)) == 1
    await served.cancel(run_id)
    await served.until(run_id, *FINAL)
    await until(lambda: not networks(served) + networks(other))


async def test_a_run_keeps_the_network_of_its_project_when_another_ends(served: Plane) -> None:
    long = await served.shell(f"echo up; {UNTIL_RELEASED}", network="project")
    await served.until_logged(long, "up")
    brief = [await served.shell("true", network="project") for _ in range(6)]
    for run_id in brief:
        assert (await served.until(run_id, *FINAL))["status"] == "succeeded"
    assert len(networks(served)) == 1
    await served.release(long)
    assert (await served.until(long, *FINAL))["status"] == "succeeded"
    await until(lambda: not networks(served))


async def test_a_worker_removes_the_networks_of_projects_that_a_killed_one_left(plane: Plane, tmp_path: Path) -> None:
    labels = [
        f"--label=ops-worker.{name}" for name in (f"database-id={plane.identity}", f"project-id={plane.project_id}")
    ]
    plane.store.mkdir()
    other = [f"--label=ops-worker.database-id={uuid.uuid4()}", labels[1]]
    foreign = docker("network", "create", *other, f"ops-project-{plane.name}").strip()
    docker("network", "create", *labels, ProjectNetwork(plane.identity, plane.project_id).name)
    try:
        async with plane.worker("--lease", "15"):
            await until(lambda: networks(plane) == [foreign])
        docker("network", "create", *labels, ProjectNetwork(plane.identity, plane.project_id).name)
        assert prune(plane).stdout.count("network") == 0, "its project is active"
        await plane.db.execute("update ops.projects set status = 'archived'")
        for flags, said in ((("--dry-run",), "would be deleted: "), ((), "deleted: "), ((), "")):
            assert prune(plane, *flags).stdout.count(f"{said}network ops-project-") == bool(said)
        assert networks(plane) == [foreign]
    finally:
        docker("network", "rm", foreign)
