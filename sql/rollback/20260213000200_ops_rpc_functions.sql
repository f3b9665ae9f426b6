-- Drops the functions that workers call for a run.
--
-- Lost: nothing that is stored. Workers cannot work until this migration is applied again.

drop function
    ops.add_run_event, ops.record_report, ops_private.bad_tests, ops.add_run_artifact, ops.append_run_logs, ops.append_run_log, ops.record_container,
    ops.release_run, ops.complete_workflow_run, ops_private.record_failure, ops_private.repeats,
    ops.start_workflow_run, ops.unclaimable_runs, ops.claim_next_run, ops_private.run_payload,
    ops_private.service_tools, ops_private.fail_unreadable;
