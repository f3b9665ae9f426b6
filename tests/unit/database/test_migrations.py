"""Finding the migration files, and comparing catalogues."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.database import catalog, migrations
from worker.database.connection import connected
from worker.errors import ConfigurationError


def test_every_bundled_migration_has_a_rollback_and_a_version_of_fourteen_digits() -> None:
    found = migrations.read_migrations()

    assert found
    assert [each.version for each in found] == sorted(each.version for each in found)
    for each in found:
        assert len(each.version) == 14
        assert each.up.strip()
        assert each.down.strip()


def test_two_files_with_one_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    for name in ("20260213_000001_one.sql", "20260213_000002_two.sql"):
        (tmp_path / "migrations" / name).write_text("select 1;")

    with pytest.raises(migrations.MigrationError, match=r"same version as 20260213_000001_one\.sql"):
        migrations.read_migrations(tmp_path)


def test_files_that_are_no_migrations_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    for name in ("README.md", "1_one.sql", "two.sql", "3_three.sql.orig"):
        (tmp_path / "migrations" / name).write_text("select 1;")

    assert [each.file for each in migrations.read_migrations(tmp_path)] == ["1_one.sql"]


def test_a_catalogue_survives_being_written_and_read() -> None:
    written = {
        catalog.Key("column", "ops.t.a"): "text default ' = '::text",
        catalog.Key("table", "ops.t"): "table",
    }

    assert catalog.parse(catalog.render(written)) == written


def test_a_missing_table_is_one_finding() -> None:
    expected = {
        catalog.Key("table", "ops.t"): "table",
        catalog.Key("column", "ops.t.a"): "text",
        catalog.Key("column", "ops.ta.a"): "text",
    }

    findings = catalog.compare(expected, {catalog.Key("column", "ops.ta.a"): "integer"})

    assert [(each.problem, each.name) for each in findings] == [
        ("missing", "ops.t"),
        ("different", "ops.ta.a"),
    ]


async def test_what_is_no_url_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with connected("postgresql://worker:1?hunter22@127.0.0.1/ops"):
            pass
    assert "hunter22" not in str(caught.value)
