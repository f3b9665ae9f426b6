"""The URL of the store, and its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.collected import Collected
from worker.artifacts.store import ArtifactStore
from worker.errors import ArtifactError, ConfigurationError


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
    assert raised.value.field == "artifact_store"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://key:s3cret@bucket/prefix", "s3://bucket/prefix?token=s3cret", "s3://b#s3cret"])
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY") as raised:
        ArtifactStore.from_url(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("endpoint", ["garbage", "host:9000", "ftp://host", "https://", "http:// host"])
def test_a_wrong_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL: expected https://host/path"):
        ArtifactStore.from_url("s3://bucket/prefix")


def test_a_new_folder_is_readable_by_its_owner_and_group_only(tmp_path: Path) -> None:
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


async def test_check_leaves_no_object(collected: Collected) -> None:
    await ArtifactStore.from_url(collected.root.as_uri()).check()
    assert list(collected.root.iterdir()) == []


async def test_check_of_a_folder_that_was_replaced_by_a_file_fails(collected: Collected) -> None:
    store = ArtifactStore.from_url(collected.root.as_uri())
    collected.root.rmdir()
    collected.root.write_text("now a file")
    with pytest.raises(ArtifactError, match=r"cannot write to file:///.*: not a directory$"):
        await store.check()
