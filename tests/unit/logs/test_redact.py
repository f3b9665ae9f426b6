"""What a secret looks like in a log, and that none of it is left there, wherever the log is cut."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.journal import OUT, entries, frame
from worker.logs.lines import LineAssembler
from worker.logs.redact import MASK, MAX_PATTERN, MIN_LENGTH, Redactor
from worker.logs.streams import MAX_LINE_BYTES

SECRET = b"p\"s's/w\xc3\xb6rd&<17>+~$ \\ \t\x7f x"
KEY = b"-----BEGIN KEY-----\n" + b"".join(base64.encodebytes(bytes(range(n, n + 48))) for n in range(0, 160, 32))
FRAMED = b"=%s="  # no character of base64, hex or a form of ours


def said(data: bytes, secrets: list[bytes], *cuts: int) -> list[str]:
    """The messages of a log that arrives in pieces cut at those places."""
    assembler = LineAssembler(0, redactor=Redactor(secrets))
    places = [0, *sorted(cuts), len(data)]
    batches = [lines for start, end in pairwise(places) for lines in assembler.feed(data[start:end])]
    return [message for lines in batches + assembler.flush() for message in lines.messages]


def url_component(secret: bytes) -> bytes:
    return quote(secret, safe="!'()*").encode()


def json_in_capitals(secret: bytes, signs: str = "") -> bytes:
    """JSON by Java or .NET, one character at a time; .NET writes the signs as numbers too."""
    written = (f"\\u{ord(c):04X}" if c in signs else json.dumps(c)[1:-1] for c in secret.decode())
    return "".join(c.upper().replace("\\U", "\\u") if c[:2] == "\\u" else c for c in written).encode()


def in_html(apostrophe: str, quotation: str, plus: str = "+") -> Callable[[bytes], bytes]:
    signs: dict[str, str | int | None] = {
        "'": apostrophe,
        '"': quotation,
        "+": plus,
        "<": "&lt;",
        ">": "&gt;",
        "&": "&amp;",
    }
    return lambda secret: secret.decode().translate(str.maketrans(signs)).encode()


def in_ascii(number: str, quoted: bytes) -> Callable[[bytes], bytes]:
    """Bytes in source code: a backslash before these, a name for a tab, a number for all outside of ASCII."""
    signs = {byte: b"\\%c" % byte for byte in quoted + b"\\"} | {9: b"\\t"}
    numbers = {byte: (number % byte).encode() for byte in [127, *range(128, 256)]}
    return lambda secret: b"".join((signs | numbers).get(byte, b"%c" % byte) for byte in secret)


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "hex": lambda s: s.hex().encode(),
    "hex in capitals": lambda s: s.hex().upper().encode(),
    "base64": lambda s: base64.b64encode(s).rstrip(b"="),
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(s).rstrip(b"="),
    "JSON": lambda s: json.dumps(s.decode())[1:-1].encode(),
    "JSON as UTF-8": lambda s: json.dumps(s.decode(), ensure_ascii=False)[1:-1].encode(),
    "JSON with escaped slashes": lambda s: json.dumps(s.decode())[1:-1].replace("/", "\\/").encode(),
    "JSON for HTML": lambda s: re.sub("[<>&]", lambda c: f"\\u{ord(c[0]):04x}", json.dumps(s.decode())[1:-1]).encode(),
    "URL": lambda s: quote(s, safe="").encode(),
    "URL path": lambda s: quote(s).encode(),
    "URL in lower case": lambda s: re.sub("%..", lambda code: code[0].lower(), quote(s, safe="")).encode(),
    "encodeURIComponent": url_component,
    "form": lambda s: quote_plus(s).encode(),
    "repr": lambda s: repr(s.decode())[1:-1].encode(),
    "repr within quotes of both kinds": lambda s: repr(f"\"{s.decode()}'")[2:-3].encode(),
    "repr of bytes": lambda s: repr(s)[2:-1].encode(),
    "repr of bytes within quotes of both kinds": lambda s: repr(b'"' + s + b"'")[3:-3].encode(),
    "ascii": lambda s: ascii(s.decode())[1:-1].encode(),
    "hex escapes": in_ascii("\\x%02x", b'"'),
    "hex escapes in capitals": in_ascii("\\x%02X", b'"'),
    "octal escapes": in_ascii("\\%03o", b""),
    "octal escapes by git": in_ascii("\\%03o", b'"'),
    "octal escapes by bash": in_ascii("\\%03o", b"'"),
    "JSON in capitals": json_in_capitals,
    "JSON by .NET": lambda s: json_in_capitals(s, "<>&'\"+`"),
    "URL with escaped tilde": lambda s: quote(s, safe="").replace("~", "%7E").encode(),
    "form with escaped tilde": lambda s: quote_plus(s, safe="*").replace("~", "%7E").encode(),
    "HTML": lambda s: html.escape(s.decode()).encode(),
    "HTML text": in_html("'", '"'),
    "HTML by PHP": in_html("&#039;", "&quot;"),
    "HTML by old PHP": in_html("'", "&quot;"),
    "HTML by lodash": in_html("&#39;", "&quot;"),
    "HTML by MarkupSafe and Go": in_html("&#39;", "&#34;"),
    "HTML by a template of Go": in_html("&#39;", "&#34;", "&#43;"),
    "XML": in_html("&apos;", "&quot;"),
    "shell word": lambda s: s.replace(b"'", b"'\\''"),
    "shell word by shlex": lambda s: s.replace(b"'", b"'\"'\"'"),
    "shell word in double quotes": lambda s: re.sub(rb'(["$`\\])', rb"\\\1", s),
    "SQL": lambda s: s.replace(b"'", b"''"),
    "SQL with backslashes": lambda s: s.replace(b"'", b"''").replace(b"\\", b"\\\\"),
    "CSV": lambda s: s.replace(b'"', b'""'),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_secret_is_masked_however_it_is_written(writer: str) -> None:
    written = WRITERS[writer](SECRET)
    assert Redactor([SECRET]).mask(FRAMED % written) == FRAMED % MASK


SHELL = r"""printf '%q\n' "$1"; x=$1; echo "${x@Q}"; declare -p x; exec 2>&1; set -x; : "$x" """


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize(
    "secret",
    [
        SECRET,
        SECRET.replace(b"\t\x7f", b"~#"),
        b"~start=~a:~b",
        b"#start,{a}",
        rb"a b!c*[d]^(e)|f;g?h`i",
        b"\a\b\v\f\x1b\1'",
    ],
)
def test_a_secret_is_masked_however_bash_quotes_it(secret: bytes, locale: str) -> None:
    written = subprocess.run(
        ["bash", "-c", SHELL, "-", secret], env={"LC_ALL": locale}, capture_output=True, check=True
    )
    word, shown, declared, traced = Redactor([secret]).mask(written.stdout).splitlines()
    assert {word, shown, declared, traced} <= {
        quotes % MASK
        for start in (b"", b"declare -- x=", b"+ : ")
        for quotes in (start + b"%s", start + b"'%s'", start + b'"%s"', start + b"$'%s'")
    }


@pytest.mark.parametrize(
    "sequence", [b"\x1b[1;31m", b"\x1b(B\x1b[m", b"\x1b]8;;http://x\x1b\\", b"\x1b]8;;\a", b"\x1b7"]
)
def test_a_secret_with_terminal_sequences_in_it_is_masked(sequence: bytes) -> None:
    secret = b"hunter22"
    texts = [secret[:at] + sequence + secret[at:] for at in range(1, len(secret))]
    for text in [*texts, sequence.join(secret[at : at + 1] for at in range(len(secret)))]:
        data = entries(OUT, b"a " + sequence + text + sequence + b" b " + secret + b" c\n")
        shown = (b"a %s***%s b *** c" % (sequence, sequence)).decode()
        for cut in range(len(data) + 1):
            assert said(data, [secret], cut) == [shown]


def test_a_secret_in_a_terminal_sequence_or_with_one_of_its_own_is_masked() -> None:
    redactor = Redactor([b"hunter22", b"\x1b[1mbold22"])
    assert redactor.mask(b"\x1b]8;;http://hunter22\x1b\\x \x1b[1mbold22") == b"\x1b]8;;http://***\x1b\\x ***"
    assert redactor.mask(b"hunter22\x1b") == b"***\x1b"
    assert redactor.mask(b"\x1b[1mhunt\x1b[0mer22hunter22") == b"\x1b[1m***"


@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"xyz"])
@pytest.mark.parametrize("after", [b"", b"\n", b"zz"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_masked_at_every_offset(before: bytes, after: bytes, encode: Callable[[bytes], bytes]) -> None:
    encoded = encode(before + SECRET + after)
    left = Redactor([SECRET]).mask(encoded)
    assert MASK in left
    rest = left.replace(MASK, b"")
    assert len(rest) <= len(encode(before)) + len(encode(after)) + 2
    assert len(left.split(MASK)) == 2, "masked in one piece"


@pytest.mark.parametrize("columns", [64, 76])
def test_base64_that_is_broken_into_lines_is_masked_line_by_line(columns: int) -> None:
    encoded = base64.b64encode(KEY)
    log = b"".join(frame(OUT, encoded[at : at + columns] + b"\n") for at in range(0, len(encoded), columns))
    left = said(log, [KEY])
    assert set(left[:-1]) == {"***"}
    assert len(left[-1]) < 12  # the end, where it pads


def test_each_line_of_a_secret_is_masked_alone() -> None:
    log = b"".join(frame(OUT, b"  %s\r\n" % line) for line in KEY.splitlines())
    assert set(said(log, [KEY])) == {"  ***"}


def test_a_secret_of_several_lines_in_one_line_is_masked_whole() -> None:
    written = json.dumps({"key": KEY.decode()}).encode()
    assert Redactor([KEY]).mask(written) == b'{"key": "***\\n"}'


def test_secrets_that_overlap_leave_nothing_of_either() -> None:
    redactor = Redactor([b"abcdefgh", b"efghijkl", b"ijklmnop", b"cdefgh"])
    assert redactor.mask(b"-abcdefghijklmnop-") == b"-***-"
    assert redactor.mask(b"-abcdefghijkl-") == b"-***-"
    assert redactor.mask(b"-bcdefghi-") == b"-b***i-"
    assert redactor.mask(b"abcdefghefghijkl") == MASK


def test_a_matcher_that_steps_back_one_character_would_leak_this() -> None:
    assert Redactor([b"aabsecret"]).mask(b"x aaabsecret y") == b"x a*** y"


@pytest.mark.parametrize("short", [b"", b"12345", "fünf".encode(), b"a\nb\nc", b" x \n"])
def test_nothing_under_six_characters_is_masked(short: bytes) -> None:
    redactor = Redactor([short])
    text = b"a b c 12345 f\xc3\xbcnf x" + b64(short)
    assert redactor.mask(text).startswith(b"a b c 12345 f\xc3\xbcnf x")


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


def test_without_secrets_nothing_changes_and_the_redactor_is_false() -> None:
    for none in (Redactor(), Redactor([b"12345"]), Redactor([b""])):
        assert not none
        assert none.mask(b"anything", 3) == b"any"
        assert none.text("\ud800") == "\ud800"


def test_texts_in_events_are_masked_wherever_they_are() -> None:
    redactor = Redactor([b"hunter22"])
    value = {"a": ["x hunter22", 1, None, {"hunter22": "y"}], "b": ("hunter22",), "c": 2.5, "d": True}
    assert redactor.value(value) == {
        "a": ["x ***", 1, None, {"***": "y"}],
        "b": ["***"],
        "c": 2.5,
        "d": True,
    }
    assert redactor.text("\ud800 hunter22") == "\ud800 ***"


def test_a_secret_of_bytes_is_masked_too() -> None:
    secret = bytes(range(128, 160))
    assert said(frame(OUT, b"<" + secret + b">\n"), [secret]) == ["<***>"]
    assert said(frame(OUT, b"nul\0secret\n"), [b"nul\0secret"]) == ["***"]


# --- wherever it is cut ---------------------------------------------------------------------------------------------


@given(secret=st.binary(min_size=MIN_LENGTH, max_size=40), before=st.binary(max_size=20), after=st.binary(max_size=20))
@example(secret=b"aabsecret", before=b"x a", after=b" y")
def test_no_split_of_a_log_shows_a_secret(secret: bytes, before: bytes, after: bytes) -> None:
    secret, before, after = (re.sub(rb"[\s\r\n]", b"_", part) for part in (secret, before, after))
    assume(len(secret.decode("utf-8", "replace")) >= MIN_LENGTH)
    data = entries(OUT, before + secret + after + b"\n")
    whole = said(data, [secret])
    assert "***" in "".join(whole)
    assert secret not in "".join(whole).encode()
    for cut in range(len(data) + 1):
        assert said(data, [secret], cut) == whole


@pytest.mark.parametrize("writer", WRITERS)
def test_no_split_of_a_log_shows_a_form_of_a_secret(writer: str) -> None:
    data = entries(OUT, b"before " + FRAMED % WRITERS[writer](SECRET) + b" after\n")
    for cut in range(len(data) + 1):
        assert said(data, [SECRET], cut) == ["before =***= after"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"pw hunter22\rxy", "xy ***"),
        (b"pw hunter22\rpw hunt", "pw hunt"),
        (b"---ter22\rhun", "***"),
        (b"hunt\rhunter22\r", "***t"),
        (b"x\rtoken=hunter22\r\x1b[Kdone", "done"),
        (b"pw hun\x1b[1mter22\rxy", "xy ***"),
        (b"hunter22" * 3 + b"\r" + b"x" * 70_000 + b"hunter22\rhun", None),
    ],
)
def test_carriage_returns_show_no_secret_and_no_rest_of_one(line: bytes, shown: str | None) -> None:
    data = entries(OUT, line + b"\n")
    for cut in range(0, len(data) + 1, 1 if shown else 9_973):
        [message] = said(data, [b"hunter22"], cut)
        assert shown in (None, message)
        assert not any(rest in message for rest in ("hunter22", "unter22", "ter22"))


def test_a_secret_at_the_place_where_an_overwritten_line_is_folded_is_masked() -> None:
    secret = b"0123456789-abcdefghijklmnopqrstuvwxyz"
    for offset in range(-45, 5):
        start = b"\rprogress" * 7_281 + b"x" * (60 + offset)
        [message] = said(entries(OUT, start + secret + b"\rlast " + secret + b"\n"), [secret])
        assert message.startswith("last ***")
        assert not any(secret[n : n + 6].decode() in message for n in range(len(secret) - 6))


VISIBLE = st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"])


@given(secret=st.text(VISIBLE, min_size=MIN_LENGTH, max_size=30))
@pytest.mark.parametrize("writer", WRITERS)
def test_no_form_of_any_text_survives(writer: str, secret: str) -> None:
    written = WRITERS[writer](secret.encode())
    left = Redactor([secret.encode()]).mask(FRAMED % written)
    assert left == FRAMED % MASK


@pytest.mark.parametrize("offset", range(-40, 8))
@pytest.mark.parametrize("between", [b"", b"\x1b[1m"])
def test_a_line_that_is_cut_within_a_secret_shows_nothing_of_it(offset: int, between: bytes) -> None:
    secret = b"0123456789-abcdefghijklmnopqrstuvwxyz"
    written = between.join(secret[at : at + 1] for at in range(len(secret)))
    line = b"x" * (MAX_LINE_BYTES + offset) + written + (b"y" + between) * 20_000
    [message] = said(entries(OUT, line + b"\n"), [secret])
    text, _, cut = message.partition(" … ")
    assert cut == f"[line cut, {len(line)} bytes]"
    text = text.replace(between.decode(), "") if between else text
    assert set(text) <= {"x", "*", "y"}
    assert len(text) > MAX_LINE_BYTES - 500
    assert not any(secret[:n].decode() in text for n in range(1, len(secret)))


def test_a_line_full_of_secrets_does_not_show_the_one_at_its_end() -> None:
    secret = b"0123456789-abcdefghijklmnopqrstuvwxyz"
    line = secret * 5_000
    [message] = said(entries(OUT, line + b"\n"), [secret])
    assert set(message.partition(" … ")[0]) == {"*"}
    assert message.endswith(f"[line cut, {len(line)} bytes]")


def test_a_line_of_the_greatest_length_is_whole_with_secrets_in_it() -> None:
    secret = b"0123456789"
    line = secret + b"x" * (MAX_LINE_BYTES - 20) + secret
    assert said(entries(OUT, line + b"\n"), [secret]) == ["***" + "x" * (MAX_LINE_BYTES - 20) + "***"]


def test_a_long_secret_is_masked_in_one_piece() -> None:
    secret = b"".join(hashlib.sha256(bytes([n])).hexdigest().encode() for n in range(256))
    assert Redactor([secret]).mask(FRAMED % secret) == FRAMED % MASK
    assert Redactor([secret]).reach <= MAX_PATTERN, "of a line no more than that is held beyond its cut"
    assert Redactor([secret]).mask(secret[:700] + b" lost").endswith(b" lost")


PERIODIC = [[b"aaaaaa"], [b"a" * n for n in range(6, 300)], [b"ababab", b"ba" * 100, b"aba" * 50]]


@pytest.mark.parametrize("secrets", PERIODIC, ids=["a", "chain", "ab"])
@pytest.mark.parametrize("text", [b"a", b"ab", b"aba"])
def test_secrets_that_overlap_themselves_cost_no_more_than_a_line(secrets: list[bytes], text: bytes) -> None:
    redactor = Redactor(secrets)
    searches = 0
    find = redactor._find

    def counted(data: bytes) -> list[tuple[int, int, int]]:
        nonlocal searches
        searches += 1
        return find(data)

    redactor._find = counted  # type: ignore[method-assign]
    left = redactor.mask(text * (MAX_LINE_BYTES // len(text)))
    assert searches <= 1 + MAX_LINE_BYTES // 6 + 1_001
    assert not any(secret in left for secret in secrets)


def test_what_the_engine_says_instead_of_a_log_is_masked() -> None:
    assembler = LineAssembler(0, redactor=Redactor([b"hunter22"]))
    assembler.feed(frame(3, b"error: " + b"x" * 956 + b"hunter22"))
    assert "hunt" not in assembler.fault
    assert assembler.fault.endswith("***")
