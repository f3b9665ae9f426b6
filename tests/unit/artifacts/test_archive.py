"""An archive that is cut, damaged, endless or beyond a limit, and a collection that is cancelled."""

from __future__ import annotations

import tarfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from tests.support.archives import FOLDER, Archive, archive, entry, files, tar
from tests.unit.collected import ALL, PREFIX, Collected
from worker.artifacts.archive import SMALL
from worker.artifacts.store import ArtifactStore
from worker.errors import ArtifactError, EngineUnavailable, LeaseLost
from worker.model.claim import Artifact
from worker.model.config import ArtifactRule

WHOLE = files(small=b"x" * 1000, large=b"y" * (2 * SMALL), last=b"z" * 512)
LARGE, LAST = 512 * 5, 512 * 6 + 2 * SMALL  # where their contents begin


@pytest.mark.parametrize(
    ("cut", "stored"),
    [
        (0, []),
        (1024 + 999, []),
        (1024 + 1000, ["small"]),
        (LARGE, ["small"]),
        (LARGE + SMALL, ["small"]),
        (LARGE + 2 * SMALL - 1, ["small"]),
        (LAST - 512, ["small", "large"]),
        (LAST + 511, ["small", "large"]),
        (LAST + 512, ["small", "large", "last"]),  # every byte of the files is here, but the end mark is missing
    ],
)
async def test_whole_files_before_a_cut_are_stored(collected: Collected, cut: int, stored: list[str]) -> None:
    with pytest.raises(ArtifactError, match="cut or damaged"):
        await collected.collect(WHOLE[:cut])
    assert sorted(collected.artifacts) == sorted(stored)
    assert sorted(collected.stored) == sorted(stored)


@pytest.mark.parametrize("cut", [1500, LARGE + 100, LAST + 100])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (EngineUnavailable("gone"), EngineUnavailable),
        (ConnectionResetError("reset"), ArtifactError),
        (ArtifactError("odd"), ArtifactError),
    ],
)
async def test_an_engine_that_fails_during_the_archive_is_an_error(
    collected: Collected, cut: int, error: Exception, raised: type[Exception]
) -> None:
    @contextmanager
    def dying() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield WHOLE[:cut]
            raise error

        yield chunks()

    with pytest.raises(raised, match=str(error)):
        await collected.collect(dying)
    assert sorted(collected.stored) == sorted(collected.artifacts)
    assert ("small" in collected.stored, "large" in collected.stored) == (cut >= LARGE, cut >= LAST)


async def test_an_archive_that_cannot_be_opened_is_an_error(collected: Collected) -> None:
    @contextmanager
    def closed() -> Iterator[Iterator[bytes]]:
        raise EngineUnavailable("no engine")
        yield iter(())

    with pytest.raises(EngineUnavailable):
        await collected.collect(closed)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_files": 2}, "/artifacts has more than 2 files, the limit of a run"),
        ({"max_bytes": 2 * SMALL}, "the files in /artifacts are larger than 0.001953 GiB, the limit of a run"),
    ],
)
async def test_more_than_the_limit_is_an_error(collected: Collected, limits: dict[str, int], error: str) -> None:
    data = files(a=b"a", b=b"b", c=b"c" * 2 * SMALL)
    with pytest.raises(ArtifactError, match=error):
        await collected.collect(data, ALL, **limits)
    assert sorted(collected.artifacts) == sorted(collected.stored) == ["a", "b"]


@pytest.mark.parametrize("rules", [ALL, [ArtifactRule(path="other")]], ids=["kept", "not kept"])
async def test_a_size_that_no_disk_holds_is_refused_before_it_is_read(
    collected: Collected, rules: list[ArtifactRule]
) -> None:
    member = tarfile.TarInfo("artifacts/huge")
    member.size = 1 << 50
    data = tar(FOLDER)[:512] + member.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ArtifactError, match="larger than 10 GiB"):
        await collected.collect(data, rules)


@pytest.mark.parametrize("name", ["artifacts/x", "././@LongLink"])
async def test_a_header_with_an_impossible_size_is_an_error(collected: Collected, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type = tarfile.REGTYPE if name.startswith("artifacts") else tarfile.GNUTYPE_LONGNAME
    member.size = -512 if member.isreg() else 1 << 33
    with pytest.raises(ArtifactError, match="impossible size"):
        await collected.collect(tar(FOLDER)[:512] + member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)


async def test_repeated_extension_headers_are_an_error(collected: Collected) -> None:
    one = tar(entry("é" * 80), form=tarfile.PAX_FORMAT)[:1024]
    with pytest.raises(ArtifactError, match="an extended header twice"):
        await collected.collect(tar(FOLDER)[:512] + one * 5000)


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        (WHOLE[:512] + bytes(512) + WHOLE[512:], "half an end mark"),
        (WHOLE[:512] + bytes(1024) + WHOLE[512:], "bytes after the end mark"),
        (WHOLE[:512] + b"x" + WHOLE[513:], "a wrong checksum"),
        (WHOLE[: 512 + 124] + b"one kilobyte" + WHOLE[512 + 136 :], "a wrong checksum"),
        (tar(entry("artifacts/s", tarfile.GNUTYPE_SPARSE)), "a sparse file"),
        (tar(entry("é" * 80))[:1024] + bytes(1024), "an extended header of nothing"),
    ],
)
async def test_damage_that_tarfile_accepts_is_an_error(collected: Collected, damaged: bytes, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem):
        await collected.collect(damaged)
    assert collected.stored == {}


async def test_an_error_of_the_callback_ends_the_collection_unchanged(collected: Collected) -> None:
    async def lost(artifact: Artifact) -> None:
        raise LeaseLost(uuid.UUID(int=1))

    store = ArtifactStore.from_url(collected.root.as_uri())
    for data in (files(a=b"a"), files(a=b"a" * SMALL)):
        with pytest.raises(LeaseLost):
            await store.collect(archive(data), ALL, PREFIX, lost, collected.warn)


class Stalled:
    """An archive that stops in the middle of a file and waits until it is closed."""

    def __init__(self, data: bytes) -> None:
        self.data: Iterator[bytes] = iter([data])
        self.closed = threading.Event()
        self.waiting = threading.Event()
        self.left = threading.Event()

    @contextmanager
    def open(self) -> Iterator[Iterator[bytes]]:
        try:
            yield self
        finally:
            self.left.set()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for chunk in self.data:
            return chunk
        self.waiting.set()
        assert self.closed.wait(20)
        raise OSError("closed")

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("cut", [1500, LARGE + SMALL + 5], ids=["small file", "large file"])
async def test_cancellation_ends_a_read_that_waits(collected: Collected, cut: int) -> None:
    stalled = Stalled(WHOLE[:cut])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collected.collect, stalled.open)
        assert await anyio.to_thread.run_sync(stalled.waiting.wait, 10)
        tasks.cancel_scope.cancel()
    assert stalled.left.is_set()
    assert "large" not in collected.stored
    assert collected.artifacts.keys() <= collected.stored.keys()


async def test_cancellation_does_not_wait_for_the_rest_of_the_archive(collected: Collected) -> None:
    left = threading.Event()

    @contextmanager
    def endless() -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield files(a=b"a")[:-10_240]
            while True:
                yield tar(entry("artifacts/l", tarfile.SYMTYPE))[:512]

        try:
            yield chunks()
        finally:
            left.set()

    with anyio.move_on_after(0.3) as scope:
        await collected.collect(endless)
    assert scope.cancelled_caught
    assert left.is_set()


async def test_the_archive_is_left_without_an_exception_only_at_its_end(collected: Collected) -> None:
    endings: list[str] = []

    def watched(data: bytes) -> Archive:
        @contextmanager
        def opened() -> Iterator[Iterator[bytes]]:
            pieces = [data[at : at + 512] for at in range(0, len(data), 512)]
            rest = iter(pieces)
            try:
                yield rest
            except BaseException as error:
                endings.append(type(error).__name__)
                raise
            endings.append(f"{len(list(rest))} pieces left")

        return opened

    await collected.collect(watched(files(a=b"a")))
    collected.artifacts.clear()
    with pytest.raises(ArtifactError):
        await collected.collect(watched(files(a=b"a", b=b"b")), max_files=1)
    store = ArtifactStore.from_url(collected.root.as_uri())
    (collected.root / PREFIX / "big").mkdir()
    with pytest.raises(ArtifactError, match="cannot store 'big'"):
        await store.collect(watched(files(big=b"b" * 3 * SMALL)), ALL, PREFIX, collected.add, collected.warn)
    assert endings == ["0 pieces left", "ArtifactError", "GeneratorExit"]
