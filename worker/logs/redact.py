"""Secrets in what a run says, replaced by ``***``. Pure: bytes in, bytes out.

A secret shows up as it is, or as some program wrote it: in hex, in base64 (at any of the three offsets that the text
before it leaves), escaped for JSON, a URL, HTML, a shell, SQL or source code, and, since output is read line by line,
each line of it alone. All these forms are searched for at once, by one automaton, in whole lines; so no border of a
chunk can hide one. A line with terminal sequences, as for colours, is searched a second time without them.

This is a net for accidents. A program that wants to print a secret can always find a form that is not searched for.
"""

from __future__ import annotations

import base64
import html
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any
from urllib.parse import quote, quote_plus

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

MASK = b"***"

MIN_LENGTH = 6
"""Characters of a secret, of a line of it, or of a form; what is shorter would mask half of the log."""

MAX_PATTERN = 512
"""Bytes; a longer form is searched for in pieces of this size. So a line needs to be held only so far beyond its cut,
and the search stays linear whatever the secrets are."""

MAX_FAST = 16_384
"""Bytes of all patterns. Up to here the automaton is of the fastest kind, whose tables need at most 1,024 times as much
memory; six megabytes are usual at this size."""

_ESCAPE = 27
"""The byte that begins a terminal sequence."""

MAX_OVERLAPS = 1_000
"""In a line; secrets do not overlap themselves, unless they were chosen to keep the worker busy."""

_URL_SAFE = ("", "/", "!'()*", "!'()*;,/?:@&=+$#", "!$&'()*+,;=")
"""What encoders leave as it is: strict ones, Python's quote, JavaScript's encodeURIComponent and encodeURI, and the
user and password of a URL."""

_HTML = (
    ("'", '"', "+"),
    ("'", "&quot;", "+"),  # PHP before 8.1
    ("&#x27;", "&quot;", "+"),  # Python's html
    ("&#39;", "&quot;", "+"),  # lodash, Rails
    ("&#039;", "&quot;", "+"),  # PHP
    ("&apos;", "&quot;", "+"),  # XML
    ("&#39;", "&#34;", "+"),  # MarkupSafe, Go's html
    ("&#39;", "&#34;", "&#43;"),  # Go's html/template
)
"""How HTML writes an apostrophe, a quotation mark and a plus sign; all write ``&``, ``<`` and ``>`` alike."""

_SHELL_SPECIAL = re.compile(rb"[\t !\"$&'()*,;<>?\[\\\]^`{|}]")
"""What bash's ``printf %q`` writes with a backslash at any place of a word."""


def _escapes(number: str, names: dict[int, str], quotes: str) -> dict[int, str]:
    """How a language writes bytes in ASCII, for ``str.translate``: by name, with a backslash, or by number."""
    numbers = {code: number.format(code) for code in (*range(32), *range(127, 256))}
    return numbers | names | {ord(sign): "\\" + sign for sign in "\\" + quotes}


_PYTHON_NAMES = {9: "\\t", 10: "\\n", 13: "\\r"}
_BASH_NAMES = _PYTHON_NAMES | {7: "\\a", 8: "\\b", 11: "\\v", 12: "\\f", 27: "\\E"}
_ESCAPES = tuple(
    _escapes(number, names, quotes)
    for (number, names), quotes in product(
        (("\\x{:02x}", _PYTHON_NAMES), ("\\x{:02X}", _PYTHON_NAMES), ("\\{:03o}", _BASH_NAMES)),
        ("", "'", '"', "'\""),
    )
)
_BASH = _escapes("\\{:03o}", _BASH_NAMES, "'")

_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")
"""What a terminal obeys and does not show: colours, links, character sets; whole, or as far as the line goes."""

_WRAPS = (64, 76)
"""Columns after which base64 breaks its lines (PEM, MIME)."""


class Redactor:
    """Masks every form of these secrets. Without secrets it is falsy, and returns what it is given."""

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        patterns = sorted({piece for secret in secrets for form in _forms(secret) for piece in _pieces(form)})
        self.reach = max(map(len, patterns), default=0)
        """The longest pattern: so many bytes from where it begins, the rest of a secret is sure to be there."""
        fast = Implementation.DFA if sum(map(len, patterns)) <= MAX_FAST else None
        self._automaton = (
            BytesAhoCorasick(patterns, MatchKind.LeftmostLongest, implementation=fast) if patterns else None
        )

    def __bool__(self) -> bool:
        return self._automaton is not None

    def mask(self, data: bytes, limit: int | None = None) -> bytes:
        """The first ``limit`` bytes of data, masked; one that begins there and ends beyond counts too.

        A longer text with terminal sequences is cut earlier, where fewer than ``reach`` bytes without them follow: data
        may lack the rest of a secret that begins there.
        """
        if self._automaton is None:
            return data[:limit]
        if _ESCAPE in data:
            spans, limit = self._spans_beside_sequences(data, limit)
        else:
            spans = self._spans(data)
        parts, at = [], 0
        for start, end in spans:
            if limit is not None and start >= limit:
                break
            parts += [data[at:start], MASK]
            at = end
        return b"".join([*parts, data[at:limit]])

    def mask_lines(self, lines: Sequence[bytes], text: bytes) -> bytes:
        """The text of these lines, with newlines between them, each masked.

        No pattern has a newline, so one search in the text finds out whether there is anything to mask.
        """
        if self._automaton is not None and (_ESCAPE in text or self._find(text)):
            return b"\n".join([self.mask(line) for line in lines])
        return text

    def text(self, text: str) -> str:
        """The text, masked."""
        if not self:
            return text
        # What no UTF-8 can hold, half of a surrogate pair, goes through unchanged.
        return self.mask(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def value(self, value: Any) -> Any:
        """A value as JSON has them, with all texts in it masked, names included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value

    def _find(self, data: bytes) -> list[tuple[int, int, int]]:
        assert self._automaton is not None  # noqa: S101 - only called where there is one
        return self._automaton.find_matches_as_indexes(data)

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        """What patterns cover, in order and apart. The automaton's own matches never overlap; those of secrets do."""
        spans: list[tuple[int, int]] = []
        overlaps = 0
        for _, start, end in self._find(data):
            if spans and end <= spans[-1][1]:
                continue
            at, last = start, end
            while (later := self._next(data, at, last)) is not None:
                at, last = later[0], max(last, later[1])
                overlaps += 1
                if overlaps > MAX_OVERLAPS:
                    last = len(data)
                    break
            first = spans.pop()[0] if spans and start <= spans[-1][1] else start  # they touch: one span
            spans.append((first, last))
        return spans

    def _spans_beside_sequences(self, data: bytes, limit: int | None) -> tuple[list[tuple[int, int]], int]:
        """What patterns cover with the terminal sequences or without them, and how far data may be shown."""
        limit = len(data) if limit is None else limit
        left = _SEQUENCE.sub(b"", data)
        spans, hidden = self._spans(data), self._spans(left)
        if not hidden and limit >= len(data):
            return spans, limit
        # Text number n lies at starts[n] of what is left, and at places[n] of data.
        starts, places = [0], [0]
        for sequence in _SEQUENCE.finditer(data):
            starts.append(starts[-1] + sequence.start() - places[-1])
            places.append(sequence.end())

        def place(at: int) -> int:
            text = bisect_right(starts, at) - 1
            return places[text] + at - starts[text]

        if limit < len(data):
            limit = min(limit, place(max(0, len(left) - self.reach)))
        merged: list[tuple[int, int]] = []
        for start, end in sorted(spans + [(place(first), place(last - 1) + 1) for first, last in hidden]):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((start, end))
        return merged, limit

    def _next(self, data: bytes, at: int, end: int) -> tuple[int, int] | None:
        """The first match that begins after ``at`` and before ``end``."""
        found = self._find(data[at + 1 : end - 1 + self.reach])
        if not found or at + 1 + found[0][1] >= end:
            return None
        return at + 1 + found[0][1], at + 1 + found[0][2]


def _pieces(form: bytes) -> Iterator[bytes]:
    if len(form) <= MAX_PATTERN:
        yield form
        return
    for at in range(0, len(form) - MAX_PATTERN, MAX_PATTERN):
        yield form[at : at + MAX_PATTERN]
    yield form[-MAX_PATTERN:]


def _forms(secret: bytes) -> Iterator[bytes]:
    """All that is to be searched for, each without a line break and long enough."""
    whole = secret.strip()
    lines = {line.strip() for line in re.split(rb"[\r\n]+", whole)}
    for part in {whole, *lines}:
        if len(part.decode("utf-8", "replace")) >= MIN_LENGTH:
            yield from (form for form in _written(part) if len(form) >= MIN_LENGTH and b"\n" not in form)
    if len(whole.decode("utf-8", "replace")) >= MIN_LENGTH:
        encoded = _base64(secret, 0)
        for columns in _WRAPS:
            wrapped = (encoded[at : at + columns] for at in range(0, len(encoded), columns))
            yield from (line for line in wrapped if len(line) >= MIN_LENGTH)


def _written(part: bytes) -> Iterator[bytes]:
    """The ways in which programs write these bytes."""
    yield part
    yield part.hex().encode()
    yield part.hex().upper().encode()
    for shift in range(3):
        for encoded in (_base64(part, shift), _base64(part, shift, last=True)):
            yield encoded
            yield encoded.translate(bytes.maketrans(b"+/", b"-_"))
    for escaped in [quote(part, safe=safe) for safe in _URL_SAFE] + [quote_plus(part), quote_plus(part, safe="*")]:
        for url in (escaped, escaped.replace("~", "%7E")):
            yield url.encode()
            yield re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), url).encode()
    yield from _quoted(part)
    # With both quotation marks around, repr puts a backslash before the apostrophes.
    yield repr(part)[2:-1].encode()
    yield repr(b"\"%s'" % part)[3:-3].encode()
    characters = part.decode("latin-1")
    yield from (characters.translate(escapes).encode() for escapes in _ESCAPES)
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return
    yield from (form.encode() for form in _texts(text))


def _quoted(part: bytes) -> Iterator[bytes]:
    """The insides of quotes that leave all but a few signs as they are."""
    for quote_mark, instead in ((b"'", b"'\\''"), (b"'", b"'\"'\"'"), (b"'", b"''"), (b'"', b'""')):
        yield part.replace(quote_mark, instead)
    yield part.replace(b"\\", b"\\\\").replace(b"'", b"''")  # PostgreSQL's E''
    yield re.sub(rb'[\\"$`]', rb"\\\g<0>", part)  # a shell's "", as declare -p writes it
    word = _SHELL_SPECIAL.sub(rb"\\\g<0>", part)
    yield word
    yield re.sub(rb"^[#~]|(?<=[:=])~", rb"\\\g<0>", word)


def _texts(text: str) -> Iterator[str]:
    """The ways in which programs write a text and need to know its characters for that."""
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        for form in (
            escaped,
            escaped.replace("/", "\\/"),
            re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", escaped),
            # .NET escapes these too; the first alternative is a backslash that belongs to no sign.
            re.sub(r"\\\\|\\?([<>&'\"+`])", lambda sign: f"\\u{ord(sign[1]):04x}" if sign[1] else sign[0], escaped),
        ):
            yield form
            yield re.sub(r"\\(?:\\|u[0-9a-f]{4})", lambda code: code[0][:2] + code[0][2:].upper(), form)
    for write in (repr, ascii):
        yield write(text)[1:-1]
        yield write(f"\"{text}'")[2:-3]
    yield "".join(
        sign if sign > "~" and sign.isprintable() else sign.encode().decode("latin-1").translate(_BASH) for sign in text
    )
    plain = html.escape(text, quote=False)
    for apostrophe, quotation, plus in _HTML:
        yield plain.replace("'", apostrophe).replace('"', quotation).replace("+", plus)


def _base64(part: bytes, shift: int, *, last: bool = False) -> bytes:
    """Those characters of an encoding that depend on nothing but ``part``, where ``shift`` bytes stand before it.

    Up to four bits of its first byte are in a character that the byte before has a share in; of its last byte too,
    unless nothing comes after it.
    """
    encoded = base64.b64encode(bytes(shift) + part)
    end = None if last else 8 * (shift + len(part)) // 6
    return encoded[-(-8 * shift // 6) : end].rstrip(b"=")
