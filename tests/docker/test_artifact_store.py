"""Artifacts on a real S3 server (rclone's, which checks signatures) and on real disks."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio
import obstore
import pytest
from obstore.store import S3Store

from tests.faults.engine import small_disk
from tests.support.archives import Archive, archive, files
from worker.artifacts import location as module
from worker.artifacts.store import ArtifactStore
from worker.errors import ArtifactError
from worker.model.claim import Artifact
from worker.model.config import ArtifactRule

KEY, SECRET = "ops-worker-key", "a-secret-of-the-store"
PREFIX = "acme/run-1/"
MIB = 1 << 20


@dataclass
class Server:
    """An S3 server whose buckets are folders below ``root``."""

    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [f"{sysconfig.get_path('scripts')}/rclone", "serve", "s3", str(self.root)]
        options = ["--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}", "--config", os.devnull]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def objects(self) -> list[str]:
        """Every file that the server keeps, its unfinished uploads included."""
        bucket = self.root / "bucket"
        return sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())

    def stored(self, key: str) -> bytes:
        return (self.root / "bucket" / "some" / "prefix" / key).read_bytes()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Server(tmp_path_factory.mktemp("s3"), free.getsockname()[1])
    (made.root / "bucket").mkdir()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, empty, with its address and key in the environment."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    if server.process is None:
        server.start()
    for name in server.objects():
        (server.root / "bucket" / name).unlink()
    return server


def s3_store(**limits: int) -> ArtifactStore:
    return ArtifactStore.from_url("s3://bucket/some/prefix", **limits)


@dataclass
class Told:
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    async def artifact(self, artifact: Artifact) -> None:
        self.artifacts[artifact.path] = artifact

    async def warning(self, message: str) -> None:
        self.warnings.append(message)


async def collect(store: ArtifactStore, source: Archive, told: Told, *rules: ArtifactRule) -> int:
    return await store.collect(source, rules or [ArtifactRule()], PREFIX, told.artifact, told.warning)


async def test_an_object_has_its_content_its_type_and_its_address(s3: Server) -> None:
    contents = {
        "a.txt": b"text",
        "dir/ü ☃+&?#1.json": b"{}",
        "empty": b"",
        "c:": b"colon",
        "big.sql": os.urandom(12 * MIB + 5),
    }
    told = Told()
    assert (
        await collect(
            s3_store(),
            archive(files(**contents)),
            told,
            ArtifactRule(path="*.txt", content_type="text/x-odoo"),
            ArtifactRule(),
        )
        == 5
    )
    bucket = S3Store("bucket", prefix="some/prefix", client_options={"allow_http": True})
    for path, content in contents.items():
        one = told.artifacts[path]
        assert one.key == PREFIX + path
        assert one.url == f"s3://bucket/some/prefix/{PREFIX}{path}"
        assert one.checksum == f"sha256:{hashlib.sha256(content).hexdigest()}"
        found = await obstore.get_async(bucket, one.key)
        assert bytes(await found.bytes_async()) == content
        assert found.attributes["Content-Type"] == one.content_type
    types = {path: one.content_type for path, one in told.artifacts.items()}
    assert (types["a.txt"], types["big.sql"]) == ("text/x-odoo", "application/sql")
    assert told.warnings == []


@pytest.mark.parametrize("size", [3, 11 * MIB])
async def test_the_object_exists_before_on_artifact_is_called(s3: Server, size: int) -> None:
    seen: list[bytes] = []

    async def look(artifact: Artifact) -> None:
        seen.append(s3.stored(artifact.key))

    content = os.urandom(size)
    await s3_store().collect(archive(files(x=content)), [ArtifactRule()], PREFIX, look, Told().warning)
    assert seen == [content]


async def test_a_key_is_as_long_as_s3_allows(s3: Server) -> None:
    told = Told()
    longest = "/".join(["d" * 200] * 6)[: 1024 - len("some/prefix/" + PREFIX)]
    await collect(s3_store(), archive(files(**{longest: b"x", longest[:-1] + "é": b"y"})), told)
    assert list(told.artifacts) == [longest]
    assert len(told.warnings) == 1
    assert "longer than the store allows" in told.warnings[0]


async def test_a_thousand_small_files(s3: Server) -> None:
    contents = {f"{n % 10}/{n}.txt": f"{n}\n".encode() for n in range(1000)}
    told = Told()
    assert await collect(s3_store(), archive(files(**contents)), told) == 1000
    assert len(told.artifacts) == 1000
    assert all(s3.stored(PREFIX + path) == content for path, content in contents.items())


async def test_a_cut_file_leaves_no_object_and_no_unfinished_upload(s3: Server) -> None:
    data = files(small=b"x", large=b"y" * (30 * MIB))
    told = Told()
    for source in (archive(data[: 25 * MIB]), archive(data[: 25 * MIB], then=ConnectionResetError("reset"))):
        with pytest.raises(ArtifactError, match=r"cut or damaged|broke off"):
            await collect(s3_store(), source, told)
        assert list(told.artifacts) == ["small"]
        assert s3.objects() == [f"some/prefix/{PREFIX}small"]


async def test_a_cancelled_collection_leaves_no_unfinished_upload(s3: Server) -> None:
    data = files(large=b"y" * (30 * MIB))
    reached = anyio.Event()

    @contextmanager
    def slow() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield data[: 25 * MIB]
            anyio.from_thread.run_sync(reached.set)
            while True:
                time.sleep(0.05)
                yield b"y"

        yield chunks()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect, s3_store(), slow, Told())
        await reached.wait()
        tasks.cancel_scope.cancel()
    assert s3.objects() == []


async def test_check_leaves_no_object(s3: Server) -> None:
    await s3_store().check()
    assert s3.objects() == []


WRONG = [
    ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "refuses the credentials: SignatureDoesNotMatch"),
    ({"AWS_ACCESS_KEY_ID": "wrong-key-id"}, "refuses the credentials: InvalidAccessKeyId"),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store cannot be reached; check .*AWS_ENDPOINT_URL"),
]


@pytest.mark.parametrize(("environment", "why"), WRONG)
async def test_the_error_of_a_wrong_setting_quotes_no_secret(
    s3: Server, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], why: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactError, match=why) as raised:
        await s3_store().check()
    text = str(raised.value)
    assert text.startswith("cannot write to s3://bucket/some/prefix: ")
    assert not any(word in text for word in ("\n", SECRET, "wrong", KEY, "Signature=", "xml"))


async def test_a_missing_bucket_is_named_as_the_cause(s3: Server) -> None:
    store = ArtifactStore.from_url("s3://elsewhere/prefix")
    with pytest.raises(ArtifactError, match=r"cannot write to s3://elsewhere/prefix: there is no such bucket$"):
        await store.check()
    for size in (1, 3 * MIB):
        told = Told()
        with pytest.raises(ArtifactError, match=r"cannot store 'x' in s3://elsewhere/prefix: there is no such bucket$"):
            await collect(store, archive(files(x=b"x" * size)), told)
        assert told.artifacts == {}


async def test_an_unreachable_store_is_retried(s3: Server) -> None:
    store, told = s3_store(), Told()
    s3.stop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect, store, archive(files(small=b"x", large=b"y" * 7 * MIB)), told)
        await anyio.sleep(0.5)
        await anyio.to_thread.run_sync(s3.start)
    assert sorted(told.artifacts) == ["large", "small"]
    assert s3.stored(f"{PREFIX}large") == b"y" * 7 * MIB


async def test_a_store_that_stays_unreachable_is_an_error(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._PATIENT["retry_config"], "retry_timeout", timedelta(seconds=1))
    store = s3_store()
    s3.stop()
    for size in (1, 20 * MIB):
        with pytest.raises(
            ArtifactError, match="cannot store 'x' in s3://bucket/some/prefix: the store cannot be reached"
        ):
            await collect(store, archive(files(x=b"x" * size)), Told())


async def test_cancellation_does_not_wait_for_an_unreachable_store(s3: Server) -> None:
    store = s3_store()
    s3.stop()
    for size in (1, 20 * MIB):
        with anyio.fail_after(15), anyio.move_on_after(0.5) as scope:
            await collect(store, archive(files(x=b"x" * size)), Told())
        assert scope.cancelled_caught


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    """A file system of 4 MiB."""
    with small_disk("4m") as disk:
        yield disk


@pytest.mark.parametrize("sizes", [[20 * MIB], [MIB - 1] * 20], ids=["large", "small"])
async def test_a_full_disk_is_named_as_the_cause(tiny_disk: Path, sizes: list[int]) -> None:
    store, told = ArtifactStore.from_url(f"{tiny_disk.as_uri()}/store"), Told()
    contents = {f"{n}": b"x" * size for n, size in enumerate(sizes)}
    with pytest.raises(ArtifactError, match=r"cannot store '\d+' in file:///.*/store: no space left on device$"):
        await collect(store, archive(files(**contents)), told)
    assert all((tiny_disk / "store" / one.key).stat().st_size == one.size_bytes for one in told.artifacts.values())


async def test_a_folder_without_the_right_to_write_is_named_as_the_cause(tiny_disk: Path) -> None:
    store = ArtifactStore.from_url(f"{tiny_disk.as_uri()}/store")
    await anyio.run_process(["mount", "-o", "remount,ro", str(tiny_disk)])
    with pytest.raises(ArtifactError, match=r"cannot write to file:///.*/store: read-only file system$"):
        await store.check()


MEASURE = """
import anyio, json, os, resource, signal, sys, tarfile, threading
from contextlib import contextmanager
from worker.artifacts.store import ArtifactStore
from worker.model.config import ArtifactRule

size, url, server = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
found = []

@contextmanager
def archive():
    def chunks():
        for name, kind, length in (("artifacts", tarfile.DIRTYPE, 0), ("artifacts/big.bin", tarfile.REGTYPE, size)):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, length
            yield member.tobuf()
        for number in range(size // 2**20):
            yield number.to_bytes(8, "big") * 2**17
            if number == 20 and server:
                os.kill(server, signal.SIGSTOP)
                threading.Timer(1.5, os.kill, (server, signal.SIGCONT)).start()
        yield bytes(1024)
    yield chunks()

async def on_artifact(artifact):
    found.append(artifact.checksum)

async def main():
    store = ArtifactStore.from_url(url)
    await store.check()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.collect(archive, [ArtifactRule()], "run/", on_artifact, None)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await anyio.sleep(0.5)  # pyo3-async-runtimes#40: the store's threads may abort a process that exits at once
    print(json.dumps({"grown": (after - before) * 1024, "checksum": found[0]}))

anyio.run(main)
"""


@pytest.mark.parametrize("kind", ["folder", "s3"])
async def test_two_hundred_megabytes_pass_in_thirty(s3: Server, tmp_path: Path, kind: str) -> None:
    size = 200 * MIB
    url = (tmp_path / "store").as_uri() if kind == "folder" else "s3://bucket"
    root = tmp_path / "store" if kind == "folder" else s3.root / "bucket"
    assert s3.process is not None
    stalled = str(s3.process.pid if kind == "s3" else 0)  # nothing may pile up while the store is slow
    command = [sys.executable, "-c", MEASURE, str(size), url, stalled]
    said = json.loads((await anyio.run_process(command)).stdout)
    with (root / "run" / "big.bin").open("rb") as stored:
        assert said["checksum"] == f"sha256:{hashlib.file_digest(stored, 'sha256').hexdigest()}"
        assert stored.tell() == size
    assert said["grown"] < 30 * MIB
