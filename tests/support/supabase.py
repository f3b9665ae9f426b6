"""A PostgreSQL made to look like Supabase's: its roles, ``auth``, its publication, and no superuser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

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


def supabase_cluster(major: int, *, listen: str = "") -> Cluster:
    """A server with Supabase's roles, whose superuser is not ``postgres``; ``listen`` as for ``Cluster``."""
    cluster = Cluster(major, superuser=SUPERUSER, listen=listen)
    run_sync(_run, cluster.url(), _ROLES)
    return cluster


@contextmanager
def supabase_database(cluster: Cluster) -> Iterator[str]:
    """A new database as a Supabase project has it, by name."""
    with cluster.database(owner=OWNER) as name:
        run_sync(_run, cluster.url(name), _DATABASE)
        yield name


async def _run(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()
