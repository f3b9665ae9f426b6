-- Drops chains, approvals, and what a newer run does to older ones.
--
-- Lost: nothing that is stored. But runs of workflows with `approval` or `queue_timeout_seconds` cannot be queued, the
-- runs that wait for an approval wait for ever, and no run can succeed whose workflow has `then`. So first remove these
-- keys from the workflows, or roll the earlier migrations back too.

drop trigger check_changed_triggers on ops.workflows;
drop trigger check_triggers on ops.workflows;

drop function
    ops.reject_run, ops.approve_run, ops_private.check_triggers, ops_private.decide_run, ops_private.is_superseded,
    ops_private.supersede_older, ops_private.expire_queued_runs, ops_private.queue_terms,
    ops_private.wanted_until, ops_private.continue_chain, ops_private.queue_next_runs, ops_private.queue_next_run,
    ops_private.source_of, ops_private.chain_of, ops_private.bad_chain, ops_private.next_workflows,
    ops_private.bad_name, ops_private.names_of, ops_private.workflows_named, ops_private.bad_triggers;
