"""Many projects with a log each, and one user who is a member of some: what row policies cost."""

from __future__ import annotations

import uuid

import asyncpg

MEMBER = uuid.UUID("00000000-0000-4000-8000-000000000001")
LAST_LINES = "select * from ops.run_logs where run_id = $1 order by seq desc limit 50"
OWN_LINES = "select * from ops.run_logs where project_id = any ($1) limit 50"
ANY_LINES = "select * from ops.run_logs limit 50"


async def populate(db: asyncpg.Connection, *, projects: int, member_of: int, lines: int) -> uuid.UUID:
    """Fills an empty database; returns a run of ``lines`` lines that the member may read."""
    await db.execute(
        f"""
        insert into ops.projects (workspace_key, slug, name, odoo_version)
        select 'p_' || n, 'p-' || n, 'P', '19.0' from generate_series(1, {projects}) as n;
        insert into ops.workflows (project_id, workflow_type, name) select p.id, 'build', 'b' from ops.projects as p;
        insert into ops.runs (project_id, workflow_id) select w.project_id, w.id from ops.workflows as w;
        -- as they come in: a line of every run, and again
        insert into ops.run_logs (run_id, project_id, seq, log_level, message)
        select r.id, r.project_id, n, 'info', 'line ' || n from generate_series(1, {lines}) as n, ops.runs as r;
        insert into ops.project_memberships (project_id, user_id, role)
        select p.id, gen_random_uuid(), 'owner' from ops.projects as p, generate_series(1, 5);
        insert into ops.project_memberships (project_id, user_id, role)
        select p.id, '{MEMBER}', 'admin' from ops.projects as p order by p.id limit {member_of};
        analyze
        """
    )
    run: uuid.UUID = await db.fetchval(
        "select r.id from ops.runs as r join ops.project_memberships as m using (project_id) where m.user_id = $1"
        " limit 1",
        MEMBER,
    )
    return run
