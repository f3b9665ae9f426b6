-- The functions that workers and users call: one per transition.
--
-- A worker registers, then claims: one statement picks the next queued run, marks it claimed and writes its
-- lease. It starts the run, appends log lines, artifacts and events, renews its leases with heartbeats, and
-- completes. Every such function first locks the run's row and checks the lease in ops_private.check_run, so
-- a worker that lost its lease can write nothing. The triggers of the fourth file fill the timestamps, write
-- the events and keep the lease row in step with the status, on whatever path the status changes.
--
-- What is called often is plpgsql, which keeps its plans; before PostgreSQL 18 an sql function plans at every
-- call.
--
-- A refusal that a caller must expect is an answer, {"success": false, "code", "error"}, never an exception.
-- Locks are taken in one order: projects, run_counters, runs, leases, everything else. The search path of
-- each function ends with pg_temp: left out, PostgreSQL would look there first for tables and types, and a
-- caller could plant his own.

-- Time ------------------------------------------------------------------------------------------------------

-- All time is read here, so that a test can replace the clock.
create function ops_private.current_time() returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return clock_timestamp();
end
$$;

-- Who is calling --------------------------------------------------------------------------------------------

-- Inside a security definer function current_user is the owner; the caller is the role set, else the
-- session's.
create function ops_private.caller() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return case current_setting('role')
        when 'none' then session_user::text else current_setting('role') end;
end
$$;

-- Superusers, members of service_role and the owner of the schema may act for any worker and any user.
create function ops_private.trusted() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return pg_has_role(
            ops_private.caller()::name,
            (select n.nspowner from pg_namespace as n where n.nspname = 'ops'), 'usage')
        or exists (
            select from pg_roles as r
            where r.rolname = 'service_role' and pg_has_role(ops_private.caller()::name, r.oid, 'usage'));
end
$$;

-- The user of a JWT, in either form that PostgREST passes claims.
create function ops.current_user_id() returns uuid
language sql stable set search_path = pg_catalog, pg_temp
return coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid;

create function ops.current_user_role(p_project_id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp
return (
    select m.role from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = ops.current_user_id());

-- Claims can be set by anybody with a connection of his own, so they name the actor for signed-in users only.
create function ops_private.actor() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return case ops_private.caller()
        when 'authenticated' then coalesce(ops.current_user_id()::text, 'authenticated')
        else ops_private.caller() end;
end
$$;

-- Answers and events ----------------------------------------------------------------------------------------

create function ops_private.refusal(p_code text, p_error text) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object('success', false, 'code', p_code, 'error', p_error);
end
$$;

create function ops_private.is_final(p_status text) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return p_status in ('succeeded', 'failed', 'canceled');
end
$$;

create function ops_private.add_event(
    p_run_id uuid, p_event_type text, p_message text, p_payload jsonb
) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_event_id uuid;
begin
    insert into ops.run_events (run_id, event_type, message, payload)
    values (p_run_id, p_event_type, p_message, p_payload)
    returning id into v_event_id;
    return v_event_id;
end
$$;

-- Ownership -------------------------------------------------------------------------------------------------

create function ops_private.owns(
    p_lease ops_private.leases, p_worker_id text, p_instance_id uuid
) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (p_lease.db_role = ops_private.caller() or ops_private.trusted())
        and (p_worker_id is null or p_worker_id = p_lease.worker_id)
        and (p_instance_id is null or p_instance_id is not distinct from p_lease.instance_id);
end
$$;

-- Locks the run, and returns null when the caller holds its lease and its status is one of p_statuses, else
-- the refusal. The lease is read in a statement of its own, after the lock: whoever changes its owner locks
-- the run first. Appending functions share the lock, so they only wait for a change of status.
create function ops_private.check_run(
    p_run_id uuid, p_worker_id text, p_instance_id uuid, p_statuses text[], p_shared boolean default false
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_status text;
    v_lease ops_private.leases;
begin
    if p_shared then
        select r.status into v_status from ops.runs as r where r.id = p_run_id for share;
    else
        select r.status into v_status from ops.runs as r where r.id = p_run_id for no key update;
    end if;
    if v_status is null then
        return ops_private.refusal('not_found', 'there is no such run');
    end if;
    if ops_private.is_final(v_status) then
        return ops_private.refusal('final', format('the run is already %s', v_status));
    end if;
    if v_status = 'queued' then
        return ops_private.refusal(
            case when 'claimed' = any (p_statuses) then 'not_claimed' else 'not_running' end,
            'the run is queued');
    end if;
    select l.* into v_lease from ops_private.leases as l where l.run_id = p_run_id;
    if not ops_private.owns(v_lease, p_worker_id, p_instance_id) then
        return ops_private.refusal('not_owner', 'the run is not claimed by this worker');
    end if;
    if v_status <> all (p_statuses) then
        return ops_private.refusal(
            case v_status when 'running' then 'not_claimed' else 'not_running' end,
            format('the run is %s', v_status));
    end if;
    return null;
end
$$;

-- Claim -----------------------------------------------------------------------------------------------------

-- Everything that a worker needs to execute a run, in one answer.
create function ops_private.run_payload(p_run_id uuid) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select jsonb_build_object(
            'run_id', r.id,
            'project_id', r.project_id,
            'workflow_id', r.workflow_id,
            'run_number', r.run_number,
            'claimed_at', r.claimed_at,
            'started_at', r.started_at,
            'status', r.status,
            'claim_count', r.claim_count,
            'lease_expires_at', l.expires_at,
            'cancel_requested', r.cancel_requested_at is not null,
            'log_position', (
                select coalesce(max(g.seq), 0) from ops.run_logs as g
                where g.run_id = r.id and g.seq < 1099511627776),
            'metadata', r.metadata,
            'project', jsonb_build_object(
                'slug', p.slug, 'name', p.name, 'workspace_key', p.workspace_key,
                'odoo_version', p.odoo_version, 'status', p.status),
            'workflow', jsonb_build_object(
                'workflow_type', w.workflow_type, 'name', w.name, 'enabled', w.enabled,
                'git_ref', w.git_ref, 'git_commit', w.git_commit, 'config', w.config),
            'tool', jsonb_build_object(
                'tool_name', coalesce(w.config ->> 'tool', 'odoo'),
                'version', coalesce(w.config ->> 'version', p.odoo_version),
                'docker_image', t.docker_image, 'config', t.config))
        from ops.runs as r
        join ops.projects as p on p.id = r.project_id
        join ops.workflows as w on w.id = r.workflow_id
        left join ops_private.leases as l on l.run_id = r.id
        left join ops.tools as t
            on t.tool_name = coalesce(w.config ->> 'tool', 'odoo')
            and t.version = coalesce(w.config ->> 'version', p.odoo_version)
        where r.id = p_run_id
    );
end
$$;

-- Runs that are not due yet stay out of the index that claims read; this lets in what is due by now.
create function ops_private.wake_scheduled_runs() returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_woken integer;
begin
    with due as (
        select r.id from ops.runs as r
        where r.status = 'queued' and r.scheduled_at <= (select ops_private.current_time())
        order by r.scheduled_at
        limit 1000
        for update of r skip locked
    ), woken as (
        update ops.runs as r set scheduled_at = null from due where r.id = due.id returning r.id
    )
    select count(*) into v_woken from woken;
    return v_woken;
end
$$;

create function ops.claim_next_run(
    p_worker_id text,
    p_instance_id uuid default null,
    p_labels text[] default '{}',
    p_lease_seconds integer default 300,
    p_engine_id text default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_labels constant text[] := coalesce(p_labels, '{}');
    v_caller constant text := ops_private.caller();
    v_run_id uuid;
    v_waiting boolean;
begin
    if coalesce(p_worker_id, '') = '' or (p_lease_seconds between 1 and 86400) is not true then
        return jsonb_build_object(
            'run_id', null, 'waiting', false, 'code', 'bad_argument',
            'message', 'a claim needs a worker id and a lease of 1 to 86400 seconds');
    end if;
    if p_instance_id is not null and exists (
        select from ops_private.workers as w
        where w.worker_id = p_worker_id and w.instance_id <> p_instance_id
            and w.expires_at > ops_private.current_time()
    ) then
        return jsonb_build_object(
            'run_id', null, 'waiting', false, 'code', 'worker_id_taken',
            'message', 'another instance works under this worker id');
    end if;

    for v_try in 1 .. 20 loop
        begin
            with next as (
                select r.id from ops.runs as r
                where r.status = 'queued' and r.scheduled_at is null
                    and r.labels <@ v_labels
                    and (r.concurrency_key is null or not exists (
                        select from ops.runs as a
                        where a.project_id = r.project_id and a.concurrency_key = r.concurrency_key
                            and a.status in ('claimed', 'running')))
                order by r.priority desc, r.created_at, r.run_number
                limit 1
                for update of r skip locked
            ), claimed as (
                update ops.runs as r
                set status = 'claimed', claimed_by = p_worker_id, claimed_instance = p_instance_id
                from next where r.id = next.id
                returning r.id
            )
            insert into ops_private.leases
                (run_id, worker_id, instance_id, db_role, engine_id, lease_seconds, expires_at)
            select c.id, p_worker_id, p_instance_id, v_caller, p_engine_id, p_lease_seconds,
                ops_private.current_time() + make_interval(secs => p_lease_seconds)
            from claimed as c
            returning run_id into v_run_id;
        exception when unique_violation then
            -- somebody claimed a run with the same concurrency key at the same time: take the next one
            continue;
        end;
        if v_run_id is not null then
            return ops_private.run_payload(v_run_id);
        end if;
        exit when ops_private.wake_scheduled_runs() = 0;
    end loop;

    v_waiting := exists (
        select from ops.runs as r
        where r.status = 'queued' and r.scheduled_at is null and r.labels <@ v_labels
    ) or exists (
        select from ops.runs as r
        where r.status = 'queued' and r.scheduled_at is not null and r.labels <@ v_labels
    );
    return jsonb_build_object(
        'run_id', null, 'waiting', v_waiting,
        'message', case when v_waiting then 'no run can be claimed yet' else 'no queued runs' end);
end
$$;

-- One run's life --------------------------------------------------------------------------------------------

create function ops.start_workflow_run(
    p_run_id uuid, p_worker_id text, p_instance_id uuid default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb :=
        ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{claimed,running}');
    v_status text;
    v_started_at timestamptz;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    select r.status, r.started_at into v_status, v_started_at from ops.runs as r where r.id = p_run_id;
    if v_status = 'claimed' then
        update ops.runs as r set status = 'running' where r.id = p_run_id
        returning r.started_at into v_started_at;
    elsif p_instance_id is null then
        -- only an instance that names itself can be known to repeat a call whose answer it lost
        return ops_private.refusal('not_claimed', 'the run is running');
    end if;
    return jsonb_build_object('success', true, 'started_at', v_started_at);
end
$$;

create function ops.complete_workflow_run(
    p_run_id uuid,
    p_exit_code integer,
    p_error_message text default null,
    p_worker_id text default null,
    p_instance_id uuid default null,
    p_reason text default null,
    p_details jsonb default '{}'
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    v_run ops.runs;
    v_status text;
begin
    if p_reason !~ '^[a-z][a-z0-9_]{0,62}$' or jsonb_typeof(coalesce(p_details, '{}')) <> 'object' then
        return ops_private.refusal(
            'bad_argument', 'the reason must be one lower-case word, and the details an object');
    end if;
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    v_status := case
        when p_reason = 'canceled' and v_run.cancel_requested_at is not null then 'canceled'
        when p_exit_code = 0 then 'succeeded'
        else 'failed'
    end;
    if v_refusal is not null then
        -- the same instance repeats a call whose answer it lost
        if v_refusal ->> 'code' <> 'final' or v_run.claimed_instance <> p_instance_id is not false
            or v_run.claimed_by <> p_worker_id or v_run.started_at is null
            or v_run.status <> v_status or v_run.exit_code is distinct from p_exit_code then
            return v_refusal;
        end if;
    else
        update ops.runs as r
        set status = v_status, exit_code = p_exit_code, reason = p_reason,
            error_message = left(p_error_message, 10000)
        where r.id = p_run_id
        returning r.* into v_run;
        if v_status = 'failed' then
            perform ops_private.add_event(
                p_run_id, 'error',
                coalesce(v_run.error_message, format('exit code %s', p_exit_code), 'no exit code'),
                coalesce(p_details, '{}')
                    || jsonb_build_object('reason', v_run.reason, 'exit_code', p_exit_code));
        end if;
    end if;
    return jsonb_build_object(
        'success', true, 'status', v_run.status, 'finished_at', v_run.finished_at,
        'exit_code', v_run.exit_code);
end
$$;

create function ops.release_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{claimed}');
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    -- claim_count finds runs that kill their worker; one that was handed back did not
    update ops.runs as r set status = 'queued', reason = 'released', claim_count = r.claim_count - 1
    where r.id = p_run_id;
    return jsonb_build_object('success', true);
end
$$;

-- What a run leaves -----------------------------------------------------------------------------------------

create function ops.append_run_log(
    p_run_id uuid,
    p_level text,
    p_message text,
    p_metadata jsonb default '{}',
    p_worker_id text default null,
    p_instance_id uuid default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal jsonb;
    v_now constant timestamptz := ops_private.current_time();
begin
    if p_level is null or p_level not in ('debug', 'info', 'warn', 'error') then
        return ops_private.refusal('bad_level', 'the level must be debug, info, warn or error');
    end if;
    if p_message is null or octet_length(p_message) > 65600
        or jsonb_typeof(coalesce(p_metadata, '{}')) <> 'object' then
        return ops_private.refusal(
            'bad_argument', 'a log line has a message of at most 65600 bytes, and an object as metadata');
    end if;
    v_refusal := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}', true);
    if v_refusal is not null then
        return v_refusal;
    end if;
    insert into ops.run_logs (run_id, project_id, log_level, message, metadata, "timestamp")
    select r.id, r.project_id, p_level, p_message, coalesce(p_metadata, '{}'), v_now
    from ops.runs as r where r.id = p_run_id;
    return jsonb_build_object('success', true, 'timestamp', v_now);
end
$$;

-- A batch of journal lines. Lines that are there already are skipped, so a batch can be sent again after an
-- answer was lost; position is the last line that is stored.
create function ops.append_run_logs(
    p_run_id uuid,
    p_worker_id text,
    p_instance_id uuid,
    p_seqs bigint[],
    p_streams text[],
    p_levels text[],
    p_messages text[],
    p_timestamps timestamptz[]
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb :=
        ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}', true);
    v_count constant integer := cardinality(p_seqs);
    v_project_id uuid;
    v_stored integer;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if (cardinality(p_streams) = v_count and cardinality(p_levels) = v_count
        and cardinality(p_messages) = v_count and cardinality(p_timestamps) = v_count
    ) is not true then
        return ops_private.refusal(
            'bad_argument', 'seqs, streams, levels, messages and timestamps differ in length');
    end if;
    if not p_levels <@ '{debug,info,warn,error}' then
        return ops_private.refusal('bad_level', 'each level must be debug, info, warn or error');
    end if;
    if 1099511627776 <= any (p_seqs) then
        return ops_private.refusal('bad_argument', 'line numbers end below 1099511627776');
    end if;
    select r.project_id into v_project_id from ops.runs as r where r.id = p_run_id;
    begin
        insert into ops.run_logs (run_id, project_id, seq, stream, log_level, message, "timestamp")
        select p_run_id, v_project_id, u.seq, u.stream, u.log_level, u.message, u.written
        from unnest(p_seqs, p_streams, p_levels, p_messages, p_timestamps)
            as u (seq, stream, log_level, message, written)
        on conflict (run_id, seq) do nothing;
        get diagnostics v_stored = row_count;
    exception when check_violation or not_null_violation then
        return ops_private.refusal('bad_argument', sqlerrm);
    end;
    return jsonb_build_object(
        'success', true, 'stored', v_stored,
        'position', (
            select coalesce(max(g.seq), 0) from ops.run_logs as g
            where g.run_id = p_run_id and g.seq < 1099511627776));
end
$$;

create function ops.add_run_artifact(
    p_run_id uuid,
    p_artifact_key text,
    p_artifact_url text,
    p_content_type text default null,
    p_size_bytes bigint default null,
    p_checksum text default null,
    p_expires_at timestamptz default null,
    p_metadata jsonb default '{}',
    p_worker_id text default null,
    p_instance_id uuid default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb :=
        ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}', true);
    v_artifact_id uuid;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    begin
        insert into ops.run_artifacts as a
            (run_id, artifact_key, artifact_url, content_type, size_bytes, checksum, expires_at, metadata)
        values (p_run_id, p_artifact_key, p_artifact_url, p_content_type, p_size_bytes, p_checksum,
            p_expires_at, coalesce(p_metadata, '{}'))
        on conflict (run_id, artifact_key) do update
        set artifact_url = excluded.artifact_url, content_type = excluded.content_type,
            size_bytes = excluded.size_bytes, checksum = excluded.checksum,
            expires_at = excluded.expires_at, metadata = excluded.metadata
        returning a.id into v_artifact_id;
    exception when check_violation or not_null_violation then
        return ops_private.refusal('bad_argument', sqlerrm);
    end;
    return jsonb_build_object('success', true, 'artifact_id', v_artifact_id);
end
$$;

create function ops.add_run_event(
    p_run_id uuid,
    p_event_type text,
    p_message text,
    p_payload jsonb default '{}',
    p_worker_id text default null,
    p_instance_id uuid default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal jsonb;
begin
    if p_event_type is null or p_event_type not in ('error', 'warning', 'info') or p_message is null
        or jsonb_typeof(coalesce(p_payload, '{}')) <> 'object' then
        return ops_private.refusal(
            'bad_argument', 'an event is an error, warning or info with a message and an object as payload');
    end if;
    v_refusal := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{claimed,running}', true);
    if v_refusal is not null then
        return v_refusal;
    end if;
    return jsonb_build_object(
        'success', true,
        'event_id', ops_private.add_event(p_run_id, p_event_type, p_message, coalesce(p_payload, '{}')));
end
$$;

-- Workers and leases ----------------------------------------------------------------------------------------

create function ops.register_worker(
    p_worker_id text,
    p_instance_id uuid,
    p_host_id text default null,
    p_engine_id text default null,
    p_version text default null,
    p_labels text[] default '{}',
    p_lease_seconds integer default 60,
    p_takeover boolean default false
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_caller constant text := ops_private.caller();
    v_trusted constant boolean := ops_private.trusted();
    v_registered boolean;
begin
    if coalesce(p_worker_id, '') = '' or p_instance_id is null
        or (p_lease_seconds between 1 and 86400) is not true then
        return ops_private.refusal(
            'bad_argument', 'a worker needs an id, an instance and a lease of 1 to 86400 seconds');
    end if;
    insert into ops_private.workers as w
        (worker_id, instance_id, db_role, host_id, engine_id, version, labels, started_at, expires_at)
    values (p_worker_id, p_instance_id, v_caller, p_host_id, p_engine_id, p_version, coalesce(p_labels, '{}'),
        v_now, v_now + make_interval(secs => p_lease_seconds))
    on conflict (worker_id) do update
    set instance_id = excluded.instance_id, db_role = excluded.db_role, host_id = excluded.host_id,
        engine_id = excluded.engine_id, version = excluded.version, labels = excluded.labels,
        started_at = case
            when w.instance_id = excluded.instance_id then w.started_at else excluded.started_at end,
        expires_at = excluded.expires_at
    where w.expires_at <= v_now
        or ((w.db_role = v_caller or v_trusted)
            and (w.instance_id = p_instance_id or (p_takeover and w.host_id = p_host_id)))
    returning true into v_registered;
    if v_registered is null then
        return ops_private.refusal('worker_id_taken', 'another instance works under this worker id')
            || jsonb_build_object('expires_at', (
                select w.expires_at from ops_private.workers as w where w.worker_id = p_worker_id));
    end if;
    return jsonb_build_object(
        'success', true, 'database_id', (select c.database_id from ops_private.control as c));
end
$$;

create function ops.unregister_worker(p_worker_id text, p_instance_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.workers as w
    where w.worker_id = p_worker_id and w.instance_id = p_instance_id
        and (w.db_role = ops_private.caller() or ops_private.trusted());
    return jsonb_build_object('success', true);
end
$$;

-- Renews whatever this instance still holds. A run that the answer does not list is lost. Leases are locked
-- in the order of their runs, so that two renewals never wait for each other.
create function ops.heartbeat(
    p_worker_id text, p_instance_id uuid, p_lease_seconds integer default 300
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller constant text := ops_private.caller();
    v_trusted constant boolean := ops_private.trusted();
    v_expires_at constant timestamptz :=
        ops_private.current_time() + make_interval(secs => p_lease_seconds);
    v_runs jsonb;
begin
    if (p_lease_seconds between 1 and 86400) is not true then
        return ops_private.refusal('bad_argument', 'a lease has 1 to 86400 seconds');
    end if;
    with held as (
        select l.run_id from ops_private.leases as l
        where l.worker_id = p_worker_id and l.instance_id = p_instance_id
            and (l.db_role = v_caller or v_trusted)
        order by l.run_id
        for update
    ), renewed as (
        update ops_private.leases as l set expires_at = v_expires_at, lease_seconds = p_lease_seconds
        from held where l.run_id = held.run_id
        returning l.run_id
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'run_id', r.id, 'status', r.status, 'cancel_requested', r.cancel_requested_at is not null)), '[]')
    into v_runs
    from renewed join ops.runs as r on r.id = renewed.run_id;

    update ops_private.workers as w set expires_at = v_expires_at
    where w.worker_id = p_worker_id and w.instance_id = p_instance_id and (w.db_role = v_caller or v_trusted);
    return jsonb_build_object('success', true, 'registered', found, 'runs', v_runs);
end
$$;

-- A worker that came back finds its containers, and takes their runs over from the instance that it was
-- before. Any worker on the same engine may do so once the lease ran out.
create function ops.adopt_run(
    p_run_id uuid,
    p_worker_id text,
    p_instance_id uuid,
    p_engine_id text,
    p_lease_seconds integer default 300
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_status text;
    v_lease ops_private.leases;
    v_code text;
begin
    select r.status into v_status from ops.runs as r where r.id = p_run_id for no key update;
    select l.* into v_lease from ops_private.leases as l where l.run_id = p_run_id for update;
    v_code := case
        when coalesce(p_worker_id, '') = '' or p_instance_id is null
            or (p_lease_seconds between 1 and 86400) is not true then 'bad_argument'
        when v_status is null then 'not_found'
        when ops_private.is_final(v_status) then 'final'
        when v_status = 'queued' then 'not_claimed'
        when v_lease.db_role <> ops_private.caller() and not ops_private.trusted() then 'not_owner'
        when exists (
            select from ops_private.workers as w
            where w.worker_id = p_worker_id and w.instance_id <> p_instance_id and w.expires_at > v_now
        ) then 'worker_id_taken'
        when v_lease.worker_id = p_worker_id and v_lease.instance_id = p_instance_id then null
        when v_lease.expires_at <= v_now
            and (v_lease.engine_id = p_engine_id or v_lease.worker_id = p_worker_id) then null
        when v_lease.worker_id = p_worker_id and v_lease.instance_id is not null and not exists (
            select from ops_private.workers as w
            where w.worker_id = v_lease.worker_id and w.instance_id = v_lease.instance_id
                and w.expires_at > v_now
        ) then null
        else 'not_owner'
    end;
    if v_code is not null then
        return jsonb_build_object(
            'run_id', null, 'code', v_code, 'status', v_status,
            'message', case v_code
                when 'bad_argument' then 'a worker needs an id, an instance and a lease of 1 to 86400 seconds'
                when 'not_found' then 'there is no such run'
                when 'not_owner' then 'another worker holds the run'
                when 'worker_id_taken' then 'another instance works under this worker id'
                else format('the run is %s', v_status)
            end);
    end if;

    update ops_private.leases as l
    set worker_id = p_worker_id, instance_id = p_instance_id, db_role = ops_private.caller(),
        engine_id = p_engine_id, lease_seconds = p_lease_seconds,
        expires_at = v_now + make_interval(secs => p_lease_seconds)
    where l.run_id = p_run_id;
    if v_lease.instance_id is distinct from p_instance_id then
        update ops.runs as r
        set claimed_by = p_worker_id, claimed_instance = p_instance_id, claim_count = r.claim_count + 1
        where r.id = p_run_id;
        perform ops_private.add_event(p_run_id, 'info', 'adopted', jsonb_build_object(
            'actor', ops_private.actor(), 'worker_id', p_worker_id,
            'previous_worker_id', v_lease.worker_id));
    end if;
    return ops_private.run_payload(p_run_id);
end
$$;

-- Ends what nobody holds any more. Harmless when all workers call it at once: each skips what another has
-- locked. A claimed run goes back to the queue, or is set aside when its claim was lost more than five times.
-- A running one stays adoptable for the length of another lease, if a worker on its engine could come back,
-- and fails after that.
create function ops.reap() returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_lost record;
    v_error text;
    v_requeued uuid[] := '{}'::uuid[];
    v_failed uuid[] := '{}'::uuid[];
    v_set_aside uuid[] := '{}'::uuid[];
begin
    for v_lost in
        select r.id, r.status, r.claim_count, l.worker_id, l.expires_at
        from ops_private.leases as l
        join ops.runs as r on r.id = l.run_id
        where l.expires_at <= v_now and (
            r.status = 'claimed' or l.engine_id is null
            or l.expires_at + make_interval(secs => l.lease_seconds) <= v_now)
        order by r.id
        for update of r, l skip locked
    loop
        if v_lost.status = 'claimed' and v_lost.claim_count <= 5 then
            update ops.runs as r set status = 'queued', reason = 'lease_expired' where r.id = v_lost.id;
            v_requeued := v_requeued || v_lost.id;
        elsif v_lost.status = 'claimed' then
            v_error := format(
                'set aside: %s workers were lost after claiming this run, the last one %s',
                v_lost.claim_count, v_lost.worker_id);
            update ops.runs as r set status = 'canceled', reason = 'poison', error_message = v_error
            where r.id = v_lost.id;
            v_set_aside := v_set_aside || v_lost.id;
        else
            v_error := format(
                'worker lost: the lease of worker %s ran out and no worker took the run over',
                v_lost.worker_id);
            update ops.runs as r set status = 'failed', reason = 'worker_lost', error_message = v_error
            where r.id = v_lost.id;
            v_failed := v_failed || v_lost.id;
        end if;
        if v_error is not null then
            perform ops_private.add_event(v_lost.id, 'error', v_error, jsonb_build_object(
                'reason', case v_lost.status when 'claimed' then 'poison' else 'worker_lost' end,
                'worker_id', v_lost.worker_id, 'lease_expired_at', v_lost.expires_at));
            v_error := null;
        end if;
    end loop;
    return jsonb_build_object(
        'requeued', v_requeued, 'failed', v_failed, 'set_aside', v_set_aside,
        'woken', ops_private.wake_scheduled_runs());
end
$$;

-- Users -----------------------------------------------------------------------------------------------------

-- Ends queued and claimed runs at once; asks the worker to stop a running one. To somebody who may not see
-- the run it does not exist.
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
        update ops.runs as r
        set status = 'canceled', cancel_requested_at = ops_private.current_time(),
            error_message = left(p_reason, 10000)
        where r.id = p_run_id;
        return jsonb_build_object('success', true, 'status', 'canceled', 'message', 'the run is canceled');
    elsif v_run.status = 'canceled' then
        return jsonb_build_object('success', true, 'status', 'canceled', 'message', 'it already was');
    elsif v_run.status <> 'running' then
        return ops_private.refusal('final', format('the run is already %s', v_run.status));
    end if;

    if v_run.cancel_requested_at is null then
        update ops.runs as r set cancel_requested_at = ops_private.current_time() where r.id = p_run_id;
        perform ops_private.add_event(
            p_run_id, 'info', 'cancel requested', jsonb_strip_nulls(jsonb_build_object(
                'actor', ops_private.actor(), 'reason', left(p_reason, 10000))));
    else
        perform pg_notify('ops_cancel', p_run_id::text);
    end if;
    return jsonb_build_object(
        'success', true, 'status', 'running', 'message', 'the worker is asked to stop the run');
end
$$;

-- What users call runs with their own rights; the core that needs more is in the schema that no API exposes.
create function ops.cancel_run(p_run_id uuid, p_reason text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.cancel_run(p_run_id, p_reason);

-- Row policies decide which runs the caller sees. The three conditions on status are those of three partial
-- indexes.
create function ops.list_queued_runs() returns table (
    run_id uuid,
    project_id uuid,
    workflow_id uuid,
    run_number integer,
    status text,
    created_at timestamptz,
    claimed_by text,
    claimed_at timestamptz
)
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select r.id, r.project_id, r.workflow_id, r.run_number, r.status, r.created_at, r.claimed_by, r.claimed_at
    from ops.runs as r
    where r.status = 'claimed'
        or (r.status = 'queued' and r.scheduled_at is null)
        or (r.status = 'queued' and r.scheduled_at is not null)
    order by r.status = 'queued', r.scheduled_at nulls first, r.priority desc, r.created_at, r.run_number;
$$;

-- Retention -------------------------------------------------------------------------------------------------

-- Deletes the events of runs that ended before p_before: the only way to delete events and keep their run.
-- The trigger that guards them looks for this setting and for the owner, whose rights only this function
-- lends.
create function ops_private.prune_run_events(p_before timestamptz) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_pruned bigint;
begin
    perform set_config('ops.prune_run_events', 'on', true);
    delete from ops.run_events as e using ops.runs as r
    where r.id = e.run_id and r.finished_at < p_before;
    get diagnostics v_pruned = row_count;
    perform set_config('ops.prune_run_events', 'off', true);
    return v_pruned;
end
$$;

-- Functions are executable by everybody from birth; the next file says who may execute which. The schema ops
-- may hold functions of others, so ours are named.
revoke execute on all functions in schema ops_private from public;
revoke execute on function
    ops.current_user_id(),
    ops.current_user_role(uuid),
    ops.claim_next_run(text, uuid, text[], integer, text),
    ops.start_workflow_run(uuid, text, uuid),
    ops.complete_workflow_run(uuid, integer, text, text, uuid, text, jsonb),
    ops.release_run(uuid, text, uuid),
    ops.append_run_log(uuid, text, text, jsonb, text, uuid),
    ops.append_run_logs(uuid, text, uuid, bigint[], text[], text[], text[], timestamptz[]),
    ops.add_run_artifact(uuid, text, text, text, bigint, text, timestamptz, jsonb, text, uuid),
    ops.add_run_event(uuid, text, text, jsonb, text, uuid),
    ops.register_worker(text, uuid, text, text, text, text[], integer, boolean),
    ops.unregister_worker(text, uuid),
    ops.heartbeat(text, uuid, integer),
    ops.adopt_run(uuid, text, uuid, text, integer),
    ops.reap(),
    ops.cancel_run(uuid, text),
    ops.list_queued_runs()
from public;
