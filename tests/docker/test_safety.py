"""What a container may do when nobody configured anything."""

from __future__ import annotations

import json

import pytest

from tests.support.docker import HOST_PASSWORD, WAITS, Plane, docker


async def test_the_container_s_limits_without_any_configuration(plane: Plane) -> None:
    run_id = await plane.shell(WAITS)
    async with plane.worker("--until-idle", OPS_WORKER_DEFAULT_MEMORY="2g") as worker:
        await plane.until_logged(run_id, "up")
        [facts] = json.loads(docker("inspect", plane.container(run_id)))
        await plane.release(run_id)
        assert await worker.wait() == 0
    host = facts["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["Init"] is True, "or a program that is process 1 would not hear SIGTERM"
    assert not host["Binds"]
    assert [mount["Type"] for mount in facts["Mounts"]] == ["volume"]
    assert host["NetworkMode"] == "ops-worker"
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (2_000_000_000, 2 * 2**30, 1024)
    assert host["MemorySwap"] == host["Memory"]
    assert {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]} == {
        "nofile": (16_384, 16_384),
        "core": (0, 0),
    }
    assert host["OomScoreAdj"] == 500
    assert host["LogConfig"]["Config"]["mode"] == "blocking"
    assert host["RestartPolicy"]["Name"] in ("", "no")


async def test_root_in_the_container_has_no_capability(plane: Plane) -> None:
    run_id = await plane.shell("grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status")
    await plane.work()
    facts = dict(line.split(":\t") for line in await plane.messages(run_id))
    assert facts == {"CapPrm": "0" * 16, "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}


async def test_a_program_s_own_limits_are_those_of_its_run(plane: Plane) -> None:
    run_id = await plane.shell("ulimit -n; ulimit -c; cat /proc/self/oom_score_adj", resources={"nofile": 128})
    await plane.work()
    assert await plane.messages(run_id) == ["128", "0", "500"]


async def test_reverse_dns_tells_a_neighbour_no_run_id(plane: Plane) -> None:
    neighbour = await plane.python(
        "import socket, pathlib, time\n"
        "print(socket.gethostbyname(socket.gethostname()), flush=True)\n"
        "while not pathlib.Path('/tmp/go').exists(): time.sleep(0.1)"
    )
    async with plane.worker("--until-idle", "--concurrency", "2") as worker:
        address = await plane.until_says(neighbour)
        asker = await plane.python(f"import socket; print(*socket.gethostbyaddr('{address}'))")
        await plane.until(asker, "succeeded")
        await plane.release(neighbour)
        assert await worker.wait() == 0
    [said] = await plane.messages(asker)
    assert said.startswith("ops-run-"), "the engine's DNS answers with the name of the container"
    for secret in (neighbour, plane.identity, plane.project_id):
        assert str(secret)[:8] not in said


async def test_containers_of_two_runs_cannot_reach_each_other(plane: Plane) -> None:
    server = await plane.python(
        "import socket, pathlib, time\n"
        "s = socket.create_server(('0.0.0.0', 8000)); print(socket.gethostbyname(socket.gethostname()), flush=True)\n"
        "while not pathlib.Path('/tmp/go').exists(): time.sleep(0.1)"
    )
    async with plane.worker("--until-idle", "--concurrency", "2") as worker:
        said = await plane.until_says(server)
        client = await plane.python(
            f"import socket\ntry: socket.create_connection(('{said}', 8000), 2); print('open')\n"
            "except OSError as error: print('closed')"
        )
        await plane.until(client, "succeeded")
        await plane.release(server)
        assert await worker.wait() == 0
    assert await plane.messages(client) == ["closed"]


async def test_network_none_has_no_network(plane: Plane) -> None:
    run_id = await plane.shell("ls /sys/class/net", network="none")
    await plane.work()
    assert await plane.messages(run_id) == ["lo"]


async def test_a_read_only_root_keeps_tmp_and_artifacts(plane: Plane) -> None:
    script = "touch /x 2>/dev/null || echo refused; echo t > /tmp/t && echo a > /artifacts/a && echo written"
    run_id = await plane.shell(script, read_only=True)
    await plane.work()
    assert await plane.messages(run_id) == ["refused", "written"]
    assert list(await plane.artifacts(run_id)) == ["a"]


@pytest.mark.parametrize(("key", "asked"), [("cpus", 64.0), ("memory", "8g"), ("pids", 9999), ("nofile", 9999)])
async def test_more_than_the_host_allows_is_refused_not_cut(plane: Plane, key: str, asked: object) -> None:
    run_id = await plane.shell("true", resources={key: asked})
    await plane.work("--max-cpus", "4", "--max-memory", "4g", "--max-pids", "2000", "--max-nofile", "2000")
    run = await plane.run(run_id)
    assert (run["status"], run["reason"]) == ("failed", "invalid_config")
    assert f"resources.{key}" in run["error_message"]


async def test_no_setting_of_the_worker_is_said_with_its_password(plane: Plane) -> None:
    worker = await plane.work()
    assert HOST_PASSWORD not in worker.output.read_text()
