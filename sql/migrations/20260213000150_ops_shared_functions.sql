-- What the functions of the queue share: time, callers, answers, arguments, ownership, and the locks of the queue.
--
-- A function of the schema ops uses these to find the caller, check its arguments, lock the run and check the lease
-- (check_run), and answer. A refusal that a caller must expect is an answer, {"success": false, "code", "error"}, never
-- an exception. All functions lock in one order: projects, run_counters, runs, leases, everything else. A function that
-- queues a run calls lock_queue before it locks a run.
--
-- Functions that are called often are plpgsql, which keeps its plans; before PostgreSQL 18 an sql function plans at
-- every call. A call inside a call costs 5 µs, most of it for the search path, so the functions and triggers that each
-- step of a run calls look up the caller and the time once. A function that forbids sequential scans forbids the JIT
-- compiler too: a scan without an index still happens, with an estimated cost of 1e10, and the compiler would spend
-- 700 ms on every claim.
--
-- The search path of each function ends with pg_temp. Without it, PostgreSQL would search pg_temp first for tables and
-- types, and a caller could define its own there.

-- Time ------------------------------------------------------------------------------------------------------

-- Every function reads the time here, so that a test can replace the clock.
create function ops_private.current_time() returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return clock_timestamp();
end
$$;

-- Who is calling --------------------------------------------------------------------------------------------

-- The caller is the role that `set role` chose, else the role that logged in. Inside a security definer function,
-- current_user is the owner instead.
create function ops_private.caller() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return case current_setting('role')
        when 'none' then session_user::text else current_setting('role') end;
end
$$;

-- Superusers, members of service_role and the owner of the schema may act for any worker and any user. The first test
-- needs no query and is true for most callers: 2 µs in place of 9.
create function ops_private.trusted() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller constant name := ops_private.caller();
begin
    if pg_has_role(v_caller, to_regrole('service_role'), 'usage') then
        return true;
    end if;
    return pg_has_role(v_caller, (select n.nspowner from pg_namespace as n where n.nspname = 'ops'), 'usage');
end
$$;

-- Returns the caller of a worker function, which must be trusted or a member of ops_worker. The grants require the
-- same, but one statement can undo them: Supabase's instructions for a custom schema grant all its functions to anon.
create function ops_private.calling_worker() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller constant text := case current_setting('role')  -- as caller(), which every call of a worker would call
        when 'none' then session_user::text else current_setting('role') end;
begin
    if not pg_has_role(v_caller::name, 'ops_worker', 'usage') and not ops_private.trusted() then
        raise exception 'permission denied: the role % is not a member of ops_worker', v_caller
            using errcode = 'insufficient_privilege';
    end if;
    return v_caller;
end
$$;

-- The user of the JWT. PostgREST passes its claims in one of two forms.
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

-- The actor of an event. Every client with a direct connection can set claims, so they count for authenticated only.
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

-- Arguments -------------------------------------------------------------------------------------------------

-- Says which argument of a worker is wrong; null if none is.
create function ops_private.bad_worker(p_worker_id text, p_lease_seconds integer) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_longest_lease constant integer := 3600;
begin
    return case
        when coalesce(p_worker_id, '') = '' then 'the worker_id must not be empty'
        when octet_length(p_worker_id) > 200 then 'the worker_id must have at most 200 bytes'
        when (p_lease_seconds between 1 and v_longest_lease) is not true then
            format('the lease_seconds must be from 1 to %s', v_longest_lease)
    end;
end
$$;

-- Says what is wrong with a JSON document of a caller; null if nothing is. It checks the size first, which bounds the
-- cost of the check of the depth. The columns have constraints with the same limits (..._ops_indexes_constraints.sql).
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

-- Whether a text may be a git ref: roughly the rules of `git check-ref-format`, and never a text that a command would
-- read as an option. It checks the length first, which bounds the cost of the pattern (two minutes for 95 MB).
create function ops_private.is_git_ref(p_ref text) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return length(p_ref) <= 255 and p_ref ~ '^(?![-/.])(?!.*(\.\.|//|@\{))[^\x01-\x20\x7f~^:?*\[\\]+$' and p_ref !~ '[/.]$';
end
$$;

-- The keys that the metadata of a run may not have, because they change what a workflow does.
create function ops_private.reserved_keys() returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return array[
        'approval', 'artifacts', 'cache', 'command', 'concurrency_key', 'labels', 'network', 'on_newer', 'priority',
        'queue_timeout_seconds', 'read_only', 'resources', 'retry', 'run_env', 'schedule', 'secrets', 'serve', 'services',
        'then', 'timeout_seconds', 'tool', 'user', 'version', 'volumes'];
end
$$;

-- Says what is wrong with the metadata of a new run of a workflow with this configuration; null if the database finds
-- nothing wrong. The worker checks the rest.
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

create function ops_private.is_whole_number(p_value jsonb, p_least integer, p_most integer) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when jsonb_typeof(p_value) = 'number' and p_value::text ~ '^-?[0-9]{1,10}$' then
            p_value::bigint between p_least and p_most
        else false end;
end
$$;

-- Says what is wrong with the retry of a workflow's configuration; null if nothing is, or there is no retry.
create function ops_private.bad_retry(p_retry jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when coalesce(p_retry, 'null') = 'null' then null
        when jsonb_typeof(p_retry) <> 'object' then 'retry: expected an object'
        when p_retry - '{max_attempts,on,delay_seconds}'::text[] <> '{}' then
            'retry: expected max_attempts, on and delay_seconds'
        when not ops_private.is_whole_number(p_retry -> 'max_attempts', 2, 100) then
            'retry.max_attempts: expected a whole number from 2 to 100'
        when jsonb_typeof(p_retry -> 'on') is distinct from 'array' or p_retry -> 'on' = '[]'
            or not p_retry -> 'on' <@ '["worker_lost", "failed", "timeout", "oom"]' then
            'retry.on: expected a list of worker_lost, failed, timeout, oom'
        when not (coalesce(jsonb_typeof(p_retry -> 'delay_seconds'), 'number') = 'number'
            and coalesce(p_retry -> 'delay_seconds', '10') between '0' and '3600') then
            'retry.delay_seconds: expected a number from 0 to 3600'
    end;
end
$$;

-- Says what is wrong with the fields of a workflow's configuration that the database reads; null if nothing is. The
-- worker refuses the same values (worker/model/config.py), and alone checks the other fields.
create function ops_private.bad_config(p_config jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return 'workflow config, ' || case
        when p_config ? 'priority'
            and not ops_private.is_whole_number(p_config -> 'priority', -2147483648, 2147483647) then
            'priority: expected a whole number from -2147483648 to 2147483647'
        when jsonb_typeof(p_config -> 'labels') <> 'array' then 'labels: expected a list'
        when jsonb_array_length(p_config -> 'labels') > 20 then 'labels: expected at most 20 entries'
        when exists (
            select from jsonb_array_elements(p_config -> 'labels') as e (label)
            where jsonb_typeof(e.label) <> 'string' or length(e.label #>> '{}') not between 1 and 100) then
            'labels: expected texts of 1 to 100 characters'
        when jsonb_typeof(p_config -> 'concurrency_key') not in ('string', 'null')
            or length(p_config ->> 'concurrency_key') > 200 then
            'concurrency_key: expected a text of at most 200 characters'
        when jsonb_typeof(p_config -> 'services') <> 'array' then 'services: expected a list'
        when jsonb_array_length(p_config -> 'services') > 10 then 'services: expected at most 10 entries'
        else ops_private.bad_retry(p_config -> 'retry')
    end;
end
$$;

-- Ownership -------------------------------------------------------------------------------------------------

-- Says why the caller may not use this worker id; null if it may. Every caller may use an id that is not registered;
-- the events name the caller's role.
create function ops_private.worker_id_taken(p_worker_id text, p_instance_id uuid) returns text
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

-- Locks the run, and returns null if the caller holds its lease and its status is one of p_statuses, else the refusal.
-- A separate statement reads the lease after the lock, because every function that changes its owner locks the run
-- first. Appending functions share the lock, so they wait for changes of status only. They wait at most 3 s, since
-- another client may keep its transaction open; then they fail with SQLSTATE 55P03, and the worker calls again.
create function ops_private.check_run(
    p_run_id uuid, p_worker_id text, p_instance_id uuid, p_statuses text[], p_shared boolean default false
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '3s'
    set enable_seqscan = off set jit = off
as $$
declare
    v_caller constant text := ops_private.calling_worker();
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
    if (v_lease.db_role <> v_caller and not ops_private.trusted())
        or p_worker_id <> v_lease.worker_id
        or (p_instance_id is not null and p_instance_id is distinct from v_lease.instance_id) then
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

-- Log -------------------------------------------------------------------------------------------------------

-- The number of the last line of the container's journal that is stored. Without the setting, a plan that was made
-- while the table was empty could read all of it.
create function ops_private.log_position(p_run_id uuid) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
begin
    return (
        select coalesce(max(g.seq), 0) from ops.run_logs as g
        where g.run_id = p_run_id and g.seq < 1099511627776);
end
$$;

-- Queue -----------------------------------------------------------------------------------------------------

-- Takes the locks that queueing a run of this project needs, in the common order, and returns the highest run number of
-- the project; null if there is no such project.
create function ops_private.lock_queue(p_project_id uuid) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_last integer;
begin
    select c.last into v_last
    from ops.projects as p
    join ops_private.run_counters as c on c.project_id = p.id
    where p.id = p_project_id
    for key share of p for update of c;
    if not found then
        insert into ops_private.run_counters as c (project_id, last)
        select p.id, 0 from ops.projects as p where p.id = p_project_id for key share
        on conflict (project_id) do update set last = c.last
        returning c.last into v_last;
    end if;
    return v_last;
end
$$;

-- Retry -----------------------------------------------------------------------------------------------------

-- The word of a workflow's retry.on that a reason belongs to. Null: the run is never retried, because it would fail
-- again (a wrong configuration), or it is quarantined.
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
            'artifacts_failed', 'service_failed', 'not_ready', 'serve_ended') then 'failed' end
    end;
end
$$;

-- Takes the locks that queueing a run of this project needs, if that takes at most 200 ms; returns whether it did.
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

-- Takes the locks that queueing a run of this project needs, without a wait for another transaction; returns whether it
-- did. A project that never had a run has no counter yet: only then it waits, briefly.
create function ops_private.lock_queue_at_once(p_project_id uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform from ops.projects as p where p.id = p_project_id for key share skip locked;
    if not found then
        return false;
    end if;
    perform from ops_private.run_counters as c where c.project_id = p_project_id for update skip locked;
    if found then
        return true;
    end if;
    return not exists (select from ops_private.run_counters as c where c.project_id = p_project_id)
        and ops_private.lock_queue_briefly(p_project_id);
end
$$;

-- Takes the locks that a retry of the run needs, if its workflow has a retry; false if another transaction holds them.
-- It waits at most 200 ms, since a client may keep its transaction open. A caller that has locked the run already,
-- against the order of locks (projects, run_counters, runs), must not wait at all and sets p_wait to false.
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
    return ops_private.lock_queue_at_once(v_project_id);
end
$$;

-- Queues the next attempt of a run, due after p_delay, and returns its id; null if there is no such run. created_by of
-- the new run is the signed-in user who asked for it; for other callers, it is that of the earlier run. A retry that a
-- user asks for (without p_delay) waits for an approval of its own; an automatic one has that of its run. The insert
-- locks the project and its counter, so a caller that also locks runs calls ops_private.lock_queue first.
create function ops_private.queue_retry(p_run_id uuid, p_delay interval default null) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_retry_id uuid;
begin
    insert into ops.runs (
        project_id, workflow_id, metadata, priority, labels, concurrency_key, scheduled_at, created_by,
        retry_of, attempt, parent_run_id, approval)
    select r.project_id, r.workflow_id, r.metadata, r.priority, r.labels, r.concurrency_key,
        ops_private.current_time() + p_delay, r.created_by, r.id, r.attempt + 1, r.parent_run_id,
        case when p_delay is not null then r.approval end
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

-- Returns null if a worker would execute a run of this workflow, else the refusal. The lock prevents that the workflow
-- is deleted before its new run is inserted.
create function ops_private.check_workflow(p_workflow_id uuid) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_enabled boolean;
    v_status text;
begin
    select w.enabled, p.status into v_enabled, v_status
    from ops.workflows as w
    join ops.projects as p on p.id = w.project_id
    where w.id = p_workflow_id
    for key share of w;
    return case
        when v_status is null then ops_private.refusal('not_found', 'there is no such workflow')
        when v_status = 'archived' then ops_private.refusal('project_archived', 'the project is archived')
        when not v_enabled then ops_private.refusal('workflow_disabled', 'the workflow is disabled')
    end;
end
$$;

-- Queues a run that no person asked for, once for each key. run_id is null if a run has the key already, or if the run
-- cannot be queued; then problem says why.
create function ops_private.queue_once(
    p_project_id uuid, p_workflow_id uuid, p_metadata jsonb, p_key text, p_parent ops.runs default null,
    out run_id uuid, out problem text
)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    problem := ops_private.check_workflow(p_workflow_id) ->> 'error';
    if problem is not null then
        return;
    end if;
    insert into ops.runs (project_id, workflow_id, metadata, created_by, parent_run_id, idempotency_key)
    values (p_project_id, p_workflow_id, p_metadata, p_parent.created_by, p_parent.id, p_key)
    on conflict (idempotency_key) do nothing
    returning id into run_id;
exception
    when check_violation or sqlstate 'OPS04' then problem := sqlerrm;
end
$$;

-- The wait after an attempt: p_first seconds after the first, doubled with each, up to an hour; less a random part of
-- up to half.
create function ops_private.backoff(p_attempt integer, p_first double precision) returns interval
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return make_interval(secs => (1 - random() / 2) * least(3600, p_first * power(2, least(p_attempt, 20) - 1)));
end
$$;

-- Queues a retry of a failed run if its workflow's retry {max_attempts, on, delay_seconds} asks for it. If the
-- configuration was changed after the run was queued and its retry is invalid, the run is not retried.
create function ops_private.retry_if_asked(p_run_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_run ops.runs;
    v_retry jsonb;
begin
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    select w.config -> 'retry' into v_retry from ops.workflows as w where w.id = v_run.workflow_id;
    if v_run.status <> 'failed' or v_run.cancel_requested_at is not null
        or ops_private.bad_retry(v_retry) is not null
        or (v_retry -> 'on' ? ops_private.retry_class(v_run.reason)) is not true
        or ops_private.is_superseded(v_run) then
        return;
    end if;
    if v_run.attempt >= (v_retry ->> 'max_attempts')::integer
        or ops_private.check_workflow(v_run.workflow_id) is not null then
        return;
    end if;
    perform ops_private.queue_retry(p_run_id, ops_private.backoff(
        v_run.attempt, coalesce((v_retry ->> 'delay_seconds')::double precision, 10)));
end
$$;

-- Grants ----------------------------------------------------------------------------------------------------

-- Every role may execute a new function, so each file revokes that. The migration that creates the roles grants these
-- functions to the roles that need them. The schema ops may have functions of other programs, so each file names ours.
revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.current_user_id, ops.current_user_role from public;
