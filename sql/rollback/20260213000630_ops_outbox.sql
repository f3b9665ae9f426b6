-- Drops the outbox and the registered destinations.
--
-- Lost: the messages that are not delivered yet. Workers register their destinations again when they start. The role
-- ops_notifier and its members stay, because roles belong to the whole cluster.

drop trigger tell_queued on ops.runs;
drop trigger tell_change on ops.runs;
drop function
    ops.settle_delivery, ops.take_deliveries, ops.register_destinations, ops_private.prune_outbox,
    ops_private.bad_destination, ops_private.check_notifier, ops_private.delivery_payload, ops_private.known_lines,
    ops_private.last_errors, ops_private.tell_queued, ops_private.tell_change, ops_private.fill_outbox,
    ops_private.was_red, ops_private.is_commit, ops_private.run_commit, ops_private.run_git, ops_private.matches_one;
drop table ops_private.outbox, ops_private.destinations;
