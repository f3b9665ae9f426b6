-- Drops the function that drains a worker. Lost: nothing; workers that are drained stay so, and only an update of
-- ops_private.worker_ids can undo that.

drop function ops.drain_worker, ops_private.drain_worker;
