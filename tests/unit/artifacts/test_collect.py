"""Which entries of a container's archive are stored, and which are refused. The store is a folder."""

from __future__ import annotations

import gc
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.archives import FOLDER, archive, entry, files, tar
from tests.unit.collected import PREFIX, Collected
from worker.artifacts.archive import SMALL
from worker.model.config import ArtifactRule
from worker.tar import END_MARK, Member


async def test_files_are_stored_and_described(collected: Collected) -> None:
    names = [
        "a.txt#1/y",
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
    # a file that is being written is named a.txt#1, which no folder may be
    assert collected.artifacts["a.txt#1/y"].key == f"{PREFIX}a.txt%231/y"
    assert collected.artifacts["a.txt"].url == f"{collected.root.as_uri()}/{PREFIX}a.txt"


@pytest.mark.parametrize("data", [END_MARK, tar(FOLDER), tar()], ids=["no folder", "empty folder", "empty archive"])
async def test_an_empty_archive_stores_nothing(collected: Collected, data: bytes) -> None:
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
async def test_long_names_are_read_in_pax_and_gnu_format(collected: Collected, form: int) -> None:
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
async def test_links_devices_and_bad_names_are_refused(
    collected: Collected, bad: tuple[tarfile.TarInfo, bytes], why: str, form: int
) -> None:
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


async def test_members_of_an_archive_are_not_kept_in_memory(collected: Collected) -> None:
    alive: list[int] = []

    @contextmanager
    def folders() -> Iterator[Iterator[bytes]]:
        one = tar(entry("artifacts/folder", tarfile.DIRTYPE))[:512]

        def chunks() -> Iterator[bytes]:
            for _ in range(20):
                yield one * 500
                alive.append(sum(isinstance(each, Member) for each in gc.get_objects()))
            yield b"\0" * 1024

        yield chunks()

    await collected.collect(folders)
    assert max(alive) < 500


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
    assert len(collected.warnings) == (
        pattern in ("**", "/artifacts", "*", "[!a]*")
    )  # a warning only if a rule names the link


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


async def test_patterns_with_many_stars_are_matched_fast(collected: Collected) -> None:
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
