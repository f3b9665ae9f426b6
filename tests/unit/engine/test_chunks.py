"""The chunks of an answer, whole and cut."""

from __future__ import annotations

import pytest

from worker.engine.chunks import BUSY_BYTES, unchunked

USUAL = [b"one\n", b"", b"x" * 300, b"7\r\n", b"two\r\n"]
LIKE_SIZES = [b"one\n", b"\r\n0\r\n\r\n", b"a\r\n5\r\n", b"last"]


def answer(contents: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents if content) + b"0\r\n\r\n"


def pieces(*reads: bytes) -> list[bytes]:
    waiting = [*reads, b""]
    return list(unchunked(lambda: waiting.pop(0), lambda: None))


@pytest.mark.parametrize("contents", [USUAL, LIKE_SIZES, []])
def test_contents_are_the_same_however_they_arrive(contents: list[bytes]) -> None:
    data = answer(contents)
    for cut in range(1, len(data)):
        got = pieces(data[:cut], data[cut:])
        assert b"".join(got) == b"".join(contents)
        assert b"" not in got, "an empty piece would be taken for the end"
    assert b"".join(pieces(*(bytes([byte]) for byte in data))) == b"".join(contents)


@pytest.mark.parametrize("contents", [USUAL, LIKE_SIZES])
def test_answer_that_is_cut_anywhere_is_an_error(contents: list[bytes]) -> None:
    data = answer(contents)
    for cut in range(len(data) - len(b"\r\n") - 1):
        with pytest.raises(ConnectionError, match="cut off"):
            pieces(*([data[:cut]] if cut else []))


@pytest.mark.parametrize("wrong", [b"no\r\n", b"-5\r\nhello", b"\r\n\r\n", b"x" * 30])
def test_what_is_no_chunk_is_an_error(wrong: bytes) -> None:
    with pytest.raises(ConnectionError, match="chunk"):
        pieces(b"4\r\nfour\r\n" + wrong)


def test_only_a_read_that_brought_little_is_followed_by_a_pause() -> None:
    story = []
    chunk = b"%x\r\n%b\r\n" % (BUSY_BYTES, b"x" * BUSY_BYTES)
    reads = [chunk, b"1\r\na\r\n", chunk, b"0\r\n\r\n"]

    def read() -> bytes:
        story.append("read")
        return reads.pop(0)

    story.extend("piece" for _ in unchunked(read, lambda: story.append("pause")))
    assert story == ["read", "piece", "read", "piece", "pause", "read", "piece", "read"]
