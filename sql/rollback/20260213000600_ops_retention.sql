-- Drops the functions and the table of retention.
--
-- Lost: the list of objects that have no record any more but are not yet deleted from their store. After `ops-worker
-- prune` the list is empty, so run that first.

drop function
    ops_private.prunable, ops_private.prune_run_events, ops_private.prune_run_logs, ops_private.drop_log_partitions,
    ops_private.log_is_old, ops_private.archived_projects,
    ops_private.forget_artifacts, ops_private.retire_artifacts, ops_private.expired_artifacts;
drop index ops.run_artifacts_expires_idx;
drop table ops_private.retired_artifacts;
