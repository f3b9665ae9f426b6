-- Drops the functions that users call.
--
-- Lost: the digests of the requests that used idempotency keys. The runs keep their keys. After this migration is
-- applied again, each of those keys is refused as used for another request.

drop function
    ops.run_logs, ops.runs, ops.run_summary, ops_private.run_summary,
    ops.limit_project, ops.resume_queue, ops.pause_queue, ops.resume_project, ops.pause_project,
    ops_private.limit_project, ops_private.pause_queue, ops_private.pause_project, ops_private.role_refusal,
    ops.applicable_advisories, ops.search_run_logs, ops.list_queued_runs, ops.cancel_run, ops.retry_run,
    ops.enqueue_run, ops_private.cancel_run, ops_private.stop_run, ops_private.applicable_advisories,
    ops_private.version_key, ops_private.retry_run, ops_private.list_queued_runs, ops_private.enqueue_run,
    ops_private.bad_request, ops_private.queued_answer;
drop table ops_private.run_requests;
