-- The functions for signed-in users: queue, retry or cancel a run, list the queue, search logs, list the advisories for
-- an upgrade.
--
-- Each is a pair of functions. The one in the schema ops is exposed by an API, runs with the caller's rights, and calls
-- one in ops_private, which first checks the caller's role in the project. For a user without a role, the workflow, run
-- or log line does not exist, and the call takes no locks. A function that changes data answers {"success", ...}. A
-- function that lists rows returns a table, and raises SQLSTATE 22023 for wrong arguments.
--
-- An idempotency key, which makes a request safe to repeat, is stored as `<project id>:<key>`. runs.idempotency_key is
-- unique in the whole table, so without the prefix a project could collide with, or learn of, a key of another project.

-- Queue -----------------------------------------------------------------------------------------------------

-- A digest of the request that used an idempotency key. The run's own columns may change later.
create table ops_private.run_requests (
    run_id uuid primary key references ops.runs (id) on delete cascade,
    digest bytea not null
);

create function ops_private.queued_answer(p_run_id uuid, p_created boolean) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
            'success', true, 'created', p_created, 'run_id', r.id, 'run_number', r.run_number,
            'status', r.status, 'attempt', r.attempt)
        from ops.runs as r where r.id = p_run_id
    );
end
$$;

-- Says what is wrong with a request to queue a run; null if nothing is.
create function ops_private.bad_request(
    p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamptz
) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        ops_private.bad_document('metadata', p_metadata),
        case
            when not isfinite(p_scheduled_at) then 'the scheduled_at must be finite'
            when octet_length(p_idempotency_key) not between 1 and 200 then
                'the idempotency_key must have 1 to 200 bytes'
        end);
end
$$;

create function ops_private.enqueue_run(
    p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamptz
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_metadata constant jsonb := coalesce(p_metadata, '{}');
    v_wrong constant text := ops_private.bad_request(v_metadata, p_idempotency_key, p_scheduled_at);
    v_digest bytea;
    v_project_id uuid;
    v_role text;
    v_key text;
    v_run_id uuid;
    v_refusal jsonb;
begin
    select w.project_id into v_project_id from ops.workflows as w where w.id = p_workflow_id;
    if not ops_private.trusted() then
        v_role := ops.current_user_role(v_project_id);
        if v_role = 'viewer' then
            return ops_private.refusal('not_allowed', 'a viewer may not queue runs');
        end if;
    end if;
    if v_project_id is null or (v_role is null and not ops_private.trusted()) then
        return ops_private.refusal('not_found', 'there is no such workflow');
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;

    v_digest := sha256(convert_to(jsonb_build_array(
        p_workflow_id, v_metadata, extract(epoch from p_scheduled_at))::text, 'UTF8'));
    -- this lock lets one request of the project proceed at a time, so the second of two equal keys finds the first
    perform ops_private.lock_queue(v_project_id);
    v_key := v_project_id || ':' || p_idempotency_key;
    select r.id into v_run_id from ops.runs as r where r.idempotency_key = v_key;
    if found then
        if not exists (
            select from ops_private.run_requests as q where q.run_id = v_run_id and q.digest = v_digest
        ) then
            return ops_private.refusal('key_reused', 'this idempotency key was used for another request');
        end if;
        return ops_private.queued_answer(v_run_id, false);
    end if;
    v_refusal := ops_private.check_workflow(p_workflow_id);
    if v_refusal is not null then
        return v_refusal;
    end if;
    begin
        insert into ops.runs (project_id, workflow_id, metadata, idempotency_key, scheduled_at)
        values (v_project_id, p_workflow_id, v_metadata, v_key,
            case when p_scheduled_at > ops_private.current_time() then p_scheduled_at end)
        returning id into v_run_id;
    exception
        when check_violation then return ops_private.refusal('bad_argument', sqlerrm);
        when sqlstate 'OPS04' then return ops_private.refusal('queue_full', sqlerrm);
    end;
    insert into ops_private.run_requests (run_id, digest) select v_run_id, v_digest where v_key is not null;
    return ops_private.queued_answer(v_run_id, true);
end
$$;

create function ops_private.list_queued_runs(p_limit bigint) returns table (
    run_id uuid, project_id uuid, workflow_id uuid, run_number integer, status text, created_at timestamptz,
    claimed_by text, claimed_at timestamptz, waits_for text
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
    v_projects constant uuid[] := ops_private.visible_projects();
begin
    return query
        select r.id, r.project_id, r.workflow_id, r.run_number, r.status, r.created_at, r.claimed_by, r.claimed_at,
            null::text
        from ops_private.leases as l join ops.runs as r on r.id = l.run_id
        where r.status = 'claimed' and r.project_id = any (v_projects)
        order by r.priority desc, r.created_at, r.run_number
        limit p_limit;
    return query
        select r.id, r.project_id, r.workflow_id, r.run_number, r.status, r.created_at, r.claimed_by, r.claimed_at,
            o.waits_for
        from ops_private.queue_order(v_projects, p_limit) with ordinality as o (run_id, waits_for, i)
        join ops.runs as r on r.id = o.run_id
        order by o.i;
end
$$;

-- Retry -----------------------------------------------------------------------------------------------------

-- A repeated call returns the same retry until that run has ended.
create function ops_private.retry_run(p_run_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_run ops.runs;
    v_role text;
    v_retry_id uuid;
    v_refusal jsonb;
begin
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    if not ops_private.trusted() then
        v_role := ops.current_user_role(v_run.project_id);
        if v_role is not null and v_role not in ('admin', 'owner')
            and (v_role <> 'developer' or v_run.created_by is distinct from ops.current_user_id()) then
            return ops_private.refusal('not_allowed', format('a %s may not retry this run', v_role));
        end if;
    end if;
    if v_run.id is null or (v_role is null and not ops_private.trusted()) then
        return ops_private.refusal('not_found', 'there is no such run');
    end if;
    if not ops_private.is_final(v_run.status) then
        return ops_private.refusal('not_final', format('the run is still %s', v_run.status));
    end if;

    perform ops_private.lock_queue(v_run.project_id);
    select r.id into v_retry_id from ops.runs as r
    where r.retry_of = p_run_id and not ops_private.is_final(r.status)
    order by r.run_number limit 1;
    if found then
        return ops_private.queued_answer(v_retry_id, false);
    end if;
    v_refusal := ops_private.check_workflow(v_run.workflow_id);
    if v_refusal is not null then
        return v_refusal;
    end if;
    if not ops_private.trusted() and ops_private.queue_is_full(v_run.project_id) then
        return ops_private.refusal('queue_full', 'the queue of the project is full (max_queued_runs)');
    end if;
    v_retry_id := ops_private.queue_retry(p_run_id);
    return coalesce(
        ops_private.queued_answer(v_retry_id, true),
        ops_private.refusal('not_found', 'there is no such run'));
end
$$;

-- Advisories ------------------------------------------------------------------------------------------------

-- The key by which versions are compared: 9.0 is before 10.0, and 17 equals 17.0; null if the text is not a version.
create function ops_private.version_key(p_version text) returns integer[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if p_version ~ '^\d{1,9}(\.\d{1,9})*$' then
        return string_to_array(regexp_replace(p_version, '(\.0+)+$', ''), '.')::integer[];
    end if;
    return null;
end
$$;

create function ops_private.applicable_advisories(p_from text, p_to text) returns setof ops.upgrade_advisories
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_from constant integer[] := ops_private.version_key(p_from);
    v_to constant integer[] := ops_private.version_key(p_to);
begin
    if v_from is null or v_to is null then
        raise exception 'from and to must be versions such as 17.0 and 19.0' using errcode = 'invalid_parameter_value';
    end if;
    return query
    select a.*
    from ops.upgrade_advisories as a
    cross join lateral (
        select ops_private.version_key(a.from_version) as since, ops_private.version_key(a.to_version) as until
    ) as v
    where v_from <= v.since and v.since <= v.until and v.until <= v_to
    order by v.since, v.until, array_position('{critical,high,medium,low}', a.severity), a.title, a.id;
end
$$;

-- Cancel ----------------------------------------------------------------------------------------------------

-- Cancels a queued or claimed run, and asks the worker of a running one to stop it. The caller has locked the run.
create function ops_private.stop_run(p_run_id uuid, p_status text, p_reason text, p_message text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    if p_status in ('queued', 'claimed') then
        update ops.runs as r
        set status = 'canceled', cancel_requested_at = ops_private.current_time(), reason = p_reason,
            error_message = p_message
        where r.id = p_run_id;
        return;
    end if;
    update ops.runs as r set cancel_requested_at = ops_private.current_time()
    where r.id = p_run_id and r.status = 'running' and r.cancel_requested_at is null;
    if found then
        perform ops_private.add_event(p_run_id, 'info', 'cancel requested', jsonb_strip_nulls(jsonb_build_object(
            'actor', ops_private.actor(), 'reason', p_message)));
    end if;
end
$$;

-- Cancels a queued or claimed run at once; asks the worker to stop a running one. For a user who may not see the run,
-- it does not exist.
create function ops_private.cancel_run(p_run_id uuid, p_reason text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_run ops.runs;
    v_role text;
begin
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    if not ops_private.trusted() then
        v_role := ops.current_user_role(v_run.project_id);
        if v_role is null then
            return ops_private.refusal('not_found', 'there is no such run');
        end if;
        if v_role not in ('admin', 'owner')
            and (v_role <> 'developer' or v_run.created_by is distinct from ops.current_user_id()) then
            return ops_private.refusal('not_allowed', format('a %s may not cancel this run', v_role));
        end if;
    end if;
    select r.* into v_run from ops.runs as r where r.id = p_run_id for no key update;
    if v_run.id is null then
        return ops_private.refusal('not_found', 'there is no such run');
    end if;

    if v_run.status in ('queued', 'claimed') then
        perform ops_private.stop_run(p_run_id, v_run.status, 'canceled', left(p_reason, 10000));
        return jsonb_build_object('success', true, 'status', 'canceled', 'message', 'the run is canceled');
    elsif v_run.status = 'canceled' then
        return jsonb_build_object('success', true, 'status', 'canceled', 'message', 'it already was');
    elsif v_run.status <> 'running' then
        return ops_private.refusal('final', format('the run is already %s', v_run.status));
    end if;

    if v_run.cancel_requested_at is null then
        perform ops_private.stop_run(p_run_id, v_run.status, 'canceled', left(p_reason, 10000));
    else
        perform pg_notify('ops_cancel', p_run_id::text);
    end if;
    return jsonb_build_object(
        'success', true, 'status', 'running', 'message', 'the worker is asked to stop the run');
end
$$;

-- Pause and limits ------------------------------------------------------------------------------------------

-- Why the caller may not change something of a project; null if it may. p_project_id is null if the thing does not
-- exist.
create function ops_private.role_refusal(p_project_id uuid, p_roles text[], p_change text, p_thing text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_trusted constant boolean := ops_private.trusted();
    v_role constant text := case when not v_trusted then ops.current_user_role(p_project_id) end;
begin
    return case
        when v_role <> all (p_roles) then
            ops_private.refusal('not_allowed', format('a %s may not %s', v_role, p_change))
        when p_project_id is null or (v_role is null and not v_trusted) then
            ops_private.refusal('not_found', 'there is no such ' || p_thing) end;
end
$$;

-- Pauses a project, or resumes it. No worker claims a run of a paused project; active runs continue.
create function ops_private.pause_project(p_project_id uuid, p_paused boolean, p_reason text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.role_refusal(
        (select p.id from ops.projects as p where p.id = p_project_id), '{admin,owner}'::text[], 'pause a project',
        'project');
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    insert into ops_private.project_limits as k (project_id) values (p_project_id) on conflict do nothing;
    update ops_private.project_limits as k
    set paused_at = case when p_paused then ops_private.current_time() end,
        paused_by = case when p_paused then ops_private.actor() end,
        pause_reason = case when p_paused then left(p_reason, 2500) end
    where k.project_id = p_project_id and (k.paused_at is null) = p_paused;
    if found and not p_paused then
        perform pg_notify('ops_queue', '');
    end if;
    return jsonb_build_object('success', true, 'paused', p_paused, 'changed', found);
end
$$;

create function ops_private.pause_queue(p_paused boolean, p_reason text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role pauses the queue'
            using errcode = 'insufficient_privilege';
    end if;
    update ops_private.control as c
    set paused_at = case when p_paused then ops_private.current_time() end,
        paused_by = case when p_paused then ops_private.actor() end,
        pause_reason = case when p_paused then left(p_reason, 2500) end
    where (c.paused_at is null) = p_paused;
    if found and not p_paused then
        perform pg_notify('ops_queue', '');
    end if;
    return jsonb_build_object('success', true, 'paused', p_paused, 'changed', found);
end
$$;

-- Limits the active and the queued runs of a project; null means no limit of its own.
create function ops_private.limit_project(p_project_id uuid, p_max_active_runs integer, p_max_queued_runs integer)
returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role limits a project'
            using errcode = 'insufficient_privilege';
    elsif p_max_active_runs <= 0 or p_max_queued_runs <= 0 then
        return ops_private.refusal('bad_argument', format('the %s must be at least 1',
            case when p_max_active_runs <= 0 then 'max_active_runs' else 'max_queued_runs' end));
    elsif not exists (select from ops.projects as p where p.id = p_project_id) then
        return ops_private.refusal('not_found', 'there is no such project');
    end if;
    insert into ops_private.project_limits as k (project_id, max_active_runs, max_queued_runs)
    values (p_project_id, p_max_active_runs, p_max_queued_runs)
    on conflict (project_id) do update
    set max_active_runs = excluded.max_active_runs, max_queued_runs = excluded.max_queued_runs;
    perform pg_notify('ops_queue', '');
    return jsonb_build_object('success', true);
end
$$;

-- What an API exposes ---------------------------------------------------------------------------------------

create function ops.enqueue_run(
    p_workflow_id uuid,
    p_metadata jsonb default '{}',
    p_idempotency_key text default null,
    p_scheduled_at timestamptz default null
) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.enqueue_run(p_workflow_id, p_metadata, p_idempotency_key, p_scheduled_at);

create function ops.retry_run(p_run_id uuid) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.retry_run(p_run_id);

create function ops.cancel_run(p_run_id uuid, p_reason text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.cancel_run(p_run_id, p_reason);

-- The runs that wait, in the order in which they will be claimed, and why each waits; before them the claimed ones that
-- have not started. Returns at most p_limit rows; null means all.
create function ops.list_queued_runs(p_limit bigint default null) returns table (
    run_id uuid,
    project_id uuid,
    workflow_id uuid,
    run_number integer,
    status text,
    created_at timestamptz,
    claimed_by text,
    claimed_at timestamptz,
    waits_for text
)
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select q.run_id, q.project_id, q.workflow_id, q.run_number, q.status, q.created_at, q.claimed_by, q.claimed_at,
        q.waits_for
    from ops_private.list_queued_runs(p_limit) as q
    limit p_limit;
end;

create function ops.pause_project(p_project_id uuid, p_reason text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.pause_project(p_project_id, true, p_reason);

create function ops.resume_project(p_project_id uuid) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.pause_project(p_project_id, false, null);

create function ops.pause_queue(p_reason text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.pause_queue(true, p_reason);

create function ops.resume_queue() returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.pause_queue(false, null);

create function ops.limit_project(
    p_project_id uuid, p_max_active_runs integer default null, p_max_queued_runs integer default null
) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.limit_project(p_project_id, p_max_active_runs, p_max_queued_runs);

create function ops.search_run_logs(
    p_query text,
    p_project_id uuid default null,
    p_run_id uuid default null,
    p_limit integer default 100,
    p_before timestamptz default null,
    p_before_run_id uuid default null,
    p_before_seq bigint default null
) returns table (
    run_id uuid,
    run_number integer,
    seq bigint,
    "timestamp" timestamptz,
    log_level text,
    message text
)
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select s.run_id, s.run_number, s.seq, s."timestamp", s.log_level, s.message
    from ops_private.search_run_logs(
        p_query, p_project_id, p_run_id, p_limit, p_before, p_before_run_id, p_before_seq) as s;
end;

create function ops.applicable_advisories(p_from text, p_to text) returns setof ops.upgrade_advisories
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select a from ops_private.applicable_advisories(p_from, p_to) as a;
end;

-- The file summary.md in the artifacts of a run; null if there is none, or the caller may not read the run.
create function ops_private.run_summary(p_run_id uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select s.summary from ops_private.run_summaries as s
        join ops.runs as r on r.id = s.run_id
        where s.run_id = p_run_id
            and (ops_private.trusted() or r.project_id = any (array(select ops_private.my_projects()))));
end
$$;

create function ops.run_summary(p_run_id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select ops_private.run_summary(p_run_id);
end;

-- The relation between a run and its lines, for PostgREST, which finds it by a foreign key otherwise. Row policies apply.
create function ops.runs(p_line ops.run_logs) returns setof ops.runs
language sql stable rows 1 set search_path = pg_catalog, pg_temp
begin atomic
    select r.* from ops.runs as r where r.id = p_line.run_id;
end;

create function ops.run_logs(p_run ops.runs) returns setof ops.run_logs
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select g.* from ops.run_logs as g where g.run_id = p_run.id;
end;

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function
    ops.enqueue_run, ops.retry_run, ops.cancel_run, ops.list_queued_runs, ops.search_run_logs,
    ops.applicable_advisories, ops.pause_project, ops.resume_project, ops.pause_queue, ops.resume_queue,
    ops.limit_project, ops.run_summary, ops.runs, ops.run_logs
from public;

grant execute on function
    ops.enqueue_run, ops.retry_run, ops.cancel_run, ops.list_queued_runs, ops.search_run_logs,
    ops.applicable_advisories, ops.pause_project, ops.resume_project, ops.run_summary, ops.runs, ops.run_logs,
    ops_private.enqueue_run, ops_private.retry_run, ops_private.cancel_run, ops_private.list_queued_runs,
    ops_private.applicable_advisories, ops_private.pause_project, ops_private.run_summary
to authenticated, service_role;

grant execute on function
    ops.pause_queue, ops.resume_queue, ops.limit_project, ops_private.pause_queue, ops_private.limit_project
to service_role;
