"""What a container leaves in /artifacts, over the engine's API, into a store."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from tests.support.docker import WAITS, Plane


async def test_no_artifact_is_fine(plane: Plane) -> None:
    run_id = await plane.shell("true")
    await plane.work()
    assert await plane.artifacts(run_id) == {}


async def test_each_file_is_stored_with_its_facts(plane: Plane) -> None:
    script = (
        "mkdir -p /artifacts/a/b; echo one > /artifacts/1.txt; : > /artifacts/empty; echo '{}' > /artifacts/a/b/ü.json"
    )
    run_id = await plane.shell(script)
    await plane.work()
    found = await plane.artifacts(run_id)
    assert {path: row["content_type"] for path, row in found.items()} == {
        "1.txt": "text/plain",
        "a/b/ü.json": "application/json",
        "empty": "application/octet-stream",
    }
    finished = (await plane.run(run_id))["finished_at"]
    for path, row in found.items():
        content = plane.stored(row).read_bytes()
        assert row["artifact_key"] == f"{plane.name}/{run_id}/{path}"
        assert row["checksum"] == "sha256:" + hashlib.sha256(content).hexdigest()
        assert row["size_bytes"] == len(content)
        assert row["artifact_url"].startswith("file:///")
        assert timedelta(days=29) < row["expires_at"] - finished < timedelta(days=31)


async def test_a_failed_run_keeps_its_artifacts(plane: Plane) -> None:
    run_id = await plane.shell("echo why > /artifacts/report.txt; exit 4")
    await plane.work()
    assert (await plane.run(run_id))["exit_code"] == 4
    assert list(await plane.artifacts(run_id)) == ["report.txt"]


async def test_rules_choose_and_describe(plane: Plane) -> None:
    rules = [
        {"path": "*.dump", "content_type": "application/x-dump", "expires_in_days": 7},
        {"path": "/artifacts/reports"},
    ]
    script = "cd /artifacts; mkdir -p reports/deep other; touch a.dump reports/deep/r.xml other/b.dump c.txt"
    run_id = await plane.shell(script, artifacts=rules)
    await plane.work()
    found = await plane.artifacts(run_id)
    assert sorted(found) == ["a.dump", "reports/deep/r.xml"]
    assert found["a.dump"]["content_type"] == "application/x-dump"


async def test_an_empty_list_of_rules_keeps_nothing(plane: Plane) -> None:
    run_id = await plane.shell("echo x > /artifacts/x", artifacts=[])
    await plane.work()
    assert await plane.artifacts(run_id) == {}


async def test_a_thousand_small_files(plane: Plane) -> None:
    run_id = await plane.shell("for i in $(seq 1000); do echo $i > /artifacts/$i.txt; done")
    await plane.work()
    found = await plane.artifacts(run_id)
    assert len(found) == 1000
    assert all(plane.stored(row).read_text() == f"{path.removesuffix('.txt')}\n" for path, row in found.items())


async def test_two_hundred_megabytes_pass_through_in_little_memory(plane: Plane) -> None:
    small = await plane.shell("echo x > /artifacts/x")
    async with plane.worker() as worker:
        await plane.until(small, "succeeded")
        before = worker.peak_memory
        big = await plane.shell("head -c 200000000 /dev/urandom > /artifacts/big.bin; sha256sum /artifacts/big.bin")
        await plane.until(big, "succeeded")
        grown = worker.peak_memory - before
    [row] = (await plane.artifacts(big)).values()
    [line] = await plane.messages(big)
    assert row["size_bytes"] == 200_000_000
    assert row["checksum"] == "sha256:" + line.split()[0]
    with plane.stored(row).open("rb") as stored:
        assert hashlib.file_digest(stored, "sha256").hexdigest() == line.split()[0]
    assert grown < 64 * 2**20


async def test_what_is_no_plain_file_below_artifacts_is_refused_and_never_followed(plane: Plane) -> None:
    script = """
        cd /artifacts && echo good > good.txt
        ln -s /etc/passwd link; ln good.txt hard; mkfifo pipe; ln -s /etc folder
        ln -s ../../../../etc/shadow climb; printf x > "$(printf 'a\\tb')"
    """
    run_id = await plane.shell(script)
    await plane.work()
    assert (await plane.run(run_id))["status"] == "succeeded"
    found = await plane.artifacts(run_id)
    kept = {path: plane.stored(row).read_text() for path, row in found.items()}
    assert [text for text in kept.values() if "root:" in text] == []
    assert kept in (
        {"good.txt": "good\n"},
        {"hard": "good\n"},
    )  # of two names for one file the first is the file
    warnings = [event["message"] for event in await plane.events(run_id, "warning")]
    for name in ("link", "pipe", "folder", "climb", "a\\tb"):
        assert [w for w in warnings if name in w], f"no warning about {name}: {warnings}"


async def test_artifacts_that_is_a_link_itself_is_not_followed(plane: Plane) -> None:
    run_id = await plane.shell("ln -s /etc /tmp/artifacts; rm -rf /artifacts 2>&1 | cat; true")
    await plane.work()
    assert await plane.artifacts(run_id) == {}


async def test_a_program_that_is_not_root_can_write_artifacts(plane: Plane) -> None:
    run_id = await plane.shell("id -u; echo mine > /artifacts/mine.txt", user="1234")
    await plane.work()
    assert await plane.messages(run_id) == ["1234"]
    assert list(await plane.artifacts(run_id)) == ["mine.txt"]


async def test_a_store_that_fails_fails_the_run_and_says_why(plane: Plane) -> None:
    run_id = await plane.shell(f"{WAITS}; echo x > /artifacts/x")
    async with plane.worker("--until-idle") as worker:
        await plane.until_logged(run_id, "up")
        key = plane.store / plane.name
        key.write_text("in the way")  # a file where the run's folder should be
        await plane.release(run_id)
        assert await worker.wait() == 0
    run = await plane.run(run_id)
    assert (run["status"], run["reason"], run["exit_code"]) == ("failed", "artifacts_failed", None)
    assert "could not be stored" in run["error_message"]
