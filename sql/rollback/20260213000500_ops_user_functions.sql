-- Takes back the functions that queue and retry runs, search logs, and list advisories.
--
-- Lost: which requests the idempotency keys stand for. The runs keep their keys; after this migration is
-- applied again, each of those keys is refused as used for another request.

drop function ops.applicable_advisories(text, text);
drop function ops.search_run_logs(text, uuid, uuid, integer, timestamptz, uuid, bigint);
drop function ops.retry_run(uuid);
drop function ops.enqueue_run(uuid, jsonb, text, timestamptz);
drop function ops_private.applicable_advisories(text, text);
drop function ops_private.version_key(text);
drop function ops_private.search_run_logs(text, uuid, uuid, integer, timestamptz, uuid, bigint);
drop function ops_private.retry_run(uuid);
drop function ops_private.enqueue_run(uuid, jsonb, text, timestamptz);
drop function ops_private.queued_answer(uuid, boolean);
drop function ops_private.check_workflow(uuid);
drop table ops_private.run_requests;
