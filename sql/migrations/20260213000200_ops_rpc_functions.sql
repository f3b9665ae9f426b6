-- What a worker does with a run: claim it, start it, append to it, complete it. One function per transition.
--
-- A claim is one statement: it selects the next queued run, marks it claimed and writes its lease; the answer has all
-- that the worker needs. The worker starts the run, appends log lines, artifacts and events, and completes it. Each of
-- these functions first locks the run's row and checks the lease, so a worker that lost its lease cannot write. For
-- every change of status, also by a direct update, the triggers of the migration ..._ops_indexes_constraints.sql fill
-- the timestamps, write the event, and create or delete the lease row.

-- Claim -----------------------------------------------------------------------------------------------------

-- Fails a claimed or running run whose payload cannot be built, so that it does not block the queue.
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

-- The tools that services name, with their images. The worker alone checks the services, so no form of them is an error
-- here.
create function ops_private.service_tools(p_services jsonb, p_odoo_version text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_services) is distinct from 'array' then
        return '[]'::jsonb;
    end if;
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'tool_name', t.tool_name, 'version', t.version, 'docker_image', t.docker_image, 'config', null)), '[]'::jsonb)
        from ops.tools as t
        where (t.tool_name, t.version) in (
            select s.service ->> 'tool', coalesce(s.service ->> 'version', p_odoo_version)
            from jsonb_array_elements(p_services) as s (service)));
end
$$;

-- All that a worker needs to execute a run, in one answer. If it cannot be built, the run fails and the answer is null.
create function ops_private.run_payload(p_run_id uuid) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
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
            'log_position', case when r.started_at is null then 0 else ops_private.log_position(r.id) end,
            'container_id', r.container_id,
            'ready_at', r.ready_at,
            'log_began_at', case when r.started_at is not null then (
                select g."timestamp" from ops.run_logs as g where g.run_id = r.id and g.seq = 1) end,
            'metadata', r.metadata,
            'parent_run_id', r.parent_run_id,
            'project', jsonb_build_object(
                'slug', p.slug, 'name', p.name, 'workspace_key', p.workspace_key,
                'odoo_version', p.odoo_version, 'status', p.status),
            'workflow', jsonb_build_object(
                'workflow_type', w.workflow_type, 'name', w.name, 'enabled', w.enabled,
                'git_ref', w.git_ref, 'git_commit', w.git_commit, 'config', w.config),
            'tool', jsonb_build_object(
                'tool_name', coalesce(w.config ->> 'tool', 'odoo'),
                'version', coalesce(w.config ->> 'version', p.odoo_version),
                'docker_image', t.docker_image, 'config', t.config),
            'services', ops_private.service_tools(
                coalesce(w.config -> 'services', t.config -> 'services'), p.odoo_version))
        from ops.runs as r
        join ops.projects as p on p.id = r.project_id
        join ops.workflows as w on w.id = r.workflow_id
        left join ops_private.leases as l on l.run_id = r.id
        left join ops.tools as t
            on t.tool_name = coalesce(w.config ->> 'tool', 'odoo')
            and t.version = coalesce(w.config ->> 'version', p.odoo_version)
        where r.id = p_run_id
    );
exception when others then
    perform ops_private.fail_unreadable(p_run_id, sqlerrm);
    return null;
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
    v_taken constant text := ops_private.worker_id_taken(p_worker_id, p_instance_id);
    v_blocked uuid[];
    v_run_id uuid;
    v_queued_at timestamptz;  -- when it was queued, returned to the queue, or became due
    v_payload jsonb;
begin
    if coalesce(v_wrong, v_taken) is not null then
        return jsonb_build_object(
            'run_id', null, 'waiting', false, 'message', coalesce(v_wrong, v_taken),
            'code', case when v_wrong is null then 'worker_id_taken' else 'bad_argument' end);
    end if;
    if ops_private.is_drained(p_worker_id) then
        perform ops_private.become_busy(p_instance_id);
        return jsonb_build_object('run_id', null, 'waiting', false, 'draining', true, 'message', 'the worker is drained');
    end if;
    v_blocked := ops_private.blocked_workflows(p_worker_id);

    for v_try in 1 .. 20 loop
        v_run_id := ops_private.next_run(v_labels, v_blocked);
        if v_run_id is null then
            exit when ops_private.wake_scheduled_runs() = 0;
            continue;
        end if;
        with run as materialized (
            select r.id, r.project_id, r.concurrency_key, r.updated_at from ops.runs as r where r.id = v_run_id
        ), lease as (
            insert into ops_private.leases as l
                (run_id, worker_id, instance_id, db_role, engine_id, lease_seconds, expires_at, project_id,
                concurrency_key)
            select r.id, p_worker_id, p_instance_id, v_caller, p_engine_id, p_lease_seconds,
                ops_private.current_time() + make_interval(secs => p_lease_seconds), r.project_id, r.concurrency_key
            from run as r
            on conflict do nothing
            returning l.run_id, l.project_id
        ), turn as (
            update ops_private.turns as t set turn = nextval('ops_private.turn_seq') where t.project_id in (
                select k.project_id from ops_private.turns as k
                where k.project_id = (select l.project_id from lease as l) for no key update skip locked)
        )
        update ops.runs as r set status = 'claimed', claimed_by = p_worker_id, claimed_instance = p_instance_id
        from lease join run on run.id = lease.run_id
        where r.id = lease.run_id
        returning run.updated_at into v_queued_at;
        continue when not found;  -- another claim took the same concurrency key at the same time: try the next run
        v_payload := ops_private.run_payload(v_run_id);
        exit when v_payload is not null;
    end loop;
    if v_payload is null then
        perform ops_private.become_idle(p_instance_id, v_labels);
        return ops_private.nothing_claimed(v_labels);
    end if;
    perform from ops_private.idle_workers as i where i.instance_id = p_instance_id;
    if found then
        perform ops_private.become_busy(p_instance_id);
    end if;
    return v_payload || jsonb_build_object('queued_at', v_queued_at);
end
$$;

-- Counts the queued runs that a worker with these labels can never claim, and names up to 20 labels that it lacks.
create function ops.unclaimable_runs(p_labels text[] default '{}') returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
    v_labels constant text[] := coalesce(p_labels, '{}');
    v_runs bigint;
    v_missing text[];
begin
    perform ops_private.calling_worker();
    select coalesce(sum(n.runs) filter (where e.i = 1), 0), array_agg(distinct e.label order by e.label)
    into v_runs, v_missing
    from ops_private.lanes as l
    cross join lateral (select count(*) as runs from ops_private.queued as q where q.lane_id = l.lane_id) as n
    cross join lateral (
        select u.label, row_number() over () as i from unnest(l.labels) as u (label) where u.label <> all (v_labels)
    ) as e
    where n.runs > 0;
    return jsonb_build_object('success', true, 'runs', v_runs, 'labels', coalesce(to_jsonb(v_missing[:20]), '[]'));
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
    v_started_at timestamptz;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    update ops.runs as r set status = 'running' where r.id = p_run_id and r.status = 'claimed'
    returning r.started_at into v_started_at;
    if not found then
        if p_instance_id is null then
            -- without an instance, a repeated call and a call of another worker look the same
            return ops_private.refusal('not_claimed', 'the run is running');
        end if;
        select r.started_at into v_started_at from ops.runs as r where r.id = p_run_id;
    end if;
    return jsonb_build_object('success', true, 'started_at', v_started_at);
end
$$;

-- Whether an earlier call of this instance ended the run in the same way: its answer was lost, and this call repeats
-- it.
create function ops_private.repeats(
    p_run ops.runs, p_worker_id text, p_instance_id uuid, p_status text, p_exit_code integer
) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return (p_run.claimed_instance = p_instance_id) is true
        and (p_run.claimed_by = p_worker_id) is not false
        and p_run.started_at is not null
        and p_run.status = p_status
        and p_run.exit_code is not distinct from p_exit_code;
end
$$;

-- Writes the error event of a failed run, and queues its retry if the workflow asks for one: at once if the caller
-- holds the locks that the retry needs (p_locked), else with the next ops.reap.
create function ops_private.record_failure(p_run ops.runs, p_details jsonb, p_locked boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform ops_private.add_event(
        p_run.id, 'error', coalesce(p_run.error_message, 'exit code ' || p_run.exit_code, 'no exit code'),
        coalesce(p_details, '{}') || jsonb_build_object('reason', p_run.reason, 'exit_code', p_run.exit_code));
    if p_run.reason = 'image_missing' then
        perform ops_private.record_missing_image(p_run, p_details ->> 'image');
    end if;
    if p_locked then
        perform ops_private.retry_if_asked(p_run.id);
    else
        insert into ops_private.pending_retries (run_id) values (p_run.id);
    end if;
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
    v_status text := case p_exit_code when 0 then 'succeeded' else 'failed' end;
    v_locked boolean := true;
    v_chained uuid;  -- the project, if the workflow has then
    -- the event adds these two fields
    v_wrong constant text := case when p_details <> '{}' then ops_private.bad_document(
        'details', p_details || jsonb_build_object('reason', p_reason, 'exit_code', p_exit_code)) end;
begin
    if p_exit_code is distinct from 0 then
        perform ops_private.calling_worker();
        v_locked := ops_private.lock_for_retry(p_run_id);
    else
        select r.project_id into v_chained
        from ops.runs as r join ops.workflows as w on w.id = r.workflow_id
        where r.id = p_run_id and w.config ? 'then';
        if found then
            perform ops_private.calling_worker();
            v_locked := ops_private.lock_queue_briefly(v_chained);
        end if;
    end if;
    v_refusal := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    if p_reason !~ '^[a-z][a-z0-9_]{0,62}$' then
        return ops_private.refusal('bad_argument', 'the reason must be one lower-case word');
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    if p_reason = 'canceled' then
        perform from ops.runs as r where r.id = p_run_id and r.cancel_requested_at is not null;
        v_status := case when found then 'canceled' else v_status end;
    end if;
    if v_refusal is null then
        update ops.runs as r
        set status = v_status, exit_code = p_exit_code, reason = p_reason,
            error_message = left(p_error_message, 10000)
        where r.id = p_run_id
        returning r.* into v_run;
        if v_status = 'failed' then
            perform ops_private.record_failure(v_run, p_details, v_locked);
        elsif v_chained is not null and v_status = 'succeeded' then
            perform ops_private.continue_chain(p_run_id, v_locked);
        end if;
    else
        select r.* into v_run from ops.runs as r where r.id = p_run_id;
        if not ops_private.repeats(v_run, p_worker_id, p_instance_id, v_status, p_exit_code) then
            return v_refusal;
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
    -- claim_count finds runs that kill their workers, so a released claim does not count
    update ops.runs as r set status = 'queued', reason = 'released', claim_count = r.claim_count - 1
    where r.id = p_run_id;
    return jsonb_build_object('success', true);
end
$$;

-- Records the container of the run and its details, before it starts. A run has one container: a worker that adopts the
-- run continues with it and never creates another, since the first may have done part of the work.
create function ops.record_container(
    p_run_id uuid, p_worker_id text, p_instance_id uuid, p_container_id text, p_details jsonb default '{}'
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    v_payload constant jsonb := coalesce(p_details, '{}') || jsonb_build_object('container_id', p_container_id);
    v_wrong constant text := case
        when (octet_length(p_container_id) between 1 and 200) is not true then
            'the container_id must have 1 to 200 bytes'
        else ops_private.bad_document('details', v_payload) end;
    v_recorded text;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    select r.container_id into v_recorded from ops.runs as r where r.id = p_run_id;
    if v_recorded <> p_container_id then
        return ops_private.refusal('other_container', format('the run has the container %s', v_recorded));
    end if;
    if v_recorded is null then
        update ops.runs as r set container_id = p_container_id where r.id = p_run_id;
        perform ops_private.add_event(p_run_id, 'info', 'container created', v_payload);
    end if;
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
    v_project_id uuid;
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
    select r.project_id into v_project_id from ops.runs as r where r.id = p_run_id;
    perform ops_private.lock_log(p_run_id, v_project_id);
    perform set_config('ops.appending', 'on', true);
    insert into ops.run_logs (run_id, project_id, log_level, message, metadata, "timestamp")
    values (p_run_id, v_project_id, p_level, p_message, coalesce(p_metadata, '{}'), v_now);
    perform set_config('ops.appending', 'off', true);
    if p_level in ('warn', 'error') then
        update ops_private.log_tails as t
        set warnings = t.warnings + (p_level = 'warn')::integer, errors = t.errors + (p_level = 'error')::integer
        where t.run_id = p_run_id;
    end if;
    return jsonb_build_object('success', true, 'timestamp', v_now);
end
$$;

-- Stores a batch of journal lines with consecutive numbers from p_first_seq on, and skips those up to the last that is
-- stored. So a worker can send a batch again if the answer was lost. position is the number of the last stored line.
-- p_messages has the lines, separated by newlines. p_marks has a letter for each: the first of its level, lower case for
-- stdout and upper case for stderr. Such arguments cost client and server a third of what an array for each column does.
--
-- p_words has the words of these lines for the search (ops_private.words), if the client knows them: to find them costs
-- the server more than to store the lines. It has a line for each 250 lines, which become a block, with their words
-- separated by spaces. Without p_words, the server finds the words of 1,000 lines at a time.
create function ops.append_run_logs(
    p_run_id uuid,
    p_worker_id text,
    p_instance_id uuid,
    p_first_seq bigint,
    p_messages text,
    p_marks text,
    p_timestamps timestamptz[],
    p_words text default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb :=
        ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}', true);
    v_count constant integer := length(p_marks);
    -- an empty text is one empty line or none
    v_messages constant text[] := case
        when p_messages = '' and v_count = 1 then '{""}' else string_to_array(p_messages, E'\n') end;
    v_words constant text[] := case
        when p_words = '' and v_count > 0 then '{""}' else string_to_array(p_words, E'\n') end;
    v_wrong constant text := case
        when v_count is null then 'marks must be a text, a letter for each line'
        when (p_first_seq between 1 and 1099511627776 - v_count) is not true then
            'first_seq must be at least 1, and the last seq below 1099511627776'
        when cardinality(v_messages) is distinct from v_count then
            'messages must be a text of as many lines as there are marks'
        when cardinality(p_timestamps) is distinct from v_count or array_ndims(p_timestamps) > 1 then
            'timestamps must be a list, as long as the marks'
        when array_position(p_timestamps, null) is not null then 'timestamps must not be null'
        when octet_length(p_messages) > 65600
            and exists (select from unnest(v_messages) as m (message) where octet_length(m.message) > 65600) then
            'messages must be lines of at most 65600 bytes'
        when cardinality(v_words) <> (v_count + 249) / 250 then 'words must have a line for each 250 lines'
        when exists (
            select from unnest(v_words) as b (words) where octet_length(b.words) > 262144
                or exists (select from unnest(string_to_array(b.words, ' ')) as w (word) where octet_length(w.word) > 2046)
        ) then 'words must be at most 262144 bytes for a block, each of at most 2046'
    end;
    v_project_id uuid;
    v_end bigint;
    v_tail bigint;
    v_position bigint;
    v_stored integer;
    v_levels text;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if translate(p_marks, 'diweDIWE', '') <> '' then
        return ops_private.refusal('bad_level', 'each of the marks must be d, i, w or e, or D, I, W or E');
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', 'the ' || v_wrong);
    end if;
    select r.project_id into v_project_id from ops.runs as r where r.id = p_run_id;
    v_end := p_first_seq + v_count;
    v_tail := ops_private.lock_log(p_run_id, v_project_id);
    v_position := ops_private.log_position(p_run_id);

    perform set_config('ops.appending', 'on', true);
    insert into ops.run_logs (run_id, project_id, seq, stream, log_level, message, "timestamp")
    select p_run_id, v_project_id, p_first_seq + u.n - 1,
        case when ascii(u.mark) < 97 then 'stderr' else 'stdout' end,
        case lower(u.mark) when 'i' then 'info' when 'w' then 'warn' when 'e' then 'error' else 'debug' end,
        u.message, u.written
    from unnest(v_messages, string_to_array(p_marks, null), p_timestamps)
        with ordinality as u (message, mark, written, n)
    where p_first_seq + u.n - 1 > v_position;
    get diagnostics v_stored = row_count;
    perform set_config('ops.appending', 'off', true);
    if v_stored = 0 then
        return jsonb_build_object('success', true, 'stored', 0, 'position', v_position);
    end if;
    if p_words is not null then
        perform ops_private.add_log_blocks(p_run_id, v_project_id, v_tail, v_end - v_stored);
        insert into ops_private.log_blocks (run_id, first_seq, last_seq, first_at, last_at, lines, words)
        select p_run_id, p_first_seq + min(t.n) - 1, p_first_seq + max(t.n) - 1, min(t.written), max(t.written), count(*),
            array_to_tsvector(array_remove(string_to_array(v_words[t.block], ' '), '') || v_project_id::text)
        from (
            select u.written, u.n, ((u.n - 1) / 250 + 1)::integer as block
            from unnest(p_timestamps) with ordinality as u (written, n)
            where u.n > v_count - v_stored
        ) as t
        group by t.block;
        v_tail := v_end;
    elsif v_end - v_tail >= 1000 then
        perform ops_private.add_log_blocks(p_run_id, v_project_id, v_tail, v_end);
        v_tail := v_end;
    end if;
    v_levels := lower(right(p_marks, v_stored));
    if v_tail = v_end or v_levels ~ '[we]' then
        update ops_private.log_tails as t
        set from_seq = v_tail, warnings = t.warnings + length(v_levels) - length(replace(v_levels, 'w', '')),
            errors = t.errors + length(v_levels) - length(replace(v_levels, 'e', ''))
        where t.run_id = p_run_id;
    end if;
    return jsonb_build_object('success', true, 'stored', v_stored, 'position', v_end - 1);
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
    -- only a worker names its instance; the checksum of another client is stored as given
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
        returning a.id, a.xmax = 0 into v_artifact_id, v_added;  -- xmax is 0 in a new row only
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

-- What is wrong with the tests of a report; null if nothing is.
create function ops_private.bad_tests(p_tests jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_count text;
begin
    if p_tests is null then
        return null;
    elsif jsonb_typeof(p_tests) <> 'object' or p_tests - '{passed,failed,skipped,failing}'::text[] <> '{}' then
        return 'the tests must be an object with passed, failed, skipped and failing';
    end if;
    foreach v_count in array '{passed,failed,skipped}'::text[] loop
        if ops_private.is_whole_number(p_tests -> v_count, 0, 2147483647) is not true then
            return format('the tests.%s must be a number from 0 to 2147483647', v_count);
        end if;
    end loop;
    if jsonb_typeof(p_tests -> 'failing') is distinct from 'array' or octet_length(p_tests ->> 'failing') > 65536
        or jsonb_path_exists(p_tests, '$.failing[*] ? (@.type() != "string")') then
        return 'the tests.failing must be a list of texts, of at most 65536 bytes';
    end if;
    return null;
end
$$;

-- Records what the artifacts say about the run, or replaces it: the tests of its JUnit files, and its summary.
create function ops.record_report(
    p_run_id uuid, p_worker_id text, p_instance_id uuid, p_tests jsonb default null, p_summary text default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    v_wrong constant text := case
        when octet_length(p_summary) > 1048576 then 'the summary must be a text of at most 1048576 bytes'
        else ops_private.bad_tests(p_tests) end;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    update ops.runs as r set tests = p_tests where r.id = p_run_id and r.tests is distinct from p_tests;
    delete from ops_private.run_summaries as s where s.run_id = p_run_id;
    insert into ops_private.run_summaries (run_id, summary) select p_run_id, p_summary where p_summary is not null;
    return jsonb_build_object('success', true);
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
    v_refusal := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{claimed,running}', true);
    if v_refusal is not null then
        return v_refusal;
    end if;
    return jsonb_build_object(
        'success', true,
        'event_id', ops_private.add_event(p_run_id, p_event_type, p_message, coalesce(p_payload, '{}')));
end
$$;

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function
    ops.claim_next_run, ops.unclaimable_runs, ops.start_workflow_run, ops.complete_workflow_run, ops.release_run,
    ops.record_container, ops.append_run_log, ops.append_run_logs, ops.add_run_artifact, ops.record_report,
    ops.add_run_event
from public;
