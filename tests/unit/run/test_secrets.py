"""Which secret a run gets of the host's folder, and how one that cannot be had is told."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.archives import entry, tar
from worker.engine.containers import _held_value
from worker.errors import ConfigurationError, SpecError
from worker.model.container import MAX_SECRET, Secret
from worker.run.secrets import SecretsFolder, changed_values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "acme").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "token").write_bytes(b"everybody's\n")
    (tmp_path / "license").write_bytes(b"\x00\xff")
    (tmp_path / "acme" / "token").write_bytes(b"acme's")
    (tmp_path / "other" / "own").write_bytes(b"other's")
    return tmp_path


def test_a_project_s_own_secret_wins_and_bytes_are_what_they_are(folder: Path) -> None:
    secrets = SecretsFolder(folder)
    assert secrets.read("acme", ["token", "license"]) == (Secret("token", b"acme's"), Secret("license", b"\x00\xff"))
    assert secrets.read("other", ["token"]) == (Secret("token", b"everybody's\n"),)


@pytest.mark.parametrize("workspace_key", ["acme", "", "..", ".", "other/", "acme/../other", "acme\n"])
@pytest.mark.parametrize("name", ["own", "other", "nothing"])
def test_another_project_s_secret_does_not_exist(folder: Path, workspace_key: str, name: str) -> None:
    with pytest.raises(SpecError) as caught:
        SecretsFolder(folder / "acme" / "..").read(workspace_key, ["token", name])
    assert (caught.value.reason, caught.value.field) == ("secret_missing", "secrets")
    assert str(caught.value).startswith(f"secret {name!r} is missing: this host has none of that name for project")
    assert str(folder) not in str(caught.value)


def test_a_host_without_a_folder_says_so() -> None:
    with pytest.raises(SpecError, match=r"'token' is missing: this host has none: its setting secrets_dir is not set"):
        SecretsFolder().read("acme", ["token"])
    assert SecretsFolder().read("acme", []) == ()


def test_a_folder_that_is_not_there_is_a_wrong_setting(folder: Path) -> None:
    for wrong in (folder / "missing", folder / "token"):
        with pytest.raises(ConfigurationError, match=r"secrets_dir: there is no such folder"):
            SecretsFolder(wrong)


def test_what_is_too_large_or_cannot_be_read_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "large").write_bytes(bytes(MAX_SECRET + 1))
    (folder / "largest").write_bytes(bytes(MAX_SECRET))
    assert len(SecretsFolder(folder).read("acme", ["largest"])[0].value) == MAX_SECRET
    with pytest.raises(SpecError, match="'large' is missing: it is larger than 64 KiB"):
        SecretsFolder(folder).read("acme", ["large"])

    def refused(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SpecError, match="'token' is missing: the worker cannot read it: Permission denied"):
        SecretsFolder(folder).read("acme", ["token"])


def test_a_project_s_own_secret_that_cannot_be_read_is_not_replaced_by_the_common_one(folder: Path) -> None:
    (folder / "acme" / "token").unlink()
    (folder / "acme" / "token").symlink_to("token")  # a loop
    with pytest.raises(SpecError, match="the worker cannot read it"):
        SecretsFolder(folder).read("acme", ["token"])


def test_those_that_are_not_required_are_left_out(folder: Path) -> None:
    assert SecretsFolder(folder).read("acme", ["own", "token"], required=False) == (Secret("token", b"acme's"),)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (tar(entry("token", content=b"x" * MAX_SECRET)), b"x" * MAX_SECRET),
        (tar(entry("token", content=b"x" * (MAX_SECRET + 1))), None),
        (tar(entry("token", tarfile.SYMTYPE, link="/etc/shadow")), None),
        (tar(entry("token", content=b"hunter22"))[:515], None),
        (tar(), None),
    ],
    ids=["the largest", "too large", "a link", "cut", "gone"],
)
def test_what_a_container_holds_as_a_secret(data: bytes, value: bytes | None) -> None:
    assert _held_value(iter([data[:100], b"", data[100:]])) == value


def test_no_more_is_read_of_a_container_than_its_secret() -> None:
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        yield tar(entry("token", content=b"hunter22"))[:1024]
        while True:
            read.append(1)
            yield b"x" * 1024

    assert _held_value(endless()) == b"hunter22"
    assert read == []


def test_of_what_only_a_container_holds_no_more_is_masked_than_memory_allows() -> None:
    """Twenty files of 64 KiB, all in short lines: their forms took 1.1 GB."""
    known = [Secret("token", b"of the host")]
    held = [*known, *(Secret(f"s{n}", b"%06d\n" % n * (MAX_SECRET // 7)) for n in range(20)), Secret("old", b"rotated")]
    assert changed_values(held, known) == [held[1].value]
    assert changed_values([known[0], held[-1]], known) == [b"rotated"]


def test_a_secret_shows_its_value_nowhere() -> None:
    assert "hunter22" not in f"{Secret('token', b'hunter22')!r} {Secret('token', b'hunter22')}"


def test_a_secret_as_an_environment_variable() -> None:
    assert Secret("pg-pass.v2", b"hunter22\n").variable == ("PG_PASS_V2", "hunter22")
    for odd in (b"a\0b", b"\xff"):
        with pytest.raises(SpecError, match="secret 'token' cannot be an environment variable"):
            Secret("token", odd).variable  # noqa: B018 - a property that raises
