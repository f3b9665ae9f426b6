-- Format constraints, rules of a run, indexes, and the triggers.
--
-- Every insert and update of ops.runs, by a function or directly, calls the triggers below. Before an insert they give
-- the run its number, and copy the fields of its workflow's configuration that concern queueing. Before a change of
-- status they check the transition, and fill the columns of the new state. After both they write the event, create or
-- delete the lease row, and notify waiting workers.
--
-- SQLSTATEs: OPS01 a transition that is not allowed, OPS02 an append-only table, OPS03 the last owner of a
-- project, OPS04 a full queue.

-- Formats ---------------------------------------------------------------------------------------------------

alter table ops.projects
    add constraint projects_workspace_key_format check (workspace_key ~ '^[a-z0-9_]+$'),
    add constraint projects_slug_format check (slug ~ '^[a-z0-9-]+$'),
    add constraint projects_odoo_version_format check (odoo_version ~ '^\d+\.\d+$');

alter table ops.workflows
    add constraint workflows_git_ref_format check (ops_private.is_git_ref(git_ref)),
    add constraint workflows_git_commit_format check (git_commit ~ '^[0-9A-Za-z]{1,64}$');

alter table ops.tools
    add constraint tools_docker_image_format check (
        length(docker_image) <= 512 and docker_image ~ '^[^[:space:][:cntrl:]]+$');

alter table ops.run_artifacts
    add constraint run_artifacts_artifact_key_format check (
        octet_length(artifact_key) <= 1024
        and artifact_key !~ '[[:cntrl:]]'
        and artifact_key !~ '(^|/)\.{0,2}(/|$)'),
    add constraint run_artifacts_artifact_url_format check (artifact_url <> ''),
    add constraint run_artifacts_size_bytes_not_negative check (size_bytes >= 0);

-- Bounds ----------------------------------------------------------------------------------------------------

-- A worker loads all of these values into memory, and a claim reads them while other claims wait. Constraints are
-- checked in the order of their names: the size comes first, since it bounds the cost of the check of the depth.
alter table ops.projects
    add constraint projects_texts_fit check (
        length(workspace_key) <= 100 and length(slug) <= 100 and length(name) <= 200
        and length(description) <= 10000 and length(odoo_version) <= 20),
    add constraint projects_config_at_most_256_kib check (octet_length(config::text) <= 262144),
    add constraint projects_config_at_most_32_deep check (not jsonb_path_exists(config, 'strict $.**{33}'));

alter table ops.workflows
    add constraint workflows_texts_fit check (length(name) <= 200 and length(description) <= 10000),
    add constraint workflows_config_at_most_256_kib check (octet_length(config::text) <= 262144),
    add constraint workflows_config_at_most_32_deep check (not jsonb_path_exists(config, 'strict $.**{33}'));

alter table ops.tools
    add constraint tools_texts_fit check (length(tool_name) <= 200 and length(version) <= 100),
    add constraint tools_config_at_most_256_kib check (octet_length(config::text) <= 262144),
    add constraint tools_config_at_most_32_deep check (not jsonb_path_exists(config, 'strict $.**{33}'));

-- add_run_artifact answers with the name of the constraint, so each names its column
alter table ops.run_artifacts
    add constraint run_artifacts_artifact_url_fits check (octet_length(artifact_url) <= 8192),
    add constraint run_artifacts_content_type_fits check (length(content_type) <= 255),
    add constraint run_artifacts_checksum_fits check (octet_length(checksum) <= 1024),
    add constraint run_artifacts_metadata_at_most_256_kib check (octet_length(metadata::text) <= 262144),
    add constraint run_artifacts_metadata_at_most_32_deep check (
        not jsonb_path_exists(metadata, 'strict $.**{33}'));

-- most rows are written here: a line of the journal has no metadata, so its check is cheap
alter table ops.run_logs
    add constraint run_logs_metadata_at_most_256_kib check (
        metadata = '{}' or octet_length(metadata::text) <= 262144),
    add constraint run_logs_metadata_at_most_32_deep check (
        metadata = '{}' or not jsonb_path_exists(metadata, 'strict $.**{33}'));

-- Rules of a run and of an event ----------------------------------------------------------------------------

-- Each step of a run writes these two tables. PostgreSQL parses and plans every CHECK anew in each statement: 84 µs for
-- an update of a run with 24 of them, 30 µs with one that calls a function. So each table has one CHECK, and the error
-- names the rule as that of a constraint would.
create function ops_private.is_valid_run(p_run ops.runs) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_broken constant text := coalesce(
        case
            when p_run.status not in ('queued', 'claimed', 'running', 'succeeded', 'failed', 'canceled') then
                'status_check'
            when (p_run.finished_at is not null) <> (p_run.status in ('succeeded', 'failed', 'canceled')) then
                'finished_at_iff_final'
            when p_run.status = 'queued' and num_nonnulls(
                p_run.claimed_by, p_run.claimed_at, p_run.claimed_instance, p_run.started_at) > 0 then
                'queued_is_unclaimed'
            when p_run.status in ('claimed', 'running') and (p_run.claimed_by is null or p_run.claimed_at is null) then
                'claimed_names_worker'
            when p_run.status = 'claimed' and p_run.started_at is not null then 'claimed_not_started'
            when p_run.status in ('running', 'succeeded', 'failed') and p_run.started_at is null then 'started_at'
            when p_run.exit_code is not null and p_run.finished_at is null then 'exit_code_of_finished'
            when p_run.status = 'succeeded' and p_run.exit_code is distinct from 0 then 'succeeded_exited_zero'
            when p_run.scheduled_at is not null and p_run.claimed_at is not null then 'scheduled_is_unclaimed'
            when p_run.container_id is not null and p_run.started_at is null then 'container_of_started'
            when p_run.ready_at is not null and p_run.started_at is null then 'ready_of_started'
            when p_run.url is not null and p_run.ready_at is null then 'url_of_ready'
            when octet_length(p_run.url) > 2048 then 'url_length'
            when octet_length(p_run.container_id) not between 1 and 200 then 'container_id_length'
            when p_run.claimed_by = '' then 'claimed_by_not_empty'
            when p_run.reason !~ '^[a-z][a-z0-9_]{0,62}$' then 'reason_is_a_word'
            when length(p_run.concurrency_key) not between 1 and 200 then 'concurrency_key_length'
            when p_run.retry_of is not null and p_run.attempt <= 1 then 'retry_is_later_attempt'
            when p_run.approval not in ('pending', 'approved', 'rejected', 'expired') then 'approval_check'
            when p_run.approval = 'pending' and p_run.status not in ('queued', 'canceled') then 'approved_before_claim'
            when p_run.run_number <= 0 then 'run_number_check'
            when p_run.claim_count < 0 then 'claim_count_check'
            when p_run.attempt <= 0 then 'attempt_check'
            when p_run.warnings < 0 or p_run.errors < 0 then 'counts_check'
            when octet_length(p_run.idempotency_key) > 300 or octet_length(p_run.claimed_by) > 200
                or length(p_run.error_message) > 10000 then 'texts_fit'
        end,
        case when p_run.labels <> '{}' then case
            when array_position(p_run.labels, null) is not null then 'labels_hold_no_null'
            when cardinality(p_run.labels) > 20 or length(array_to_string(p_run.labels, '')) > 2000
                or array_to_string(p_run.labels, E'\n') ~ '[^\n]{101}' then 'labels_at_most_20_of_100_characters'
        end end,
        case when p_run.metadata <> '{}' then case
            when jsonb_typeof(p_run.metadata) <> 'object' then 'metadata_check'
            when octet_length(p_run.metadata::text) > 262144 then 'metadata_at_most_256_kib'
            when jsonb_path_exists(p_run.metadata, 'strict $.**{33}') then 'metadata_at_most_32_deep'
        end end,
        case
            when jsonb_typeof(p_run.tests) <> 'object' then 'tests_check'
            when octet_length(p_run.tests::text) > 262144 then 'tests_at_most_256_kib'
            when jsonb_path_exists(p_run.tests, 'strict $.**{33}') then 'tests_at_most_32_deep'
        end);
begin
    if v_broken is not null then
        raise exception 'new row for relation "runs" violates check constraint "runs_%"', v_broken
            using errcode = 'check_violation', schema = 'ops', table = 'runs', constraint = 'runs_' || v_broken;
    end if;
    return true;
end
$$;

alter table ops.runs add constraint runs_valid check (ops_private.is_valid_run(runs));

create function ops_private.is_valid_event(p_event_type text, p_message text, p_payload jsonb) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_broken constant text := case
        when p_event_type not in ('state_change', 'error', 'warning', 'info') then 'event_type_check'
        when octet_length(p_message) > 65600 then 'texts_fit'
        when jsonb_typeof(p_payload) <> 'object' then 'payload_check'
        when octet_length(p_payload::text) > 262144 then 'payload_at_most_256_kib'
        when jsonb_path_exists(p_payload, 'strict $.**{33}') then 'payload_at_most_32_deep'
    end;
begin
    if v_broken is not null then
        raise exception 'new row for relation "run_events" violates check constraint "run_events_%"', v_broken
            using errcode = 'check_violation', schema = 'ops', table = 'run_events',
                constraint = 'run_events_' || v_broken;
    end if;
    return true;
end
$$;

alter table ops.run_events
    add constraint run_events_valid check (ops_private.is_valid_event(event_type, message, payload));

-- Indexes ---------------------------------------------------------------------------------------------------

-- None has a column that changes in the life of a run, so that all its updates are heap-only.
create index runs_workflow_idx on ops.runs (workflow_id);
create index runs_retry_of_idx on ops.runs (retry_of) where retry_of is not null;
create index runs_parent_idx on ops.runs (parent_run_id) where parent_run_id is not null;
create index run_events_run_idx on ops.run_events (run_id, seq);
create index project_memberships_user_idx on ops.project_memberships (user_id);

-- updated_at ------------------------------------------------------------------------------------------------

create function ops_private.touch_updated_at() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    new.updated_at := ops_private.current_time();
    return new;
end
$$;

create trigger touch_updated_at before update on ops.projects
    for each row execute function ops_private.touch_updated_at();
create trigger touch_updated_at before update on ops.workflows
    for each row execute function ops_private.touch_updated_at();
create trigger touch_updated_at before update on ops.tools
    for each row execute function ops_private.touch_updated_at();
create trigger touch_updated_at before update on ops.upgrade_advisories
    for each row execute function ops_private.touch_updated_at();
create trigger touch_updated_at before update on ops.project_memberships
    for each row execute function ops_private.touch_updated_at();

-- A run is queued -------------------------------------------------------------------------------------------

-- Gives the run its number, and copies the fields of its workflow that concern queueing. A served run gets the label
-- ops:serve, which a worker offers only while it has room for one. It locks and reads the counter
-- but does not change it: `on conflict do nothing` may still skip the row, and would not undo the change. count_runs
-- changes the counter after the rows are inserted. Without the setting, a plan from the time when the table was empty
-- would scan it for each row.
create function ops_private.prepare_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
    v_caller constant text := ops_private.caller();
    v_last integer;
    v_highest integer;
    v_config jsonb;
    v_serve jsonb;
    v_wrong text;
begin
    -- The policy checks the same, but only after this trigger: without this check a user without a role could learn
    -- from the error or from a wait whether a project exists. A role without the right to insert comes from a
    -- function, which has checked already.
    if not ops_private.trusted()
        and has_any_column_privilege(v_caller::name, tg_relid, 'insert')
        and new.project_id <> all (array(select ops_private.my_projects('developer'))) then
        raise exception 'new row violates row-level security policy for table "runs"'
            using errcode = 'insufficient_privilege';
    end if;
    if new.status <> 'queued' then
        raise exception 'a run begins as queued, not as %', new.status using errcode = 'OPS01';
    end if;
    if v_caller = 'authenticated' then
        new.created_by := ops.current_user_id();
    end if;

    -- One statement takes the locks of lock_queue, in its order, and reads the rest: 8 µs less for each row. Earlier
    -- rows of the same statement have numbers above the counter.
    select c.last, w.config, coalesce(w.config -> 'serve', t.config -> 'serve'), (
        select r.run_number from ops.runs as r where r.project_id = new.project_id order by r.run_number desc limit 1)
    into v_last, v_config, v_serve, v_highest
    from ops.projects as p
    join ops_private.run_counters as c on c.project_id = p.id
    left join ops.workflows as w on w.id = new.workflow_id and w.project_id = p.id
    left join ops.tools as t on t.tool_name = coalesce(w.config ->> 'tool', 'odoo')
        and t.version = coalesce(w.config ->> 'version', p.odoo_version)
    where p.id = new.project_id
    for key share of p for update of c;
    if not found then  -- the first run of the project; or there is no such project, and the foreign key refuses the row
        v_last := ops_private.lock_queue(new.project_id);
        select w.config, coalesce(w.config -> 'serve', t.config -> 'serve') into v_config, v_serve
        from ops.workflows as w
        join ops.projects as p on p.id = w.project_id
        left join ops.tools as t on t.tool_name = coalesce(w.config ->> 'tool', 'odoo')
            and t.version = coalesce(w.config ->> 'version', p.odoo_version)
        where w.id = new.workflow_id and w.project_id = new.project_id;
    end if;
    new.run_number := coalesce(greatest(v_last, v_highest), 0) + 1;
    if v_config ?| '{approval,queue_timeout_seconds}' then
        new := ops_private.queue_terms(new, v_config);
    end if;
    if v_config is null or new.retry_of is not null then
        return new;  -- a retry keeps the values of the first attempt; without a workflow the foreign key refuses
    end if;
    if new.metadata <> '{}' then
        v_wrong := ops_private.bad_metadata(new.metadata, v_config);
    end if;
    if v_config ?| '{priority,labels,concurrency_key,retry,services}' then
        v_wrong := coalesce(ops_private.bad_config(v_config), v_wrong);
    end if;
    if v_wrong is not null then
        raise exception '%', v_wrong using errcode = 'check_violation';
    end if;
    if new.priority = 0 then
        new.priority := coalesce((v_config ->> 'priority')::integer, 0);
    end if;
    if new.labels = '{}' and v_config ? 'labels' then
        new.labels := array(select jsonb_array_elements_text(v_config -> 'labels'));
    end if;
    if coalesce(v_serve, 'null') <> 'null' and new.labels @> '{ops:serve}' is not true then
        new.labels := new.labels || '{ops:serve}'::text[];
    end if;
    new.concurrency_key := coalesce(new.concurrency_key, nullif(v_config ->> 'concurrency_key', ''));
    return new;
end
$$;

create trigger prepare_run before insert on ops.runs
    for each row execute function ops_private.prepare_run();

-- Changes the counter once per statement: once per row would make an insert of many runs quadratic. The queue is
-- counted after every max_queued_runs / 1000 new runs, so it may exceed its limit by that many. Retries change the
-- counter too: otherwise a caller could give each number at which the queue is counted to a retry.
create function ops_private.count_runs() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_payload constant jsonb := jsonb_build_object('actor', ops_private.actor());
    v_run_ids uuid[];
    v_due integer;
    v_keyed uuid[];
    v_to_count uuid[];
    v_full uuid;
begin
    insert into ops.run_events (run_id, project_id, event_type, message, payload)
    select i.id, i.project_id, 'info', 'queued', v_payload from inserted as i order by i.run_number;
    select array_agg(i.id),
        count(*) filter (where i.scheduled_at is null and i.approval is distinct from 'pending'),
        array_agg(i.id) filter (where i.concurrency_key is not null and i.retry_of is null)
    into v_run_ids, v_due, v_keyed
    from inserted as i;
    if v_run_ids is null then
        return null;  -- `on conflict do nothing` skipped every row
    end if;
    with counted as (
        update ops_private.run_counters as c
        set last = f.last,
            counted = case when f.is_counted
                and f.last - c.counted >= greatest(ops_private.max_queued_runs(c.project_id) / 1000, 1)
                then f.last else c.counted end
        from (
            select i.project_id, max(i.run_number) as last, bool_or(i.retry_of is null) as is_counted
            from inserted as i group by i.project_id
        ) as f
        where c.project_id = f.project_id
        returning c.project_id, c.counted = c.last as is_due
    )
    select array_agg(k.project_id) filter (where k.is_due) into v_to_count from counted as k;
    perform ops_private.queue_new_runs(v_run_ids);
    if v_keyed is not null then
        perform ops_private.supersede_older(v_keyed);
    end if;
    if v_due = 1 then
        perform ops_private.notify_idle_workers(i.labels) from inserted as i
        where i.scheduled_at is null and i.approval is distinct from 'pending';
    elsif v_due > 1 then
        perform pg_notify('ops_queue', '');
    end if;

    if v_to_count is not null then
        select p.id into v_full from unnest(v_to_count) as p (id) where ops_private.queue_is_full(p.id, 1) limit 1;
        if found then
            raise exception 'the queue of the project is full: at most % runs (max_queued_runs)',
                ops_private.max_queued_runs(v_full) using errcode = 'OPS04';
        end if;
    end if;
    return null;
end
$$;

create trigger count_runs after insert on ops.runs
    referencing new table as inserted
    for each statement execute function ops_private.count_runs();

-- The status changes ----------------------------------------------------------------------------------------

-- An update that does not change the status passes, in final states too.
create function ops_private.enforce_run_status_transition() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_tail ops_private.log_tails;
begin
    new.updated_at := v_now;
    if new.project_id <> old.project_id or new.run_number <> old.run_number then
        raise exception 'a run keeps its project and its number' using errcode = 'OPS01';
    end if;
    if new.status = old.status then
        return new;
    end if;
    if new.status <> all (case old.status
        when 'queued' then '{claimed,canceled}'
        when 'claimed' then '{running,queued,canceled}'
        when 'running' then '{succeeded,failed,canceled}'
        else '{}' end::text[]) then
        raise exception 'run % may not change from % to %', old.id, old.status, new.status
            using errcode = 'OPS01';
    end if;

    if new.status = 'queued' then
        new.claimed_by := null;
        new.claimed_at := null;
        new.claimed_instance := null;
    elsif new.status = 'claimed' then
        new.claimed_by := coalesce(new.claimed_by, ops_private.caller());
        new.claimed_at := coalesce(new.claimed_at, v_now);
        new.claim_count := old.claim_count + 1;
        new.scheduled_at := null;
    elsif new.status = 'running' then
        new.started_at := coalesce(new.started_at, v_now);
    else
        new.finished_at := coalesce(new.finished_at, v_now);
        select t.* into v_tail from ops_private.log_tails as t where t.run_id = new.id;
        new.warnings := coalesce(v_tail.warnings, 0);
        new.errors := coalesce(v_tail.errors, 0);
        if new.status = 'succeeded' then
            new.exit_code := coalesce(new.exit_code, 0);
        end if;
    end if;
    if new.reason is not distinct from old.reason then
        new.reason := case when new.status in ('succeeded', 'failed', 'canceled') then new.status end;
    end if;
    return new;
end
$$;

create trigger enforce_run_status_transition before update on ops.runs
    for each row execute function ops_private.enforce_run_status_transition();

-- Maintains the queue, writes the event, creates or deletes the lease row, and notifies workers: on ops_queue when
-- another run can be claimed, on ops_cancel when the run's worker should stop it. PostgreSQL sends equal notifications
-- of one transaction once. Every step of a run calls it, so a statement is executed only for the change that needs it,
-- and the event is written here: add_event and the trigger that looks up the project would cost 30 µs more.
create function ops_private.record_run_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_lease_seconds constant integer := 300;
    v_caller constant text := ops_private.caller();
    v_was_active constant boolean := old.status in ('claimed', 'running');
    v_is_active constant boolean := new.status in ('claimed', 'running');
begin
    if new.status = 'queued' then
        perform ops_private.put_into_queue(new);
    elsif old.status = 'queued' then
        delete from ops_private.queued as q where q.run_id = new.id;
    elsif new.concurrency_key is distinct from old.concurrency_key then
        update ops_private.leases as l set concurrency_key = new.concurrency_key where l.run_id = new.id;
    end if;
    if new.status <> old.status then
        insert into ops.run_events (run_id, project_id, event_type, message, payload)
        values (new.id, new.project_id, 'state_change', old.status || ' -> ' || new.status,
            jsonb_strip_nulls(jsonb_build_object(
                'previous_status', old.status, 'new_status', new.status,
                'actor', case v_caller when 'authenticated' then ops_private.actor() else v_caller end,
                'worker_id', coalesce(new.claimed_by, old.claimed_by), 'reason', new.reason,
                'exit_code', new.exit_code)));
    end if;
    if v_is_active and not v_was_active then
        -- claim_next_run has written the lease already
        insert into ops_private.leases
            (run_id, worker_id, instance_id, db_role, lease_seconds, expires_at, project_id, concurrency_key)
        values (new.id, new.claimed_by, new.claimed_instance, v_caller, v_lease_seconds,
            new.updated_at + make_interval(secs => v_lease_seconds), new.project_id, new.concurrency_key)
        on conflict (run_id) do nothing;
    elsif v_was_active and not v_is_active then
        delete from ops_private.leases as l where l.run_id = new.id;
        perform ops_private.close_log(new.id);
    end if;

    if new.status = 'queued' then
        if new.scheduled_at is null then
            perform pg_notify('ops_queue', '');
        end if;
    elsif v_was_active and not v_is_active then
        if new.concurrency_key is not null or exists (
            select from ops_private.project_limits as k
            where k.project_id = new.project_id and k.max_active_runs is not null
        ) then
            perform pg_notify('ops_queue', '');
        end if;
    end if;
    if v_was_active and (
        (new.status = 'running' and old.cancel_requested_at is null and new.cancel_requested_at is not null)
        or (new.status = 'canceled' and old.cancel_requested_at is null)) then
        perform pg_notify('ops_cancel', new.id::text);
    end if;
    return null;
end
$$;

create trigger record_run_change
    after update of status, scheduled_at, cancel_requested_at, created_at, priority, labels, concurrency_key, approval,
        wanted_until
    on ops.runs
    for each row execute function ops_private.record_run_change();

create function ops_private.leave_queue() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.queued as q using deleted as d where q.run_id = d.id;
    return null;
end
$$;

create trigger leave_queue after delete on ops.runs
    referencing old table as deleted
    for each statement execute function ops_private.leave_queue();

-- Runs that were queued before these triggers existed.
do $$
begin
    perform ops_private.rebuild_queue();
end
$$;

-- What belongs to a run -------------------------------------------------------------------------------------

create function ops_private.set_project_of_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    select r.project_id into new.project_id from ops.runs as r where r.id = new.run_id;
    if new.project_id is null then
        raise exception 'there is no run %', new.run_id using errcode = 'foreign_key_violation';
    end if;
    return new;
end
$$;

-- The triggers of ops.runs name the project themselves: 16 µs less for each event.
create trigger set_project_of_run before insert on ops.run_events
    for each row when (new.project_id is null or pg_trigger_depth() = 0)
    execute function ops_private.set_project_of_run();
create trigger set_project_of_run before insert or update of run_id, project_id on ops.run_artifacts
    for each row execute function ops_private.set_project_of_run();

-- Events are append-only: they are deleted with their run, or by ops_private.prune_run_events.
create function ops_private.keep_run_events() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' and (
        pg_trigger_depth() > 1
        or (current_setting('ops.prune_run_events', true) = 'on'
            and current_user = (select pg_get_userbyid(c.relowner) from pg_class as c where c.oid = tg_relid))
    ) then
        return old;
    end if;
    raise exception 'ops.run_events is append-only: % refused', lower(tg_op) using errcode = 'OPS02';
end
$$;

create trigger keep_run_events before update or delete on ops.run_events
    for each row execute function ops_private.keep_run_events();
create trigger keep_all_run_events before truncate on ops.run_events
    for each statement execute function ops_private.keep_run_events();

-- Memberships -----------------------------------------------------------------------------------------------

create function ops_private.set_giver() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    new.given_by := case ops_private.caller() when 'authenticated' then ops.current_user_id() end;
    return new;
end
$$;

create trigger set_giver before insert or update of role on ops.project_memberships
    for each row execute function ops_private.set_giver();

-- A project keeps an owner until it is deleted. If two owners remove each other at the same time, the lock makes one
-- wait for the other. A project loses its last owner in two cases: the account of the user is deleted (a cascade
-- deletes the memberships), or the user declines the role that another user gave. service_role then names the next
-- owner.
create function ops_private.keep_an_owner() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' and old.given_by <> old.user_id and ops_private.actor() = old.user_id::text then
        return null;
    end if;
    perform from ops.projects as p where p.id = old.project_id for no key update;
    if found and not exists (
        select from ops.project_memberships as m where m.project_id = old.project_id and m.role = 'owner'
    ) then
        raise exception 'a project keeps at least one owner' using errcode = 'OPS03';
    end if;
    return null;
end
$$;

create trigger keep_an_owner after update on ops.project_memberships
    for each row when (old.role = 'owner') execute function ops_private.keep_an_owner();
-- not for rows that a cascade deletes: there the condition is evaluated inside the trigger of the cascade
create trigger keep_an_owner_who_leaves after delete on ops.project_memberships
    for each row when (old.role = 'owner' and pg_trigger_depth() = 0) execute function ops_private.keep_an_owner();

revoke execute on all functions in schema ops_private from public;

-- A CHECK runs with the rights of the role that writes the row.
grant execute on function ops_private.is_valid_run, ops_private.is_valid_event to authenticated, service_role;

-- Realtime --------------------------------------------------------------------------------------------------

-- Only if Supabase's publication exists and this role may change it.
do $$
begin
    if exists (
        select from pg_catalog.pg_publication as p
        where p.pubname = 'supabase_realtime' and not p.puballtables
            and pg_catalog.pg_has_role(current_user, p.pubowner, 'usage')
    ) then
        alter publication supabase_realtime add table ops.runs, ops.run_events;
    end if;
end
$$;
