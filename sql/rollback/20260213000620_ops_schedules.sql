-- Drops the schedules.
--
-- Lost: when each line was due last; the lines stay in the configuration of their workflows. A later `ops-worker db
-- migrate` does not read them again until a workflow's schedule is written. Until then no worker can claim, so no worker
-- may run until this migration is applied again or the earlier ones are rolled back too.

drop trigger set_changed_schedules on ops.workflows;
drop trigger set_schedules on ops.workflows;

drop function
    ops.workflow_overview, ops_private.workflow_overview, ops_private.fire_schedules, ops_private.fire_schedule,
    ops_private.set_schedules, ops_private.bad_schedule, ops_private.bad_cron, ops_private.next_time,
    ops_private.first_instant, ops_private.cron_fields, ops_private.cron_field;
drop table ops_private.schedules;
