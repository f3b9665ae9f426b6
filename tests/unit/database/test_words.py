"""The words of the blocks of a batch; whether they are the right ones, tests/db/test_search.py asks PostgreSQL."""

from __future__ import annotations

from worker.database.words import BLOCK_BYTES, BLOCK_LINES, LONGEST, words, words_of_blocks


def test_each_block_has_a_line_with_its_own_words() -> None:
    of_blocks = words_of_blocks(["first one"] * BLOCK_LINES + ["-"] * BLOCK_LINES + ["last"])
    assert of_blocks is not None
    assert [set(block.split()) for block in of_blocks.split("\n")] == [{"first", "one"}, set(), {"last"}]


def test_without_the_words_of_one_block_there_are_none() -> None:
    assert words_of_blocks(["short"] * BLOCK_LINES + ["größe"]) is None


def test_more_words_than_may_be_sent_are_not_sent() -> None:
    """PostgreSQL may take a number and what follows it for two words, so both are sent beside the whole."""
    block = [" ".join(f"{1000 * n + k}z{n}z{k}" for k in range(60)) for n in range(BLOCK_LINES)]
    assert max(map(len, block)) < LONGEST
    of_block = words(block)
    assert of_block is not None
    assert len(of_block) > BLOCK_BYTES
    assert words_of_blocks(["short"] * BLOCK_LINES + block) is None
