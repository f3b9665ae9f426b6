-- Takes back retention.
--
-- Lost: the list of objects whose records are gone already and that were still to be deleted from their store. Run
-- `ops-worker prune` first, and it is empty.

drop function
    ops_private.prunable(text, text, timestamptz, timestamptz),
    ops_private.prune_run_events(timestamptz),
    ops_private.prune_run_logs(timestamptz, integer),
    ops_private.forget_artifacts(uuid[]),
    ops_private.retire_artifacts(text, text, integer),
    ops_private.expired_artifacts(text, text);
drop index ops.run_artifacts_expires_idx;
drop table ops_private.retired_artifacts;
