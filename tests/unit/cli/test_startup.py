"""The lock that keeps a second worker with the same id off a host."""

from __future__ import annotations

import pytest

from worker.cli.startup import _lock_name

URL = "postgresql://worker:hunter22@db.example:6543/ops"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (URL.replace("hunter22", "other"), True),
        (URL.replace(":hunter22", ""), True),
        (URL + "?password=x&sslmode=require", True),
        (URL.replace("worker", "owner"), False),
        (URL.replace("db.", "db2."), False),
        (URL.replace("6543", "5432"), False),
        (URL.replace("/ops", "/copy"), False),
        ("postgresql:///ops?host=/run/db&user=worker", False),
    ],
)
def test_password_is_not_part_of_the_lock_name(other: str, *, same: bool) -> None:
    assert (_lock_name("build-1", URL) == _lock_name("build-1", other)) is same
    assert _lock_name("build-1", other) != _lock_name("build-2", other)


def test_every_form_of_a_url_gives_the_same_lock_name() -> None:
    plain = _lock_name("build-1", "postgresql://worker:x@db/ops")
    assert plain == _lock_name("build-1", "postgres://worker@DB:5432/ops")
    assert plain == _lock_name("build-1", "postgresql://worker@/ops?host=db")
    assert plain == _lock_name("build-1", "postgresql:///?host=db&port=5432&user=worker&dbname=ops")
