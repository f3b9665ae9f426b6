"""Containers beside a run, on a real engine: who reaches them, what they may do, and how they end a run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker import FINAL, WAITS, Plane, base_image, docker, until
from worker.engine.networks import NO_NAME_SERVER
from worker.run.services import service_container

SERVER = """\
import os, socket
server = socket.create_server(("", 5432))
print("listening", flush=True)
while True:
    with server.accept()[0] as caller:
        caller.sendall(os.environ.get("GREETING", "hello").encode())
"""
ASKS = """\
import socket
def ask(host, port=5432):
    try:
        with socket.create_connection((host, port), 3) as server:
            return server.recv(99).decode()
    except OSError:
        return "nothing"
"""
CHECK = ["python3", "-c", 'import socket; socket.create_connection(("127.0.0.1", 5432), 1).close()']


def server(image: str, name: str = "db", **more: Any) -> dict[str, Any]:
    """A service that greets who connects; it is healthy when it listens."""
    health = {"command": CHECK, "interval_seconds": 0.2, "retries": 100}
    return {"name": name, "image": image, "command": ["python3", "-c", SERVER], "health": health, **more}


def script(text: str, image: str, **more: Any) -> dict[str, Any]:
    """A service ``db`` that executes a shell script."""
    return {"name": "db", "image": image, "command": ["sh", "-c", text], **more}


def networks(plane: Plane) -> list[str]:
    """The networks of the runs of that database."""
    return docker("network", "ls", "-q", "--filter", f"label=ops-worker.database-id={plane.identity}").split()


def facts_of(plane: Plane, run_id: uuid.UUID, service: str) -> dict[str, Any]:
    [facts] = json.loads(docker("inspect", service_container(plane.container(run_id), service)))
    return dict(facts)


@pytest.mark.parametrize("network", ["bridge", "none"])
async def test_a_run_reaches_its_services_by_name_and_they_reach_each_other(
    served: Plane, image: str, network: str
) -> None:
    asks = ASKS + "import sys; print(ask('db'), ask('cache'), flush=True)"
    relay = {**server(image, "cache"), "command": ["python3", "-c", ASKS + SERVER.replace(
        'os.environ.get("GREETING", "hello")', "('db says ' + ask('db'))")]}  # fmt: skip
    run_id = await served.python(
        f"{asks}\nprint(ask('outside.example', 80))",
        network=network, services=[server(image, env={"GREETING": "hi"}), relay],
    )  # fmt: skip
    assert (await served.until(run_id, *FINAL))["status"] == "succeeded"
    assert await served.messages(run_id) == ["hi db says hi", "nothing"]
    await served.until_containers(0)
    await until(lambda: not networks(served))


async def test_a_service_has_the_protections_and_limits_of_a_run(served: Plane, image: str) -> None:
    service = server(
        image, resources={"memory": "32m", "cpus": 0.5, "pids": 50, "nofile": 128}, user="65534:65534", read_only=True,
        tmpfs=[{"path": "/var/lib/data", "size": "1m"}],
    )  # fmt: skip
    run_id = await served.shell(WAITS, network="none", services=[service])
    await served.until_logged(run_id, "up")
    facts, own = facts_of(served, run_id, "db"), json.loads(docker("inspect", served.container(run_id)))[0]
    container, [network] = facts["Id"], json.loads(docker("network", "inspect", served.container(run_id)))
    assert (network["Internal"], network["Labels"]["ops-worker.run-id"]) == (True, str(run_id))
    write = "touch /x; echo x > /var/lib/data/x && head -c 2000000 /dev/zero > /var/lib/data/y; id -u"
    seen = docker("exec", container, "sh", "-c", f"{write}; grep CapEff /proc/self/status", check=False).split()
    await served.release(run_id)
    host = facts["HostConfig"]
    for name in ("CapDrop", "SecurityOpt", "Privileged", "Init", "OomScoreAdj", "Binds", "RestartPolicy", "Dns"):
        assert host[name] == own["HostConfig"][name], name
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert host["Dns"] == [NO_NAME_SERVER]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (
        500_000_000, 32 * 2**20, 32 * 2**20, 50,
    )  # fmt: skip
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {"nofile": 128, "core": 0}
    assert host["LogConfig"]["Config"]["max-size"] == "1m"
    assert not host["PortBindings"]
    assert host["PublishAllPorts"] is False
    assert (facts["Mounts"], host["ReadonlyRootfs"]) == ([], True)
    assert seen == ["65534", "CapEff:", "0" * 16]
    assert (await served.until(run_id, *FINAL))["status"] == "succeeded"


async def test_a_service_reads_its_secrets_and_the_run_does_not(served: Plane, image: str) -> None:
    (served.folder / "secrets" / "db-password").write_text("correct-horse")
    reads = "cat /run/secrets/db-password; stat -c ' %a' /run/secrets/db-password; exit 3"
    run_id = await served.shell("sleep 60", services=[script(reads, image, secrets=["db-password"])])
    run = await served.until(run_id, *FINAL)
    assert (run["status"], run["reason"]) == ("failed", "service_failed")
    assert run["error_message"] == "service 'db' ended with exit code 3"
    [error] = await served.events(run_id, "error")
    assert (error["payload"]["service"], error["payload"]["service_log"]) == ("db", ["*** 400"])
    alone = await served.shell("ls /run/secrets 2>&1 | tail -n 1", services=[server(image, secrets=["db-password"])])
    await served.until(alone, *FINAL)
    assert "No such file" in (await served.messages(alone))[0]


async def test_a_service_that_dies_beside_the_run_stops_it(served: Plane, image: str) -> None:
    dies = "while [ ! -e /tmp/go ]; do sleep 0.05; done; seq 100; exit 7"
    run_id = await served.shell(
        "trap 'echo asked; exit 0' TERM; echo up; sleep 600 & wait", services=[script(dies, image)]
    )
    await served.until_logged(run_id, "up")
    served.release_container(service_container(served.container(run_id), "db"))
    run = await served.until(run_id, *FINAL)
    assert (run["status"], run["reason"]) == ("failed", "service_failed")
    assert run["error_message"] == "service 'db' ended with exit code 7"
    [error] = await served.events(run_id, "error")
    assert error["payload"]["service_log"] == [str(n) for n in range(51, 101)]
    assert await served.messages(run_id) == ["up", "asked"], "the log has nothing of the service"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"health": {"command": ["false"], "interval_seconds": 0.1, "retries": 2}},
         "service 'db' is unhealthy: its health check failed too often"),
        ({"health": {"command": ["sleep", "60"], "interval_seconds": 0.1, "retries": 1000}},
         "service 'db' was not healthy within 2 s (timeout_seconds)"),
        ({"command": ["python3", "-c", "b = bytearray(1 << 29)"]},
         "service 'db' was out of memory: a process was killed at the limit of 256m; raise its resources.memory"),
    ],
)  # fmt: skip
async def test_a_run_does_not_start_without_healthy_services(
    served: Plane, image: str, more: dict[str, Any], message: str
) -> None:
    service = script("sleep 600", image, **more)
    health = more.get("health", {"command": ["false"], "interval_seconds": 60})
    seconds = 2 if "timeout_seconds" in message else 60
    run_id = await served.shell("echo ran", timeout_seconds=seconds, services=[service | {"health": health}])
    run = await served.until(run_id, *FINAL)
    assert (run["reason"], run["error_message"]) == ("service_failed", message)
    assert await served.messages(run_id) == []


@pytest.fixture(scope="module")
def checked_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that listens 1 s after its start, and has a health check of its own."""
    folder, tag = tmp_path_factory.mktemp("checked"), f"ops-worker-tests/checked:{uuid.uuid4().hex[:12]}"
    (folder / "server").write_text(f"import time; time.sleep(1)\n{SERVER}")
    lines = ["ARG BASE", "FROM ${BASE}", "COPY server /server", 'CMD ["python3", "/server"]']
    lines.append(f"HEALTHCHECK --interval=200ms --retries=100 CMD {json.dumps(CHECK)}")
    (folder / "Dockerfile").write_text("\n".join(lines))
    base = base_image("python3-minimal")
    docker("build", "--network", "none", "--build-arg", f"BASE={base}", "--tag", tag, str(folder))
    yield tag
    docker("rmi", "--force", tag)


async def test_a_tool_s_image_and_its_own_health_check_are_used(served: Plane, checked_image: str) -> None:
    version = await served.tool(checked_image)
    service = {"name": "db", "tool": "odoo", "version": version}
    run_id = await served.python(ASKS + "print(ask('db'))", services=[service])
    await served.until(run_id, *FINAL)
    assert await served.messages(run_id) == ["hello"]
    [created] = [event for event in await served.events(run_id, "info") if event["message"] == "container created"]
    identity = docker("image", "inspect", "--format", "{{.Id}}", checked_image).strip()
    assert created["payload"]["services"]["db"]["image_id"] == identity


async def test_a_cancel_ends_the_wait_for_services_and_leaves_nothing(served: Plane, image: str) -> None:
    never = script("sleep 600", image, health={"command": ["false"], "interval_seconds": 0.5, "retries": 1000})
    run_id = await served.shell("echo ran", services=[never])
    await served.until_containers(2)
    await served.cancel(run_id)
    assert (await served.until(run_id, *FINAL))["reason"] == "canceled"
    await served.until_containers(0)
    await until(lambda: not networks(served))


async def test_what_services_write_counts_as_the_run_s(served: Plane, image: str, tmp_path: Path) -> None:
    fills = script("head -c 300000000 /dev/zero > /var/tmp/x; sleep 600", image)
    run_id = await served.shell("sleep 600", services=[fills], resources={"disk": "100m"})
    run = await served.until(run_id, *FINAL)
    assert run["reason"] == "disk_limit"
