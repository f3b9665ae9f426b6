-- Drops the tables and functions of the queue.
--
-- Lost: which projects are paused, and their limits. The queue itself is in ops.runs too. A later `ops-worker db migrate`
-- fills the tables again.

drop function
    ops_private.queue_order, ops_private.why_lane_waits, ops_private.is_drained, ops_private.drain_lock,
    ops_private.forget_idle_workers, ops_private.notify_idle_workers, ops_private.channel_of, ops_private.become_busy,
    ops_private.become_idle, ops_private.nothing_claimed, ops_private.wake_scheduled_runs,
    ops_private.next_run, ops_private.first_of_lanes, ops_private.has_room, ops_private.queue_is_full,
    ops_private.max_queued_runs, ops_private.drop_empty_lanes, ops_private.rebuild_queue,
    ops_private.queue_new_runs, ops_private.put_into_queue, ops_private.lane_of, ops_private.lane_digest;
drop table
    ops_private.turns, ops_private.idle_workers, ops_private.project_limits, ops_private.queued, ops_private.lanes;
drop sequence ops_private.turn_seq;
