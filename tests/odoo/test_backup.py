"""The type ``backup`` and the command ``restore`` on a production of a real Odoo, with real restic."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from tests.odoo.conftest import Bench, Done, writable
from tests.odoo.test_building import own
from tests.support.docker import docker

pytestmark = pytest.mark.timeout(900)

PLACE = "local:/backups"  # with its scheme, as a repository in S3
FILESTORE = "/data/filestore/prod"


@dataclass(frozen=True)
class Production:
    """A database ``prod`` on the server ``prod``, its filestore, and the repository of its backups."""

    bench: Bench
    data: Path
    backups: Path
    secrets: Path
    cache: Path

    def run(self, *words: str, server: str = "prod") -> Done:
        volumes = {self.data: "/data", self.backups: "/backups"}
        return self.bench.run(*words, volumes=volumes, secrets=self.secrets, cache=self.cache,
                              env={"PGHOST": server, "OPS_PROJECT": "acme", "RESTIC_REPOSITORY": PLACE})  # fmt: skip

    def backup(self, *flags: str) -> Done:
        return self.run("backup", "--database", "prod", "--filestore", FILESTORE, *flags)

    def restore(self, *flags: str) -> Done:
        return self.run("restore", "--database", "staging", "--filestore", "/data/filestore/staging", *flags)

    @cached_property
    def first(self) -> Done:
        """The first backup, which succeeds."""
        done = self.backup("--check-all")
        assert done.code == 0, done.output
        return done

    def sql(self, statement: str, database: str = "prod") -> str:
        return self.bench.sql(statement, database, alias="prod")


def report(done: Done, name: str = "backup.json") -> dict[str, object]:
    loaded: dict[str, object] = json.loads((done.artifacts / name).read_text())
    return loaded


@pytest.fixture(scope="module")
def productions(
    benches: Callable[[str], Bench], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Production]]:
    """A production for a series of Odoo."""
    found: dict[str, Production] = {}

    def production(series: str) -> Production:
        if series not in found:
            found[series] = make(benches(series), tmp_path_factory)
        return found[series]

    yield production
    for made in found.values():
        for path in (made.data, made.backups, made.cache):
            shutil.rmtree(path, ignore_errors=True)


def make(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Production:
    bench.database("prod")
    folder = tmp_path_factory.mktemp("production")
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "restic_password").write_text("a long password of the tests")
    own(secrets, bench)
    made = Production(
        bench, writable(folder / "data"), writable(folder / "backups"), secrets, writable(folder / "cache")
    )
    writable(writable(made.data / "filestore") / "prod")
    (made.data / "filestore" / "prod" / "large").write_bytes(os.urandom(100_000_000))
    install = ("-d", "prod", "-i", "base", "--data-dir", "/data", "--stop-after-init", "--no-http", "--log-level=warn")
    docker("run", "--rm", "--network", bench.name, "-e", "PGHOST=prod", "-e", "PGUSER=odoo", "-v", f"{made.data}:/data",
           "--entrypoint", "python", bench.image, "/usr/bin/odoo", *install)  # fmt: skip
    return made


@pytest.fixture(scope="module")
def production(productions: Callable[[str], Production]) -> Production:
    made = productions("19")
    made.sql("insert into ir_mail_server (name, smtp_host, smtp_port, smtp_encryption, smtp_authentication, active) "
             "values ('real', 'smtp.example', 25, 'none', 'login', true)")  # fmt: skip
    return made


@pytest.fixture(scope="module")
def backed_up(production: Production) -> Done:
    return production.first


@pytest.mark.parametrize("series", ["19", "14"])
def test_a_backup_is_proven_by_a_restore_and_a_second_one_adds_less_than_a_hundredth(
    productions: Callable[[str], Production], series: str
) -> None:
    production = productions(series)
    first = report(production.first)
    assert int(str(first["files_checked"])) > 5
    assert "==> proof: starting Odoo on the restored database" in production.first.output
    second = report(production.backup())
    assert int(str(second["bytes_added"])) < int(str(second["bytes"])) / 100
    assert production.bench.sql("select datname from pg_database where datname like 'proof%'") == ""


def test_a_staging_is_neutralised_and_production_is_as_it_was(production: Production, backed_up: Done) -> None:
    before = production.sql("select key, value from ir_config_parameter where key like 'database.%' order by 1")
    done = production.restore("--url", "https://staging.example")
    assert done.code == 0, done.output
    checked = report(done, "restore.json")["checked"]
    assert isinstance(checked, list)
    assert {"no mail goes out", "no scheduled action runs", "a banner is shown"} <= set(checked)

    servers = "select string_agg(smtp_host, ',') from ir_mail_server where active"
    assert production.sql(servers, "staging") == "invalid"
    assert production.sql("select count(*) from ir_cron where active", "staging") == "0"
    assert production.sql(servers) == "smtp.example"
    assert int(production.sql("select count(*) from ir_cron where active")) > 0
    parameter = "select value from ir_config_parameter where key = '{}'"
    assert production.sql(parameter.format("web.base.url"), "staging") == "https://staging.example"
    for key in ("database.secret", "database.uuid"):
        assert production.sql(parameter.format(key), "staging") != production.sql(parameter.format(key))
    after = production.sql("select key, value from ir_config_parameter where key like 'database.%' order by 1")
    assert after == before

    refused = production.restore()
    assert refused.code == 1
    assert "ERROR: database staging: it exists already" in refused.output


def test_a_staging_that_could_send_mail_does_not_come_up(production: Production, backed_up: Done) -> None:
    production.sql(
        "create function keep() returns trigger language plpgsql as 'begin new.active := true; return new; end'; "
        "create trigger keep before update on ir_mail_server for each row execute function keep()"
    )
    try:
        later = production.backup()
    finally:
        production.sql("drop function keep() cascade")
    assert later.code == 0, later.output
    assert report(later)["snapshots"] == 2, "of one day, the first backup of all and the last of the day are kept"
    known = production.sql("select count(*) from pg_database where datname = 'staging'", "postgres")
    done = production.restore("--replace")
    assert done.code == 1
    assert "ERROR: staging: 'no mail goes out' does not hold: ir_mail_server has 1" in done.output
    assert production.sql("select count(*) from pg_database where datname = 'staging'", "postgres") == known
    assert production.sql("select datname from pg_database where datname like '%new'", "postgres") == ""

    older = production.restore("--replace", "--snapshot", str(report(backed_up)["snapshot"]))
    assert older.code == 0, older.output
    assert production.sql("select count(*) from pg_trigger where tgname = 'keep'", "staging") == "0"


def test_a_file_that_is_missing_in_the_filestore_is_found(production: Production, backed_up: Done) -> None:
    [name] = production.sql("select store_fname from ir_attachment where store_fname is not null limit 1").split()
    file = production.data / "filestore" / "prod" / name
    content = file.read_bytes()
    file.unlink()
    try:
        done = production.backup()
        assert done.code == 1
        assert f"ERROR: attachment {name}: the database has it" in done.output
        file.write_bytes(content + b"x")
        done = production.backup()
        assert done.code == 1
        assert f"ERROR: attachment {name}: its content does not have the checksum" in done.output
    finally:
        file.write_bytes(content)
        file.chmod(0o644)


def test_a_flipped_byte_in_the_repository_is_found(production: Production, backed_up: Done) -> None:
    packs = sorted((production.backups / "data").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(packs[-1].read_bytes())
    content[len(content) // 2] ^= 1
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(content)
    done = production.backup("--check-all")
    assert done.code == 1
    assert f"ERROR: backup repository {PLACE}: " in done.output
    assert packs[-1].name[:8] in done.output


@pytest.mark.parametrize(
    ("words", "server", "message"),
    [
        (["backup", "--database", "prod"], "db", "PGHOST db: the restore would be tried on the server of the database"),
        (["backup", "--database", "nothing"], "prod", 'database "nothing" does not exist'),
        (["restore", "--database", "x", "--filestore", "/x/y"], "prod", "--filestore /x/y: this user may not write"),
        (["restore", "--database", "x", "--backups", "/data/empty"], "prod", "backup repository /data/empty: "),
    ],
)
def test_what_is_wrong_is_named(production: Production, words: list[str], server: str, message: str) -> None:
    done = production.run(*words, server=server)
    assert done.code == 1
    assert message in done.output


def test_a_staging_of_an_odoo_that_cannot_neutralise_is_refused(productions: Callable[[str], Production]) -> None:
    production = productions("14")
    assert production.first.code == 0
    done = production.restore()
    assert done.code == 1
    assert done.summary.startswith("- **FAILED** Odoo 14.0: it has no command neutralize, which exists from Odoo 16 on")
    assert production.sql("select datname from pg_database where datname like 'staging%'", "postgres") == ""
