"""What a container's archive may bring into the store, and what it may not. The store is a folder."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from urllib.parse import unquote, urlsplit

import anyio
import pytest

from worker.archive import SMALL
from worker.artifacts import ArtifactStore
from worker.errors import ArtifactError, ConfigurationError, EngineUnavailable, LeaseLost
from worker.models import Artifact
from worker.spec import ArtifactRule

ALL = [ArtifactRule()]
PREFIX = "acme/run-1/"
Archive = Callable[[], AbstractContextManager[Iterator[bytes]]]


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    return member, content


FOLDER = entry("artifacts", tarfile.DIRTYPE)


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as made:
        for member, content in entries:
            made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def files(**contents: bytes) -> bytes:
    return tar(FOLDER, *(entry(f"artifacts/{name}", content=content) for name, content in contents.items()))


def archive(data: bytes, *, piece: int = 65_536) -> Archive:
    @contextmanager
    def opened() -> Iterator[Iterator[bytes]]:
        yield (data[at : at + piece] for at in range(0, len(data), piece))

    return opened


def read(url: str) -> bytes:
    return Path(unquote(urlsplit(url).path)).read_bytes()


@dataclass
class Collected:
    """What a collection told, and what it left in the folder."""

    root: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    async def add(self, artifact: Artifact) -> None:
        stored = read(artifact.url)  # it exists before its row
        assert artifact.checksum == f"sha256:{hashlib.sha256(stored).hexdigest()}"
        assert artifact.size_bytes == len(stored)
        assert artifact.path not in self.artifacts
        self.artifacts[artifact.path] = artifact

    async def warn(self, message: str) -> None:
        self.warnings.append(message)

    async def collect(self, data: bytes | Archive, rules: Sequence[ArtifactRule] = ALL, **limits: int) -> int:
        store = ArtifactStore.from_url(self.root.as_uri(), **limits)
        source = archive(data) if isinstance(data, bytes) else data
        with anyio.fail_after(30):
            return await store.collect(source, rules, PREFIX, self.add, self.warn)

    @property
    def stored(self) -> dict[str, bytes]:
        """The objects by their path below the prefix; whatever else is in the folder by its full name."""
        found = (path for path in self.root.rglob("*") if path.is_file() or path.is_symlink())
        return {str(path.relative_to(self.root)).removeprefix(PREFIX): path.read_bytes() for path in found}


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    return Collected(tmp_path / "store")


async def test_files_are_stored_and_described(collected: Collected) -> None:
    names = [
        "a.txt",
        "dir/b.json",
        "dir/deep/ü ☃.tar.gz",
        "empty",
        ".hidden",
        "x#1",
        "100%",
        "a/#12",
        "c:",
        "dir/C|",
        "d|/e",
    ]
    before = datetime.now(UTC)
    count = await collected.collect(
        tar(
            FOLDER,
            entry("artifacts/dir", tarfile.DIRTYPE),
            *(entry(f"artifacts/{n}", content=n.encode()) for n in names),
        )
    )
    assert count == len(names)
    assert sorted(collected.artifacts) == sorted(names)
    assert sorted(collected.stored.values()) == sorted(name.encode() for name in names)
    assert collected.warnings == []
    one = collected.artifacts["dir/deep/ü ☃.tar.gz"]
    assert (one.key, one.content_type) == (f"{PREFIX}dir/deep/ü ☃.tar.gz", "application/gzip")
    assert one.expires_at is not None
    assert before + timedelta(days=30) <= one.expires_at < before + timedelta(days=31)
    assert collected.artifacts["a.txt"].url == f"{collected.root.as_uri()}/{PREFIX}a.txt"


@pytest.mark.parametrize("data", [b"", tar(FOLDER), tar()], ids=["no folder", "empty folder", "empty archive"])
async def test_nothing_to_collect(collected: Collected, data: bytes) -> None:
    assert await collected.collect(data) == 0
    assert (collected.stored, collected.warnings) == ({}, [])


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 7 * SMALL + 3])
@pytest.mark.parametrize("piece", [511, 65_536, 1 << 20])
async def test_every_size_arrives_whole(collected: Collected, size: int, piece: int) -> None:
    content = os.urandom(size)
    data = files(before=b"1", it=content, after=b"2")
    assert await collected.collect(archive(data, piece=piece)) == 3
    assert collected.stored == {"before": b"1", "it": content, "after": b"2"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_long_names_in_either_format(collected: Collected, form: int) -> None:
    name = "/".join(["d" * 200] * 4)
    await collected.collect(tar(FOLDER, entry(f"artifacts/{name}", content=b"x"), form=form))
    assert list(collected.stored) == [name]


async def test_the_second_collection_of_a_run_replaces_the_first(collected: Collected) -> None:
    await collected.collect(files(a=b"1"))
    collected.artifacts.clear()
    await collected.collect(files(a=b"2"))
    assert collected.stored == {"a": b"2"}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (entry("artifacts/l", tarfile.SYMTYPE, link="/etc/passwd"), "'l' refused: a symbolic link"),
        (entry("artifacts/l", tarfile.SYMTYPE, link="good"), "'l' refused: a symbolic link"),
        (entry("artifacts/l", tarfile.LNKTYPE, link="artifacts/good"), "'l' refused: a hard link"),
        (entry("artifacts/l", tarfile.LNKTYPE, link="/etc/passwd"), "'l' refused: a hard link"),
        (entry("artifacts/c", tarfile.CHRTYPE), "'c' refused: a device"),
        (entry("artifacts/b", tarfile.BLKTYPE), "'b' refused: a device"),
        (entry("artifacts/p", tarfile.FIFOTYPE), "'p' refused: a named pipe"),
        (entry("artifacts/s", b"Z"), "'s' refused: an entry of an unknown kind"),
        (entry("artifacts/../../evil", content=b"x"), "'../../evil' refused: a name that leads out of /artifacts"),
        (entry("artifacts/a/../../evil", content=b"x"), "'a/../../evil' refused: a name that leads out"),
        (entry("artifacts/..", tarfile.DIRTYPE), "'..' refused: a name that leads out of /artifacts"),
        (entry("artifacts/./x", content=b"x"), "'./x' refused: a name that leads out of /artifacts"),
        (entry("artifacts//x", content=b"x"), "'/x' refused: a name that leads out of /artifacts"),
        (entry("../evil", content=b"x"), "refused: a name that leads out of /artifacts"),
        (entry("other/evil", content=b"x"), "refused: a name that leads out of /artifacts"),
        (entry("artifacts2/evil", content=b"x"), "refused: a name that leads out of /artifacts"),
        (entry("/artifacts/evil", content=b"x"), "refused: an absolute name"),
        (entry("/etc/passwd", content=b"x"), "refused: an absolute name"),
        (entry("artifacts/a\nb", content=b"x"), r"'a\nb' refused: its name has control characters"),
        (entry("artifacts/\x1b[31mred", content=b"x"), r"'\x1b[31mred' refused: its name has control characters"),
        (entry("artifacts/a\u2028b", content=b"x"), "refused: its name has control characters"),
        (entry("artifacts/\udcff", content=b"x"), r"'\udcff' refused: its name is not UTF-8"),
        (entry("artifacts/good", content=b"evil"), "'good' refused: the archive has that name twice"),
        (entry("artifacts/good/x", content=b"evil"), "'good/x' refused: the archive has that name twice"),
        (entry("artifacts/dir", content=b"evil"), "'dir' refused: the archive has that name twice"),
        (entry("artifacts/" + "d/" * 600 + "x", content=b"x"), "refused: its key would be longer than"),
        (entry("artifacts/" + "n" * 300, content=b"x"), "refused: a name longer than 240 bytes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_what_is_refused(collected: Collected, bad: tuple[tarfile.TarInfo, bytes], why: str, form: int) -> None:
    good = [entry("artifacts/good", content=b"good"), entry("artifacts/dir/x", content=b"x")]
    last = entry("artifacts/last", content=b"last")
    assert await collected.collect(tar(FOLDER, *good, bad, last, form=form)) == 3
    assert collected.stored == {"good": b"good", "dir/x": b"x", "last": b"last"}
    [warning] = collected.warnings
    assert why in warning
    assert warning.isprintable()
    assert len(warning) < 400


@pytest.mark.parametrize(
    ("top", "why"),
    [
        (entry("artifacts", tarfile.SYMTYPE, link="/etc"), "a symbolic link, not a folder"),
        (entry("artifacts", content=b"x"), "a file, not a folder"),
    ],
)
@pytest.mark.parametrize("path", ["**", "reports/*.xml"])
async def test_artifacts_itself_must_be_a_folder(
    collected: Collected, top: tuple[tarfile.TarInfo, bytes], why: str, path: str
) -> None:
    assert await collected.collect(tar(top), [ArtifactRule(path=path)]) == 0
    assert collected.stored == {}
    assert collected.warnings == [f"artifact 'artifacts' refused: {why}"]


async def test_many_refusals_are_counted_not_listed(collected: Collected) -> None:
    links = [entry(f"artifacts/{n}", tarfile.SYMTYPE, link="x") for n in range(1025)]
    assert await collected.collect(tar(FOLDER, *links)) == 0
    assert len(collected.warnings) == 21
    assert collected.warnings[0] == "artifact '0' refused: a symbolic link"
    assert collected.warnings[-1] == "and 1,005 more entries of /artifacts were refused"


async def test_the_members_of_an_archive_do_not_pile_up(collected: Collected) -> None:
    alive: list[int] = []

    @contextmanager
    def folders() -> Iterator[Iterator[bytes]]:
        one = tar(entry("artifacts/folder", tarfile.DIRTYPE))[:512]

        def chunks() -> Iterator[bytes]:
            for _ in range(20):
                yield one * 500
                alive.append(sum(isinstance(each, tarfile.TarInfo) for each in gc.get_objects()))
            yield b"\0" * 1024

        yield chunks()

    await collected.collect(folders)
    assert max(alive) < 500


async def test_a_sparse_file_is_filled(collected: Collected) -> None:
    blocks = [(0, 3), (5000, 3)]
    member = tarfile.TarInfo("artifacts/sparse")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 6
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for at, number in zip(range(386, 386 + 48, 12), (n for block in blocks for n in block), strict=True):
        header[at : at + 12] = f"{number:011o}\0".encode()
    header[483:495] = f"{6000:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    data = tar(FOLDER)[:512] + bytes(header) + b"abcdef".ljust(512, b"\0") + b"\0" * 1024
    await collected.collect(data)
    assert collected.stored["sparse"] == b"abc" + b"\0" * 4997 + b"def" + b"\0" * 997


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("**", ["a.txt", "dir/b.txt", "dir/deep/c.xml", "x"]),
        ("/artifacts", ["a.txt", "dir/b.txt", "dir/deep/c.xml", "x"]),
        ("*", ["a.txt", "x"]),
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "dir/b.txt"]),
        ("dir", ["dir/b.txt", "dir/deep/c.xml"]),
        ("./dir/", ["dir/b.txt", "dir/deep/c.xml"]),
        ("/artifacts/dir", ["dir/b.txt", "dir/deep/c.xml"]),
        ("dir/*", ["dir/b.txt"]),
        ("dir/**", ["dir/b.txt", "dir/deep/c.xml"]),
        ("**/deep/**", ["dir/deep/c.xml"]),
        ("**/deep", ["dir/deep/c.xml"]),
        ("d?r/[ab].*", ["dir/b.txt"]),
        ("[!a]*", ["x"]),
        ("*/*/*", ["dir/deep/c.xml"]),
        ("nothing/*", []),
        ("A.TXT", []),
        ("a.txt/x", []),
    ],
)
async def test_a_rule_chooses_by_pattern(collected: Collected, pattern: str, chosen: list[str]) -> None:
    names = ["a.txt", "dir/b.txt", "dir/deep/c.xml", "x"]
    data = tar(FOLDER, *(entry(f"artifacts/{name}") for name in names), entry("artifacts/y", tarfile.SYMTYPE))
    await collected.collect(data, [ArtifactRule(path=pattern)])
    assert sorted(collected.artifacts) == chosen
    assert len(collected.warnings) == (pattern in ("**", "/artifacts", "*", "[!a]*"))  # who did not ask is not told


async def test_the_first_rule_that_names_a_file_counts(collected: Collected) -> None:
    rules = [
        ArtifactRule(path="*.log", content_type="text/x-odoo", expires_in_days=1),
        ArtifactRule(path="*", expires_in_days=None),
    ]
    await collected.collect(tar(FOLDER, entry("artifacts/a.log"), entry("artifacts/b.bin")), rules)
    first, second = collected.artifacts["a.log"], collected.artifacts["b.bin"]
    assert (first.content_type, second.content_type) == ("text/x-odoo", "application/octet-stream")
    assert second.expires_at is None
    assert first.expires_at is not None
    assert first.expires_at - datetime.now(UTC) < timedelta(days=1)


async def test_a_pattern_that_is_slow_for_regular_expressions_is_not(collected: Collected) -> None:
    names = ["a" * 230 + "/" + "a" * 230, "a/" * 200 + "a"]
    data = tar(FOLDER, *(entry(f"artifacts/{name}") for name in names))
    patterns = ["*a" * 30 + "*b", "**/" * 30 + "*a" * 20 + "b", "**/a/" * 40 + "b"]
    assert await collected.collect(data, [ArtifactRule(path=pattern) for pattern in patterns]) == 0


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.json", "application/json"),
        ("a.LOG", "text/plain"),
        ("dump.sql", "application/sql"),
        ("a.tar.gz", "application/gzip"),
        ("a.zip", "application/zip"),
        ("report.html", "text/html"),
        ("Makefile", "application/octet-stream"),
        ("a.unheard", "application/octet-stream"),
        ("http:.x", "application/octet-stream"),
    ],
)
async def test_the_content_type_comes_from_the_name(collected: Collected, name: str, content_type: str) -> None:
    await collected.collect(tar(FOLDER, entry(f"artifacts/{name}")))
    assert collected.artifacts[name].content_type == content_type


WHOLE = files(small=b"x" * 1000, large=b"y" * (2 * SMALL), last=b"z" * 512)
LARGE, LAST = 512 * 5, 512 * 6 + 2 * SMALL  # where their contents begin


@pytest.mark.parametrize(
    ("cut", "stored"),
    [
        (100, []),
        (512, []),
        (1024, []),
        (1024 + 10, []),
        (1024 + 999, []),
        (1024 + 1000, ["small"]),
        (LARGE - 512, ["small"]),
        (LARGE - 1, ["small"]),
        (LARGE, ["small"]),
        (LARGE + 1, ["small"]),
        (LARGE + SMALL, ["small"]),
        (LARGE + 2 * SMALL - 1, ["small"]),
        (LAST - 512, ["small", "large"]),
        (LAST - 1, ["small", "large"]),
        (LAST, ["small", "large"]),
        (LAST + 511, ["small", "large"]),
        (LAST + 512, ["small", "large", "last"]),  # all is there, but who can tell without the mark at the end?
    ],
)
async def test_a_stream_that_is_cut_is_an_error(collected: Collected, cut: int, stored: list[str]) -> None:
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
async def test_an_engine_that_dies_is_an_error(
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


async def test_an_archive_that_cannot_be_opened(collected: Collected) -> None:
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


async def test_a_size_that_no_disk_holds_is_refused_before_it_is_read(collected: Collected) -> None:
    member = tarfile.TarInfo("artifacts/huge")
    member.size = 1 << 50
    data = tar(FOLDER)[:512] + member.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ArtifactError, match="larger than 10 GiB"):
        await collected.collect(data)


@pytest.mark.parametrize("name", ["artifacts/x", "././@LongLink"])
async def test_impossible_sizes_of_headers(collected: Collected, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type = tarfile.REGTYPE if name.startswith("artifacts") else tarfile.GNUTYPE_LONGNAME
    member.size = -512 if member.isreg() else 1 << 33
    with pytest.raises(ArtifactError, match="impossible size"):
        await collected.collect(tar(FOLDER)[:512] + member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)


async def test_endless_extension_headers(collected: Collected) -> None:
    one = tar(entry("é" * 80), form=tarfile.PAX_FORMAT)[:1024]
    with pytest.raises(ArtifactError, match="cut or damaged"):
        await collected.collect(tar(FOLDER)[:512] + one * 5000)


@pytest.mark.parametrize("seed", range(8))
async def test_damage_is_an_error_or_a_refusal_and_nothing_leaves_the_folder(tmp_path: Path, seed: int) -> None:
    sound = tar(
        FOLDER,
        entry("artifacts/a", content=b"a" * 600),
        entry("artifacts/" + "ü" * 120, content=b"b"),
        entry("artifacts/s", tarfile.SYMTYPE, link="a"),
        entry("artifacts/z", content=b"z"),
    )
    random = Random(seed)
    for case in range(100):
        data = bytearray(sound)
        for _ in range(random.randrange(8)):
            data[random.randrange(512 * 12)] = random.choice([0, 32, 46, 47, 48, 55, 128, 255, random.randrange(256)])
        for at in range(0, 512 * 12, 512):  # a checksum that fits lets the damage through
            block = data[at : at + 512]
            if block[257:262] == b"ustar":
                block[148:156] = b" " * 8
                data[at + 148 : at + 156] = f"{sum(block):06o}\0 ".encode()
        collected = Collected(tmp_path / str(case) / "store")
        with suppress(ArtifactError):
            await collected.collect(bytes(data[: random.choice([len(data), random.randrange(len(data))])]))
        assert len(collected.stored) == len(collected.artifacts)
        assert [path.name for path in collected.root.parent.iterdir()] == ["store"]


async def test_an_error_of_the_callback_ends_the_collection_as_it_is(collected: Collected) -> None:
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


async def test_the_archive_is_left_in_order_only_when_it_was_read_to_its_end(collected: Collected) -> None:
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


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "artifacts",
        "/var/lib/artifacts",
        "file:artifacts",
        "file://host/folder",
        "s3://",
        "s3://[bucket",
        "file:///a\0b",
        "s3:///prefix",
        "s3://bücket",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "ftp://host/folder",
        "https://host/folder",
        "memory:///",
        "file:///proc/nowhere/folder",
        "file:///dev/null",
        "az://container",
    ],
)
def test_a_wrong_url_names_the_setting(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ArtifactStore.from_url(url)
    assert str(raised.value).startswith("--artifact-store (OPS_WORKER_ARTIFACT_STORE): ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://key:s3cret@bucket/prefix", "s3://bucket/prefix?token=s3cret", "s3://b#s3cret"])
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY") as raised:
        ArtifactStore.from_url(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("endpoint", ["garbage", "host:9000", "ftp://host", "https://", "http:// host"])
def test_a_wrong_endpoint_is_told(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL: expected https://host/path"):
        ArtifactStore.from_url("s3://bucket/prefix")


def test_a_folder_is_made_for_its_owner(tmp_path: Path) -> None:
    store = ArtifactStore.from_url(f"file://{tmp_path}/a%20b/../c%20d/")
    assert store.url == (tmp_path / "c d").as_uri()
    assert (tmp_path / "c d").stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
    ],
)
def test_the_url_of_a_bucket(url: str, shown: str) -> None:
    assert ArtifactStore.from_url(url).url == shown


async def test_check_leaves_nothing(collected: Collected) -> None:
    await ArtifactStore.from_url(collected.root.as_uri()).check()
    assert list(collected.root.iterdir()) == []


async def test_a_folder_that_is_gone(collected: Collected) -> None:
    store = ArtifactStore.from_url(collected.root.as_uri())
    collected.root.rmdir()
    collected.root.write_text("now a file")
    with pytest.raises(ArtifactError, match=r"cannot write to file:///.*: not a directory$"):
        await store.check()
