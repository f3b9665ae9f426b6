"""What a name of an image means, and which patterns cover it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model.images import ImageName, allowed, check_pattern, digest_of

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("odoo", "docker.io/library/odoo:latest"),
        ("odoo:19.0", "docker.io/library/odoo:19.0"),
        ("library/odoo", "docker.io/library/odoo:latest"),
        ("docker.io/odoo", "docker.io/library/odoo:latest"),
        ("index.docker.io/library/odoo:latest", "docker.io/library/odoo:latest"),
        ("team/odoo", "docker.io/team/odoo:latest"),
        ("localhost/odoo", "localhost/odoo:latest"),
        ("localhost:5000/odoo", "localhost:5000/odoo:latest"),
        ("registry.example:5000/a/b/c:x", "registry.example:5000/a/b/c:x"),
        (f"odoo@{A}", f"docker.io/library/odoo@{A}"),
        (f"odoo:19.0@{A}", f"docker.io/library/odoo@{A}"),
        ("4f3b9ef4f978", "docker.io/library/4f3b9ef4f978:latest"),
        (A, f"docker.io/library/{A}"),
    ],
)
def test_a_name_is_what_the_engine_takes_it_for(text: str, full: str) -> None:
    assert str(ImageName.parse(text)) == full
    assert ImageName.parse(full) == ImageName.parse(full)


@pytest.mark.parametrize(
    "text",
    ["", "Odoo", "odoo:", "odoo:-x", "odoo:a/b", "/odoo", "odoo/", "a//b", "a/../b", "odoo@sha256:abc", "odoo@", "-/x",
     f"odoo@{A}x", "odoo 19", "odoo:19\n", "évil/odoo", "https://x.example/odoo", "user:pw@x.example/odoo", "x" * 256,
     "**", "odoo:*", "registry.example:port/odoo"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="expected the name of an image"):
        ImageName.parse(text)


@pytest.mark.parametrize(
    ("pattern", "covered", "others"),
    [
        ("*", ["odoo", "evil.example/x:1", f"odoo@{A}"], []),
        ("odoo", ["odoo", "docker.io/library/odoo:1", f"odoo@{A}"], ["odoo2", "team/odoo", "localhost/odoo"]),
        ("odoo:*", ["odoo", "odoo:19.0", "library/odoo:1"], ["x.example/odoo:1", f"odoo@{A}", f"odoo:19.0@{A}"]),
        ("odoo:19.*", ["odoo:19.0"], ["odoo", "odoo:1919.0", f"odoo:19.0@{A}"]),
        (f"odoo@{A}", [f"odoo@{A}", f"odoo:19.0@{A}"], ["odoo", "odoo:19.0", f"odoo@{B}", f"team/odoo@{A}"]),
        ("odoo@*", [f"odoo@{A}", f"odoo@{B}"], ["odoo", "odoo:19.0"]),
        ("team/*", ["team/a", "docker.io/team/b:2"], ["team/a/b", "x.example/team/a", "team"]),
        ("r.example/*", ["r.example/a"], ["r.example/a/b", "r.example:5000/a", "evil.example/r.example/a"]),
        ("r.example/**", ["r.example/a", "r.example/a/b:1"], ["x.example/r.example/a", "r.example.x/a"]),
        ("r.example/**/odoo", ["r.example/odoo", "r.example/a/b/odoo"], ["r.example/odoo/x", "r.example/xodoo"]),
        ("*/good/odoo", ["docker.io/x/good/odoo"], ["evil.example/good/odoo", "evil.example/x/good/odoo"]),
        ("**/odoo", ["odoo", "a/b/odoo"], ["evil.example/odoo"]),
        ("*.r.example/odoo", ["a.r.example/odoo"], ["x.example/a.r.example/odoo", "a.r.example/x/odoo"]),
        ("r.example/[ab]*:?", ["r.example/alpha:1"], ["r.example/cx:1", "r.example/alpha:12"]),
        ("r.example:5000/a", ["r.example:5000/a:1"], ["r.example/a", "r.example:5001/a"]),
    ],
)  # fmt: skip
def test_what_a_pattern_covers(pattern: str, covered: list[str], others: list[str]) -> None:
    check_pattern(pattern)
    assert [name for name in covered if not allowed(ImageName.parse(name), [pattern])] == []
    assert [name for name in others if allowed(ImageName.parse(name), [pattern])] == []


def test_no_pattern_allows_nothing_and_one_of_many_is_enough() -> None:
    assert not allowed(ImageName.parse("odoo"), [])
    assert allowed(ImageName.parse("odoo"), ["r.example/*", "odoo"])


@pytest.mark.parametrize(
    "pattern", ["", "Odoo", "odoo:", "a b", "https://r.example/*", "odoo@sha256:*", "odoo@abc", "a//b"]
)
def test_a_pattern_that_can_cover_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_pattern(pattern)


NAME = st.from_regex(r"\A[a-z0-9*?.:/@\[\]-]{1,40}\Z")


@given(name=NAME, registry=st.sampled_from(["good.example", "localhost:5000"]))
def test_no_name_of_another_registry_passes_a_pattern_of_one(name: str, registry: str) -> None:
    try:
        image = ImageName.parse(name)
    except ValueError:
        return
    assert allowed(image, [f"{registry}/**"]) == image.name.startswith(f"{registry}/")
    assert ImageName.parse(str(image)) == ImageName(image.name, None if image.digest else image.tag, image.digest)


def test_the_digest_that_is_recorded_is_the_one_of_the_name_s_own_repository() -> None:
    known = [f"mirror.example/odoo@{B}", f"odoo@{A}"]
    assert digest_of(ImageName.parse("odoo:19.0"), known) == f"docker.io/library/odoo@{A}"
    assert digest_of(ImageName.parse("mirror.example/odoo"), known) == f"mirror.example/odoo@{B}"
    assert digest_of(ImageName.parse("odoo2"), known) is None
