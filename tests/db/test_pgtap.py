"""The pgTAP files that users can run against their own databases, as on Supabase and as a superuser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.debian import first_unpacked
from tests.support.postgres import MAJORS, OUTERMOST, Cluster, client_binaries, run_sync
from tests.support.supabase import OWNER, supabase_cluster, supabase_database
from worker.database import migrations
from worker.database.connection import connected

FILES = sorted((Path(__file__).resolve().parents[2] / "sql" / "tests" / "pgtap").glob("*.sql"))


def load_pgtap(url: str, *settings: str) -> None:
    """What `create extension pgtap` would do; the servers here are not Debian's, but it is plain SQL."""
    major, package = first_unpacked("postgresql-{}-pgtap", MAJORS)
    (script,) = package.glob(f"usr/share/postgresql/{major}/extension/pgtap--?.?.?.sql")
    text = re.sub(r"^\\.*$", "", script.read_text(), flags=re.MULTILINE)
    psql(url, "\n".join((*settings, text)))


def psql(url: str, text: str = "", *options: str | Path) -> str:
    command = [client_binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *options, url]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prove(cluster: Cluster, database: str, user: str) -> None:
    """What pg_prove does; that one needs more of Perl than a bare system has."""
    for file in FILES:
        lines = psql(cluster.url(database, user=user), "", "-A", "-t", "-f", file).splitlines()
        assert [line for line in lines if line.startswith("not ok")] == [], "\n".join(lines)
        assert f"1..{sum(line.startswith('ok ') for line in lines)}" in lines, "as many as were planned"


@pytest.mark.parametrize("major", OUTERMOST)
def test_all_pass_as_supabases_owner(major: int) -> None:
    async def migrate(url: str) -> None:
        async with connected(url) as connection:
            await migrations.migrate(connection)

    with supabase_cluster(major) as cluster, supabase_database(cluster) as name:
        run_sync(migrate, cluster.url(name, user=OWNER))
        load_pgtap(cluster.url(name), "set search_path = extensions;")
        cluster.execute(f'alter database {name} set search_path = "$user", public, extensions')
        psql(cluster.url(name), "grant usage on schema extensions to public")
        before = cluster.dump(name)
        prove(cluster, name, OWNER)
        assert cluster.dump(name) == before


def test_all_pass_as_a_superuser(cluster: Cluster) -> None:
    with cluster.database(cluster.template()) as name:
        load_pgtap(cluster.url(name))
        prove(cluster, name, cluster.superuser)
