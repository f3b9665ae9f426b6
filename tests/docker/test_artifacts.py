"""The files of a container's /artifacts reach the store through the engine's API."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from datetime import timedelta
from typing import Any

from tests.support.docker import FINAL, Plane, docker
from tests.unit.claims import make_claim
from worker.engine.engine import Engine
from worker.model.spec import HostPolicy, resolve

RULES = [
    {"path": "*.dump", "content_type": "application/x-dump", "expires_in_days": 7},
    {"path": "/artifacts/reports"},
]
KEPT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "true": ({}, []),
    "echo why > /artifacts/report.txt; exit 4": ({}, ["report.txt"]),
    "cd /artifacts; mkdir -p reports/deep other; touch a.dump reports/deep/r.xml other/b.dump c.txt": (
        {"artifacts": RULES},
        ["a.dump", "reports/deep/r.xml"],
    ),
    "echo x > /artifacts/x": ({"artifacts": []}, []),
    "cd /artifacts; touch -r . /tmp/then; : > hidden; touch -r /tmp/then .": ({}, ["hidden"]),
    "mkdir /artifacts/a; rmdir /artifacts/a": ({}, []),
    "ln -s /etc /tmp/artifacts; rm -rf /artifacts 2>&1 | cat; true": ({}, []),
    "test $(id -u) = 1234 && echo mine > /artifacts/mine.txt": ({"user": "1234"}, ["mine.txt"]),
}


async def test_rules_outcome_and_user_decide_what_is_kept(served: Plane) -> None:
    runs = {script: await served.shell(script, **config) for script, (config, _) in KEPT.items()}
    for script, (_, expected) in KEPT.items():
        await served.until(runs[script], *FINAL)
        assert sorted(await served.artifacts(runs[script])) == expected, script


async def test_each_file_is_stored_with_its_facts(served: Plane) -> None:
    script = "mkdir -p /artifacts/a/b; cd /artifacts; echo one > 1.txt; : > empty; echo '{}' > a/b/ü.json; touch a.dump"
    rules = [{"path": "*.dump", "content_type": "application/x-dump"}, {}]
    run = await served.finished(script, artifacts=rules)
    found = await served.artifacts(run["id"])
    assert {path: row["content_type"] for path, row in found.items()} == {
        "1.txt": "text/plain",
        "a.dump": "application/x-dump",
        "a/b/ü.json": "application/json",
        "empty": "application/octet-stream",
    }
    for path, row in found.items():
        content = served.stored(row).read_bytes()
        assert row["artifact_key"] == f"{served.name}/{run['id']}/{path}"
        assert row["checksum"] == "sha256:" + hashlib.sha256(content).hexdigest()
        assert row["size_bytes"] == len(content)
        assert row["artifact_url"].startswith("file:///")
        assert timedelta(days=29) < row["expires_at"] - run["finished_at"] < timedelta(days=31)


async def test_two_hundred_megabytes_pass_through_in_little_memory(plane: Plane) -> None:
    small = await plane.shell("echo x > /artifacts/x")
    async with plane.worker() as worker:
        await plane.until(small, "succeeded")
        before = worker.peak_memory
        big = await plane.shell("seq 30000000 | head -c 200000000 > /artifacts/big.bin; sha256sum /artifacts/big.bin")
        await plane.until(big, "succeeded")
        grown = worker.peak_memory - before
    [row] = (await plane.artifacts(big)).values()
    [line] = await plane.messages(big)
    assert row["size_bytes"] == 200_000_000
    assert row["checksum"] == "sha256:" + line.split()[0]
    with plane.stored(row).open("rb") as stored:
        assert hashlib.file_digest(stored, "sha256").hexdigest() == line.split()[0]
    assert grown < 64 * 2**20


async def test_links_pipes_and_control_characters_are_refused_and_never_followed(served: Plane) -> None:
    script = """
        cd /artifacts && echo good > good.txt
        ln -s /etc/passwd link; ln good.txt hard; mkfifo pipe; ln -s /etc folder
        ln -s ../../../../etc/shadow climb; printf x > "$(printf 'a\\tb')"
    """
    run = await served.finished(script)
    assert run["status"] == "succeeded"
    found = await served.artifacts(run["id"])
    kept = {path: served.stored(row).read_text() for path, row in found.items()}
    assert kept in ({"good.txt": "good\n"}, {"hard": "good\n"}), "of two names for one file the first is the file"
    warnings = [event["message"] for event in await served.events(run["id"], "warning")]
    for name in ("link", "pipe", "folder", "climb", "a\\tb"):
        assert [w for w in warnings if name in w], f"no warning about {name}: {warnings}"


USER = {"user": "1234"}
HIDES = "touch -r /artifacts /tmp/then; : > /artifacts/x; touch -r /tmp/then /artifacts; touch -d @0 /artifacts; true"
BARE: list[tuple[str, dict[str, Any], bool]] = [
    ("true", USER, False),  # what the image brings is not known yet
    ("true", USER, True),
    ("echo x > /artifacts/x", USER, False),
    ("mkdir /artifacts/a; rmdir /artifacts/a", USER, False),
    (HIDES, USER, False),
    ("true", {"user": "root"}, False),
    (HIDES, {"user": "00"}, False),
    ("true", {**USER, "read_only": True}, False),
    ("true", USER, True),
]


async def test_nothing_was_left_for_certain_only_where_the_program_could_not_hide_it(image: str) -> None:
    engine, made = Engine(None, streams=1), f"ops-worker-tests-{uuid.uuid4().hex[:12]}"

    async def left_nothing(reference: str, script: str, config: dict[str, Any]) -> bool:
        config = {"command": ["sh", "-c", script], "network": "none", **config}
        tool = {"tool_name": "t", "version": "1", "docker_image": reference, "config": config}
        found = await engine.image(reference)
        assert found is not None
        container = await engine.create(made, found, resolve(make_claim(tool=tool), HostPolicy()), {})
        try:
            await container.start()
            while (state := await container.inspect()) is not None and state.running:
                await asyncio.sleep(0.02)
            answer = await container.left_nothing()
            with container.archive() as archive:
                assert sum(map(len, archive)) == 1536 or not answer
        finally:
            await container.remove()
        return answer

    docker("run", "--name", made, "--network", "none", image, "sh", "-c", "mkdir /artifacts; : > /artifacts/brought")
    try:
        docker("commit", made, made)
        docker("rm", made)
        assert [await left_nothing(made, "true", USER) for _ in range(2)] == [False, False]
        for script, config, certain in BARE:
            assert await left_nothing(image, script, config) is certain, (script, config)
    finally:
        docker("rm", "--force", made, check=False)
        docker("rmi", "--force", made, check=False)
        engine.close()
