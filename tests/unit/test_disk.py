"""The floor below which a host claims nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.disk import shortage


def test_a_disk_with_room_is_no_matter(tmp_path: Path) -> None:
    assert shortage([tmp_path], 1) is None


def test_a_disk_below_the_floor_is_named_with_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs(tmp_path)
    left = os.statvfs_result((room.f_bsize, 4096, room.f_blocks, 9999, 2560, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: left)
    said = shortage([tmp_path], 11 * 2**20)
    assert said == f"10m left on the disk of {tmp_path}, and --min-free-disk (OPS_WORKER_MIN_FREE_DISK) is 11m"
    assert shortage([tmp_path], 10 * 2**20) is None


def test_a_folder_that_cannot_be_seen_from_here_is_passed_over(tmp_path: Path) -> None:
    assert shortage([tmp_path / "of another host"], 2**62) is None
