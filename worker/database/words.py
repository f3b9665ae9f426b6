"""The words of log lines, for the search (``ops_private.log_blocks``).

A search asks the blocks for the runs of letters and digits in PostgreSQL's lexemes, and then compares the lines
themselves; so a word too many costs a little time, and a word too few hides a line. To find them here takes 1 µs per
line, and the server 9 µs (100 bytes, two cores).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BLOCK_LINES = 250
BLOCK_BYTES = 1 << 18
"""Lines of one block, and bytes of its words at most, of ``ops.append_run_logs``."""

LONGEST = 1000
"""Characters of a line that the search looks at."""

_SPACES = str.maketrans({char: " " for char in map(chr, range(128)) if not char.isalnum()})
_NUMBER = re.compile(r"(\d+)(?:(e\d+)(?=[a-z]))?")


def words_of_blocks(messages: Sequence[str]) -> str | None:
    """The words of each ``BLOCK_LINES`` lines, one line for each block; None if those of a block are not known, or too
    many to send: then the server finds them, and makes its blocks smaller.
    """
    blocks = []
    for at in range(0, len(messages), BLOCK_LINES):
        block = words(messages[at : at + BLOCK_LINES])
        if block is None or len(block) > BLOCK_BYTES:
            return None
        blocks.append(block)
    return "\n".join(blocks)


def words(messages: Sequence[str]) -> str | None:
    """The words of these lines, separated by spaces; None if a character is not ASCII.

    Which characters beyond ASCII are letters, only the server knows.
    """
    text = "\n".join(messages)
    if not text.isascii() or "\0" in text:  # which is stored as U+FFFD
        return None
    if len(max(messages, key=len, default="")) > LONGEST:
        text = "\n".join([message[:LONGEST] for message in messages])
    parts = " ".join(set(text.split()))  # lines of one program have many in common
    found = set(parts.lower().translate(_SPACES).split())
    for word in [word for word in found if word[0] < "a" and not word.isdigit()]:
        found |= _parts(word)
    return " ".join(found)


def _parts(word: str) -> set[str]:
    """What PostgreSQL may find in a word that begins with a digit: ``12ab`` is 12 and ab after a sign or a point, and
    ``1e5b`` is the number 1e5 and b.
    """
    number = _NUMBER.match(word)
    assert number  # noqa: S101 - it begins with a digit
    digits, exponent = number[1], number[2]
    parts = {digits, word[len(digits) :]}
    return parts | {digits + exponent, word[number.end() :]} if exponent else parts
