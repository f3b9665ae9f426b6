-- Drops the functions that show workers, projects and health. Nothing is lost.

drop function
    ops.health, ops.project_overview, ops.worker_overview, ops_private.health, ops_private.unserved_runs,
    ops_private.stale_leases, ops_private.open_snapshots, ops_private.applied_migrations, ops_private.project_overview,
    ops_private.worker_overview;
