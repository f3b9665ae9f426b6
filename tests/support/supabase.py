"""A PostgreSQL made to look like Supabase's: its roles, ``auth``, its publication, and no superuser; and its CLI."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.support import npm
from tests.support.postgres import Cluster, run_sync

SUPERUSER = "supabase_admin"
OWNER = "postgres"
"""Who migrates there: owns the database, creates roles, bypasses policies, and is no superuser."""

_ROLES = f"""
create role {OWNER} login createdb createrole replication bypassrls;
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
create role supabase_auth_admin login noinherit createrole;
grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role to {OWNER} with admin option;
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role {OWNER} set statement_timeout = '2min';
alter role {OWNER} set search_path = "$user", public, extensions;
"""

_DATABASE = f"""
create schema extensions authorization {OWNER};
create schema auth authorization supabase_auth_admin;
grant usage on schema auth to anon, authenticated, service_role, {OWNER};

create table auth.users (
    id uuid primary key,
    email text,
    raw_user_meta_data jsonb,
    created_at timestamptz default now()
);
alter table auth.users owner to supabase_auth_admin;
alter table auth.users enable row level security;
grant all on auth.users to {OWNER} with grant option;

create function auth.uid() returns uuid language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$$;
alter function auth.uid() owner to supabase_auth_admin;

create publication supabase_realtime;
alter publication supabase_realtime owner to {OWNER};

grant usage on schema public to anon, authenticated, service_role;
alter default privileges for role {OWNER} in schema public
    grant all on tables to anon, authenticated, service_role;
alter default privileges for role {OWNER} in schema public
    grant all on functions to anon, authenticated, service_role;
alter default privileges for role {OWNER} in schema public
    grant all on sequences to anon, authenticated, service_role;
"""

_CONFIG = """\
project_id = "ops"

[api]
schemas = ["public", "ops"]
"""


def supabase_cluster(major: int, *, listen: str = "", extension: Path | None = None) -> Cluster:
    """A server with Supabase's roles, whose superuser is not ``postgres``; the arguments are ``Cluster``'s."""
    cluster = Cluster(major, superuser=SUPERUSER, listen=listen, extension=extension)
    run_sync(_run, cluster.url(), f"{_ROLES} alter role {OWNER} password '{cluster.password}';")
    return cluster


@contextmanager
def supabase_database(cluster: Cluster) -> Iterator[str]:
    """A new database as a Supabase project has it, by name."""
    with cluster.database(owner=OWNER) as name:
        run_sync(_run, cluster.url(name), _DATABASE)
        yield name


@dataclass(frozen=True)
class Cli:
    """Supabase's CLI in a project folder of its own, on the database at ``url``, which has to be one over TCP."""

    folder: Path
    url: str

    @classmethod
    def project(cls, folder: Path, url: str, migrations: Path) -> Cli:
        """A project that holds those migrations and exposes ``ops``."""
        (folder / "supabase").mkdir(parents=True)
        (folder / "supabase" / "config.toml").write_text(_CONFIG, encoding="utf-8")
        (folder / "supabase" / "migrations").symlink_to(migrations)
        return cls(folder, url)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``supabase WORDS --remote=URL``, to its end."""
        command = npm.install(npm.TOOLS) / ".bin" / "supabase"
        return subprocess.run(
            [command, *words, f"--remote={self.url}", "--yes", "--agent=no", f"--workdir={self.folder}"],
            env={
                "PATH": npm.environment()["PATH"],
                "HOME": str(self.folder), "PGSSLMODE": "disable", "DO_NOT_TRACK": "1",
            },
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def types(self) -> str:
        """TypeScript of ``ops``: what ``supabase gen types`` prints, in the format that it tells one to give it."""
        done = self("gen", "types", "--schema", "ops")
        if done.returncode:
            raise RuntimeError(done.stderr)
        file = self.folder / "database.types.ts"
        file.write_text(done.stdout, encoding="utf-8")
        npm.run("oxfmt", file)
        return file.read_text(encoding="utf-8")


async def _run(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()
