"""Any bytes as an archive give files below /artifacts, warnings or an ``ArtifactError``, in bounded memory."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from contextlib import nullcontext, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.archives import FOLDER, archive, entry, tar
from worker.artifacts.archive import SMALL, ArchivedFile, ArchiveReader, Selection
from worker.errors import ArtifactError
from worker.model.config import ArtifactRule
from worker.model.report import Report

PREFIX = "acme/run-1/"
MOST_BYTES = 4 * SMALL
MEMORY = 6 * SMALL
"""Most bytes in memory: a batch of small files, a header, and the copies that a read makes."""

NAMES = st.sampled_from(["artifacts", "artifacts/a", "artifacts/d/b", "artifacts/../x", "/etc/passwd", "..", ""]) | (
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=120).map("artifacts/".__add__)
)
NUMBERS = st.integers(-(2**70), 2**70).map(str) | st.sampled_from(["0", "-1", "511", "9" * 5000, "1,2,3", "0,512,0"])
PAX = st.dictionaries(
    st.sampled_from([
        "size", "path", "linkpath", "hdrcharset", "mtime", "uid", "GNU.sparse.size", "GNU.sparse.realsize",
        "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.name",
    ]),
    NUMBERS | NAMES, max_size=3,
)  # fmt: skip
KINDS = st.sampled_from([bytes([kind]) for kind in b"01234567LKSxgXV"])
ENTRIES = st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=700), PAX), max_size=5)
DAMAGE = st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=8)


def made(entries: list[tuple[str, bytes, bytes, dict[str, str]]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content, headers in entries:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname, member.pax_headers = kind, len(content), "a", headers
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def damaged(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Changes some bytes and corrects the checksums, which would show the damage at once."""
    changed = bytearray(data)
    for at, value in changes:
        changed[at % len(changed)] = value
    for at in range(0, len(changed), tarfile.BLOCKSIZE):
        block = changed[at : at + tarfile.BLOCKSIZE]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            changed[at + 148 : at + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(changed)


def judge(data: bytes, piece: int = 512) -> None:
    """Reads the archive to its end or to an ``ArtifactError``; any other error fails the test."""
    chosen = selection()
    reader = ArchiveReader(archive(data, piece=piece), chosen, Report())
    seen: set[str] = set()
    tracemalloc.start()
    try:
        with suppress(ArtifactError):
            while files := reader.next_files():
                for file, content in files:
                    inside(file)
                    assert file.key not in seen
                    seen.add(file.key)
                    assert (read_large(reader) if content is None else len(content)) == file.size
    finally:
        reader.close()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    assert all(warning.isprintable() for warning in chosen.take_warnings(last=True))


LONG = "artifacts/" + "ü/" * 90 + "z"
FILES = [FOLDER, entry("artifacts/a", content=b"a" * 700), entry("artifacts/empty"), entry(LONG)]
LARGE = tar(*FILES[:2], entry("artifacts/large", content=b"l" * (SMALL + 1)), *FILES[2:])
NEAR = 8 * tarfile.BLOCKSIZE
"""Bytes of the large archive, at its begin and at its end, that have a header in them."""


@pytest.mark.parametrize(
    ("data", "cuts"),
    [
        (tar(*FILES, form=tarfile.PAX_FORMAT), None),
        (tar(*FILES, form=tarfile.GNU_FORMAT), None),
        (LARGE, [*range(NEAR), *range(NEAR, SMALL, 99_991), *range(SMALL + 1024, len(LARGE))]),
    ],
    ids=["pax", "GNU", "a large file"],
)
def test_an_archive_that_is_cut_anywhere_is_an_error(data: bytes, cuts: list[int] | None) -> None:
    end = len(data.rstrip(b"\0"))
    end += -end % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE
    for cut in cuts or [*range(end + 1), len(data)]:
        contents = []
        reader = ArchiveReader(archive(data[:cut]), selection(), Report())
        with pytest.raises(ArtifactError, match="cut or damaged") if cut < end else nullcontext():
            while files := reader.next_files():
                contents += [len(content) if content is not None else read_large(reader) for _, content in files]
        assert contents == [700, *([SMALL + 1] if data is LARGE else []), 0, 0][: len(contents)], cut
        reader.close()


def selection() -> Selection:
    return Selection([ArtifactRule()], PREFIX, max_bytes=MOST_BYTES, max_files=4, max_key=900, in_folder=True)


def read_large(reader: ArchiveReader) -> int:
    size = 0
    while piece := reader.read(1 << 16):
        size += len(piece)
    return size


def inside(file: ArchivedFile) -> None:
    """The key stays below the prefix, in a folder and in a bucket."""
    assert file.key.startswith(PREFIX)
    assert not {"", ".", ".."} & set(file.key.split("/"))
    assert 0 <= file.size <= MOST_BYTES


@given(data=st.binary(max_size=3000), piece=st.integers(1, 2000))
def test_any_bytes_are_an_archive_or_an_error(data: bytes, piece: int) -> None:
    judge(data, piece)


@given(entries=ENTRIES, changes=DAMAGE, cut=st.none() | st.integers(0, 1 << 14), piece=st.integers(1, 20_000))
def test_a_changed_archive_is_read_or_refused(
    entries: list[tuple[str, bytes, bytes, dict[str, str]]], changes: list[tuple[int, int]], cut: int | None, piece: int
) -> None:
    judge(damaged(made(entries), changes)[:cut], piece)
