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

-- The caller of a worker function, who must be a member of ops_worker or trusted. The grants say the same, but one
-- statement can undo them: Supabase's recipe for a schema of one's own grants all its functions to anon.
create function ops_private.calling_worker() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller constant text := ops_private.caller();
begin
    if not pg_has_role(v_caller::name, 'ops_worker', 'usage') and not ops_private.trusted() then
        raise exception 'permission denied: the role % is not a member of ops_worker', v_caller
            using errcode = 'insufficient_privilege';
    end if;
    return v_caller;
end
$$;

-- The user of a JWT, in either form that PostgREST passes claims.
create function ops.current_user_id() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid;
end
$$;

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

-- Which argument of a worker is wrong, in words; null: none.
create function ops_private.bad_worker(p_worker_id text, p_lease_seconds integer) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when coalesce(p_worker_id, '') = '' then 'the worker_id must not be empty'
        when octet_length(p_worker_id) > 200 then 'the worker_id must have at most 200 bytes'
        when (p_lease_seconds between 1 and 3600) is not true then 'the lease_seconds must be from 1 to 3600'
    end;
end
$$;

-- What is wrong with a document that a caller gives, in words; null: nothing. The size comes first: it bounds what the
-- depth costs. Constraints of the fourth file say the same of the columns.
create function ops_private.bad_document(p_name text, p_document jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when jsonb_typeof(p_document) <> 'object' then format('the %s must be an object', p_name)
        when octet_length(p_document::text) > 262144 then format('the %s must have at most 256 KiB', p_name)
        when jsonb_path_exists(p_document, 'strict $.**{33}') then
            format('the %s must be nested at most 32 deep', p_name)
    end;
end
$$;

-- What `git check-ref-format` allows, roughly, and never what a command would take for an option. The
-- length comes first: it bounds what the pattern costs (two minutes for 95 MB).
create function ops_private.is_git_ref(p_ref text) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return length(p_ref) <= 255 and p_ref ~ '^(?![-/.])(?!.*(\.\.|//|@\{))[^\x01-\x20\x7f~^:?*\[\\]+$' and p_ref !~ '[/.]$';
end
$$;

-- Keys that a run's metadata may not have, because they decide what a workflow does.
create function ops_private.reserved_keys() returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return array[
        'artifacts', 'command', 'concurrency_key', 'labels', 'network', 'priority', 'read_only', 'resources', 'retry',
        'run_env', 'secrets', 'services', 'timeout_seconds', 'tool', 'user', 'version'];
end
$$;

-- What is wrong with the metadata of a new run of a workflow with that configuration, in words; null: nothing that is
-- known here. A worker checks the rest.
create function ops_private.bad_metadata(p_metadata jsonb, p_config jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_run_env constant jsonb := case jsonb_typeof(p_config -> 'run_env')
        when 'array' then p_config -> 'run_env' else '[]' end;
    v_key text;
begin
    select k.key into v_key from unnest(ops_private.reserved_keys()) as k (key) where p_metadata ? k.key limit 1;
    if found then
        return format(
            'run metadata, %s: a run may set env, args, git_ref, git_commit; %1$s belongs into the workflow''s config',
            v_key);
    end if;
    v_key := case
        when jsonb_typeof(p_metadata -> 'env') <> 'object' then 'env: expected an object'
        when jsonb_typeof(p_metadata -> 'args') <> 'array' then 'args: expected a list'
    end;
    if v_key is not null then
        return 'run metadata, ' || v_key;
    end if;
    if p_metadata ? 'env' then
        select left(k.key, 60) into v_key from jsonb_object_keys(p_metadata -> 'env') as k (key)
        where not v_run_env ? k.key limit 1;
        if found then
            return format(
                'run metadata, env.%s: the workflow does not list it; add "%1$s" to run_env in the workflow''s config',
                v_key);
        end if;
    end if;
    return null;
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
-- the run first. Appending functions share the lock, so they only wait for a change of status; and not for long, since
-- the client that makes it may keep its transaction open: SQLSTATE 55P03 then, and the worker calls again.
create function ops_private.check_run(
    p_run_id uuid, p_worker_id text, p_instance_id uuid, p_statuses text[], p_shared boolean default false
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '3s'
as $$
declare
    v_status text;
    v_lease ops_private.leases;
begin
    perform ops_private.calling_worker();
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

-- The last line of the container's journal that is stored.
create function ops_private.log_position(p_run_id uuid) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(max(g.seq), 0) from ops.run_logs as g
        where g.run_id = p_run_id and g.seq < 1099511627776);
end
$$;

-- The container that was created for the run. One that was there once is never made again: it may have run.
create function ops_private.container_of(p_run_id uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select e.payload ->> 'container_id' from ops.run_events as e
        where e.run_id = p_run_id and e.event_type = 'info' and e.payload ? 'container_id'
        order by e.seq limit 1);
end
$$;

-- Why the caller may not work under this worker id, in words; null if it may. Every caller may use an id that is not
-- registered; the events name the role that did.
create function ops_private.id_refusal(p_worker_id text, p_instance_id uuid) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_owner constant text := (
        select i.db_role from ops_private.worker_ids as i
        where i.worker_id = p_worker_id and i.db_role <> ops_private.caller()
            and exists (select from pg_roles as r where r.rolname = i.db_role));
begin
    if v_owner is not null and not ops_private.trusted() then
        return format(
            'the worker id %s belongs to the database role %s until service_role calls ops.shut_out_worker(''%1$s'')',
            p_worker_id, v_owner);
    elsif exists (
        select from ops_private.workers as w
        where w.worker_id = p_worker_id and w.instance_id <> p_instance_id
            and w.expires_at > ops_private.current_time()
    ) then
        return 'another instance works under this worker id';
    end if;
    return null;
end
$$;

-- Retry -----------------------------------------------------------------------------------------------------

-- Which word of a workflow's retry.on stands for a run that failed for that reason. Null: it would fail again, as with
-- a configuration that is wrong, or it has been set aside.
create function ops_private.retry_class(p_reason text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return case p_reason
        when 'worker_lost' then 'worker_lost'
        when 'timeout' then 'timeout'
        when 'out_of_memory' then 'oom'
        else case when p_reason in (
            'failed', 'exit_code', 'signal', 'image_missing', 'engine_error', 'engine_lost', 'disk_full',
            'artifacts_failed') then 'failed' end
    end;
end
$$;

-- Whether what queueing a run of this project locks could be locked without a long wait.
create function ops_private.lock_queue_briefly(p_project_id uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
begin
    perform ops_private.lock_queue(p_project_id);
    return true;
exception when lock_not_available then
    return false;
end
$$;

-- Locks what the insert of a retry takes before the run itself is locked: the order of locks is projects,
-- run_counters, runs. False: another transaction holds them. p_wait false is for a caller who holds the run already;
-- others wait for a moment only, since a client may keep its transaction open for as long as it likes.
create function ops_private.lock_for_retry(p_run_id uuid, p_wait boolean default true) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_project_id uuid;
begin
    select r.project_id into v_project_id
    from ops.runs as r
    join ops.workflows as w on w.id = r.workflow_id
    where r.id = p_run_id and jsonb_typeof(w.config -> 'retry') = 'object';
    if v_project_id is null then
        return true;
    end if;
    if p_wait then
        return ops_private.lock_queue_briefly(v_project_id);
    end if;
    perform from ops.projects as p where p.id = v_project_id for key share skip locked;
    if not found then
        return false;
    end if;
    perform from ops_private.run_counters as c where c.project_id = v_project_id for update skip locked;
    return found;
end
$$;

-- Queues the next attempt of a run, due after p_delay, and returns its id; null when there is no such run. For
-- a signed-in user the new run is his own, for machines it stays with whoever queued the first. The insert
-- locks the project and its counter: a caller that locks runs too calls ops_private.lock_queue first.
create function ops_private.queue_retry(p_run_id uuid, p_delay interval default null) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_retry_id uuid;
begin
    insert into ops.runs (
        project_id, workflow_id, metadata, priority, labels, concurrency_key, scheduled_at, created_by,
        retry_of, attempt)
    select r.project_id, r.workflow_id, r.metadata, r.priority, r.labels, r.concurrency_key,
        ops_private.current_time() + p_delay, r.created_by, r.id, r.attempt + 1
    from ops.runs as r where r.id = p_run_id
    for key share
    returning id into v_retry_id;
    if v_retry_id is not null then
        perform ops_private.add_event(p_run_id, 'info', 'retried', jsonb_strip_nulls(jsonb_build_object(
            'actor', ops_private.actor(), 'retry_run_id', v_retry_id,
            'after_seconds', round(extract(epoch from p_delay)))));
    end if;
    return v_retry_id;
end
$$;

-- Queues a retry of a failed run where its workflow's retry {max_attempts, on, delay_seconds} says so. The wait doubles
-- with each attempt up to an hour, and a random part of up to a half is taken off. A config that makes no sense means
-- none; the worker has refused such a run already.
create function ops_private.retry_if_asked(p_run_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_run ops.runs;
    v_retry jsonb;
    v_delay interval;
begin
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    select w.config -> 'retry' into v_retry
    from ops.workflows as w
    join ops.projects as p on p.id = w.project_id
    where w.id = v_run.workflow_id and w.enabled and p.status = 'active';
    if v_run.status <> 'failed' or v_run.cancel_requested_at is not null
        or (v_retry -> 'on' ? ops_private.retry_class(v_run.reason)) is not true
        or jsonb_typeof(v_retry -> 'max_attempts') is distinct from 'number'
        or v_run.attempt >= (v_retry ->> 'max_attempts')::numeric then
        return;
    end if;
    v_delay := make_interval(secs => (1 - random() / 2) * least(3600, power(2, least(v_run.attempt, 20) - 1)
        * case jsonb_typeof(v_retry -> 'delay_seconds')
            when 'number' then greatest(0, least(3600, (v_retry ->> 'delay_seconds')::numeric)) else 10 end));
    perform ops_private.queue_retry(p_run_id, v_delay);
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
            'log_position', ops_private.log_position(r.id),
            'container_id', ops_private.container_of(r.id),
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

-- Fails a claimed or running run whose payload cannot be made, so that it does not stand in the way of the others.
create function ops_private.fail_unreadable(p_run_id uuid, p_error text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_error constant text := left('the run cannot be read: ' || p_error, 10000);
begin
    update ops.runs as r set status = 'running' where r.id = p_run_id and r.status = 'claimed';
    update ops.runs as r set status = 'failed', reason = 'invalid_config', error_message = v_error
    where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', v_error, '{"reason": "invalid_config"}');
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
    v_caller constant text := ops_private.calling_worker();
    v_labels constant text[] := coalesce(p_labels, '{}');
    v_wrong constant text := ops_private.bad_worker(p_worker_id, p_lease_seconds);
    v_taken constant text := ops_private.id_refusal(p_worker_id, p_instance_id);
    v_run_id uuid;
    v_waiting boolean;
begin
    if coalesce(v_wrong, v_taken) is not null then
        return jsonb_build_object(
            'run_id', null, 'waiting', false, 'message', coalesce(v_wrong, v_taken),
            'code', case when v_wrong is null then 'worker_id_taken' else 'bad_argument' end);
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
            begin
                return ops_private.run_payload(v_run_id);
            exception when others then
                perform ops_private.fail_unreadable(v_run_id, sqlerrm);
                continue;
            end;
        end if;
        exit when ops_private.wake_scheduled_runs() = 0;
    end loop;

    v_waiting := exists (
        select from ops.runs as r
        where r.status = 'queued' and r.scheduled_at is null and r.labels <@ v_labels
    ) or exists (
        select from ops.runs as r
        where r.status = 'queued' and r.scheduled_at is not null and r.labels <@ v_labels
    ) or exists (select from ops_private.pending_retries);
    return jsonb_build_object(
        'run_id', null, 'waiting', v_waiting,
        'message', case when v_waiting then 'no run can be claimed yet' else 'no queued runs' end);
end
$$;

-- The queued runs that a worker with those labels can never claim, and up to 20 of the labels that it lacks.
create function ops.unclaimable_runs(p_labels text[] default '{}') returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform ops_private.calling_worker();
    return (
        select jsonb_build_object(
            'success', true, 'runs', count(distinct r.id),
            'labels', coalesce(to_jsonb((array_agg(distinct l.label order by l.label))[:20]), '[]'))
        from ops.runs as r
        cross join unnest(r.labels) as l (label)
        where r.status = 'queued' and l.label <> all (coalesce(p_labels, '{}')));
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
    v_refusal jsonb;
    v_run ops.runs;
    v_status text;
    v_locked boolean := true;
    -- with what the event adds
    v_wrong constant text := ops_private.bad_document(
        'details', p_details || jsonb_build_object('reason', p_reason, 'exit_code', p_exit_code));
begin
    perform ops_private.calling_worker();
    if p_exit_code is distinct from 0 then
        v_locked := ops_private.lock_for_retry(p_run_id);
    end if;
    v_refusal := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    if p_reason !~ '^[a-z][a-z0-9_]{0,62}$' then
        return ops_private.refusal('bad_argument', 'the reason must be one lower-case word');
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
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
                coalesce(v_run.error_message, 'exit code ' || p_exit_code, 'no exit code'),
                coalesce(p_details, '{}')
                    || jsonb_build_object('reason', v_run.reason, 'exit_code', p_exit_code));
            if v_locked then
                perform ops_private.retry_if_asked(p_run_id);
            else
                insert into ops_private.pending_retries (run_id) values (p_run_id);
            end if;
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
    v_wrong constant text := ops_private.bad_document('metadata', p_metadata);
begin
    if p_level is null or p_level not in ('debug', 'info', 'warn', 'error') then
        return ops_private.refusal('bad_level', 'the level must be debug, info, warn or error');
    end if;
    if p_message is null or octet_length(p_message) > 65600 then
        return ops_private.refusal('bad_argument', 'the message must be a text of at most 65600 bytes');
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
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
    v_uneven constant text := case
        when v_count is null then 'seqs'
        when cardinality(p_streams) is distinct from v_count then 'streams'
        when cardinality(p_levels) is distinct from v_count then 'levels'
        when cardinality(p_messages) is distinct from v_count then 'messages'
        when cardinality(p_timestamps) is distinct from v_count then 'timestamps'
    end;
    v_project_id uuid;
    v_stored integer;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if v_uneven is not null then
        return ops_private.refusal(
            'bad_argument', format('the %s must be a list, as long as the seqs', v_uneven));
    end if;
    if not p_levels <@ '{debug,info,warn,error}' then
        return ops_private.refusal('bad_level', 'each level must be debug, info, warn or error');
    end if;
    if 1099511627776 <= any (p_seqs) then
        return ops_private.refusal('bad_argument', 'the seqs end below 1099511627776');
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
        'success', true, 'stored', v_stored, 'position', ops_private.log_position(p_run_id));
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
    v_added boolean;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    -- a worker names its instance; the checksum of another client is stored as given
    if p_instance_id is not null and p_checksum !~ '^sha256:[0-9a-f]{64}$' then
        return ops_private.refusal('bad_argument', 'the checksum of a worker must be sha256: and 64 hex digits');
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
        returning a.id, a.xmax = 0 into v_artifact_id, v_added;  -- xmax is set in a row that was there before
    exception when check_violation or not_null_violation then
        return ops_private.refusal('bad_argument', sqlerrm);
    end;
    if v_added then
        perform ops_private.add_event(
            p_run_id, 'info', 'Artifact added: ' || p_artifact_key,
            jsonb_build_object('artifact_id', v_artifact_id, 'artifact_key', p_artifact_key));
    end if;
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
    v_wrong constant text := ops_private.bad_document('payload', p_payload);
begin
    if p_event_type is null or p_event_type not in ('error', 'warning', 'info') then
        return ops_private.refusal('bad_argument', 'the event_type must be error, warning or info');
    end if;
    if p_message is null or octet_length(p_message) > 65600 then
        return ops_private.refusal('bad_argument', 'the message must be a text of at most 65600 bytes');
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    -- a claimed run has no container yet; else a host could name one, give the run back, and spoil it for the next
    v_refusal := ops_private.check_run(
        p_run_id, p_worker_id, p_instance_id,
        case when p_payload ? 'container_id' then '{running}' else '{claimed,running}' end::text[], true);
    if v_refusal is not null then
        return v_refusal;
    end if;
    return jsonb_build_object(
        'success', true,
        'event_id', ops_private.add_event(p_run_id, p_event_type, p_message, coalesce(p_payload, '{}')));
end
$$;

-- Workers and leases ----------------------------------------------------------------------------------------

-- Who this database is, known once its first worker has registered: a copy that was made before that is another one.
-- In a later copy, restored on another server or under another name, whatever was under way is under way at the
-- original: there it goes on, here it has failed, and is not retried.
create function ops_private.database_identity() returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_control ops_private.control;
    v_fingerprint constant text := (
        select format('%s/%s', s.system_identifier, d.oid)
        from pg_control_system() as s, pg_database as d where d.datname = current_database());
    v_run_id uuid;
begin
    select c.* into v_control from ops_private.control as c;
    if v_control.fingerprint is not distinct from v_fingerprint then
        return v_control.database_id;
    end if;
    select c.* into v_control from ops_private.control as c for update;
    if v_control.fingerprint is not distinct from v_fingerprint then
        return v_control.database_id;  -- meanwhile
    end if;
    if v_control.fingerprint is not null then
        for v_run_id in
            select r.id from ops.runs as r where r.status in ('claimed', 'running') order by r.id for update
        loop
            perform ops_private.add_event(v_run_id, 'error', 'under way in the database of which this one is a copy',
                jsonb_build_object('reason', 'database_copied', 'database_id', v_control.database_id));
            update ops.runs as r
            set status = case r.status when 'claimed' then 'canceled' else 'failed' end, reason = 'database_copied',
                error_message = 'this database is a copy; the run was under way when it was made'
            where r.id = v_run_id;
        end loop;
        delete from ops_private.workers;
    end if;
    update ops_private.control as c set database_id = gen_random_uuid(), fingerprint = v_fingerprint
    returning c.* into v_control;
    return v_control.database_id;
end
$$;

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
    v_caller constant text := ops_private.calling_worker();
    v_now constant timestamptz := ops_private.current_time();
    v_trusted constant boolean := ops_private.trusted();
    v_database_id constant uuid := ops_private.database_identity();
    v_wrong constant text := ops_private.bad_worker(p_worker_id, p_lease_seconds);
    v_taken constant text := ops_private.id_refusal(p_worker_id, null);
    v_registered boolean;
begin
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    if p_instance_id is null then
        return ops_private.refusal('bad_argument', 'the instance_id must not be null');
    end if;
    if v_taken is not null then
        return ops_private.refusal('worker_id_taken', v_taken);
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
    insert into ops_private.worker_ids as i (worker_id, db_role) values (p_worker_id, v_caller)
    on conflict (worker_id) do update set db_role = excluded.db_role
    where not exists (select from pg_roles as r where r.rolname = i.db_role);
    return jsonb_build_object('success', true, 'database_id', v_database_id);
end
$$;

create function ops.unregister_worker(p_worker_id text, p_instance_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller constant text := ops_private.calling_worker();
begin
    update ops_private.leases as l set handed_over = true
    where l.worker_id = p_worker_id and l.instance_id = p_instance_id
        and (l.db_role = v_caller or ops_private.trusted());
    delete from ops_private.workers as w
    where w.worker_id = p_worker_id and w.instance_id = p_instance_id
        and (w.db_role = v_caller or ops_private.trusted());
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
    v_caller constant text := ops_private.calling_worker();
    v_trusted constant boolean := ops_private.trusted();
    v_wrong constant text := ops_private.bad_worker('-', p_lease_seconds);
    v_expires_at constant timestamptz :=
        ops_private.current_time() + make_interval(secs => p_lease_seconds);
    v_runs jsonb;
begin
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    with held as (
        select l.run_id from ops_private.leases as l
        where l.worker_id = p_worker_id and l.instance_id = p_instance_id
            and (l.db_role = v_caller or v_trusted)
        order by l.run_id
        for update
    ), renewed as (
        update ops_private.leases as l
        set expires_at = v_expires_at, lease_seconds = p_lease_seconds, renewed = true
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
-- before. Any worker on the same engine may do so once the lease ran out. A run whose holders are lost one after the
-- other is set aside as poison; not within a minute, in which something else may be killing the workers faster than any
-- of them can show progress. A holder that handed the run over, or stored a line, is not counted as lost. To renew the
-- lease is progress only once the container is created: before that, a worker may be renewing while the run kills it.
create function ops.adopt_run(
    p_run_id uuid,
    p_worker_id text,
    p_instance_id uuid,
    p_engine_id text,
    p_lease_seconds integer default 300
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '3s'
as $$
declare
    v_caller constant text := ops_private.calling_worker();
    v_now constant timestamptz := ops_private.current_time();
    v_status text;
    v_lease ops_private.leases;
    v_taken constant text := ops_private.id_refusal(p_worker_id, p_instance_id);
    v_wrong constant text := coalesce(
        ops_private.bad_worker(p_worker_id, p_lease_seconds),
        case when p_instance_id is null then 'the instance_id must not be null' end);
    v_code text;
    v_position bigint;
    v_lost integer;
begin
    select r.status into v_status from ops.runs as r where r.id = p_run_id for no key update;
    select l.* into v_lease from ops_private.leases as l where l.run_id = p_run_id for update;
    v_code := case
        when v_wrong is not null then 'bad_argument'
        when v_status is null then 'not_found'
        when ops_private.is_final(v_status) then 'final'
        when v_status = 'queued' then 'not_claimed'
        when v_lease.db_role <> v_caller and not ops_private.trusted() then 'not_owner'
        when v_taken is not null then 'worker_id_taken'
        when v_lease.expires_at <= v_now
            and (v_lease.engine_id = p_engine_id or v_lease.worker_id = p_worker_id) then null
        -- held by itself, or by an earlier instance of this worker: were that alive, the id would be taken
        when v_lease.worker_id = p_worker_id and v_lease.instance_id is not null then null
        else 'not_owner'
    end;
    if v_code is not null then
        return jsonb_build_object(
            'run_id', null, 'code', v_code, 'status', v_status,
            'message', case v_code
                when 'bad_argument' then v_wrong
                when 'not_found' then 'there is no such run'
                when 'not_owner' then 'another worker holds the run'
                when 'worker_id_taken' then v_taken
                else format('the run is %s', v_status)
            end);
    end if;

    if v_lease.instance_id is distinct from p_instance_id then
        v_position := ops_private.log_position(p_run_id);
        v_lost := case
            when v_lease.handed_over or v_position > v_lease.log_position
                or (v_lease.renewed and ops_private.container_of(p_run_id) is not null) then 0
            else v_lease.lost + 1 end;
        v_lease.lost_since := case when v_lost > 1 then v_lease.lost_since when v_lost = 1 then v_now end;
        if v_lost > (select c.max_lost_leases from ops_private.control as c)
            and v_lease.lost_since <= v_now - interval '1 minute' then
            v_status := case v_status when 'running' then 'failed' else 'canceled' end;
            perform ops_private.set_aside(p_run_id, v_status, v_lost, v_lease);
            return jsonb_build_object(
                'run_id', null, 'code', 'final', 'status', v_status, 'message', 'the run is set aside');
        end if;
        v_lease.renewed := false;
        v_lease.handed_over := false;
        v_lease.log_position := v_position;
        v_lease.lost := v_lost;
    end if;
    update ops_private.leases as l
    set worker_id = p_worker_id, instance_id = p_instance_id, db_role = v_caller,
        engine_id = p_engine_id, lease_seconds = p_lease_seconds,
        expires_at = v_now + make_interval(secs => p_lease_seconds),
        renewed = v_lease.renewed, log_position = v_lease.log_position, lost = v_lease.lost,
        lost_since = v_lease.lost_since, handed_over = v_lease.handed_over
    where l.run_id = p_run_id;
    if v_lease.instance_id is distinct from p_instance_id then
        update ops.runs as r
        set claimed_by = p_worker_id, claimed_instance = p_instance_id, claim_count = r.claim_count + 1
        where r.id = p_run_id;
        perform ops_private.add_event(p_run_id, 'info', 'adopted', jsonb_build_object(
            'actor', ops_private.actor(), 'worker_id', p_worker_id,
            'previous_worker_id', v_lease.worker_id));
    end if;
    begin
        return ops_private.run_payload(p_run_id);
    exception when others then
        perform ops_private.fail_unreadable(p_run_id, sqlerrm);
        return jsonb_build_object(
            'run_id', null, 'code', 'final', 'status', 'failed', 'message', 'the run cannot be read');
    end;
end
$$;

-- The runs that a worker should try to adopt, whether they have a container yet or not: those of its own
-- earlier instances, and on its engine those whose lease ran out. adopt_run decides.
create function ops.adoptable_runs(p_worker_id text, p_instance_id uuid, p_engine_id text) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller constant text := ops_private.calling_worker();
begin
    return jsonb_build_object('success', true, 'runs', (
        select coalesce(jsonb_agg(l.run_id order by l.run_id), '[]')
        from ops_private.leases as l
        where l.instance_id is distinct from p_instance_id
            and (l.db_role = v_caller or ops_private.trusted())
            and (l.worker_id = p_worker_id
                or (l.engine_id = p_engine_id and l.expires_at <= ops_private.current_time()))));
end
$$;

-- Ends a run with which too many workers were lost.
create function ops_private.set_aside(
    p_run_id uuid, p_status text, p_lost integer, p_lease ops_private.leases
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_error constant text := format(
        'set aside: %s workers in a row were lost with this run, the last one %s', p_lost, p_lease.worker_id);
begin
    update ops.runs as r set status = p_status, reason = 'poison', error_message = v_error where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', v_error, jsonb_build_object(
        'reason', 'poison', 'worker_id', p_lease.worker_id, 'lease_expired_at', p_lease.expires_at));
end
$$;

-- Ends a running run whose worker is lost. The caller holds the locks that the insert of a retry takes.
create function ops_private.fail_lost(p_run_id uuid, p_lease ops_private.leases, p_error text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    update ops.runs as r set status = 'failed', reason = 'worker_lost', error_message = p_error
    where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', p_error, jsonb_build_object(
        'reason', 'worker_lost', 'worker_id', p_lease.worker_id, 'lease_expired_at', p_lease.expires_at));
    perform ops_private.retry_if_asked(p_run_id);
end
$$;

-- Ends what nobody holds any more. Harmless when all workers call it at once: each skips what another has
-- locked. A claimed run goes back to the queue, or is set aside when too many claims of it were lost.
-- A running one stays adoptable for the length of another lease, if a worker on its engine could come back,
-- fails after that, and is queued again where its workflow says so.
create function ops.reap() returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_max_lost constant integer := (select c.max_lost_leases from ops_private.control as c);
    v_lost record;
    v_run_id uuid;
    v_requeued uuid[] := '{}'::uuid[];
    v_failed uuid[] := '{}'::uuid[];
    v_set_aside uuid[] := '{}'::uuid[];
begin
    perform ops_private.calling_worker();
    for v_lost in
        select r.id, r.status, r.claim_count, l as lease
        from ops_private.leases as l
        join ops.runs as r on r.id = l.run_id
        where l.expires_at <= v_now and (
            r.status = 'claimed' or l.engine_id is null
            or l.expires_at + make_interval(secs => l.lease_seconds) <= v_now)
        order by r.id
        for update of r, l skip locked
    loop
        if v_lost.status = 'claimed' and v_lost.claim_count <= v_max_lost then
            update ops.runs as r set status = 'queued', reason = 'lease_expired' where r.id = v_lost.id;
            v_requeued := v_requeued || v_lost.id;
        elsif v_lost.status = 'claimed' then
            perform ops_private.set_aside(v_lost.id, 'canceled', v_lost.claim_count, v_lost.lease);
            v_set_aside := v_set_aside || v_lost.id;
        elsif ops_private.lock_for_retry(v_lost.id, p_wait => false) then
            perform ops_private.fail_lost(v_lost.id, v_lost.lease, format(
                'worker lost: the lease of worker %s ran out and no worker took the run over',
                (v_lost.lease).worker_id));
            v_failed := v_failed || v_lost.id;
        end if;
    end loop;
    for v_run_id in
        select p.run_id from ops_private.pending_retries as p order by p.run_id for update skip locked
    loop
        if ops_private.lock_for_retry(v_run_id, p_wait => false) then
            delete from ops_private.pending_retries as p where p.run_id = v_run_id;
            perform ops_private.retry_if_asked(v_run_id);
        end if;
    end loop;
    return jsonb_build_object(
        'requeued', v_requeued, 'failed', v_failed, 'set_aside', v_set_aside,
        'woken', ops_private.wake_scheduled_runs());
end
$$;

-- Takes everything from a host that is not trusted any more, by its database role or its worker id: its claimed runs go
-- back to the queue, its running ones fail, its worker ids are free. First keep it from logging in again (docs/guide.md).
create function ops.shut_out_worker(p_name text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_held record;
    v_project_id uuid;
    v_requeued uuid[] := '{}'::uuid[];
    v_failed uuid[] := '{}'::uuid[];
    v_freed text[] := '{}'::text[];
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role shuts a worker out'
            using errcode = 'insufficient_privilege';
    end if;
    for v_project_id in
        select distinct r.project_id
        from ops_private.leases as l
        join ops.runs as r on r.id = l.run_id
        where p_name in (l.db_role, l.worker_id) order by r.project_id
    loop
        perform ops_private.lock_queue(v_project_id);
    end loop;
    for v_held in
        select r.id, r.status, l as lease
        from ops_private.leases as l
        join ops.runs as r on r.id = l.run_id
        where p_name in (l.db_role, l.worker_id)
        order by r.id
        for update of r, l
    loop
        if v_held.status = 'claimed' then
            update ops.runs as r set status = 'queued', reason = 'shut_out', claim_count = r.claim_count - 1
            where r.id = v_held.id;
            v_requeued := v_requeued || v_held.id;
        else
            perform ops_private.fail_lost(
                v_held.id, v_held.lease, format('worker lost: %s was shut out', p_name));
            v_failed := v_failed || v_held.id;
        end if;
    end loop;
    delete from ops_private.workers as w where p_name in (w.db_role, w.worker_id);
    with freed as (
        delete from ops_private.worker_ids as i where p_name in (i.db_role, i.worker_id) returning i.worker_id
    )
    select coalesce(array_agg(f.worker_id order by f.worker_id), '{}'::text[]) into v_freed from freed as f;
    return jsonb_build_object('success', true, 'requeued', v_requeued, 'failed', v_failed, 'freed', v_freed);
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
    ops.adoptable_runs(text, uuid, text),
    ops.unclaimable_runs(text[]),
    ops.reap(),
    ops.shut_out_worker(text),
    ops.cancel_run(uuid, text),
    ops.list_queued_runs()
from public;
