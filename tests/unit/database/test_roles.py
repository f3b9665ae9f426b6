"""The verifier that the server gets for a worker's role, and the URL that the host gets."""

from __future__ import annotations

from base64 import b64decode

import pytest

from worker.database.roles import login_url, new_password, scram_verifier


def test_the_verifier_is_that_of_the_standard() -> None:
    """Password and salt of the example in RFC 7677, and the two keys that its messages follow from."""
    assert scram_verifier("pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_a_new_password_is_long_and_needs_no_quoting() -> None:
    made = {new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 32 and each.replace("-", "").replace("_", "").isalnum() for each in made)


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://postgres:old@db.example:5432/ops", "postgresql://build-1:new@db.example:5432/ops"),
        ("postgresql://postgres@/ops?host=/run/pg&port=5433", "postgresql://build-1:new@/ops?host=/run/pg&port=5433"),
        ("postgresql:///ops?user=postgres&password=old&sslmode=require", "postgresql://build-1:new@/ops?sslmode=require"),
        ("postgresql://postgres:o%40d@[::1]:5432,two:5433/ops", "postgresql://build-1:new@[::1]:5432,two:5433/ops"),
        # Supabase's pooler finds the project by what follows the role
        ("postgresql://postgres.abcd:old@pooler.example:5432/postgres",
         "postgresql://build-1.abcd:new@pooler.example:5432/postgres"),
    ],
)  # fmt: skip
def test_the_url_of_the_new_role_differs_in_nothing_but_the_login(dsn: str, expected: str) -> None:
    assert login_url(dsn, "postgres", "build-1", "new") == expected


def test_a_password_is_quoted_in_the_url() -> None:
    assert login_url("postgresql://o@h/d", "o", "w", "a/b@c:d?") == "postgresql://w:a%2Fb%40c%3Ad%3F@h/d"
