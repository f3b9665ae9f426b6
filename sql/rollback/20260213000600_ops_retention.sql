-- Takes back retention.
--
-- Lost: the list of objects whose records are gone already and that were still to be deleted from their store. Run
-- `ops-worker prune` first, and it is empty.

drop function
    ops_private.prunable, ops_private.prune_run_events, ops_private.prune_run_logs,
    ops_private.forget_artifacts, ops_private.retire_artifacts, ops_private.expired_artifacts;
drop index ops.run_artifacts_expires_idx;
drop table ops_private.retired_artifacts;
