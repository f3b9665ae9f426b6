-- Drops the functions that the others share.
--
-- Lost: nothing that is stored.

drop function
    ops_private.retry_if_asked, ops_private.backoff, ops_private.queue_once,
    ops_private.check_workflow, ops_private.queue_retry, ops_private.lock_for_retry,
    ops_private.lock_queue_at_once, ops_private.lock_queue_briefly, ops_private.retry_class, ops_private.lock_queue,
    ops_private.log_position, ops_private.check_run,
    ops_private.worker_id_taken, ops_private.bad_config, ops_private.bad_retry,
    ops_private.is_whole_number, ops_private.bad_metadata, ops_private.reserved_keys, ops_private.is_git_ref,
    ops_private.bad_document, ops_private.bad_worker, ops_private.add_event, ops_private.is_final,
    ops_private.refusal, ops_private.actor, ops.current_user_role, ops.current_user_id,
    ops_private.calling_worker, ops_private.trusted, ops_private.caller, ops_private.current_time;
