"""The limits of a container without any configuration."""

from __future__ import annotations

import json
from typing import Any

from tests.support.docker import FINAL, WAITS, Plane, docker

CAPABILITIES = "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status | tr '\\t' ' '"
NONE = "0" * 16
SEEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    CAPABILITIES: ({}, [f"CapPrm: {NONE}", f"CapEff: {NONE}", f"CapBnd: {NONE}", "NoNewPrivs: 1"]),
    "ulimit -n; ulimit -c; cat /proc/self/oom_score_adj": ({"resources": {"nofile": 128}}, ["128", "0", "500"]),
    "ls /sys/class/net": ({"network": "none"}, ["lo"]),
    "touch /x 2>/dev/null || echo refused; echo t > /tmp/t && echo a > /artifacts/a && echo written": (
        {"read_only": True},
        ["refused", "written"],
    ),
}


async def test_a_program_has_no_capability_and_the_limits_of_its_run(served: Plane) -> None:
    runs = {script: await served.shell(script, **config) for script, (config, _) in SEEN.items()}
    for script, (_, expected) in SEEN.items():
        await served.until(runs[script], *FINAL)
        assert await served.messages(runs[script]) == expected, script


async def test_a_run_without_configuration_has_the_default_limits(served: Plane) -> None:
    run_id = await served.shell(WAITS)
    await served.until_logged(run_id, "up")
    [facts] = json.loads(docker("inspect", served.container(run_id)))
    await served.release(run_id)
    host = facts["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["Init"] is True, "or a program that is process 1 would not hear SIGTERM"
    assert not host["Binds"]
    assert [mount["Type"] for mount in facts["Mounts"]] == ["volume"]
    assert host["NetworkMode"] == "ops-worker"
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (2_000_000_000, 256 * 2**20, 1024)
    assert host["MemorySwap"] == host["Memory"]
    assert {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]} == {
        "nofile": (16_384, 16_384),
        "core": (0, 0),
    }
    assert host["OomScoreAdj"] == 500
    assert host["LogConfig"]["Config"]["mode"] == "blocking"
    assert host["RestartPolicy"]["Name"] in ("", "no")


async def test_runs_cannot_reach_each_other_and_reverse_dns_names_no_run(served: Plane) -> None:
    neighbour = await served.python(
        "import socket, pathlib, time\n"
        "s = socket.create_server(('0.0.0.0', 8000)); print(socket.gethostbyname(socket.gethostname()), flush=True)\n"
        "while not pathlib.Path('/tmp/go').exists(): time.sleep(0.1)"
    )
    address = await served.until_says(neighbour)
    asker = await served.python(
        f"import socket\nprint(*socket.gethostbyaddr('{address}'))\n"
        f"try: socket.create_connection(('{address}', 8000), 2); print('open')\n"
        "except OSError as error: print('closed')"
    )
    await served.until(asker, *FINAL)
    await served.release(neighbour)
    names, port = await served.messages(asker)
    assert port == "closed"
    assert names.startswith("ops-run-"), "the engine's DNS answers with the name of the container"
    for secret in (neighbour, served.identity, served.project_id):
        assert str(secret)[:8] not in names
