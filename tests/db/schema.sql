-- What the migrations make, as pg_dump of PostgreSQL 18 shows it.
-- Written by `make schema`; do not edit.

CREATE SCHEMA ops;

CREATE SCHEMA ops_private;

CREATE FUNCTION ops.add_run_artifact(p_run_id uuid, p_artifact_key text, p_artifact_url text, p_content_type text DEFAULT NULL::text, p_size_bytes bigint DEFAULT NULL::bigint, p_checksum text DEFAULT NULL::text, p_expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, p_metadata jsonb DEFAULT '{}'::jsonb, p_worker_id text DEFAULT NULL::text, p_instance_id uuid DEFAULT NULL::uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops.add_run_event(p_run_id uuid, p_event_type text, p_message text, p_payload jsonb DEFAULT '{}'::jsonb, p_worker_id text DEFAULT NULL::text, p_instance_id uuid DEFAULT NULL::uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.adopt_run(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer DEFAULT 300) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '3s'
    AS $$
declare
    v_wrong constant text := coalesce(
        ops_private.bad_worker(p_worker_id, p_lease_seconds),
        case when p_instance_id is null then 'the instance_id must not be null' end);
    v_status text;
    v_lease ops_private.leases;
    v_refusal jsonb;
begin
    perform ops_private.calling_worker();
    select r.status into v_status from ops.runs as r where r.id = p_run_id for no key update;
    select l.* into v_lease from ops_private.leases as l where l.run_id = p_run_id for update;
    v_refusal := case
        when v_wrong is not null then ops_private.refusal('bad_argument', v_wrong)
        else ops_private.adopt_refusal(v_status, v_lease, p_worker_id, p_instance_id, p_engine_id) end;
    if v_refusal is not null then
        return v_refusal || jsonb_build_object('status', v_status);
    end if;

    if (v_lease.worker_id, v_lease.instance_id) is distinct from (p_worker_id, p_instance_id) then
        v_lease := ops_private.inherited(v_lease);
        if ops_private.loses_its_workers(v_lease) then
            v_status := case v_status when 'running' then 'failed' else 'canceled' end;
            perform ops_private.quarantine(p_run_id, v_status, v_lease.lost, v_lease);
            return ops_private.refusal('final', 'the run is quarantined') || jsonb_build_object('status', v_status);
        end if;
    end if;
    perform ops_private.hand_over(v_lease, p_worker_id, p_instance_id, p_engine_id, p_lease_seconds);
    return coalesce(
        jsonb_build_object('success', true) || ops_private.run_payload(p_run_id),
        ops_private.refusal('final', 'the run cannot be read') || jsonb_build_object('status', 'failed'));
end
$$;

CREATE FUNCTION ops.adoptable_runs(p_worker_id text, p_instance_id uuid, p_engine_id text) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.append_run_log(p_run_id uuid, p_level text, p_message text, p_metadata jsonb DEFAULT '{}'::jsonb, p_worker_id text DEFAULT NULL::text, p_instance_id uuid DEFAULT NULL::uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.append_run_logs(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_first_seq bigint, p_messages text, p_marks text, p_timestamps timestamp with time zone[], p_words text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE TABLE ops.upgrade_advisories (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    from_version text NOT NULL,
    to_version text NOT NULL,
    severity text NOT NULL,
    title text NOT NULL,
    description text,
    migration_guide text,
    affects_modules text[] DEFAULT '{}'::text[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT upgrade_advisories_severity_check CHECK ((severity = ANY (ARRAY['low'::text, 'medium'::text, 'high'::text, 'critical'::text])))
);

CREATE FUNCTION ops_private.applicable_advisories(p_from text, p_to text) RETURNS SETOF ops.upgrade_advisories
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.applicable_advisories(p_from text, p_to text) RETURNS SETOF ops.upgrade_advisories
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT a.*::ops.upgrade_advisories AS a
    FROM ops_private.applicable_advisories(applicable_advisories.p_from, applicable_advisories.p_to) a(id, from_version, to_version, severity, title, description, migration_guide, affects_modules, created_at, updated_at);
END;

CREATE FUNCTION ops_private.decide_run(p_run_id uuid, p_decision text, p_reason text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_run ops.runs;
    v_role text;
begin
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    if not ops_private.trusted() then
        v_role := ops.current_user_role(v_run.project_id);
        if v_role is null then
            return ops_private.refusal('not_found', 'there is no such run');
        elsif v_role not in ('admin', 'owner') then
            return ops_private.refusal('not_allowed', format('a %s may not approve or reject runs', v_role));
        elsif v_run.created_by = ops.current_user_id() then
            return ops_private.refusal('not_allowed', 'another admin than the one who queued the run must decide');
        end if;
    end if;
    if p_decision = 'approved' then
        perform ops_private.lock_queue(v_run.project_id);
    end if;
    select r.* into v_run from ops.runs as r where r.id = p_run_id for no key update;
    if v_run.id is null then
        return ops_private.refusal('not_found', 'there is no such run');
    elsif v_run.approval = p_decision then
        return jsonb_build_object('success', true, 'approval', p_decision, 'changed', false);
    elsif ops_private.is_final(v_run.status) then
        return ops_private.refusal('final', format('the run is already %s', v_run.status));
    elsif v_run.approval is distinct from 'pending' or v_run.wanted_until <= ops_private.current_time() then
        return ops_private.refusal('not_waiting', 'the run does not wait for an approval');
    end if;

    perform ops_private.add_event(p_run_id, 'info', p_decision, jsonb_strip_nulls(jsonb_build_object(
        'actor', ops_private.actor(), 'reason', left(p_reason, 10000))));
    if p_decision = 'approved' then
        update ops.runs as r set approval = 'approved', wanted_until = ops_private.wanted_until(
            (select w.config from ops.workflows as w where w.id = r.workflow_id),
            greatest(ops_private.current_time(), r.scheduled_at))
        where r.id = p_run_id;
        if v_run.concurrency_key is not null and v_run.retry_of is null then
            perform ops_private.supersede_older(array[p_run_id]);
        end if;
    else
        update ops.runs as r
        set status = 'canceled', approval = 'rejected', reason = 'rejected', error_message = left(p_reason, 10000)
        where r.id = p_run_id;
    end if;
    return jsonb_build_object('success', true, 'approval', p_decision, 'changed', true);
end
$$;

CREATE FUNCTION ops.approve_run(p_run_id uuid) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.decide_run(p_run_id, 'approved'::text, NULL::text);

CREATE FUNCTION ops_private.cancel_run(p_run_id uuid, p_reason text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.cancel_run(p_run_id uuid, p_reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.cancel_run(p_run_id, p_reason);

CREATE FUNCTION ops.claim_next_run(p_worker_id text, p_instance_id uuid DEFAULT NULL::uuid, p_labels text[] DEFAULT '{}'::text[], p_lease_seconds integer DEFAULT 300, p_engine_id text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.complete_workflow_run(p_run_id uuid, p_exit_code integer, p_error_message text DEFAULT NULL::text, p_worker_id text DEFAULT NULL::text, p_instance_id uuid DEFAULT NULL::uuid, p_reason text DEFAULT NULL::text, p_details jsonb DEFAULT '{}'::jsonb) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops.current_user_id() RETURNS uuid
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid;
end
$$;

CREATE TABLE ops.project_memberships (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    project_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    given_by uuid,
    CONSTRAINT project_memberships_role_check CHECK ((role = ANY (ARRAY['owner'::text, 'admin'::text, 'developer'::text, 'viewer'::text])))
);

COMMENT ON COLUMN ops.project_memberships.given_by IS 'The signed-in user who gave this role; null for other callers. The last owner may leave if another user gave it.';

CREATE FUNCTION ops.current_user_role(p_project_id uuid) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN (SELECT m.role FROM ops.project_memberships m WHERE ((m.project_id = current_user_role.p_project_id) AND (m.user_id = ops.current_user_id())));

CREATE FUNCTION ops_private.drain_worker(p_worker_id text, p_drain boolean, p_reason text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_drain constant boolean := coalesce(p_drain, true);
    v_changed boolean;
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role drains a worker'
            using errcode = 'insufficient_privilege';
    end if;
    perform pg_advisory_xact_lock(ops_private.drain_lock(p_worker_id));
    update ops_private.worker_ids as i
    set drained_at = case when v_drain then ops_private.current_time() end,
        drained_by = case when v_drain then ops_private.actor() end,
        drain_reason = case when v_drain then left(p_reason, 2500) end
    where i.worker_id = p_worker_id and (i.drained_at is null) = v_drain;
    v_changed := found;
    if not v_changed and not exists (select from ops_private.worker_ids as i where i.worker_id = p_worker_id) then
        return ops_private.refusal('not_found', 'no worker has registered this worker_id');
    end if;
    if v_changed then  -- the one that works under this id now asks the database, also if it was idle
        delete from ops_private.idle_workers as n where n.instance_id in (
            select w.instance_id from ops_private.workers as w where w.worker_id = p_worker_id);
        perform pg_notify(ops_private.channel_of(w.instance_id), '')
        from ops_private.workers as w where w.worker_id = p_worker_id;
    end if;
    return jsonb_build_object(
        'success', true, 'draining', v_drain, 'changed', v_changed,
        'runs', (select count(*) from ops_private.leases as l where l.worker_id = p_worker_id));
end
$$;

CREATE FUNCTION ops.drain_worker(p_worker_id text, p_drain boolean DEFAULT true, p_reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.drain_worker(p_worker_id, p_drain, p_reason);

CREATE FUNCTION ops_private.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.enqueue_run(p_workflow_id uuid, p_metadata jsonb DEFAULT '{}'::jsonb, p_idempotency_key text DEFAULT NULL::text, p_scheduled_at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.enqueue_run(p_workflow_id, p_metadata, p_idempotency_key, p_scheduled_at);

CREATE FUNCTION ops_private.find_user(p_email text) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_users uuid[];
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role finds users by their mail addresses'
            using errcode = 'insufficient_privilege';
    elsif not exists (
        select from pg_attribute as a
        where a.attrelid = to_regclass('auth.users') and a.attname = 'email' and not a.attisdropped
    ) then
        return ops_private.refusal('not_found', 'this database knows no email of a user; name the user by UUID');
    end if;
    execute 'select array(select u.id from auth.users as u where lower(u.email) = lower($1) limit 2)'
        into v_users using p_email;
    return case cardinality(v_users)
        when 0 then ops_private.refusal('not_found', 'there is no user with this email')
        when 1 then jsonb_build_object('success', true, 'user_id', v_users[1])
        else ops_private.refusal('bad_argument', 'several users have this email; name one by UUID') end;
end
$_$;

CREATE FUNCTION ops.find_user(p_email text) RETURNS jsonb
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.find_user(p_email);

CREATE FUNCTION ops_private.health() RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role sees the health of all'
            using errcode = 'insufficient_privilege';
    end if;
    return jsonb_build_object(
        'server_version', current_setting('server_version'),
        'migrations', ops_private.applied_migrations(),
        'snapshots', ops_private.open_snapshots(),
        'stale_leases', ops_private.stale_leases(),
        'unserved', ops_private.unserved_runs(),
        'workers', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'worker_id', w.worker_id, 'version', w.version, 'alive', w.expires_at > ops_private.current_time())
                order by w.worker_id), '[]')
            from ops_private.workers as w),
        'drained', (
            select coalesce(jsonb_agg(i.worker_id order by i.worker_id), '[]')
            from ops_private.worker_ids as i where i.drained_at is not null),
        'paused', (
            select jsonb_build_object('at', c.paused_at, 'by', c.paused_by, 'reason', c.pause_reason)
            from ops_private.control as c where c.paused_at is not null),
        'paused_projects', (
            select coalesce(jsonb_agg(p.slug order by p.slug), '[]')
            from ops_private.project_limits as k join ops.projects as p on p.id = k.project_id
            where k.paused_at is not null));
end
$$;

CREATE FUNCTION ops.health() RETURNS jsonb
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.health();

CREATE FUNCTION ops.heartbeat(p_worker_id text, p_instance_id uuid, p_lease_seconds integer DEFAULT 300, p_disk_free bigint DEFAULT NULL::bigint, p_disk_total bigint DEFAULT NULL::bigint) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_caller constant text := ops_private.calling_worker();
    v_trusted constant boolean := ops_private.trusted();
    v_wrong constant text := coalesce(
        ops_private.bad_worker('-', p_lease_seconds),
        case when p_disk_free not between 0 and coalesce(p_disk_total, p_disk_free) or p_disk_total < 0 then
            'the disk_free must be from 0 to disk_total' end);
    v_expires_at constant timestamptz :=
        ops_private.current_time() + make_interval(secs => p_lease_seconds);
    v_runs jsonb;
    v_drained boolean;
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

    update ops_private.workers as w
    set expires_at = v_expires_at, disk_free = p_disk_free, disk_total = p_disk_total
    where w.worker_id = p_worker_id and w.instance_id = p_instance_id and (w.db_role = v_caller or v_trusted)
    returning exists (
        select from ops_private.worker_ids as i where i.worker_id = w.worker_id and i.drained_at is not null)
    into v_drained;
    return jsonb_build_object(
        'success', true, 'registered', found, 'draining', coalesce(v_drained, false), 'runs', v_runs);
end
$$;

CREATE FUNCTION ops_private.limit_project(p_project_id uuid, p_max_active_runs integer, p_max_queued_runs integer) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.limit_project(p_project_id uuid, p_max_active_runs integer DEFAULT NULL::integer, p_max_queued_runs integer DEFAULT NULL::integer) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.limit_project(p_project_id, p_max_active_runs, p_max_queued_runs);

CREATE FUNCTION ops_private.list_queued_runs(p_limit bigint) RETURNS TABLE(run_id uuid, project_id uuid, workflow_id uuid, run_number integer, status text, created_at timestamp with time zone, claimed_by text, claimed_at timestamp with time zone, waits_for text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION ops.list_queued_runs(p_limit bigint DEFAULT NULL::bigint) RETURNS TABLE(run_id uuid, project_id uuid, workflow_id uuid, run_number integer, status text, created_at timestamp with time zone, claimed_by text, claimed_at timestamp with time zone, waits_for text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT q.run_id,
     q.project_id,
     q.workflow_id,
     q.run_number,
     q.status,
     q.created_at,
     q.claimed_by,
     q.claimed_at,
     q.waits_for
    FROM ops_private.list_queued_runs(list_queued_runs.p_limit) q(run_id, project_id, workflow_id, run_number, status, created_at, claimed_by, claimed_at, waits_for)
  LIMIT list_queued_runs.p_limit;
END;

CREATE FUNCTION ops_private.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_project_id uuid;
    v_refusal jsonb;
    v_marked text[];
begin
    select r.project_id into v_project_id from ops.runs as r where r.id = p_run_id;
    v_refusal := ops_private.role_refusal(
        v_project_id, '{developer,admin,owner}'::text[], 'mark errors as known', 'run');
    if v_refusal is not null then
        return v_refusal;
    elsif length(p_note) > 1000 then
        return ops_private.refusal('bad_argument', 'the note must have at most 1000 characters');
    end if;
    v_marked := array(
        select f.fingerprint from ops_private.run_fingerprints as f
        where f.run_id = p_run_id and f.fingerprint = coalesce(p_fingerprint, f.fingerprint) order by f.place);
    if v_marked = '{}' then
        return ops_private.refusal('bad_argument', 'the fingerprint must be one of this run');
    end if;
    if p_known is false then
        delete from ops_private.known_errors as k where k.project_id = v_project_id and k.fingerprint = any (v_marked);
    else
        insert into ops_private.known_errors (project_id, fingerprint, note, marked_by, marked_at)
        select v_project_id, m.fingerprint, nullif(btrim(ops_private.one_line(p_note)), ''),
            ops_private.actor(), ops_private.current_time()
        from unnest(v_marked) as m (fingerprint) order by m.fingerprint
        on conflict (project_id, fingerprint) do update
        set note = excluded.note, marked_by = excluded.marked_by, marked_at = excluded.marked_at;
    end if;
    return jsonb_build_object('success', true, 'fingerprints', v_marked, 'known', p_known is not false);
end
$$;

CREATE FUNCTION ops.mark_known(p_run_id uuid, p_fingerprint text DEFAULT NULL::text, p_note text DEFAULT NULL::text, p_known boolean DEFAULT true) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.mark_known(p_run_id, p_fingerprint, p_note, p_known);

CREATE FUNCTION ops.mark_ready(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_url text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_refusal constant jsonb := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    v_run ops.runs;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if (octet_length(p_url) <= 2048 and p_url ~ '^https?://[!-~]+$') is not true then
        return ops_private.refusal('bad_argument', 'the url must be http or https, of at most 2048 bytes');
    end if;
    update ops.runs as r set ready_at = ops_private.current_time(), url = p_url
    where r.id = p_run_id and r.ready_at is null;
    if found then
        perform ops_private.add_event(p_run_id, 'info', 'ready', jsonb_build_object('url', p_url));
    end if;
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    return jsonb_build_object('success', true, 'ready_at', v_run.ready_at, 'url', v_run.url);
end
$_$;

CREATE FUNCTION ops_private.pause_project(p_project_id uuid, p_paused boolean, p_reason text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.pause_project(p_project_id uuid, p_reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.pause_project(p_project_id, true, p_reason);

CREATE FUNCTION ops_private.pause_queue(p_paused boolean, p_reason text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.pause_queue(p_reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.pause_queue(true, p_reason);

CREATE FUNCTION ops_private.project_overview() RETURNS TABLE(project_id uuid, slug text, name text, odoo_version text, status text, role text, queued_runs bigint, active_runs bigint, paused_at timestamp with time zone, paused_by text, pause_reason text, max_active_runs integer, max_queued_runs integer)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_projects constant uuid[] := ops_private.visible_projects();
begin
    return query
        select p.id, p.slug, p.name, p.odoo_version, p.status, ops.current_user_role(p.id),
            (select count(*) from ops_private.lanes as l join ops_private.queued as q on q.lane_id = l.lane_id
                where l.project_id = p.id),
            (select count(*) from ops_private.leases as l where l.project_id = p.id),
            k.paused_at, k.paused_by, k.pause_reason, k.max_active_runs, ops_private.max_queued_runs(p.id)
        from ops.projects as p
        left join ops_private.project_limits as k on k.project_id = p.id
        where p.id = any (v_projects)
        order by p.slug;
end
$$;

CREATE FUNCTION ops.project_overview() RETURNS TABLE(project_id uuid, slug text, name text, odoo_version text, status text, role text, queued_runs bigint, active_runs bigint, paused_at timestamp with time zone, paused_by text, pause_reason text, max_active_runs integer, max_queued_runs integer)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT p.project_id,
     p.slug,
     p.name,
     p.odoo_version,
     p.status,
     p.role,
     p.queued_runs,
     p.active_runs,
     p.paused_at,
     p.paused_by,
     p.pause_reason,
     p.max_active_runs,
     p.max_queued_runs
    FROM ops_private.project_overview() p(project_id, slug, name, odoo_version, status, role, queued_runs, active_runs, paused_at, paused_by, pause_reason, max_active_runs, max_queued_runs);
END;

CREATE FUNCTION ops.reap() RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_max_lost constant integer := (select c.max_lost_leases from ops_private.control as c);
    v_lost record;
    v_run_id uuid;
    v_project_id uuid;
    v_requeued uuid[] := '{}'::uuid[];
    v_failed uuid[] := '{}'::uuid[];
    v_quarantined uuid[] := '{}'::uuid[];
    v_expired uuid[];
begin
    perform ops_private.calling_worker();
    v_expired := ops_private.expire_queued_runs();
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
            perform ops_private.quarantine(v_lost.id, 'canceled', v_lost.claim_count, v_lost.lease);
            v_quarantined := v_quarantined || v_lost.id;
        elsif ops_private.lock_for_retry(v_lost.id, p_wait => false) then
            perform ops_private.fail_lost(v_lost.id, v_lost.lease, format(
                'worker lost: the lease of worker %s ran out and no worker took the run over',
                (v_lost.lease).worker_id));
            v_failed := v_failed || v_lost.id;
        end if;
    end loop;
    for v_run_id, v_project_id in
        select p.run_id, r.project_id
        from ops_private.pending_retries as p join ops.runs as r on r.id = p.run_id
        order by p.run_id for update of p skip locked
    loop
        if ops_private.lock_queue_at_once(v_project_id) then
            begin
                delete from ops_private.pending_retries as p where p.run_id = v_run_id;
                perform ops_private.retry_if_asked(v_run_id);
                perform ops_private.queue_next_runs(v_run_id);
            exception when lock_not_available then null;  -- the next sweep tries again
            end;
        end if;
    end loop;
    perform ops_private.drop_empty_lanes();
    perform ops_private.forget_idle_workers();
    perform ops_private.close_ended_logs();
    perform ops_private.add_log_partitions();
    return jsonb_build_object(
        'requeued', v_requeued, 'failed', v_failed, 'quarantined', v_quarantined, 'expired', v_expired,
        'woken', ops_private.wake_scheduled_runs());
end
$$;

CREATE FUNCTION ops_private.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_most constant integer := 26214400;
    v_sent record;
    v_body jsonb;
    v_project_id uuid;
begin
    v_sent := ops_private.delivery_of((
        select coalesce(jsonb_object_agg(lower(h.key), h.value), '{}'::jsonb)
        from jsonb_each(case jsonb_typeof(p_headers) when 'object' then p_headers else '{}'::jsonb end) as h));
    if v_sent.forge is null then
        return ops_private.refusal(
            'bad_argument', 'the headers name no event of GitHub, GitLab, Gitea or Forgejo');
    elsif (length(p_body) <= v_most) is not true then
        return ops_private.refusal('bad_argument', 'the body must have at most 25 MiB');
    end if;
    if p_project_id is null then
        v_body := ops_private.body_of(p_body);
        select p.id into v_project_id
        from ops.projects as p
        where p.config #>> '{push,repository}' = coalesce(
                v_body #>> '{repository,full_name}', v_body #>> '{project,path_with_namespace}')
            and ops_private.is_signed(p.id, v_sent.forge, v_sent.signature, p_body)
        order by p.slug limit 1;
    elsif ops_private.is_signed(p_project_id, v_sent.forge, v_sent.signature, p_body) then
        v_project_id := p_project_id;
        v_body := ops_private.body_of(p_body);
    end if;
    if v_project_id is null then
        return ops_private.refusal(
            'not_allowed', 'there is no such project, it has no secret, or the signature is wrong');
    elsif jsonb_typeof(v_body) is distinct from 'object' then
        return ops_private.refusal('bad_argument', 'the body must be a JSON object');
    end if;
    return ops_private.apply_push(
        v_project_id, v_sent.forge, v_sent.event, v_sent.delivery, encode(sha256(p_body), 'hex'), v_body);
end
$$;

CREATE FUNCTION ops.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.receive_push(p_project_id, p_body, p_headers);

CREATE FUNCTION ops_private.receive_webhook(p_body json) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_headers constant jsonb := nullif(current_setting('request.headers', true), '')::jsonb;
    v_answer constant jsonb := ops_private.receive_push(null, convert_to(p_body::text, 'UTF8'), v_headers);
begin
    if v_answer ? 'code' then
        perform set_config(
            'response.status', case v_answer ->> 'code' when 'not_allowed' then '403' else '400' end, true);
    end if;
    return v_answer;
end
$$;

CREATE FUNCTION ops.receive_webhook(json) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.receive_webhook($1);

CREATE FUNCTION ops.record_container(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_container_id text, p_details jsonb DEFAULT '{}'::jsonb) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.record_report(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_tests jsonb DEFAULT NULL::jsonb, p_summary text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.register_destinations(p_worker_id text, p_destinations jsonb) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_wrong text;
begin
    perform ops_private.check_notifier();
    if (octet_length(p_worker_id) between 1 and 200) is not true then
        return ops_private.refusal('bad_argument', 'the worker_id must have 1 to 200 bytes');
    elsif jsonb_typeof(p_destinations) is distinct from 'array' or octet_length(p_destinations::text) > 262144
        or jsonb_array_length(p_destinations) > 50 then
        return ops_private.refusal('bad_argument', 'the destinations must be a list of at most 50, of at most 256 KiB');
    end if;
    select b.wrong into v_wrong from jsonb_array_elements(p_destinations) as e (item)
    cross join lateral ops_private.bad_destination(e.item) as b (wrong) where b.wrong is not null limit 1;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    delete from ops_private.destinations as d where d.worker_id = p_worker_id;
    insert into ops_private.destinations
        (worker_id, name, events, commits_only, projects, workflows, branches, seen_at)
    select p_worker_id, e.item ->> 'name', array(select jsonb_array_elements_text(e.item -> 'events')),
        (e.item ->> 'commits_only')::boolean, array(select jsonb_array_elements_text(e.item -> 'projects')),
        array(select jsonb_array_elements_text(e.item -> 'workflows')),
        array(select jsonb_array_elements_text(e.item -> 'branches')), v_now
    from jsonb_array_elements(p_destinations) as e (item)
    on conflict (worker_id, name) do nothing;
    perform ops_private.prune_outbox();
    return jsonb_build_object('success', true);
end
$$;

CREATE FUNCTION ops.register_worker(p_worker_id text, p_instance_id uuid, p_host_id text DEFAULT NULL::text, p_engine_id text DEFAULT NULL::text, p_version text DEFAULT NULL::text, p_labels text[] DEFAULT '{}'::text[], p_lease_seconds integer DEFAULT 60, p_takeover boolean DEFAULT false) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_caller constant text := ops_private.calling_worker();
    v_now constant timestamptz := ops_private.current_time();
    v_trusted constant boolean := ops_private.trusted();
    v_database_id constant uuid := ops_private.database_identity();
    v_wrong constant text := ops_private.bad_worker(p_worker_id, p_lease_seconds);
    v_taken constant text := ops_private.worker_id_taken(p_worker_id, null);
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
    delete from ops_private.missing_images as m where m.worker_id = p_worker_id;
    insert into ops_private.worker_ids as i (worker_id, db_role) values (p_worker_id, v_caller)
    on conflict (worker_id) do update set db_role = excluded.db_role
    where not exists (select from pg_roles as r where r.rolname = i.db_role);
    perform ops_private.add_log_partitions();
    return jsonb_build_object('success', true, 'database_id', v_database_id);
end
$$;

CREATE FUNCTION ops.reject_run(p_run_id uuid, p_reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.decide_run(p_run_id, 'rejected'::text, p_reason);

CREATE FUNCTION ops.release_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.remove_member(p_project_id uuid, p_user_id uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_refusal constant jsonb := ops_private.locked_member_refusal(p_project_id, p_user_id, null);
    v_held text;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    delete from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = p_user_id returning m.role into v_held;
    return jsonb_build_object('success', true, 'previous_role', v_held, 'changed', v_held is not null);
exception
    when sqlstate 'OPS03' then
        return ops_private.refusal('last_owner', sqlerrm);
end
$$;

CREATE FUNCTION ops.remove_member(p_project_id uuid, p_user_id uuid) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.remove_member(p_project_id, p_user_id);

CREATE FUNCTION ops.resume_project(p_project_id uuid) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.pause_project(p_project_id, false, NULL::text);

CREATE FUNCTION ops.resume_queue() RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.pause_queue(false, NULL::text);

CREATE FUNCTION ops_private.retry_run(p_run_id uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.retry_run(p_run_id uuid) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.retry_run(p_run_id);

CREATE FUNCTION ops_private.run_fingerprints(p_run_id uuid) RETURNS TABLE(fingerprint text, kind text, message text, times bigint, projects bigint, first_run text, first_run_id uuid, first_at timestamp with time zone, note text, marked_by text, marked_at timestamp with time zone, line text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return query select f.* from ops_private.fingerprints_of(p_run_id, ops_private.visible_projects()) as f;
end
$$;

CREATE FUNCTION ops.run_fingerprints(p_run_id uuid) RETURNS TABLE(fingerprint text, kind text, message text, times bigint, projects bigint, first_run text, first_run_id uuid, first_at timestamp with time zone, note text, marked_by text, marked_at timestamp with time zone, line text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT f.fingerprint,
     f.kind,
     f.message,
     f.times,
     f.projects,
     f.first_run,
     f.first_run_id,
     f.first_at,
     f.note,
     f.marked_by,
     f.marked_at,
     f.line
    FROM ops_private.run_fingerprints(run_fingerprints.p_run_id) f(fingerprint, kind, message, times, projects, first_run, first_run_id, first_at, note, marked_by, marked_at, line);
END;

CREATE FUNCTION ops_private.new_run_id() RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return overlay(gen_random_uuid()::text placing
        left(ops_private.first_run_id(ops_private.current_time())::text, 14) || '7' from 1 for 15)::uuid;
end
$$;

CREATE SEQUENCE ops_private.run_log_seq
    START WITH 1099511627776
    INCREMENT BY 1
    MINVALUE 1099511627776
    NO MAXVALUE
    CACHE 1;

CREATE TABLE ops.run_logs (
    run_id uuid NOT NULL,
    seq bigint DEFAULT nextval('ops_private.run_log_seq'::regclass) NOT NULL,
    log_level text NOT NULL,
    message text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    "timestamp" timestamp with time zone DEFAULT now() NOT NULL,
    stream text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    project_id uuid NOT NULL,
    CONSTRAINT run_logs_log_level_check CHECK ((log_level = ANY (ARRAY['debug'::text, 'info'::text, 'warn'::text, 'error'::text]))),
    CONSTRAINT run_logs_message_check CHECK ((octet_length(message) <= 65600)),
    CONSTRAINT run_logs_metadata_at_most_256_kib CHECK (((metadata = '{}'::jsonb) OR (octet_length((metadata)::text) <= 262144))),
    CONSTRAINT run_logs_metadata_at_most_32_deep CHECK (((metadata = '{}'::jsonb) OR (NOT jsonb_path_exists(metadata, 'strict $.**{33}'::jsonpath)))),
    CONSTRAINT run_logs_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT run_logs_seq_check CHECK ((seq > 0)),
    CONSTRAINT run_logs_stream_check CHECK ((stream = ANY (ARRAY['stdout'::text, 'stderr'::text])))
)
PARTITION BY RANGE (run_id);

COMMENT ON COLUMN ops.run_logs.seq IS 'The number of the line in the container''s journal; a line that is not from the journal has 2^40 or more.';

COMMENT ON COLUMN ops.run_logs."timestamp" IS 'The time at which the line was written, not stored.';

CREATE TABLE ops.runs (
    id uuid DEFAULT ops_private.new_run_id() NOT NULL,
    project_id uuid NOT NULL,
    workflow_id uuid NOT NULL,
    run_number integer NOT NULL,
    idempotency_key text,
    status text DEFAULT 'queued'::text NOT NULL,
    claimed_by text,
    claimed_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    exit_code integer,
    error_message text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    priority integer DEFAULT 0 NOT NULL,
    labels text[] DEFAULT '{}'::text[] NOT NULL,
    concurrency_key text,
    scheduled_at timestamp with time zone,
    cancel_requested_at timestamp with time zone,
    claim_count integer DEFAULT 0 NOT NULL,
    claimed_instance uuid,
    created_by uuid,
    retry_of uuid,
    attempt integer DEFAULT 1 NOT NULL,
    reason text,
    container_id text,
    warnings integer DEFAULT 0 NOT NULL,
    errors integer DEFAULT 0 NOT NULL,
    tests jsonb,
    parent_run_id uuid,
    approval text,
    wanted_until timestamp with time zone,
    ready_at timestamp with time zone,
    url text
)
WITH (fillfactor='50');

COMMENT ON COLUMN ops.runs.run_number IS 'Counts 1, 2, 3 and so on within the project, without gaps.';

COMMENT ON COLUMN ops.runs.status IS 'One of queued, claimed, running, succeeded, failed and canceled.';

COMMENT ON COLUMN ops.runs.scheduled_at IS 'The earliest time of a claim; null when the run is due.';

COMMENT ON COLUMN ops.runs.claim_count IS 'How many claims and adoptions the run had; a released claim does not count.';

COMMENT ON COLUMN ops.runs.created_by IS 'The signed-in user who queued the run; null for other callers.';

COMMENT ON COLUMN ops.runs.reason IS 'The reason of the last change of status, in one word.';

COMMENT ON COLUMN ops.runs.container_id IS 'The container of the run; a run has at most one.';

COMMENT ON COLUMN ops.runs.warnings IS 'How many lines of level warn the log had when the run ended; errors: of level error.';

COMMENT ON COLUMN ops.runs.tests IS 'Of the JUnit files in /artifacts: how many tests passed, failed, were skipped, and the first failing names.';

COMMENT ON COLUMN ops.runs.parent_run_id IS 'The run whose success queued this one, by `then` in its workflow.';

COMMENT ON COLUMN ops.runs.approval IS 'Null: it needs none. Else one of pending, approved, rejected and expired.';

COMMENT ON COLUMN ops.runs.wanted_until IS 'A run that is still queued at this time is canceled.';

COMMENT ON COLUMN ops.runs.ready_at IS 'When a served run answered for the first time; url: where it answers until it ends.';

CREATE FUNCTION ops.run_logs(p_run ops.runs) RETURNS SETOF ops.run_logs
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT g.run_id,
     g.seq,
     g.log_level,
     g.message,
     g.metadata,
     g."timestamp",
     g.stream,
     g.created_at,
     g.project_id
    FROM ops.run_logs g
   WHERE (g.run_id = (run_logs.p_run).id);
END;

CREATE FUNCTION ops_private.run_summary(p_run_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_projects constant uuid[] := ops_private.visible_projects();
    v_summary text;
    v_known text;
begin
    select s.summary into v_summary
    from ops.runs as r
    left join ops_private.run_summaries as s on s.run_id = r.id
    where r.id = p_run_id and r.project_id = any (v_projects);
    if found then
        select string_agg('> ' || k.line || E'\n', '' order by k.i) into v_known
        from ops_private.known_lines(p_run_id, v_projects) with ordinality as k (line, i);
    end if;
    return coalesce(v_known || E'\n' || coalesce(v_summary, ''), v_summary);
end
$$;

CREATE FUNCTION ops.run_summary(p_run_id uuid) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT ops_private.run_summary(p_run_id) AS run_summary;
END;

CREATE FUNCTION ops.runs(p_line ops.run_logs) RETURNS SETOF ops.runs
    LANGUAGE sql STABLE ROWS 1
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT r.id,
     r.project_id,
     r.workflow_id,
     r.run_number,
     r.idempotency_key,
     r.status,
     r.claimed_by,
     r.claimed_at,
     r.started_at,
     r.finished_at,
     r.exit_code,
     r.error_message,
     r.metadata,
     r.created_at,
     r.updated_at,
     r.priority,
     r.labels,
     r.concurrency_key,
     r.scheduled_at,
     r.cancel_requested_at,
     r.claim_count,
     r.claimed_instance,
     r.created_by,
     r.retry_of,
     r.attempt,
     r.reason,
     r.container_id,
     r.warnings,
     r.errors,
     r.tests,
     r.parent_run_id,
     r.approval,
     r.wanted_until,
     r.ready_at,
     r.url
    FROM ops.runs r
   WHERE (r.id = (runs.p_line).run_id);
END;

CREATE FUNCTION ops_private.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) RETURNS TABLE(run_id uuid, run_number integer, seq bigint, "timestamp" timestamp with time zone, log_level text, message text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_query constant tsquery := websearch_to_tsquery('simple', p_query);
    v_before constant timestamptz := coalesce(p_before, 'infinity');
    v_project_id constant uuid := coalesce(
        p_project_id, (select r.project_id from ops.runs as r where r.id = p_run_id));
    v_words tsquery;
    v_texts text[] := array['%'];
    v_block record;
    v_new ops.run_logs[];
    v_found ops.run_logs[] := array[]::ops.run_logs[];
begin
    perform ops_private.check_search(
        v_query, p_project_id, p_run_id, p_limit, p_before, p_before_run_id, p_before_seq);
    if not ops_private.trusted()
        and (v_project_id = any (array(select ops_private.my_projects()))) is not true then
        return;
    end if;
    v_words := ops_private.words_of_query(v_query, v_project_id);
    if v_words::text !~ '\|' then
        v_texts := array(
            select '%' || m.word[1] || '%' from regexp_matches(v_words::text, '''([a-z0-9]+)''', 'g') as m (word));
    end if;

    for v_block in
        select b.run_id, b.first_seq, b.last_seq, b.last_at
        from ops_private.log_blocks as b
        where b.words @@ v_words and (p_run_id is null or b.run_id = p_run_id) and b.first_at <= v_before
        union all
        select t.run_id, t.from_seq, 9223372036854775807, 'infinity'
        from ops_private.log_tails as t
        where t.project_id = v_project_id and (p_run_id is null or t.run_id = p_run_id)
        order by last_at desc
    loop
        exit when cardinality(v_found) = p_limit and v_block.last_at < v_found[p_limit]."timestamp";
        v_new := array(
            select c from (
                select x.* from ops.run_logs as x
                where x.run_id = v_block.run_id and x.seq between v_block.first_seq and v_block.last_seq
                    and (x."timestamp", x.run_id, x.seq) < (
                        v_before, coalesce(p_before_run_id, x.run_id), coalesce(p_before_seq, 0))
                    and lower(x.message collate "C") like all (v_texts)
                order by x."timestamp" desc, x.seq desc offset 0
            ) as c
            where to_tsvector('simple', left(c.message, 1000)) @@ v_query
            limit p_limit);
        if v_new <> '{}' then
            v_found := array(
                select f from unnest(v_found || v_new) as f
                order by f."timestamp" desc, f.run_id desc, f.seq desc limit p_limit);
        end if;
    end loop;
    return query
        select f.run_id, r.run_number, f.seq, f."timestamp", f.log_level, f.message
        from unnest(v_found) with ordinality as f
        join ops.runs as r on r.id = f.run_id
        order by f.ordinality;
end
$$;

CREATE FUNCTION ops.search_run_logs(p_query text, p_project_id uuid DEFAULT NULL::uuid, p_run_id uuid DEFAULT NULL::uuid, p_limit integer DEFAULT 100, p_before timestamp with time zone DEFAULT NULL::timestamp with time zone, p_before_run_id uuid DEFAULT NULL::uuid, p_before_seq bigint DEFAULT NULL::bigint) RETURNS TABLE(run_id uuid, run_number integer, seq bigint, "timestamp" timestamp with time zone, log_level text, message text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT s.run_id,
     s.run_number,
     s.seq,
     s."timestamp",
     s.log_level,
     s.message
    FROM ops_private.search_run_logs(search_run_logs.p_query, search_run_logs.p_project_id, search_run_logs.p_run_id, search_run_logs.p_limit, search_run_logs.p_before, search_run_logs.p_before_run_id, search_run_logs.p_before_seq) s(run_id, run_number, seq, "timestamp", log_level, message);
END;

CREATE FUNCTION ops_private.set_member(p_project_id uuid, p_user_id uuid, p_role text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_refusal constant jsonb := ops_private.locked_member_refusal(p_project_id, p_user_id, coalesce(p_role, ''));
    v_held text;
begin
    if v_refusal is not null then
        return v_refusal;
    elsif p_user_id is null then
        return ops_private.refusal('bad_argument', 'the user_id must not be null');
    elsif (p_role in ('viewer', 'developer', 'admin', 'owner')) is not true then
        return ops_private.refusal('bad_argument', 'the role must be viewer, developer, admin or owner');
    end if;
    select m.role into v_held from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = p_user_id;
    if v_held is distinct from p_role then
        insert into ops.project_memberships (project_id, user_id, role) values (p_project_id, p_user_id, p_role)
        on conflict (project_id, user_id) do update set role = excluded.role;
    end if;
    return jsonb_build_object(
        'success', true, 'role', p_role, 'previous_role', v_held, 'changed', v_held is distinct from p_role);
exception
    when foreign_key_violation then
        return ops_private.refusal('not_found', 'there is no such user');
    when sqlstate 'OPS03' then
        return ops_private.refusal('last_owner', sqlerrm);
end
$$;

CREATE FUNCTION ops.set_member(p_project_id uuid, p_user_id uuid, p_role text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.set_member(p_project_id, p_user_id, p_role);

CREATE FUNCTION ops_private.set_webhook_secret(p_project_id uuid, p_secret text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_refusal constant jsonb := ops_private.role_refusal(
        (select p.id from ops.projects as p where p.id = p_project_id), '{owner}'::text[],
        'set the secret of the webhook', 'project');
begin
    if v_refusal is not null then
        return v_refusal;
    elsif octet_length(p_secret) not between 16 and 1000 then
        return ops_private.refusal('bad_argument', 'the secret must have 16 to 1000 bytes');
    elsif p_secret is null then
        delete from ops_private.webhooks as h where h.project_id = p_project_id;
        return jsonb_build_object('success', true, 'set', false);
    end if;
    insert into ops_private.webhooks (project_id, secret, set_at, set_by)
    values (p_project_id, p_secret, ops_private.current_time(), ops_private.actor())
    on conflict (project_id) do update
    set secret = excluded.secret, set_at = excluded.set_at, set_by = excluded.set_by;
    return jsonb_build_object('success', true, 'set', true);
end
$$;

CREATE FUNCTION ops.set_webhook_secret(p_project_id uuid, p_secret text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.set_webhook_secret(p_project_id, p_secret);

CREATE FUNCTION ops.settle_delivery(p_delivery_id uuid, p_instance_id uuid, p_error text DEFAULT NULL::text, p_final boolean DEFAULT false) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_message ops_private.outbox;
    v_given_up boolean;
begin
    perform ops_private.check_notifier();
    select o.* into v_message from ops_private.outbox as o
    where o.delivery_id = p_delivery_id and o.leased_by = p_instance_id
    for update;
    if v_message.delivery_id is null then
        return ops_private.refusal('not_found', 'this instance does not hold such a message');
    end if;
    v_given_up := p_error is not null and (
        p_final is true or v_message.attempts >= 20 or v_message.created_at <= v_now - interval '24 hours');
    if p_error is null or v_given_up then
        delete from ops_private.outbox as o where o.delivery_id = p_delivery_id;
    else
        update ops_private.outbox as o
        set leased_by = null, last_error = left(p_error, 500),
            due_at = v_now + ops_private.backoff(o.attempts, 10)
        where o.delivery_id = p_delivery_id;
    end if;
    return jsonb_build_object('success', true, 'given_up', v_given_up);
end
$$;

CREATE FUNCTION ops.shut_out_worker(p_name text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops.start_workflow_run(p_run_id uuid, p_worker_id text, p_instance_id uuid DEFAULT NULL::uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.sync_project(p_project jsonb, p_dry_run boolean) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_refusal jsonb := ops_private.refusal('bad_argument', ops_private.bad_project(p_project));
    v_found ops.projects;
    v_row ops.projects;
    v_settings record;
    v_answer jsonb;
begin
    if v_refusal ->> 'error' is not null then
        return v_refusal;
    end if;
    select p.* into v_found from ops.projects as p where p.slug = p_project ->> 'slug';
    v_refusal := ops_private.role_refusal(
        v_found.id, '{developer,admin,owner}'::text[], 'change the workflows of a project',
        'project, and only service_role creates one');
    if v_refusal is not null and (v_found.id is not null or not ops_private.trusted()) then
        return v_refusal;
    end if;
    begin
        -- one at a time, so that each answer says what its own call changed; queueing does not wait
        select p.* into v_row from ops.projects as p where p.id = v_found.id for no key update;
        if v_row.id is distinct from v_found.id then
            return ops_private.refusal('not_found', 'there is no such project any more');
        end if;
        v_settings := ops_private.sync_settings(p_project, v_row);
        if v_settings.refusal is not null then
            return v_settings.refusal;
        end if;
        select p.* into v_row from ops.projects as p where p.slug = p_project ->> 'slug';
        v_answer := ops_private.sync_workflows(v_row, coalesce(p_project -> 'workflows', '[]'));
        v_refusal := ops_private.refusal('bad_argument', ops_private.bad_push_name(v_row));
        if p_dry_run then  -- rows that are taken back have no id
            v_row.id := v_found.id;
            v_answer := (
                select coalesce(jsonb_agg(case w.value ->> 'change'
                    when 'added' then w.value || '{"workflow_id": null}' else w.value end order by w.i), '[]')
                from jsonb_array_elements(v_answer) with ordinality as w (value, i));
        end if;
        if v_refusal ->> 'error' is not null or p_dry_run then
            raise exception 'nothing is to be changed' using errcode = 'OPS05';
        end if;
    exception
        when check_violation then
            return ops_private.refusal('bad_argument', sqlerrm);
        when insufficient_privilege then
            return ops_private.refusal('not_allowed', sqlerrm);
        when sqlstate 'OPS05' then  -- all of the block is undone
            if v_refusal ->> 'error' is not null then
                return v_refusal;
            end if;
    end;
    return jsonb_build_object(
        'success', true, 'dry_run', coalesce(p_dry_run, false),
        'project', jsonb_build_object('project_id', v_row.id, 'slug', v_row.slug, 'change', v_settings.change,
            'fields', v_settings.fields),
        'workflows', v_answer);
end
$$;

CREATE FUNCTION ops.sync_project(p_project jsonb, p_dry_run boolean DEFAULT false) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.sync_project(p_project, p_dry_run);

CREATE FUNCTION ops_private.sync_tools(p_tools jsonb, p_dry_run boolean) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_wrong text := ops_private.bad_tools(p_tools);
    v_tool record;
    v_before record;
    v_change text;
    v_changes jsonb[] := '{}'::jsonb[];
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role changes the tools'
            using errcode = 'insufficient_privilege';
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    begin
        -- one at a time, so that each answer says what its own call changed; readers do not wait
        lock table ops.tools in share row exclusive mode;
        for v_tool in
            select t.i, t.value ->> 'tool_name' as tool_name, t.value ->> 'version' as version,
                t.value ->> 'docker_image' as docker_image, coalesce(t.value -> 'config', '{}'::jsonb) as config
            from jsonb_array_elements(p_tools) with ordinality as t (value, i)
        loop
            select t.docker_image, t.config into v_before
            from ops.tools as t where t.tool_name = v_tool.tool_name and t.version = v_tool.version;
            if not found then
                v_change := 'added';
                insert into ops.tools (tool_name, version, docker_image, config)
                values (v_tool.tool_name, v_tool.version, v_tool.docker_image, v_tool.config);
            elsif (v_before.docker_image, v_before.config) = (v_tool.docker_image, v_tool.config) then
                v_change := 'unchanged';
            else
                v_change := 'changed';
                update ops.tools as t set docker_image = v_tool.docker_image, config = v_tool.config
                where t.tool_name = v_tool.tool_name and t.version = v_tool.version;
            end if;
            v_changes := array_append(v_changes, jsonb_build_object(
                'tool_name', v_tool.tool_name, 'version', v_tool.version, 'change', v_change,
                'docker_image', v_tool.docker_image, 'config', v_tool.config,
                'previous_image', v_before.docker_image, 'previous_config', v_before.config));
        end loop;
        if p_dry_run then
            raise exception 'a dry run changes nothing' using errcode = 'OPS05';
        end if;
    exception
        when check_violation then
            get stacked diagnostics v_wrong = constraint_name;
            return ops_private.refusal('bad_argument', format('tools[%s] breaks the rule %s', v_tool.i - 1, v_wrong));
        when sqlstate 'OPS05' then null;  -- all of the block is undone
    end;
    return jsonb_build_object(
        'success', true, 'dry_run', coalesce(p_dry_run, false), 'tools', to_jsonb(v_changes));
end
$$;

CREATE FUNCTION ops.sync_tools(p_tools jsonb, p_dry_run boolean DEFAULT false) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    RETURN ops_private.sync_tools(p_tools, p_dry_run);

CREATE FUNCTION ops.take_deliveries(p_worker_id text, p_instance_id uuid, p_destinations text[]) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_taken jsonb;
begin
    perform ops_private.check_notifier();
    if p_worker_id is null or p_instance_id is null then
        return ops_private.refusal('bad_argument', 'the worker_id and the instance_id must not be null');
    elsif (cardinality(p_destinations) <= 50) is not true then
        return ops_private.refusal('bad_argument', 'the destinations must be a list of at most 50 names');
    end if;
    update ops_private.destinations as d set seen_at = v_now
    where d.worker_id = p_worker_id and d.seen_at < v_now - interval '10 minutes';
    if found then
        perform ops_private.prune_outbox();
    end if;
    with due as materialized (
        select m.delivery_id
        from ops_private.destinations as d
        cross join lateral (
            select o.delivery_id from ops_private.outbox as o
            where o.destination = d.name and o.due_at <= v_now
                and not exists (
                    select from ops_private.outbox as e
                    where e.run_id = o.run_id and e.destination = o.destination and e.seq < o.seq)
            order by o.due_at limit 5
            for update skip locked
        ) as m
        where d.worker_id = p_worker_id and d.name = any (p_destinations)
    ), taken as (
        update ops_private.outbox as o
        set due_at = v_now + interval '5 minutes', attempts = o.attempts + 1, leased_by = p_instance_id
        from due where o.delivery_id = due.delivery_id
        returning o as message
    )
    select jsonb_agg(ops_private.delivery_payload(t.message) order by (t.message).seq) into v_taken from taken as t;
    return jsonb_build_object(
        'success', true, 'deliveries', coalesce(v_taken, '[]'),
        'registered', exists (select from ops_private.destinations as d where d.worker_id = p_worker_id));
end
$$;

CREATE FUNCTION ops.unclaimable_runs(p_labels text[] DEFAULT '{}'::text[]) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION ops.unregister_worker(p_worker_id text, p_instance_id uuid) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.worker_overview() RETURNS TABLE(worker_id text, alive boolean, version text, labels text[], started_at timestamp with time zone, expires_at timestamp with time zone, db_role text, runs jsonb, disk_free bigint, disk_total bigint, drained_at timestamp with time zone, drained_by text, drain_reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_trusted constant boolean := ops_private.trusted();
    v_projects constant uuid[] := ops_private.visible_projects();
begin
    if not v_trusted and v_projects = '{}' then
        return;
    end if;
    return query
        with held as (
            select l.worker_id, jsonb_agg(
                jsonb_build_object(
                    'run_id', r.id, 'run', p.slug || '#' || r.run_number, 'status', r.status,
                    'started_at', r.started_at, 'lease_expires_at', l.expires_at)
                order by r.claimed_at, r.id) as runs
            from ops_private.leases as l
            join ops.runs as r on r.id = l.run_id
            join ops.projects as p on p.id = r.project_id
            where l.project_id = any (v_projects)
            group by l.worker_id
        )
        select coalesce(w.worker_id, h.worker_id, i.worker_id),
            coalesce(w.expires_at > ops_private.current_time(), false), w.version, w.labels, w.started_at, w.expires_at,
            case when v_trusted then w.db_role end, coalesce(h.runs, '[]'), w.disk_free, w.disk_total, i.drained_at,
            i.drained_by, i.drain_reason
        from ops_private.workers as w
        full join held as h on h.worker_id = w.worker_id
        full join (select k.* from ops_private.worker_ids as k where k.drained_at is not null) as i
            on i.worker_id = coalesce(w.worker_id, h.worker_id)
        order by 1;
end
$$;

CREATE FUNCTION ops.worker_overview() RETURNS TABLE(worker_id text, alive boolean, version text, labels text[], started_at timestamp with time zone, expires_at timestamp with time zone, db_role text, runs jsonb, disk_free bigint, disk_total bigint, drained_at timestamp with time zone, drained_by text, drain_reason text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT w.worker_id,
     w.alive,
     w.version,
     w.labels,
     w.started_at,
     w.expires_at,
     w.db_role,
     w.runs,
     w.disk_free,
     w.disk_total,
     w.drained_at,
     w.drained_by,
     w.drain_reason
    FROM ops_private.worker_overview() w(worker_id, alive, version, labels, started_at, expires_at, db_role, runs, disk_free, disk_total, drained_at, drained_by, drain_reason);
END;

CREATE FUNCTION ops_private.workflow_overview() RETURNS TABLE(workflow_id uuid, project_id uuid, next_at timestamp with time zone, schedule_problem text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_projects constant uuid[] := ops_private.visible_projects();
begin
    return query
        select w.id, w.project_id, min(s.next_at) filter (where w.enabled and p.status = 'active'), max(s.problem)
        from ops.workflows as w
        join ops.projects as p on p.id = w.project_id
        left join ops_private.schedules as s on s.workflow_id = w.id
        where w.project_id = any (v_projects)
        group by w.id, p.id;
end
$$;

CREATE FUNCTION ops.workflow_overview() RETURNS TABLE(workflow_id uuid, project_id uuid, next_at timestamp with time zone, schedule_problem text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT w.workflow_id,
     w.project_id,
     w.next_at,
     w.schedule_problem
    FROM ops_private.workflow_overview() w(workflow_id, project_id, next_at, schedule_problem);
END;

CREATE FUNCTION ops_private.actor() RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return case ops_private.caller()
        when 'authenticated' then coalesce(ops.current_user_id()::text, 'authenticated')
        else ops_private.caller() end;
end
$$;

CREATE FUNCTION ops_private.add_event(p_run_id uuid, p_event_type text, p_message text, p_payload jsonb) RETURNS uuid
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_event_id uuid;
begin
    insert into ops.run_events (run_id, event_type, message, payload)
    values (p_run_id, p_event_type, p_message, p_payload)
    returning id into v_event_id;
    return v_event_id;
end
$$;

CREATE FUNCTION ops_private.add_log_blocks(p_run_id uuid, p_project_id uuid, p_from bigint, p_before bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    insert into ops_private.log_blocks (run_id, first_seq, last_seq, first_at, last_at, lines, words)
    select p_run_id, min(g.seq), max(g.seq), min(g."timestamp"), max(g."timestamp"), count(*),
        array_to_tsvector(
            ops_private.words_of_lines(string_agg(g.message, E'\n' order by g.seq)) || p_project_id::text)
    from (
        select x.seq, x."timestamp", left(x.message, 1000) as message,
            (row_number() over seqs - 1) / 250 as number,
            sum(octet_length(left(x.message, 1000)) + 1) over seqs / 262144 as size
        from ops.run_logs as x
        where x.run_id = p_run_id and x.seq >= p_from and x.seq < p_before
        window seqs as (order by x.seq)
    ) as g
    group by g.number, g.size;
end
$$;

CREATE FUNCTION ops_private.add_log_partitions() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
declare
    v_week constant timestamp := date_trunc('week', ops_private.current_time() at time zone 'UTC');
    v_name text;
begin
    for v_weeks in 0 .. 2 loop
        v_name := to_char(v_week + v_weeks * interval '7 days', '"run_logs_"YYYYMMDD');
        begin
            continue when to_regclass('ops_private.' || v_name) is not null
                or not pg_try_advisory_xact_lock(hashtext('ops_private.add_log_partitions'))
                or v_weeks = 0 and exists (select from ops_private.run_logs_other);
            execute format('create table ops_private.%I (like ops.run_logs including all)', v_name);
            execute format('alter table ops_private.%I enable row level security', v_name);
            execute format(
                'alter table ops.run_logs attach partition ops_private.%I for values from (%L) to (%L)', v_name,
                ops_private.first_run_id((v_week + v_weeks * interval '7 days') at time zone 'UTC'),
                ops_private.first_run_id((v_week + (v_weeks + 1) * interval '7 days') at time zone 'UTC'));
        exception when lock_not_available or check_violation then
            null;  -- check_violation: run_logs_other has lines of this week
        end;
    end loop;
end
$$;

CREATE TABLE ops_private.leases (
    run_id uuid NOT NULL,
    worker_id text NOT NULL,
    instance_id uuid,
    db_role text NOT NULL,
    engine_id text,
    lease_seconds integer NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    renewed boolean DEFAULT false NOT NULL,
    log_position bigint DEFAULT 0 NOT NULL,
    lost integer DEFAULT 0 NOT NULL,
    lost_since timestamp with time zone,
    handed_over boolean DEFAULT false NOT NULL,
    project_id uuid NOT NULL,
    concurrency_key text,
    CONSTRAINT leases_lease_seconds_check CHECK ((lease_seconds > 0))
)
WITH (fillfactor='50');

COMMENT ON COLUMN ops_private.leases.renewed IS 'Whether the present holder has renewed the lease.';

COMMENT ON COLUMN ops_private.leases.log_position IS 'The last journal line that was stored when the present holder claimed or adopted the run.';

COMMENT ON COLUMN ops_private.leases.lost IS 'How many holders in a row were lost before they stored a line, or renewed the lease of a created container.';

COMMENT ON COLUMN ops_private.leases.lost_since IS 'When the first of these losses was noticed.';

COMMENT ON COLUMN ops_private.leases.handed_over IS 'Whether the present holder has unregistered, so that its next instance adopts the run.';

CREATE FUNCTION ops_private.adopt_refusal(p_status text, p_lease ops_private.leases, p_worker_id text, p_instance_id uuid, p_engine_id text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_taken constant text := ops_private.worker_id_taken(p_worker_id, p_instance_id);
begin
    return case
        when p_status is null then ops_private.refusal('not_found', 'there is no such run')
        when ops_private.is_final(p_status) then
            ops_private.refusal('final', format('the run is already %s', p_status))
        when p_status = 'queued' then ops_private.refusal('not_claimed', 'the run is queued')
        when p_lease.db_role <> ops_private.caller() and not ops_private.trusted() then
            ops_private.refusal('not_owner', 'another worker holds the run')
        when v_taken is not null then ops_private.refusal('worker_id_taken', v_taken)
        when not ops_private.may_adopt(p_lease, p_worker_id, p_engine_id) then
            ops_private.refusal('not_owner', 'another worker holds the run')
    end;
end
$$;

CREATE FUNCTION ops_private.applied_migrations() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_versions jsonb;
begin
    if to_regclass('supabase_migrations.schema_migrations') is not null then
        execute 'select jsonb_agg(m.version order by m.version) from supabase_migrations.schema_migrations as m'
            into v_versions;
    end if;
    return coalesce(v_versions, '[]');
end
$$;

CREATE FUNCTION ops_private.apply_push(p_project_id uuid, p_forge text, p_event text, p_delivery text, p_digest text, p_body jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_push constant jsonb := (select p.config -> 'push' from ops.projects as p where p.id = p_project_id);
    v_nothing constant jsonb := jsonb_build_object('success', true, 'runs', '[]'::jsonb, 'canceled', '[]'::jsonb);
    v_branch record;
    v_names jsonb;
    v_metadata jsonb;
begin
    v_branch := ops_private.branch_of(p_event, p_body);
    if v_branch.ignored is not null then
        return v_nothing || jsonb_build_object('message', 'nothing: ' || v_branch.ignored);
    elsif ops_private.bad_push(v_push) is not null or v_push is null then
        return v_nothing || jsonb_build_object('message', 'nothing: the project has no rules for pushes');
    end if;
    v_names := ops_private.branch_rule(v_push, v_branch.branch);
    if v_names is null then
        return v_nothing || jsonb_build_object(
            'message', format('nothing: no rule matches the branch %s', v_branch.branch));
    end if;
    perform ops_private.lock_queue(p_project_id);
    if v_branch.commit is null then
        return v_nothing || jsonb_build_object(
            'canceled', ops_private.cancel_branch(p_project_id, v_names, v_branch.branch),
            'message', format('the branch %s is deleted', v_branch.branch));
    end if;
    v_metadata := jsonb_build_object(
        'git_ref', v_branch.branch, 'git_commit', v_branch.commit,
        'push', jsonb_strip_nulls(jsonb_build_object('forge', p_forge, 'delivery', p_delivery)));
    return v_nothing || jsonb_build_object(
        'message', format('push to %s', v_branch.branch),
        'runs', (
            select coalesce(jsonb_agg(
                ops_private.queue_push(p_project_id, e.name, v_metadata, p_digest)
                order by e.place), '[]'::jsonb)
            from jsonb_array_elements_text(v_names) with ordinality as e (name, place)));
end
$$;

CREATE FUNCTION ops_private.archived_projects(p_database_id uuid, p_project_ids uuid[]) RETURNS TABLE(project_id uuid, workspace_key text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select a.id, p.workspace_key
    from unnest(p_project_ids) as a (id)
    left join ops.projects as p on p.id = a.id
    where p.status is distinct from 'active'
        and exists (
            select from ops_private.control as c
            where c.database_id = p_database_id and c.fingerprint = ops_private.fingerprint());
$$;

CREATE FUNCTION ops_private.backoff(p_attempt integer, p_first double precision) RETURNS interval
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return make_interval(secs => (1 - random() / 2) * least(3600, p_first * power(2, least(p_attempt, 20) - 1)));
end
$$;

CREATE FUNCTION ops_private.is_git_ref(p_ref text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    return length(p_ref) <= 255 and p_ref ~ '^(?![-/.])(?!.*(\.\.|//|@\{))[^\x01-\x20\x7f~^:?*\[\\]+$' and p_ref !~ '[/.]$';
end
$_$;

CREATE TABLE ops.workflows (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    project_id uuid NOT NULL,
    workflow_type text NOT NULL,
    name text NOT NULL,
    description text,
    enabled boolean DEFAULT true NOT NULL,
    git_ref text,
    git_commit text,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT workflows_config_at_most_256_kib CHECK ((octet_length((config)::text) <= 262144)),
    CONSTRAINT workflows_config_at_most_32_deep CHECK ((NOT jsonb_path_exists(config, 'strict $.**{33}'::jsonpath))),
    CONSTRAINT workflows_config_check CHECK ((jsonb_typeof(config) = 'object'::text)),
    CONSTRAINT workflows_git_commit_format CHECK ((git_commit ~ '^[0-9A-Za-z]{1,64}$'::text)),
    CONSTRAINT workflows_git_ref_format CHECK (ops_private.is_git_ref(git_ref)),
    CONSTRAINT workflows_texts_fit CHECK (((length(name) <= 200) AND (length(description) <= 10000))),
    CONSTRAINT workflows_workflow_type_check CHECK ((workflow_type = ANY (ARRAY['build'::text, 'test'::text, 'deploy'::text, 'backup'::text, 'upgrade'::text])))
);

CREATE FUNCTION ops_private.bad_chain(p_workflow ops.workflows) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_wrong constant text := (
        select ops_private.bad_name(n.name, n.found) from ops_private.next_workflows(p_workflow) as n
        where cardinality(n.found) <> 1 limit 1);
    v_before jsonb := '{}'::jsonb;  -- of each workflow that is reached, the one before it
    v_front uuid[] := array[p_workflow.id];
    v_cycle uuid[] := array[p_workflow.id];
begin
    if v_wrong is not null then
        return 'then: ' || v_wrong;
    end if;
    while cardinality(v_front) > 0 loop
        select coalesce(array_agg(s.id), '{}'::uuid[]), v_before || coalesce(jsonb_object_agg(s.id, s.before), '{}'::jsonb)
        into v_front, v_before
        from (
            select distinct on (n.found[1]) n.found[1] as id, w.id as before
            from ops.workflows as w
            cross join lateral ops_private.next_workflows(w) as n
            where w.id = any (v_front) and cardinality(n.found) = 1 and not v_before ? n.found[1]::text
            order by n.found[1], w.id
        ) as s;
        if v_before ? p_workflow.id::text then
            loop
                v_cycle := (v_before ->> v_cycle[1]::text)::uuid || v_cycle;
                exit when v_cycle[1] = p_workflow.id;
            end loop;
            return 'then: expected no cycle, got '
                || array_to_string(ops_private.names_of(v_cycle), ' -> ');
        end if;
    end loop;
    return null;
end
$$;

CREATE FUNCTION ops_private.bad_config(p_config jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.bad_cron(p_cron text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_wrong text;
begin
    if length(p_cron) > 200 or (select count(*) from regexp_split_to_table(btrim(p_cron), '\s+')) <> 5 then
        return 'expected five fields: minute, hour, day of month, month, day of week';
    end if;
    select format(
        '%s: expected numbers from %s to %s, as a list, a range or steps, got "%s"', f.name, f.lowest,
        f.highest, left(f.field, 60))
    into v_wrong
    from ops_private.cron_fields(p_cron) as f where f.field_values is null limit 1;
    if v_wrong is null and ops_private.next_time(p_cron, 'UTC', ops_private.current_time()) is null then
        return 'expected a day that exists';
    end if;
    return v_wrong;
end
$$;

CREATE FUNCTION ops_private.bad_destination(p_destination jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_key text;
begin
    if jsonb_typeof(p_destination) is distinct from 'object'
        or jsonb_typeof(p_destination -> 'name') is distinct from 'string'
        or (p_destination ->> 'name' ~ '^[a-z0-9-]{1,60}$') is not true
        or jsonb_typeof(p_destination -> 'commits_only') is distinct from 'boolean' then
        return 'the destinations must be objects with name (lower case letters, digits and -) and commits_only';
    end if;
    foreach v_key in array '{events,projects,workflows,branches}'::text[] loop
        if jsonb_typeof(p_destination -> v_key) is distinct from 'array'
            or jsonb_array_length(p_destination -> v_key) not between 1 and 100
            or exists (
                select from jsonb_array_elements(p_destination -> v_key) as e (item)
                where jsonb_typeof(e.item) <> 'string' or length(e.item #>> '{}') not between 1 and 255) then
            return format('the destinations.%s must be a list of 1 to 100 texts of 1 to 255 characters', v_key);
        end if;
    end loop;
    return null;
end
$_$;

CREATE FUNCTION ops_private.bad_document(p_name text, p_document jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    return case
        when jsonb_typeof(p_document) <> 'object' then format('the %s must be an object', p_name)
        when octet_length(p_document::text) > 262144 then format('the %s must have at most 256 KiB', p_name)
        when jsonb_path_exists(p_document, 'strict $.**{33}') then
            format('the %s must be nested at most 32 deep', p_name)
    end;
end
$_$;

CREATE FUNCTION ops_private.bad_metadata(p_metadata jsonb, p_config jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops_private.bad_name(p_name text, p_found uuid[]) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return case cardinality(p_found)
        when 1 then null
        when 0 then format('the project has no workflow "%s"', left(p_name, 60))
        else format('"%s" may mean several workflows; expected one of %s', left(p_name, 60),
            array_to_string((ops_private.names_of(p_found))[:10], ', ')) end;
end
$$;

CREATE FUNCTION ops_private.bad_object(p_value jsonb, p_texts jsonb, p_needed text[], p_others jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if jsonb_typeof(p_value) is distinct from 'object' then
        return ': expected an object';
    end if;
    return coalesce(
        (
            select format('.%s: unknown key; expected one of %s', left(k.key, 100), (
                select string_agg(x.key, ', ' order by x.key) from jsonb_object_keys(p_texts || p_others) as x (key)))
            from jsonb_object_keys(p_value) as k (key) where not (p_texts || p_others) ? k.key order by k.key limit 1
        ), (
            select format('.%s: expected a text of %s to %s characters', k.key, (k.key = any (p_needed))::integer, k.most)
            from jsonb_each_text(p_texts) as k (key, most)
            where (p_value -> k.key <> 'null' or k.key = any (p_needed))
                and (jsonb_typeof(p_value -> k.key) = 'string' and length(p_value ->> k.key)
                    between (k.key = any (p_needed))::integer and k.most::integer) is not true
            order by k.key limit 1
        ), (
            select format('.%s: expected %s', k.key, k.kind)
            from jsonb_each_text(p_others) as k (key, kind)
            where p_value ? k.key and jsonb_typeof(p_value -> k.key) <> split_part(k.kind, ' ', 2)
            order by k.key limit 1
        ));
end
$$;

CREATE FUNCTION ops_private.bad_project(p_project jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_wrong text := ops_private.bad_object(
        p_project,
        '{"slug": 100, "workspace_key": 100, "name": 200, "description": 10000, "odoo_version": 20, "status": 20}',
        '{slug,name,odoo_version}'::text[],
        '{"config": "an object", "limits": "an object", "workflows": "an array"}');
    v_workflow record;
    v_twin text;
begin
    v_wrong := coalesce(v_wrong, case
        when p_project ->> 'slug' !~ '^[a-z0-9-]+$' then '.slug: expected lower case letters, digits and -'
        when p_project ->> 'workspace_key' !~ '^[a-z0-9_]+$' then
            '.workspace_key: expected lower case letters, digits and _'
        when p_project ->> 'odoo_version' !~ '^\d+\.\d+$' then '.odoo_version: expected a version such as 19.0'
        when p_project ->> 'status' not in ('active', 'archived') then '.status: expected active or archived'
        when (p_project -> 'limits') - '{max_active_runs,max_queued_runs}'::text[] <> '{}' then
            '.limits: expected max_active_runs and max_queued_runs'
        when jsonb_array_length(p_project -> 'workflows') > 200 then '.workflows: expected at most 200'
    end, (
        select format('.limits.%s: expected a whole number of at least 1', l.key)
        from jsonb_each(p_project -> 'limits') as l
        where l.value <> 'null' and not ops_private.is_whole_number(l.value, 1, 2147483647) order by l.key limit 1));
    if v_wrong is not null then
        return 'project' || v_wrong;
    end if;
    for v_workflow in
        select w.value, w.i - 1 as i
        from jsonb_array_elements(p_project -> 'workflows') with ordinality as w (value, i)
    loop
        v_wrong := coalesce(ops_private.bad_object(
            v_workflow.value,
            '{"workflow_type": 20, "name": 200, "description": 10000, "git_ref": 255, "git_commit": 64}',
            '{workflow_type,name}'::text[], '{"enabled": "a boolean", "config": "an object"}'),
            case
                when v_workflow.value ->> 'workflow_type' not in ('build', 'test', 'deploy', 'backup', 'upgrade') then
                    '.workflow_type: expected build, test, deploy, backup or upgrade'
                when not ops_private.is_git_ref(v_workflow.value ->> 'git_ref') then
                    '.git_ref: expected the name of a branch, a tag or a ref'
                when v_workflow.value ->> 'git_commit' !~ '^[0-9A-Za-z]{1,64}$' then
                    '.git_commit: expected letters and digits'
                else ': ' || ops_private.bad_config(v_workflow.value -> 'config')
            end);
        if v_wrong is not null then
            return format('project.workflows[%s]%s', v_workflow.i, v_wrong);
        end if;
    end loop;
    select t.value ->> 'workflow_type' || '/' || (t.value ->> 'name') into v_twin
    from jsonb_array_elements(p_project -> 'workflows') as t (value) group by 1 having count(*) > 1 order by 1 limit 1;
    return case when v_twin is not null then format('project.workflows: two have the type and the name %s', v_twin) end;
end
$_$;

CREATE FUNCTION ops_private.bad_push(p_push jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_rule record;
begin
    if jsonb_typeof(p_push) <> 'object' or p_push - '{repository,branches}'::text[] <> '{}'::jsonb then
        return 'push: expected repository and branches';
    elsif (jsonb_typeof(p_push -> 'repository') = 'string'
        and length(p_push ->> 'repository') between 1 and 300) is not true then
        return 'push.repository: expected the full name of a repository, such as acme/shop';
    elsif (jsonb_typeof(p_push -> 'branches') = 'array'
        and jsonb_array_length(p_push -> 'branches') <= 50) is not true then
        return 'push.branches: expected a list of at most 50 rules';
    end if;
    for v_rule in
        select e.rule, e.place - 1 as place
        from jsonb_array_elements(p_push -> 'branches') with ordinality as e (rule, place)
    loop
        if jsonb_typeof(v_rule.rule) <> 'object' or v_rule.rule - '{match,run}'::text[] <> '{}'::jsonb then
            return format('push.branches.%s: expected match and run', v_rule.place);
        elsif (jsonb_typeof(v_rule.rule -> 'match') = 'string'
            and length(v_rule.rule ->> 'match') between 1 and 255) is not true then
            return format('push.branches.%s.match: expected a pattern such as feature/*', v_rule.place);
        elsif (jsonb_typeof(v_rule.rule -> 'run') = 'array' and jsonb_array_length(v_rule.rule -> 'run') <= 10
            and not jsonb_path_exists(v_rule.rule -> 'run', 'strict $[*] ? (@.type() != "string")')) is not true then
            return format('push.branches.%s.run: expected a list of at most 10 names of workflows', v_rule.place);
        end if;
    end loop;
    return null;
end
$_$;

CREATE TABLE ops.projects (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    workspace_key text NOT NULL,
    slug text NOT NULL,
    name text NOT NULL,
    description text,
    odoo_version text NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT projects_config_at_most_256_kib CHECK ((octet_length((config)::text) <= 262144)),
    CONSTRAINT projects_config_at_most_32_deep CHECK ((NOT jsonb_path_exists(config, 'strict $.**{33}'::jsonpath))),
    CONSTRAINT projects_config_check CHECK ((jsonb_typeof(config) = 'object'::text)),
    CONSTRAINT projects_odoo_version_format CHECK ((odoo_version ~ '^\d+\.\d+$'::text)),
    CONSTRAINT projects_slug_format CHECK ((slug ~ '^[a-z0-9-]+$'::text)),
    CONSTRAINT projects_status_check CHECK ((status = ANY (ARRAY['active'::text, 'archived'::text]))),
    CONSTRAINT projects_texts_fit CHECK (((length(workspace_key) <= 100) AND (length(slug) <= 100) AND (length(name) <= 200) AND (length(description) <= 10000) AND (length(odoo_version) <= 20))),
    CONSTRAINT projects_workspace_key_format CHECK ((workspace_key ~ '^[a-z0-9_]+$'::text))
);

CREATE FUNCTION ops_private.bad_push_name(p_project ops.projects) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        select format('project.config.push.branches.%s.run: %s', b.i - 1, w.wrong)
        from jsonb_array_elements(p_project.config #> '{push,branches}') with ordinality as b (rule, i)
        cross join lateral jsonb_array_elements_text(b.rule -> 'run') with ordinality as r (name, place)
        cross join lateral ops_private.bad_name(
            r.name, ops_private.workflows_named(p_project.id, r.name)) as w (wrong)
        where w.wrong is not null order by b.i, r.place limit 1);
end
$$;

CREATE FUNCTION ops_private.bad_request(p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.bad_retry(p_retry jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.bad_schedule(p_schedule jsonb) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_entry record;
    v_wrong text;
begin
    if jsonb_typeof(p_schedule) <> 'array' then
        return 'schedule: expected a list';
    elsif jsonb_array_length(p_schedule) > 20 then
        return 'schedule: expected at most 20 entries';
    end if;
    for v_entry in
        select e.line, e.place - 1 as place from jsonb_array_elements(p_schedule) with ordinality as e (line, place)
    loop
        v_wrong := case
            when jsonb_typeof(v_entry.line) <> 'object'
                or v_entry.line - '{cron,timezone,catch_up}'::text[] <> '{}' then
                ': expected cron, timezone and catch_up'
            when jsonb_typeof(v_entry.line -> 'cron') is distinct from 'string' then '.cron: expected a text'
            when v_entry.line ? 'catch_up' and (v_entry.line ->> 'catch_up' in ('skip', 'once')) is not true then
                '.catch_up: expected one of skip, once'
            when v_entry.line ? 'timezone' and not exists (
                select from pg_timezone_names as z
                where z.name = v_entry.line ->> 'timezone' and jsonb_typeof(v_entry.line -> 'timezone') = 'string') then
                '.timezone: expected a name such as Europe/Brussels'
            else '.cron, ' || ops_private.bad_cron(v_entry.line ->> 'cron') end;
        if v_wrong is not null then
            return format('schedule.%s%s', v_entry.place, v_wrong);
        end if;
    end loop;
    return null;
end
$$;

CREATE FUNCTION ops_private.bad_tests(p_tests jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops_private.bad_tools(p_tools jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_keys constant text[] := '{tool_name,version,docker_image,config}'::text[];
begin
    if jsonb_typeof(p_tools) is distinct from 'array' then
        return 'the tools must be an array of objects';
    elsif jsonb_array_length(p_tools) not between 1 and 1000 then
        return 'the tools must be 1 to 1000 objects';
    end if;
    return (
        select 'tools[' || t.i - 1 || ']' || w.wrong
        from (
            select e.value, e.i, row_number() over (
                partition by e.value -> 'tool_name', e.value -> 'version' order by e.i) as n
            from jsonb_array_elements(p_tools) with ordinality as e (value, i)
        ) as t
        cross join lateral (
            select case when jsonb_typeof(t.value) <> 'object' then ' must be an object' else coalesce(
                (
                    select '.' || left(k.key, 100) || ': unknown key; expected one of ' || array_to_string(v_keys, ', ')
                    from jsonb_object_keys(t.value) as k (key) where k.key <> all (v_keys) order by k.key limit 1
                ), (
                    select '.' || k.key || ' must be a text of at least one character'
                    from unnest('{tool_name,version,docker_image}'::text[]) with ordinality as k (key, n)
                    where jsonb_typeof(t.value -> k.key) is distinct from 'string' or t.value ->> k.key = ''
                    order by k.n limit 1
                ),
                case
                    when jsonb_typeof(t.value -> 'config') <> 'object' then '.config must be an object'
                    when t.n > 1 then ': an earlier one has the same tool_name and version'
                end
            ) end
        ) as w (wrong)
        where w.wrong is not null
        order by t.i
        limit 1);
end
$$;

CREATE FUNCTION ops_private.bad_triggers(p_config jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return case
        when jsonb_typeof(p_config -> 'then') <> 'array' then 'then: expected a list'
        when jsonb_array_length(p_config -> 'then') > 10 then 'then: expected at most 10 entries'
        when exists (
            select from jsonb_array_elements(p_config -> 'then') as e (name)
            where jsonb_typeof(e.name) <> 'string' or length(e.name #>> '{}') not between 1 and 200) then
            'then: expected texts of 1 to 200 characters'
        when jsonb_typeof(p_config -> 'approval') <> 'boolean' then 'approval: expected true or false'
        when p_config ? 'on_newer'
            and (p_config ->> 'on_newer' in ('queue', 'newest', 'cancel_running')) is not true then
            'on_newer: expected one of queue, newest, cancel_running'
        when p_config ->> 'on_newer' <> 'queue' and coalesce(p_config ->> 'concurrency_key', '') = '' then
            'on_newer: expected a concurrency_key too'
        when p_config ? 'queue_timeout_seconds'
            and not ops_private.is_whole_number(p_config -> 'queue_timeout_seconds', 1, 31536000) then
            'queue_timeout_seconds: expected a whole number from 1 to 31536000'
    end;
end
$$;

CREATE FUNCTION ops_private.bad_worker(p_worker_id text, p_lease_seconds integer) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.become_busy(p_instance_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from ops_private.idle_workers as i where i.instance_id in (
        select k.instance_id from ops_private.idle_workers as k
        where k.instance_id = p_instance_id for update skip locked);
end
$$;

CREATE FUNCTION ops_private.become_idle(p_instance_id uuid, p_labels text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    insert into ops_private.idle_workers as i (instance_id, labels, since)
    select p_instance_id, p_labels, ops_private.current_time()
    where p_instance_id is not null
        and not exists (select from ops_private.idle_workers as k where k.instance_id = p_instance_id)
    on conflict (instance_id) do nothing;
end
$$;

CREATE FUNCTION ops_private.blocked_workflows(p_worker_id text) RETURNS uuid[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_images text[];
begin
    select array_agg(m.docker_image) into v_images from ops_private.missing_images as m
    where m.worker_id = p_worker_id and m.until > ops_private.current_time();
    if v_images is null then
        return '{}'::uuid[];
    end if;
    return array(select w.id from ops.workflows as w where ops_private.tool_image(w.id) = any (v_images));
end
$$;

CREATE FUNCTION ops_private.body_of(p_body bytea) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return convert_from(p_body, 'UTF8')::jsonb;
exception when data_exception or program_limit_exceeded then
    return null;
end
$$;

CREATE FUNCTION ops_private.branch_of(p_event text, p_body jsonb, OUT branch text, OUT commit text, OUT ignored text) RETURNS record
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    if p_event = 'delete' then
        branch := case p_body ->> 'ref_type' when 'branch' then p_body ->> 'ref' end;
    elsif p_event in ('push', 'Push Hook') then
        branch := substring(p_body ->> 'ref' from '^refs/heads/(.+)$');
        commit := nullif(p_body ->> 'after', repeat('0', length(p_body ->> 'after')));
    else
        ignored := format('the event %s starts nothing', left(p_event, 60));
        return;
    end if;
    ignored := case
        when branch is null then 'it is not about a branch'
        when ops_private.is_git_ref(branch) is not true then 'its branch is no name of a git ref'
        when p_event <> 'delete' and coalesce(p_body ->> 'after', '') !~ '^[0-9a-f]{40,64}$' then
            'its commit is not of 40 to 64 hexadecimal digits' end;
end
$_$;

CREATE FUNCTION ops_private.branch_rule(p_push jsonb, p_branch text) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    return (
        select e.rule -> 'run'
        from jsonb_array_elements(p_push -> 'branches') with ordinality as e (rule, place)
        where p_branch ~ ('^' || replace(replace(
            regexp_replace(e.rule ->> 'match', '([^[:alnum:]*])', '\\\1', 'g'), '**', '.+'), '*', '[^/]+') || '$')
        order by e.place limit 1);
end
$_$;

CREATE FUNCTION ops_private.caller() RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return case current_setting('role')
        when 'none' then session_user::text else current_setting('role') end;
end
$$;

CREATE FUNCTION ops_private.calling_worker() RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.cancel_branch(p_project_id uuid, p_names jsonb, p_branch text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_workflows constant uuid[] := array(
        select n.id from jsonb_array_elements_text(p_names) as e (name)
        cross join lateral unnest(ops_private.workflows_named(p_project_id, e.name)) as n (id));
    v_run record;
    v_runs uuid[] := '{}'::uuid[];
begin
    for v_run in
        select r.id, r.status from ops.runs as r
        where r.id = any (array(
                select q.run_id from ops_private.lanes as l
                join ops_private.queued as q on q.lane_id = l.lane_id where l.project_id = p_project_id
                union all
                select a.run_id from ops_private.leases as a where a.project_id = p_project_id))
            and r.workflow_id = any (v_workflows) and r.metadata ->> 'git_ref' = p_branch
            and r.status in ('queued', 'claimed', 'running')
        order by r.id
        for no key update of r
    loop
        perform ops_private.stop_run(
            v_run.id, v_run.status, 'canceled', format('the branch %s is deleted', p_branch));
        v_runs := v_runs || v_run.id;
    end loop;
    return to_jsonb(v_runs);
end
$$;

CREATE FUNCTION ops_private.chain_of(p_run_id uuid) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return array(
        with recursive chain as (
            select r.workflow_id, r.parent_run_id from ops.runs as r where r.id = p_run_id
            union all
            select r.workflow_id, r.parent_run_id from ops.runs as r join chain as c on r.id = c.parent_run_id
        )
        select c.workflow_id from chain as c);
end
$$;

CREATE FUNCTION ops_private.changed_keys(p_before jsonb, p_after jsonb) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return array(
        select k.key from jsonb_object_keys(p_before || p_after) as k (key)
        where k.key <> 'config' and p_before -> k.key is distinct from p_after -> k.key
        union all
        select 'config.' || k.key from jsonb_object_keys((p_before -> 'config') || (p_after -> 'config')) as k (key)
        where p_before #> array['config', k.key] is distinct from p_after #> array['config', k.key]
        order by 1);
end
$$;

CREATE FUNCTION ops_private.channel_of(p_instance_id uuid) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return 'ops_queue_' || left(encode(sha256(convert_to(p_instance_id::text, 'UTF8')), 'hex'), 16);
end
$$;

CREATE FUNCTION ops_private.check_notifier() RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_caller constant text := ops_private.caller();
begin
    if pg_has_role(v_caller::name, to_regrole('ops_notifier'), 'usage') is not true
        and not ops_private.trusted() then
        raise exception 'permission denied for notifications: an operator permits them with: grant ops_notifier to %',
            quote_ident(v_caller) using errcode = 'insufficient_privilege';
    end if;
end
$$;

CREATE FUNCTION ops_private.check_push() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_wrong constant text := ops_private.bad_push(new.config -> 'push');
begin
    if v_wrong is not null then
        raise exception 'project config, %', v_wrong using errcode = 'check_violation';
    end if;
    return null;
end
$$;

CREATE FUNCTION ops_private.check_run(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_statuses text[], p_shared boolean DEFAULT false) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '3s'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION ops_private.check_search(p_query tsquery, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if num_nonnulls(p_project_id, p_run_id) <> 1 then
        raise exception 'a search has either a project_id or a run_id' using errcode = 'invalid_parameter_value';
    elsif numnode(p_query) > 0 is not true then
        raise exception 'the query needs a word' using errcode = 'invalid_parameter_value';
    elsif (p_limit between 1 and 1000) is not true then
        raise exception 'the limit must be from 1 to 1000' using errcode = 'invalid_parameter_value';
    elsif num_nonnulls(p_before, p_before_run_id, p_before_seq) not in (0, 3) then
        raise exception 'before, before_run_id and before_seq go together: they are those of the last line'
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;

CREATE FUNCTION ops_private.check_triggers() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_wrong constant text := coalesce(ops_private.bad_triggers(new.config), ops_private.bad_chain(new));
begin
    if v_wrong is not null then
        raise exception 'workflow config, %', v_wrong using errcode = 'check_violation';
    end if;
    if tg_op = 'UPDATE' and old.config -> 'approval' = 'true' and new.config -> 'approval' is distinct from 'true'
        and not ops_private.trusted()
        and (ops.current_user_role(new.project_id) in ('admin', 'owner')) is not true then
        raise exception 'workflow config, approval: only an admin may remove it'
            using errcode = 'insufficient_privilege';
    end if;
    return null;
end
$$;

CREATE FUNCTION ops_private.check_workflow(p_workflow_id uuid) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.close_ended_logs() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform ops_private.close_log(e.run_id) from (
        select t.run_id from ops_private.log_tails as t join ops.runs as r on r.id = t.run_id
        where ops_private.is_final(r.status) limit 20
    ) as e;
end
$$;

CREATE FUNCTION ops_private.close_log(p_run_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_tail ops_private.log_tails;
    v_next bigint;
begin
    select t.* into v_tail from ops_private.log_tails as t where t.run_id = p_run_id for update skip locked;
    if not found then
        return;
    end if;
    select g.seq into v_next from ops.run_logs as g
    where g.run_id = p_run_id and g.seq >= v_tail.from_seq order by g.seq offset 10000 limit 1;
    perform ops_private.add_log_blocks(
        p_run_id, v_tail.project_id, v_tail.from_seq, coalesce(v_next, 9223372036854775807));
    if v_next is null then
        delete from ops_private.log_tails as t where t.run_id = p_run_id;
    else
        update ops_private.log_tails as t set from_seq = v_next where t.run_id = p_run_id;
    end if;
end
$$;

CREATE FUNCTION ops_private.continue_chain(p_run_id uuid, p_locked boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if p_locked then
        perform ops_private.queue_next_runs(p_run_id);
    else
        insert into ops_private.pending_retries (run_id) values (p_run_id);
    end if;
exception
    when lock_not_available then
        insert into ops_private.pending_retries (run_id) values (p_run_id);
end
$$;

CREATE FUNCTION ops_private.count_runs() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.create_console(p_name text, p_password text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return ops_private.create_login('console', p_name, p_password, '{authenticated,ops_webhook}'::name[], false);
end
$$;

CREATE FUNCTION ops_private.create_login(p_kind text, p_name text, p_password text, p_roles name[], p_inherits boolean) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_role record;
begin
    if p_name !~ '^[a-z][a-z0-9_-]{0,62}$' is not false then
        return ops_private.refusal('bad_argument', format(
            'the name of a %s''s role has up to 63 of a-z, 0-9, _ and -, a letter first', p_kind));
    end if;
    -- a password in plain text could be written to the server's log
    if p_password !~ '^SCRAM-SHA-256\$' is not false then
        return ops_private.refusal('bad_argument', 'the password must be a SCRAM-SHA-256 verifier');
    end if;
    select r.oid, r.rolcanlogin and r.rolinherit = p_inherits
            and not (r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication or r.rolbypassrls)
            and p_roles = array(
                select g.rolname from pg_auth_members as m join pg_roles as g on g.oid = m.roleid
                where m.member = r.oid order by g.rolname) as is_kind
    into v_role
    from pg_roles as r where r.rolname = p_name;
    if v_role.oid is null then
        execute format('create role %I login %s password %L in role %s', p_name,
            case when p_inherits then 'inherit' else 'noinherit' end, p_password, array_to_string(p_roles, ', '));
        return jsonb_build_object('success', true, 'created', true);
    elsif not v_role.is_kind then
        return ops_private.refusal('not_allowed', format('the role %s exists, and is not just a %s', p_name, p_kind));
    end if;
    execute format('alter role %I password %L', p_name, p_password);
    return jsonb_build_object('success', true, 'created', false);
end
$_$;

CREATE FUNCTION ops_private.create_worker(p_name text, p_password text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return ops_private.create_login('worker', p_name, p_password, '{ops_worker}'::name[], true);
end
$$;

CREATE FUNCTION ops_private.cron_field(p_field text, p_least integer, p_most integer, p_names text[]) RETURNS integer[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    v_values integer[] := '{}'::integer[];
    v_part text;
    v_found text[];
    v_ends integer[];
    v_step integer;
begin
    foreach v_part in array string_to_array(lower(p_field), ',') loop
        v_found := regexp_match(
            v_part, '^(?:(\*)|([a-z]{3}|[0-9]{1,2})(?:-([a-z]{3}|[0-9]{1,2}))?)(?:/([0-9]{1,2}))?$');
        v_ends := array(
            select case when e.text ~ '^[0-9]' then e.text::integer
                else array_position(p_names, e.text) - 1 + p_least end
            from unnest(v_found[2:3]) with ordinality as e (text, place) order by e.place);
        v_step := coalesce(v_found[4]::integer, 1);
        v_ends := case
            when v_found[1] is not null then array[p_least, p_most]
            when v_found[3] is not null then v_ends
            when v_found[4] is not null then array[v_ends[1], p_most]
            else array[v_ends[1], v_ends[1]] end;
        if (v_step > 0 and p_least <= v_ends[1] and v_ends[1] <= v_ends[2] and v_ends[2] <= p_most) is not true then
            return null;
        end if;
        v_values := v_values || array(select generate_series(v_ends[1], v_ends[2], v_step));
    end loop;
    return array(
        select distinct case when p_most = 7 and v.value = 7 then 0 else v.value end as value
        from unnest(v_values) as v (value) order by value);
end
$_$;

CREATE FUNCTION ops_private.cron_fields(p_cron text) RETURNS TABLE(name text, field text, lowest integer, highest integer, field_values integer[])
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_months constant text[] := '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'::text[];
    v_days constant text[] := '{sun,mon,tue,wed,thu,fri,sat}'::text[];
begin
    return query
        select f.name, p.field, f.lowest, f.highest,
            ops_private.cron_field(p.field, f.lowest, f.highest, f.names)
        from (values
            (1, 'minute', 0, 59, '{}'::text[]), (2, 'hour', 0, 23, '{}'), (3, 'day of month', 1, 31, '{}'),
            (4, 'month', 1, 12, v_months), (5, 'day of week', 0, 7, v_days)
        ) as f (place, name, lowest, highest, names)
        left join regexp_split_to_table(btrim(p_cron), '\s+') with ordinality as p (field, place) on p.place = f.place
        order by f.place;
end
$$;

CREATE FUNCTION ops_private."current_time"() RETURNS timestamp with time zone
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return clock_timestamp();
end
$$;

CREATE FUNCTION ops_private.database_identity() RETURNS uuid
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_control ops_private.control;
    v_fingerprint constant text := ops_private.fingerprint();
    v_run_id uuid;
begin
    select c.* into v_control from ops_private.control as c;
    if v_control.fingerprint is not distinct from v_fingerprint then
        return v_control.database_id;
    end if;
    select c.* into v_control from ops_private.control as c for update;
    if v_control.fingerprint is not distinct from v_fingerprint then
        return v_control.database_id;  -- another worker registered at the same time
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

CREATE FUNCTION ops_private.delete_run_logs() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    delete from ops.run_logs as g where g.run_id = old.id;
    return null;
end
$$;

CREATE FUNCTION ops_private.delivery_of(p_headers jsonb, OUT forge text, OUT event text, OUT delivery text, OUT signature text) RETURNS record
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    forge := case
        when p_headers ? 'x-forgejo-event' then 'forgejo'
        when p_headers ? 'x-gitea-event' then 'gitea'
        when p_headers ? 'x-gitlab-event' then 'gitlab'
        when p_headers ? 'x-github-event' then 'github' end;
    event := p_headers ->> format('x-%s-event', forge);
    delivery := substring(case forge
        when 'gitlab' then coalesce(p_headers ->> 'idempotency-key', p_headers ->> 'x-gitlab-event-uuid')
        else p_headers ->> format('x-%s-delivery', forge) end from '^[!-~]{1,100}$');
    signature := case forge
        when 'gitlab' then p_headers ->> 'x-gitlab-token'
        when 'github' then substring(p_headers ->> 'x-hub-signature-256' from '^sha256=([0-9a-f]{64})$')
        else substring(p_headers ->> format('x-%s-signature', forge) from '^[0-9a-f]{64}$') end;
end
$_$;

CREATE TABLE ops_private.outbox (
    delivery_id uuid DEFAULT gen_random_uuid() NOT NULL,
    seq bigint NOT NULL,
    destination text NOT NULL,
    run_id uuid NOT NULL,
    event text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    due_at timestamp with time zone NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    leased_by uuid,
    last_error text,
    CONSTRAINT outbox_event_check CHECK ((event = ANY (ARRAY['queued'::text, 'started'::text, 'red'::text, 'green_again'::text, 'succeeded'::text, 'canceled'::text])))
);

COMMENT ON COLUMN ops_private.outbox.due_at IS 'When it may be taken next: the end of its lease, or of the wait after an error.';

COMMENT ON COLUMN ops_private.outbox.leased_by IS 'The instance that sends it now; null while it waits.';

CREATE FUNCTION ops_private.delivery_payload(p_message ops_private.outbox) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        select jsonb_build_object(
            'delivery_id', p_message.delivery_id, 'destination', p_message.destination, 'event', p_message.event,
            'attempt', p_message.attempts, 'created_at', p_message.created_at,
            'run', jsonb_build_object(
                'run_id', r.id, 'project', p.slug, 'run_number', r.run_number, 'workflow_type', w.workflow_type,
                'workflow', w.name, 'git_ref', ops_private.run_git(r.metadata, 'git_ref', w.git_ref),
                'git_commit', ops_private.run_commit(r.metadata, w.git_commit), 'attempt', r.attempt,
                'reason', r.reason, 'exit_code', r.exit_code, 'error_message', left(r.error_message, 2000),
                'started_at', r.started_at, 'finished_at', r.finished_at, 'claimed_by', r.claimed_by, 'tests', r.tests),
            'known', case p_message.event when 'red' then to_jsonb(array(
                select k.line from ops_private.known_lines(r.id, array[r.project_id]) as k (line))) else '[]' end,
            'errors', case p_message.event when 'red' then to_jsonb(array(
                select e.message from ops_private.last_errors(r.id, 10) with ordinality as e (message, i)
                order by e.i desc)) else '[]' end)
        from ops.runs as r
        join ops.projects as p on p.id = r.project_id
        join ops.workflows as w on w.id = r.workflow_id
        where r.id = p_message.run_id
    );
end
$$;

CREATE FUNCTION ops_private.drain_lock(p_worker_id text) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return hashtextextended('ops_private.worker_ids ' || p_worker_id, 0);
end
$$;

CREATE FUNCTION ops_private.drop_empty_lanes() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_empty bigint[];
begin
    with candidate as materialized (
        select l.lane_id, l.project_id from ops_private.lanes as l
        where not exists (select from ops_private.queued as q where q.lane_id = l.lane_id)
            and not exists (select from ops_private.lanes as m where m.group_id = l.lane_id)
        order by l.lane_id limit 100
    ), counter as materialized (
        select c.project_id from ops_private.run_counters as c
        where c.project_id in (select n.project_id from candidate as n)
        order by c.project_id for update skip locked
    ), locked as (
        select l.lane_id from ops_private.lanes as l
        where l.lane_id in (
            select n.lane_id from candidate as n join counter as c on c.project_id = n.project_id)
        order by l.lane_id for update skip locked
    )
    select array_agg(k.lane_id) into v_empty from locked as k;
    delete from ops_private.lanes as l
    where l.lane_id = any (v_empty)
        and not exists (select from ops_private.queued as q where q.lane_id = l.lane_id)
        and not exists (select from ops_private.lanes as m where m.group_id = l.lane_id);
end
$$;

CREATE FUNCTION ops_private.drop_log_partitions(p_before timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '1s'
    AS $_$
declare
    v_part record;
    v_lines bigint;
    v_dropped bigint := 0;
begin
    for v_part in
        select w.name, ops_private.first_run_id(w.week) as first,
            ops_private.first_run_id(w.week + interval '7 days') as ends
        from (
            select c.relname as name, to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' as week
            from pg_inherits as i
            join pg_class as c on c.oid = i.inhrelid
            where i.inhparent = 'ops.run_logs'::regclass and c.relname ~ '^run_logs_\d{8}$'
        ) as w
        where w.week + interval '7 days' <= p_before
    loop
        continue when exists (
            select from ops.runs as r
            where r.id >= v_part.first and r.id < v_part.ends
                and not coalesce(ops_private.log_is_old(r.id, r.finished_at, p_before), false));
        begin
            execute format('drop table ops_private.%I', v_part.name);
        exception when lock_not_available then
            continue;
        end;
        delete from ops_private.log_tails as t where t.run_id >= v_part.first and t.run_id < v_part.ends;
        with gone as (
            delete from ops_private.log_blocks as b
            where b.run_id >= v_part.first and b.run_id < v_part.ends returning b.lines
        )
        select coalesce(sum(g.lines), 0) into v_lines from gone as g;
        v_dropped := v_dropped + v_lines;
    end loop;
    return v_dropped;
end
$_$;

CREATE FUNCTION ops_private.enforce_run_status_transition() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.expire_queued_runs() RETURNS uuid[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_expired uuid[];
begin
    with due as (
        select r.id from ops.runs as r
        where r.status = 'queued' and r.id = any (array(
            select q.run_id from ops_private.queued as q
            where q.wanted_until <= (select ops_private.current_time())
            order by q.wanted_until limit 1000))
        order by r.id
        for update of r skip locked
    ), expired as (
        update ops.runs as r
        set status = 'canceled',
            approval = case r.approval when 'pending' then 'expired' else r.approval end,
            reason = case r.approval when 'pending' then 'approval_expired' else 'queue_timeout' end,
            error_message = case r.approval
                when 'pending' then 'no admin approved the run in time'
                else 'the run waited longer than queue_timeout_seconds of its workflow' end
        from due where r.id = due.id
        returning r.id
    )
    select coalesce(array_agg(e.id order by e.id), '{}'::uuid[]) into v_expired from expired as e;
    return v_expired;
end
$$;

CREATE FUNCTION ops_private.expired_artifacts(p_store text, p_worker_id text) RETURNS TABLE(artifact_id uuid, artifact_key text, artifact_url text, size_bytes bigint, claimed_by text)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select a.id, a.artifact_key, a.artifact_url, a.size_bytes, r.claimed_by
    from ops.run_artifacts as a
    join ops.runs as r on r.id = a.run_id
    where a.expires_at <= (select ops_private.current_time()) and r.finished_at is not null
        and a.artifact_url = p_store || '/' || a.artifact_key
        and split_part(a.artifact_key, '/', 2) = r.id::text
        and (p_worker_id is null or r.claimed_by = p_worker_id);
$$;

CREATE FUNCTION ops_private.fail_lost(p_run_id uuid, p_lease ops_private.leases, p_error text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    update ops.runs as r set status = 'failed', reason = 'worker_lost', error_message = p_error
    where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', p_error, jsonb_build_object(
        'reason', 'worker_lost', 'worker_id', p_lease.worker_id, 'lease_expired_at', p_lease.expires_at));
    perform ops_private.retry_if_asked(p_run_id);
end
$$;

CREATE FUNCTION ops_private.fail_unreadable(p_run_id uuid, p_error text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_error constant text := left('the run cannot be read: ' || p_error, 10000);
begin
    update ops.runs as r set status = 'running' where r.id = p_run_id and r.status = 'claimed';
    update ops.runs as r set status = 'failed', reason = 'invalid_config', error_message = v_error
    where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', v_error, '{"reason": "invalid_config"}');
end
$$;

CREATE FUNCTION ops_private.failures_of(p_run ops.runs) RETURNS TABLE(kind text, message text, place bigint)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return query
        select 'test', ops_private.one_line(left(t.name, 300)), min(t.i)
        from jsonb_array_elements_text(
            case jsonb_typeof(p_run.tests -> 'failing') when 'array' then p_run.tests -> 'failing' else '[]' end)
            with ordinality as t (name, i)
        where t.i <= 5 and t.name <> ''
        group by 2;
    if found then
        return;
    end if;
    return query
        select 'error', n.line, min(n.i)
        from (
            select ops_private.normalized_error(e.message) as line, e.i
            from ops_private.last_errors(p_run.id, 50) with ordinality as e (message, i)
        ) as n
        where n.line <> '' and n.line !~ '<n> failed, <n> error|<n> (failed|errors?)\y.* in <n>|<n> error\(s\)'
        group by n.line order by min(n.i) limit 3;
    if not found and p_run.reason not in ('exit_code', 'failed') and p_run.error_message <> '' then
        return query select 'reason', p_run.reason || ': ' || ops_private.normalized_error(p_run.error_message), 1::bigint;
    end if;
end
$$;

CREATE FUNCTION ops_private.fill_outbox(p_run_ids uuid[], p_event text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_most constant integer := 1000;
    v_now constant timestamptz := ops_private.current_time();
begin
    delete from ops_private.outbox as o where o.delivery_id in (
        select b.delivery_id from ops_private.outbox as b
        where b.run_id = any (p_run_ids) and b.leased_by is null
        for update skip locked);
    insert into ops_private.outbox (destination, run_id, event, created_at, due_at)
    select m.name, m.run_id, p_event, v_now, v_now
    from (
        select d.name, r.id as run_id, row_number() over (partition by d.name order by r.run_number) as place
        from ops.runs as r
        join ops.projects as p on p.id = r.project_id
        join ops.workflows as w on w.id = r.workflow_id
        join (
            select distinct s.name, s.events, s.commits_only, s.projects, s.workflows, s.branches
            from ops_private.destinations as s where s.seen_at > v_now - interval '24 hours'
        ) as d on (p_event = any (d.events) or ('every' = any (d.events) and p_event not in ('queued', 'started')))
            and (not d.commits_only
                or ops_private.is_commit(ops_private.run_commit(r.metadata, w.git_commit)))
            and ops_private.matches_one(p.slug, d.projects)
            and (ops_private.matches_one(w.name, d.workflows) or ops_private.matches_one(w.workflow_type, d.workflows))
            and ops_private.matches_one(ops_private.run_git(r.metadata, 'git_ref', w.git_ref), d.branches)
        where r.id = any (p_run_ids)
        group by d.name, r.id, r.run_number
    ) as m
    where m.place + (
        select count(*) from (
            select from ops_private.outbox as o where o.destination = m.name limit v_most) as n) <= v_most;
end
$$;

CREATE FUNCTION ops_private.fingerprint() RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        select format('%s/%s', s.system_identifier, d.oid)
        from pg_control_system() as s, pg_database as d where d.datname = current_database());
end
$$;

CREATE FUNCTION ops_private.fingerprint_of(p_kind text, p_message text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return left(encode(sha256(convert_to(p_kind || E'\n' || p_message, 'UTF8')), 'hex'), 16);
end
$$;

CREATE FUNCTION ops_private.fingerprints_of(p_run_id uuid, p_projects uuid[]) RETURNS TABLE(fingerprint text, kind text, message text, times bigint, projects bigint, first_run text, first_run_id uuid, first_at timestamp with time zone, note text, marked_by text, marked_at timestamp with time zone, line text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return query
        select f.fingerprint, f.kind, f.message, c.times, c.projects, p.slug || '#' || r.run_number, r.id, r.finished_at,
            k.note, k.marked_by, k.marked_at,
            case when c.times = 1 then 'new'
                else format('known since %s#%s, %s times, in %s project%s', p.slug, r.run_number,
                    case when c.times = 10000 then '10000 or more' else c.times::text end,
                    c.projects, case when c.projects = 1 then '' else 's' end) end
            || case when k.marked_at is null then '' else coalesce(', noted: ' || k.note, ', marked as known') end
            || ': ' || f.message
        from ops_private.run_fingerprints as f
        cross join lateral (
            select count(*) as times, count(distinct o.project_id) as projects,
                (array_agg(o.run_id order by o.created_at, o.run_id))[1] as first_id
            from (
                select a.project_id, a.run_id, a.created_at from ops_private.run_fingerprints as a
                where a.fingerprint = f.fingerprint and a.project_id = any (p_projects)
                order by a.created_at limit 10000
            ) as o
        ) as c
        join ops.runs as r on r.id = c.first_id
        join ops.projects as p on p.id = r.project_id
        left join lateral (
            select e.note, e.marked_by, e.marked_at from ops_private.known_errors as e
            where e.fingerprint = f.fingerprint and e.project_id = any (p_projects)
            order by e.project_id = f.project_id desc, e.marked_at desc limit 1
        ) as k on true
        where f.run_id = p_run_id and f.project_id = any (p_projects)
        order by f.place, f.fingerprint;
end
$$;

CREATE TABLE ops_private.schedules (
    workflow_id uuid NOT NULL,
    place integer NOT NULL,
    cron text NOT NULL,
    timezone text NOT NULL,
    catch_up text NOT NULL,
    next_at timestamp with time zone,
    problem text
);

COMMENT ON COLUMN ops_private.schedules.problem IS 'Why the line queued no run when it was due last; null if it did.';

CREATE FUNCTION ops_private.fire_schedule(p_line ops_private.schedules, p_project_id uuid) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '200ms'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_since constant timestamptz := case p_line.catch_up
        when 'once' then p_line.next_at else greatest(p_line.next_at, v_now - interval '10 minutes') end;
    v_at constant timestamptz :=
        ops_private.next_time(p_line.cron, p_line.timezone, v_since - interval '1 microsecond');
    v_run record;
    v_problem text;
    v_queued integer := 0;
begin
    if v_at <= v_now then
        v_run := ops_private.queue_once(
            p_project_id, p_line.workflow_id,
            jsonb_build_object('scheduled_for', to_char(v_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
            format('schedule:%s:%s:%s', p_line.workflow_id, p_line.place, extract(epoch from v_at)::bigint));
        v_problem := left(v_run.problem, 1000);
        v_queued := (v_run.run_id is not null)::integer;
    end if;
    update ops_private.schedules as s
    set next_at = ops_private.next_time(s.cron, s.timezone, v_now), problem = v_problem
    where s.workflow_id = p_line.workflow_id and s.place = p_line.place;
    return v_queued;
end
$$;

CREATE FUNCTION ops_private.fire_schedules() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_due record;
    v_line ops_private.schedules;
    v_tried integer := 0;
    v_queued integer := 0;
begin
    for v_due in
        select s.workflow_id, s.place, w.project_id
        from ops_private.schedules as s
        join ops.workflows as w on w.id = s.workflow_id
        where s.next_at <= (select ops_private.current_time())
        order by s.next_at, s.workflow_id, s.place limit 100
    loop
        continue when not ops_private.lock_queue_at_once(v_due.project_id);
        perform from ops.workflows as w where w.id = v_due.workflow_id for key share skip locked;
        continue when not found;
        select s.* into v_line from ops_private.schedules as s
        where s.workflow_id = v_due.workflow_id and s.place = v_due.place
            and s.next_at <= ops_private.current_time()
        for update skip locked;
        continue when not found;
        begin
            v_queued := v_queued + ops_private.fire_schedule(v_line, v_due.project_id);
        exception
            when lock_not_available then null;  -- a client keeps a run locked that the new one supersedes
            when others then
                update ops_private.schedules as s
                set problem = left(sqlerrm, 1000), next_at = ops_private.current_time() + interval '1 hour'
                where s.workflow_id = v_due.workflow_id and s.place = v_due.place;
        end;
        v_tried := v_tried + 1;
        exit when v_tried = 10;
    end loop;
    return v_queued;
end
$$;

CREATE FUNCTION ops_private.first_instant(p_local timestamp without time zone, p_timezone text) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_at constant timestamptz := p_local at time zone p_timezone;
begin
    if v_at at time zone p_timezone = p_local then  -- of two instants PostgreSQL gives the second
        return (
            select min(v_at - n * interval '15 minutes') from generate_series(0, 12) as n
            where (v_at - n * interval '15 minutes') at time zone p_timezone = p_local);
    end if;
    return (
        select min(l.shown at time zone p_timezone)
        from generate_series(1, 1500) as n
        cross join lateral (select p_local + n * interval '1 minute' as shown) as l
        where (l.shown at time zone p_timezone) at time zone p_timezone = l.shown);
end
$$;

CREATE TABLE ops_private.queued (
    run_id uuid NOT NULL,
    lane_id bigint NOT NULL,
    group_id bigint NOT NULL,
    scheduled_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    run_number integer NOT NULL,
    wanted_until timestamp with time zone
);

COMMENT ON COLUMN ops_private.queued.scheduled_at IS 'Infinity: the run waits for an approval.';

CREATE FUNCTION ops_private.first_of_lanes(p_group_id bigint) RETURNS SETOF ops_private.queued
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    if exists (
        select from ops_private.queued as q where q.group_id = p_group_id and q.scheduled_at is null
        order by q.scheduled_at nulls first, q.created_at, q.run_number offset 32 limit 1
    ) then
        return query
            select head.*
            from (
                select p_group_id as lane_id
                union all
                select l.lane_id from ops_private.lanes as l
                left join ops_private.leases as a
                    on a.project_id = l.project_id and a.concurrency_key = l.concurrency_key
                where l.group_id = p_group_id and a.run_id is null
            ) as lane
            cross join lateral (
                select q.* from ops_private.queued as q
                where q.lane_id = lane.lane_id and q.scheduled_at is null
                order by q.scheduled_at nulls first, q.created_at, q.run_number limit 1
            ) as head
            order by head.created_at, head.run_number;
    end if;
end
$$;

CREATE FUNCTION ops_private.first_run_id(p_time timestamp with time zone) RETURNS uuid
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return rpad(lpad(to_hex((extract(epoch from p_time) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
end
$$;

CREATE FUNCTION ops_private.forget_artifacts(p_artifact_ids uuid[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from ops_private.retired_artifacts as t where t.artifact_id = any (p_artifact_ids);
end
$$;

CREATE FUNCTION ops_private.forget_idle_workers() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from ops_private.idle_workers as i where i.instance_id in (
        select k.instance_id from ops_private.idle_workers as k
        where not exists (
            select from ops_private.workers as w
            where w.instance_id = k.instance_id and w.expires_at > ops_private.current_time())
        for update skip locked);
end
$$;

CREATE FUNCTION ops_private.hand_over(p_lease ops_private.leases, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    update ops_private.leases as l
    set worker_id = p_worker_id, instance_id = p_instance_id, db_role = ops_private.caller(),
        engine_id = p_engine_id, lease_seconds = p_lease_seconds,
        expires_at = ops_private.current_time() + make_interval(secs => p_lease_seconds),
        renewed = p_lease.renewed, log_position = p_lease.log_position, lost = p_lease.lost,
        lost_since = p_lease.lost_since, handed_over = p_lease.handed_over
    where l.run_id = p_lease.run_id;
    if (p_lease.worker_id, p_lease.instance_id) is distinct from (p_worker_id, p_instance_id) then
        update ops.runs as r
        set claimed_by = p_worker_id, claimed_instance = p_instance_id, claim_count = r.claim_count + 1
        where r.id = p_lease.run_id;
        perform ops_private.add_event(p_lease.run_id, 'info', 'adopted', jsonb_build_object(
            'actor', ops_private.actor(), 'worker_id', p_worker_id, 'previous_worker_id', p_lease.worker_id));
    end if;
end
$$;

CREATE FUNCTION ops_private.has_room(p_project_id uuid) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_most integer;
begin
    select k.max_active_runs into v_most from ops_private.project_limits as k
    where k.project_id = p_project_id and k.max_active_runs is not null for no key update;
    return v_most is null
        or v_most > (select count(*) from ops_private.leases as l where l.project_id = p_project_id);
end
$$;

CREATE FUNCTION ops_private.hmac_sha256(p_key bytea, p_data bytea) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_key bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
    v_inner bytea;
    v_outer bytea;
begin
    v_key := v_key || decode(repeat('00', 64 - length(v_key)), 'hex');
    v_inner := v_key;
    v_outer := v_key;
    for i in 0 .. 63 loop
        v_inner := set_byte(v_inner, i, get_byte(v_key, i) # 54);
        v_outer := set_byte(v_outer, i, get_byte(v_key, i) # 92);
    end loop;
    return sha256(v_outer || sha256(v_inner || p_data));
end
$$;

CREATE FUNCTION ops_private.inherited(p_lease ops_private.leases) RETURNS ops_private.leases
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_lease ops_private.leases := p_lease;
begin
    v_lease.log_position := ops_private.log_position(p_lease.run_id);
    v_lease.lost := case
        when p_lease.handed_over or v_lease.log_position > p_lease.log_position
            or (p_lease.renewed and exists (
                select from ops.runs as r where r.id = p_lease.run_id and r.container_id is not null)) then 0
        else p_lease.lost + 1 end;
    v_lease.lost_since := case
        when v_lease.lost > 1 then p_lease.lost_since
        when v_lease.lost = 1 then ops_private.current_time() end;
    v_lease.renewed := false;
    v_lease.handed_over := false;
    return v_lease;
end
$$;

CREATE FUNCTION ops_private.is_commit(p_commit text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    return coalesce(p_commit ~ '^[0-9a-fA-F]{7,64}$', false);
end
$_$;

CREATE FUNCTION ops_private.is_drained(p_worker_id text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if not pg_try_advisory_xact_lock_shared(ops_private.drain_lock(p_worker_id)) then
        return true;
    end if;
    return exists (
        select from ops_private.worker_ids as i where i.worker_id = p_worker_id and i.drained_at is not null);
end
$$;

CREATE FUNCTION ops_private.is_final(p_status text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return p_status in ('succeeded', 'failed', 'canceled');
end
$$;

CREATE FUNCTION ops_private.is_signed(p_project_id uuid, p_forge text, p_signature text, p_body bytea) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_secret constant bytea := (
        select convert_to(h.secret, 'UTF8') from ops_private.webhooks as h where h.project_id = p_project_id);
begin
    return coalesce(sha256(case p_forge
        when 'gitlab' then v_secret
        else convert_to(encode(ops_private.hmac_sha256(v_secret, p_body), 'hex'), 'UTF8') end)
        = sha256(convert_to(p_signature, 'UTF8')), false);
end
$$;

CREATE FUNCTION ops_private.is_superseded(p_run ops.runs) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    return p_run.concurrency_key is not null and exists (
        select from ops_private.lanes as l
        join ops_private.queued as q on q.lane_id = l.lane_id
        join ops.runs as n on n.id = q.run_id
        join ops.workflows as w on w.id = n.workflow_id
        where l.project_id = p_run.project_id and l.concurrency_key = p_run.concurrency_key
            and n.workflow_id = p_run.workflow_id and n.run_number > p_run.run_number
            and w.config ->> 'on_newer' in ('newest', 'cancel_running')
            and coalesce(n.metadata ->> 'git_ref', w.git_ref)
                is not distinct from coalesce(p_run.metadata ->> 'git_ref', w.git_ref));
end
$$;

CREATE FUNCTION ops_private.is_valid_event(p_event_type text, p_message text, p_payload jsonb) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops_private.is_valid_run(p_run ops.runs) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops_private.is_whole_number(p_value jsonb, p_least integer, p_most integer) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    return case
        when jsonb_typeof(p_value) = 'number' and p_value::text ~ '^-?[0-9]{1,10}$' then
            p_value::bigint between p_least and p_most
        else false end;
end
$_$;

CREATE FUNCTION ops_private.keep_an_owner() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.keep_run_events() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.known_lines(p_run_id uuid, p_projects uuid[]) RETURNS SETOF text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return query select f.line from ops_private.fingerprints_of(p_run_id, p_projects) as f;
end
$$;

CREATE FUNCTION ops_private.lane_digest(p_priority integer, p_labels text[], p_key text) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return sha256(convert_to(jsonb_build_array(p_priority, p_labels, p_key)::text, 'UTF8'));
end
$$;

CREATE FUNCTION ops_private.lane_of(p_run ops.runs, p_key text) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_digest constant bytea := ops_private.lane_digest(p_run.priority, p_run.labels, p_key);
    v_group_id constant bigint := case when p_key is not null then ops_private.lane_of(p_run, null) end;
    v_lane_id bigint;
begin
    loop
        select l.lane_id into v_lane_id from ops_private.lanes as l
        where l.project_id = p_run.project_id and l.digest = v_digest
        for key share;
        exit when found;
        insert into ops_private.lanes as l (group_id, project_id, priority, labels, concurrency_key, digest)
        values (v_group_id, p_run.project_id, p_run.priority, p_run.labels, p_key, v_digest)
        on conflict (project_id, digest) do nothing
        returning l.lane_id into v_lane_id;
        exit when found;
    end loop;
    return v_lane_id;
end
$$;

CREATE FUNCTION ops_private.last_errors(p_run_id uuid, p_limit integer) RETURNS SETOF text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    return query
        select left(g.message, 1000)
        from (
            select l.seq, l.log_level, l.message from ops.run_logs as l
            where l.run_id = p_run_id order by l.seq desc limit 20000
        ) as g
        where g.log_level = 'error'
            and left(g.message, 100) !~
                '^(\s|$|Traceback \(most recent|During handling of the above|The above exception was)'
        order by g.seq desc limit p_limit;
end
$_$;

CREATE FUNCTION ops_private.leave_queue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from ops_private.queued as q using deleted as d where q.run_id = d.id;
    return null;
end
$$;

CREATE FUNCTION ops_private.lock_for_retry(p_run_id uuid, p_wait boolean DEFAULT true) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.lock_log(p_run_id uuid, p_project_id uuid) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '3s'
    AS $$
declare
    v_from bigint;
begin
    select t.from_seq into v_from from ops_private.log_tails as t where t.run_id = p_run_id for update;
    if not found then
        insert into ops_private.log_tails (run_id, project_id) values (p_run_id, p_project_id)
        on conflict (run_id) do nothing;
        select t.from_seq into v_from from ops_private.log_tails as t where t.run_id = p_run_id for update;
    end if;
    return v_from;
end
$$;

CREATE FUNCTION ops_private.lock_queue(p_project_id uuid) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.lock_queue_at_once(p_project_id uuid) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.lock_queue_briefly(p_project_id uuid) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '200ms'
    AS $$
begin
    perform ops_private.lock_queue(p_project_id);
    return true;
exception when lock_not_available then
    return false;
end
$$;

CREATE FUNCTION ops_private.locked_member_refusal(p_project_id uuid, p_user_id uuid, p_role text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_refusal constant jsonb := ops_private.member_refusal(p_project_id, p_user_id, p_role);
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    perform from ops.projects as p where p.id = p_project_id for no key update;
    perform from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = p_user_id for update;
    return ops_private.member_refusal(p_project_id, p_user_id, p_role);
end
$$;

CREATE FUNCTION ops_private.log_is_old(p_run_id uuid, p_finished_at timestamp with time zone, p_before timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return p_finished_at < p_before and not (
        p_run_id >= ops_private.first_run_id(date_trunc('week', p_before, 'UTC'))
        and p_run_id < ops_private.first_run_id(p_before));
end
$$;

CREATE FUNCTION ops_private.log_position(p_run_id uuid) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    return (
        select coalesce(max(g.seq), 0) from ops.run_logs as g
        where g.run_id = p_run_id and g.seq < 1099511627776);
end
$$;

CREATE FUNCTION ops_private.loses_its_workers(p_lease ops_private.leases) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return p_lease.lost > (select c.max_lost_leases from ops_private.control as c)
        and p_lease.lost_since <= ops_private.current_time() - interval '1 minute';
end
$$;

CREATE FUNCTION ops_private.matches_one(p_text text, p_patterns text[]) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return exists (
        select from unnest(p_patterns) as p (pattern)
        where coalesce(p_text, '') like replace(replace(replace(replace(
            p.pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'));
end
$$;

CREATE FUNCTION ops_private.max_queued_runs(p_project_id uuid) RETURNS integer
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return coalesce(
        (select k.max_queued_runs from ops_private.project_limits as k where k.project_id = p_project_id),
        (select c.max_queued_runs from ops_private.control as c));
end
$$;

CREATE FUNCTION ops_private.may_adopt(p_lease ops_private.leases, p_worker_id text, p_engine_id text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return coalesce(
        (p_lease.expires_at <= ops_private.current_time()
            and (p_lease.engine_id = p_engine_id or p_lease.worker_id = p_worker_id))
        or (p_lease.worker_id = p_worker_id and p_lease.instance_id is not null), false);
end
$$;

CREATE FUNCTION ops_private.member_refusal(p_project_id uuid, p_user_id uuid, p_role text) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_held constant text := (
        select m.role from ops.project_memberships as m
        where m.project_id = p_project_id and m.user_id = p_user_id);
    v_roles text[] := '{admin,owner}'::text[];
begin
    if 'owner' in (v_held, p_role) then
        v_roles := '{owner}'::text[];
    end if;
    if p_role is null and p_user_id = ops.current_user_id() then
        v_roles := '{viewer,developer,admin,owner}'::text[];
    end if;
    return ops_private.role_refusal(
        (select p.id from ops.projects as p where p.id = p_project_id), v_roles, case
            when p_role = 'owner' then 'make a user an owner'
            when v_held = 'owner' then 'change an owner' else 'manage members' end, 'project');
end
$$;

CREATE FUNCTION ops_private.missing_tool(p_project ops.projects, p_workflow ops.workflows) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_tool constant text := coalesce(p_workflow.config ->> 'tool', 'odoo');
    v_version constant text := coalesce(p_workflow.config ->> 'version', p_project.odoo_version);
begin
    return case when not exists (select from ops.tools as t where t.tool_name = v_tool and t.version = v_version) then
        left(v_tool || ' ' || v_version, 300) end;
end
$$;

CREATE FUNCTION ops_private.my_projects(p_role text DEFAULT 'viewer'::text) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_user_id constant uuid := ops.current_user_id();
begin
    return query
    select m.project_id from ops.project_memberships as m
    where m.user_id = v_user_id
        and array_position('{viewer,developer,admin,owner}', m.role)
            >= array_position('{viewer,developer,admin,owner}', p_role);
end
$$;

CREATE FUNCTION ops_private.names_of(p_workflow_ids uuid[]) RETURNS text[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return array(
        select w.workflow_type || '/' || w.name
        from unnest(p_workflow_ids) with ordinality as i (id, place) join ops.workflows as w on w.id = i.id
        order by i.place);
end
$$;

CREATE FUNCTION ops_private.next_run(p_labels text[], p_blocked uuid[]) RETURNS uuid
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
begin
    return (
        select locked.id
        from (
            select g.lane_id as group_id, g.project_id, k.max_active_runs is not null as is_limited
            from ops_private.lanes as g
            cross join lateral (
                (
                    select q.created_at, q.run_number
                    from (
                        select q.* from ops_private.queued as q
                        where q.group_id = g.lane_id and q.scheduled_at is null
                        order by q.scheduled_at nulls first, q.created_at, q.run_number limit 32
                    ) as q
                    where q.lane_id = q.group_id or not exists (
                        select from ops_private.lanes as l
                        join ops_private.leases as a
                            on a.project_id = l.project_id and a.concurrency_key = l.concurrency_key
                        where l.lane_id = q.lane_id)
                    limit 1
                )
                union all
                (select h.created_at, h.run_number from ops_private.first_of_lanes(g.lane_id) as h limit 1)
                limit 1
            ) as head
            left join (
                select a.project_id, count(*) as runs from ops_private.leases as a group by a.project_id
            ) as active on active.project_id = g.project_id
            left join ops_private.project_limits as k on k.project_id = g.project_id
            left join ops_private.turns as t on t.project_id = g.project_id
            where g.group_id is null
                and g.labels <@ p_labels
                and k.paused_at is null
                and coalesce(active.runs < k.max_active_runs, true)
                and exists (select from ops_private.control as c where c.paused_at is null)
            order by coalesce(active.runs, 0), t.turn nulls first, g.priority desc, head.created_at, head.run_number
            offset 0
        ) as grouped
        cross join lateral (
            (
                select q.run_id
                from (
                    select q.* from ops_private.queued as q
                    where q.group_id = grouped.group_id and q.scheduled_at is null
                    order by q.scheduled_at nulls first, q.created_at, q.run_number limit 32
                ) as q
                where q.lane_id = q.group_id or not exists (
                    select from ops_private.lanes as l
                    join ops_private.leases as a
                        on a.project_id = l.project_id and a.concurrency_key = l.concurrency_key
                    where l.lane_id = q.lane_id)
            )
            union all
            (
                select q.run_id
                from ops_private.first_of_lanes(grouped.group_id) as h
                cross join lateral (
                    select q.run_id from ops_private.queued as q
                    where q.lane_id = h.lane_id and q.scheduled_at is null
                    order by q.scheduled_at nulls first, q.created_at, q.run_number
                    limit case when p_blocked <> '{}' then 1000 end
                ) as q
            )
        ) as waiting
        cross join lateral (
            select r.id from ops.runs as r
            where r.id = waiting.run_id and r.status = 'queued' and r.workflow_id <> all (p_blocked)
                and (r.wanted_until is null or r.wanted_until > ops_private.current_time())
            for update skip locked
        ) as locked
        where not grouped.is_limited or ops_private.has_room(grouped.project_id)
        limit 1
    );
end
$$;

CREATE FUNCTION ops_private.next_time(p_cron text, p_timezone text, p_after timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_fields text[];
    v_minutes integer[];
    v_hours integer[];
    v_days integer[];
    v_months integer[];
    v_weekdays integer[];
    v_now constant timestamp := p_after at time zone p_timezone;
    v_day timestamp;
    v_local timestamp;
    v_next timestamptz;
begin
    select array_agg(f.field),
        max(f.field_values) filter (where f.name = 'minute'), max(f.field_values) filter (where f.name = 'hour'),
        max(f.field_values) filter (where f.name = 'day of month'), max(f.field_values) filter (where f.name = 'month'),
        max(f.field_values) filter (where f.name = 'day of week')
    into v_fields, v_minutes, v_hours, v_days, v_months, v_weekdays
    from ops_private.cron_fields(p_cron) as f;
    for v_day in
        select d.day from generate_series(date_trunc('day', v_now), v_now + interval '10 years', '1 day') as d (day)
        where extract(month from d.day) = any (v_months) and case
            when v_fields[3] like '*%' or v_fields[5] like '*%' then
                extract(day from d.day) = any (v_days) and extract(dow from d.day) = any (v_weekdays)
            else extract(day from d.day) = any (v_days) or extract(dow from d.day) = any (v_weekdays) end
    loop
        if v_fields[1] like '*%' or v_fields[2] like '*%' then  -- by elapsed time
            select min(i.instant) into v_next
            from generate_series(
                (v_day - interval '2 hours') at time zone p_timezone,
                (v_day + interval '26 hours') at time zone p_timezone, '1 minute') as i (instant)
            cross join lateral (select i.instant at time zone p_timezone as shown) as l
            where i.instant > p_after and date_trunc('day', l.shown) = v_day
                and extract(hour from l.shown) = any (v_hours) and extract(minute from l.shown) = any (v_minutes);
            if v_next is not null then
                return v_next;
            end if;
            continue;
        end if;
        for v_local in
            select v_day + make_interval(hours => h.hour, mins => m.minute)
            from unnest(v_hours) as h (hour) cross join unnest(v_minutes) as m (minute)
            where v_day + make_interval(hours => h.hour, mins => m.minute) > v_now - interval '26 hours'
            order by 1
        loop
            v_next := ops_private.first_instant(v_local, p_timezone);
            if v_next > p_after then
                return v_next;
            end if;
        end loop;
    end loop;
    return null;
end
$$;

CREATE FUNCTION ops_private.next_workflows(p_workflow ops.workflows) RETURNS TABLE(name text, found uuid[])
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return query
        select e.name, ops_private.workflows_named(p_workflow.project_id, e.name)
        from jsonb_array_elements_text(case jsonb_typeof(p_workflow.config -> 'then')
            when 'array' then p_workflow.config -> 'then' else '[]' end) with ordinality as e (name, place)
        order by e.place;
end
$$;

CREATE FUNCTION ops_private.normalized_error(p_line text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_text text := ops_private.one_line(left(p_line, 1000));
    v_step text[];
begin
    foreach v_step slice 1 in array array[
        -- Odoo: 2026-02-13 12:00:00,123 4711 ERROR mydb odoo.sql_db: …
        ['^\s*\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d+ \d+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+ ', ''],
        ['\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|UTC|[+-]\d\d:?\d\d))?)?', '<time>'],
        ['\y\d\d?:\d\d(:\d\d([.,]\d+)?)?\y', '<time>'],
        ['\y[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\y', '<id>'],
        ['\y[a-z][a-z0-9+.-]*://[^\s"''<>]+', '<url>'],
        -- identifiers in quotes stay: their quotes become control characters until the other quoted texts are replaced
        ['"([A-Za-z_][A-Za-z_.]*)"', E'\x01\\1\x02'],
        ['(^|[\s(\[{=:,])''([A-Za-z_][A-Za-z_.]*)''', E'\\1\x03\\2\x04'],
        ['"[^"]*"', '<text>'],
        ['(^|[\s(\[{=:,])[bru]?''[^'']*''', '\1<text>'],
        ['(^|[\s(\[{=:,])(~|\.{1,2})?(/[^\s:,;()\[\]{}"''<>]+)+/?', '\1<path>'],
        ['\y0x[0-9a-fA-F]+\y', '<id>'],
        ['\y(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,64}\y', '<id>'],
        ['\d+([.,:]\d+)*', '<n>'],
        ['\s+', ' ']
    ] loop
        v_text := regexp_replace(v_text, v_step[1], v_step[2], 'g');
    end loop;
    return left(btrim(translate(v_text, E'\x01\x02\x03\x04', '""''''')), 300);
end
$$;

CREATE FUNCTION ops_private.nothing_claimed(p_labels text[]) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_waiting constant boolean := exists (
        select from ops_private.lanes as l
        where l.labels <@ p_labels
            and exists (
                select from ops_private.queued as q
                where q.lane_id = l.lane_id and (q.scheduled_at is null or q.scheduled_at < 'infinity'))
    ) or exists (select from ops_private.pending_retries);
begin
    return jsonb_build_object(
        'run_id', null, 'waiting', v_waiting,
        'message', case when v_waiting then 'no run can be claimed yet' else 'no queued runs' end);
end
$$;

CREATE FUNCTION ops_private.notify_idle_workers(p_labels text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_notified bigint;
begin
    with idle as (
        delete from ops_private.idle_workers as i where i.instance_id in (
            select k.instance_id from ops_private.idle_workers as k
            where p_labels <@ k.labels order by k.since limit 3 for update skip locked)
        returning pg_notify(ops_private.channel_of(i.instance_id), '')
    )
    select count(*) into v_notified from idle;
    if v_notified = 0 then
        perform pg_notify('ops_queue', '');
    end if;
end
$$;

CREATE FUNCTION ops_private.one_line(p_text text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return regexp_replace(
        regexp_replace(p_text, '\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\))', '', 'g'), '[\x01-\x1f\x7f]+', ' ', 'g');
end
$$;

CREATE FUNCTION ops_private.open_snapshots() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return jsonb_build_object(
        'sees_all', pg_has_role('pg_read_all_stats', 'usage'),
        'sessions', (
            select coalesce(jsonb_agg(to_jsonb(s) order by s.seconds desc), '[]')
            from (
                select a.pid, a.usename as role, a.application_name as application, a.state,
                    extract(epoch from clock_timestamp() - a.xact_start)::bigint as seconds
                from pg_stat_activity as a
                where a.xact_start is not null and a.pid <> pg_backend_pid()
                    and (a.backend_xmin is not null or a.backend_xid is not null)
                order by a.xact_start limit 5
            ) as s),
        'prepared', (
            select coalesce(jsonb_agg(to_jsonb(s) order by s.seconds desc), '[]')
            from (
                select x.gid, x.owner as role, extract(epoch from clock_timestamp() - x.prepared)::bigint as seconds
                from pg_prepared_xacts as x order by x.prepared limit 5
            ) as s));
end
$$;

CREATE FUNCTION ops_private.prepare_run() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION ops_private.prunable(p_store text, p_worker_id text, p_logs_before timestamp with time zone, p_events_before timestamp with time zone) RETURNS TABLE(artifacts bigint, bytes numeric, lines bigint, events bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select e.artifacts, e.bytes,
        (select count(*) from ops.run_logs as g join ops.runs as r on r.id = g.run_id
         where ops_private.log_is_old(r.id, r.finished_at, p_logs_before)),
        (select count(*) from ops.run_events as v join ops.runs as r on r.id = v.run_id
         where r.finished_at < p_events_before)
    from (
        select count(*) as artifacts, coalesce(sum(x.size_bytes), 0) as bytes
        from ops_private.expired_artifacts(p_store, p_worker_id) as x
    ) as e;
$$;

CREATE FUNCTION ops_private.prune_outbox() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
begin
    delete from ops_private.outbox as o where o.delivery_id in (
        select b.delivery_id from ops_private.outbox as b
        where b.created_at <= v_now - interval '24 hours' and b.due_at <= v_now
        for update skip locked);
    delete from ops_private.destinations as d where (d.worker_id, d.name) in (
        select g.worker_id, g.name from ops_private.destinations as g
        where g.seen_at <= v_now - interval '30 days'
        for update skip locked);
end
$$;

CREATE FUNCTION ops_private.prune_run_events(p_before timestamp with time zone, p_after uuid DEFAULT NULL::uuid, p_runs integer DEFAULT 1000) RETURNS TABLE(events bigint, last_run uuid)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    perform set_config('ops.prune_run_events', 'on', true);
    return query
        with old as (
            select r.id from ops.runs as r
            where r.id > coalesce(p_after, '00000000-0000-0000-0000-000000000000') and r.finished_at < p_before
            order by r.id limit p_runs
        ), gone as (
            delete from ops.run_events as e using old where e.run_id = old.id returning e.run_id
        )
        select (select count(*) from gone), (select old.id from old order by old.id desc limit 1);
    perform set_config('ops.prune_run_events', 'off', true);
end
$$;

CREATE FUNCTION ops_private.prune_run_logs(p_before timestamp with time zone, p_after uuid DEFAULT NULL::uuid, p_runs integer DEFAULT 20) RETURNS TABLE(lines bigint, last_run uuid)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    return query
        with old as (
            select r.id from ops.runs as r
            where r.id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
                and ops_private.log_is_old(r.id, r.finished_at, p_before)
                and exists (select from ops.run_logs as g where g.run_id = r.id)
            order by r.id limit p_runs
        ), blocks as (
            delete from ops_private.log_blocks as b using old where b.run_id = old.id
        ), tails as (
            delete from ops_private.log_tails as t using old where t.run_id = old.id
        ), gone as (
            delete from ops.run_logs as g using old where g.run_id = old.id returning g.run_id
        )
        select (select count(*) from gone), (select old.id from old order by old.id desc limit 1);
end
$$;

CREATE FUNCTION ops_private.put_into_queue(p_run ops.runs) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_lane_id constant bigint := ops_private.lane_of(p_run, p_run.concurrency_key);
begin
    insert into ops_private.queued as q
        (run_id, lane_id, group_id, scheduled_at, created_at, run_number, wanted_until)
    select p_run.id, l.lane_id, coalesce(l.group_id, l.lane_id),
        case when p_run.approval = 'pending' then 'infinity' else p_run.scheduled_at end,
        p_run.created_at, p_run.run_number, p_run.wanted_until
    from ops_private.lanes as l where l.lane_id = v_lane_id
    on conflict (run_id) do update
    set lane_id = excluded.lane_id, group_id = excluded.group_id, scheduled_at = excluded.scheduled_at,
        created_at = excluded.created_at, wanted_until = excluded.wanted_until;
end
$$;

CREATE FUNCTION ops_private.quarantine(p_run_id uuid, p_status text, p_lost integer, p_lease ops_private.leases) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_error constant text := format(
        'quarantined: %s workers in a row were lost with this run, the last one %s', p_lost, p_lease.worker_id);
begin
    update ops.runs as r set status = p_status, reason = 'poison', error_message = v_error where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', v_error, jsonb_build_object(
        'reason', 'poison', 'worker_id', p_lease.worker_id, 'lease_expired_at', p_lease.expires_at));
end
$$;

CREATE FUNCTION ops_private.queue_is_full(p_project_id uuid, p_more integer DEFAULT 0) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_most constant bigint := ops_private.max_queued_runs(p_project_id)::bigint + p_more;
begin
    return v_most <= (
        select count(*) from (
            select from ops_private.lanes as l
            join ops_private.queued as q on q.lane_id = l.lane_id
            where l.project_id = p_project_id limit v_most) as n);
end
$$;

CREATE FUNCTION ops_private.queue_new_runs(p_run_ids uuid[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
    v_queued bigint;
begin
    for v_try in 1 .. 2 loop
        insert into ops_private.queued as q
            (run_id, lane_id, group_id, scheduled_at, created_at, run_number, wanted_until)
        select r.id, l.lane_id, coalesce(l.group_id, l.lane_id),
            case when r.approval = 'pending' then 'infinity' else r.scheduled_at end,
            r.created_at, r.run_number, r.wanted_until
        from ops.runs as r
        join ops_private.lanes as l on l.project_id = r.project_id
            and l.digest = ops_private.lane_digest(r.priority, r.labels, r.concurrency_key)
        where r.id = any (p_run_ids)
        on conflict (run_id) do nothing;
        get diagnostics v_queued = row_count;
        exit when v_try = 2 or v_queued = cardinality(p_run_ids);
        insert into ops_private.lanes as l (project_id, priority, labels, digest)
        select distinct on (r.project_id, d.digest) r.project_id, r.priority, r.labels, d.digest
        from ops.runs as r
        cross join lateral ops_private.lane_digest(r.priority, r.labels, null) as d (digest)
        where r.id = any (p_run_ids)
        order by r.project_id, d.digest
        on conflict (project_id, digest) do nothing;
        insert into ops_private.lanes as l (group_id, project_id, priority, labels, concurrency_key, digest)
        select distinct on (r.project_id, d.digest)
            g.lane_id, r.project_id, r.priority, r.labels, r.concurrency_key, d.digest
        from ops.runs as r
        join ops_private.lanes as g on g.project_id = r.project_id
            and g.digest = ops_private.lane_digest(r.priority, r.labels, null)
        cross join lateral ops_private.lane_digest(r.priority, r.labels, r.concurrency_key) as d (digest)
        where r.id = any (p_run_ids) and r.concurrency_key is not null
        order by r.project_id, d.digest
        on conflict (project_id, digest) do nothing;
        insert into ops_private.turns as t (project_id)
        select distinct r.project_id from ops.runs as r where r.id = any (p_run_ids)
        on conflict (project_id) do nothing;
    end loop;
end
$$;

CREATE FUNCTION ops_private.queue_next_run(p_run ops.runs, p_source jsonb, p_chain uuid[], p_name text, p_found uuid[]) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_wrong constant text := ops_private.bad_name(p_name, p_found);
    v_next record;
begin
    if v_wrong is not null then
        return v_wrong;
    elsif p_found[1] = any (p_chain) then
        return 'a run of this workflow is already in the chain';
    end if;
    v_next := ops_private.queue_once(
        p_run.project_id, p_found[1], p_source, format('then:%s:%s', p_run.id, p_found[1]), p_run);
    if v_next.run_id is not null then
        perform ops_private.add_event(p_run.id, 'info', 'next run queued', jsonb_build_object(
            'actor', ops_private.actor(), 'next_run_id', v_next.run_id, 'workflow', p_name));
    end if;
    return v_next.problem;
end
$$;

CREATE FUNCTION ops_private.queue_next_runs(p_run_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '200ms'
    AS $$
declare
    v_run ops.runs;
    v_workflow ops.workflows;
    v_source jsonb;
    v_chain uuid[];
    v_next record;
    v_wrong text;
begin
    select r.* into v_run from ops.runs as r where r.id = p_run_id and r.status = 'succeeded';
    if not found then
        return;
    end if;
    select w.* into v_workflow from ops.workflows as w where w.id = v_run.workflow_id;
    v_source := ops_private.source_of(v_run, v_workflow);
    v_chain := ops_private.chain_of(p_run_id);
    for v_next in select n.name, n.found from ops_private.next_workflows(v_workflow) as n loop
        v_wrong := ops_private.queue_next_run(v_run, v_source, v_chain, v_next.name, v_next.found);
        if v_wrong is not null then
            perform ops_private.add_event(
                p_run_id, 'warning', left(format('%s is not queued: %s', v_next.name, v_wrong), 10000),
                jsonb_build_object('reason', 'chain_broken', 'workflow', v_next.name));
        end if;
    end loop;
end
$$;

CREATE FUNCTION ops_private.queue_once(p_project_id uuid, p_workflow_id uuid, p_metadata jsonb, p_key text, p_parent ops.runs DEFAULT NULL::ops.runs, OUT run_id uuid, OUT problem text) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.queue_order(p_projects uuid[], p_limit bigint) RETURNS TABLE(run_id uuid, waits_for text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
    return query
        with lane as materialized (
            select l.*, y.paused, y.held, y.lacking
            from ops_private.lanes as l
            cross join lateral ops_private.why_lane_waits(l) as y
            where l.project_id = any (p_projects)
        ), waiting as (
            select h.*, l.priority, l.concurrency_key, l.paused, l.held, l.lacking, t.turn,
                first_value(h.run_number) over (
                    partition by l.project_id, l.concurrency_key
                    order by h.scheduled_at nulls first, l.lacking is not null, l.priority desc, h.created_at, h.run_number
                ) as first_number,
                coalesce(active.runs, 0) + row_number() over (
                    partition by l.project_id
                    order by h.scheduled_at nulls first, l.priority desc, h.created_at, h.run_number
                ) as place
            from lane as l
            cross join lateral (
                select q.* from ops_private.queued as q where q.lane_id = l.lane_id
                order by q.scheduled_at nulls first, q.created_at, q.run_number limit p_limit
            ) as h
            left join (
                select a.project_id, count(*) as runs from ops_private.leases as a group by a.project_id
            ) as active on active.project_id = l.project_id
            left join ops_private.turns as t on t.project_id = l.project_id
        )
        select w.run_id, coalesce(
            w.paused,
            case when r.wanted_until <= ops_private.current_time() then
                'time: it waited as long as it may; a worker cancels it soon' end,
            case when r.approval = 'pending' then
                to_char(w.wanted_until at time zone 'UTC',
                    '"approval: an admin approves or rejects it until "YYYY-MM-DD HH24:MI:SS" UTC"') end,
            to_char(w.scheduled_at at time zone 'UTC', '"time: due at "YYYY-MM-DD HH24:MI:SS" UTC"'),
            w.held,
            case when w.concurrency_key is not null and w.first_number <> w.run_number then
                format('key: run #%s goes before it for %s', w.first_number, w.concurrency_key) end,
            w.lacking,
            ops_private.why_image_waits(r.workflow_id, r.labels),
            'worker: the next one that is free')
        from waiting as w
        join ops.runs as r on r.id = w.run_id
        order by w.scheduled_at nulls first, w.place, w.turn nulls first, w.priority desc, w.created_at, w.run_number
        limit p_limit;
end
$$;

CREATE FUNCTION ops_private.queue_push(p_project_id uuid, p_name text, p_metadata jsonb, p_key text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_found constant uuid[] := ops_private.workflows_named(p_project_id, p_name);
    v_key constant text := format('push:%s:%s:%s', p_project_id, v_found[1], p_key);
    v_wrong constant text := ops_private.bad_name(p_name, v_found);
    v_run record;
begin
    if v_wrong is not null then
        return jsonb_build_object('workflow', p_name, 'created', false, 'error', v_wrong);
    end if;
    v_run := ops_private.queue_once(p_project_id, v_found[1], p_metadata, v_key);
    if v_run.problem is not null then
        return jsonb_build_object('workflow', p_name, 'created', false, 'error', v_run.problem);
    end if;
    return jsonb_build_object('workflow', p_name, 'created', v_run.run_id is not null, 'run_id', coalesce(
        v_run.run_id, (select r.id from ops.runs as r where r.idempotency_key = v_key)));
end
$$;

CREATE FUNCTION ops_private.queue_retry(p_run_id uuid, p_delay interval DEFAULT NULL::interval) RETURNS uuid
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.queue_terms(p_run ops.runs, p_config jsonb) RETURNS ops.runs
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_run ops.runs := p_run;
begin
    if p_config -> 'approval' <> 'false' and v_run.approval is null then
        v_run.approval := 'pending';
    end if;
    v_run.wanted_until := coalesce(v_run.wanted_until, case
        when v_run.approval = 'pending' then v_now + interval '24 hours'
        else ops_private.wanted_until(p_config, greatest(v_now, v_run.scheduled_at)) end);
    return v_run;
end
$$;

CREATE FUNCTION ops_private.queued_answer(p_run_id uuid, p_created boolean) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        select jsonb_build_object(
            'success', true, 'created', p_created, 'run_id', r.id, 'run_number', r.run_number,
            'status', r.status, 'attempt', r.attempt)
        from ops.runs as r where r.id = p_run_id
    );
end
$$;

CREATE FUNCTION ops_private.rebuild_queue() RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from ops_private.queued;
    delete from ops_private.lanes;
    perform ops_private.queue_new_runs(array(select r.id from ops.runs as r where r.status = 'queued'));
    return (select count(*) from ops_private.queued);
end
$$;

CREATE FUNCTION ops_private.record_failure(p_run ops.runs, p_details jsonb, p_locked boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.record_fingerprints() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    insert into ops_private.run_fingerprints (run_id, fingerprint, project_id, place, kind, message, created_at)
    select new.id, ops_private.fingerprint_of(f.kind, f.message), new.project_id, f.place, f.kind, f.message,
        new.finished_at
    from ops_private.failures_of(new) as f
    on conflict (run_id, fingerprint) do nothing;
    return null;
end
$$;

CREATE FUNCTION ops_private.record_missing_image(p_run ops.runs, p_image text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_image constant text := ops_private.tool_image(p_run.workflow_id);
begin
    delete from ops_private.missing_images as m where m.until <= ops_private.current_time();
    if p_run.claimed_by is not null and p_image in (
        select r.registry || v_image || t.tag
        from unnest('{"",docker.io/,docker.io/library/}'::text[]) as r (registry)
        cross join unnest('{"",:latest}'::text[]) as t (tag)
    ) then
        insert into ops_private.missing_images as m (worker_id, docker_image, until)
        values (p_run.claimed_by, v_image, ops_private.current_time() + interval '1 minute')
        on conflict (worker_id, docker_image) do update set until = excluded.until;
    end if;
end
$$;

CREATE FUNCTION ops_private.record_run_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.refusal(p_code text, p_error text) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return jsonb_build_object('success', false, 'code', p_code, 'error', p_error);
end
$$;

CREATE FUNCTION ops_private.reopen_log(p_run_id uuid, p_project_id uuid, p_seq bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_from bigint;
begin
    with gone as (
        delete from ops_private.log_blocks as b where b.run_id = p_run_id and b.last_seq >= p_seq returning b.first_seq
    )
    select least(min(g.first_seq), p_seq) into v_from from gone as g;
    insert into ops_private.log_tails as t (run_id, project_id, from_seq)
    select p_run_id, p_project_id, case when exists (
        select from ops_private.log_blocks as b where b.run_id = p_run_id
    ) then v_from else 1 end
    on conflict (run_id) do update set from_seq = excluded.from_seq where t.from_seq > excluded.from_seq;
end
$$;

CREATE FUNCTION ops_private.repeats(p_run ops.runs, p_worker_id text, p_instance_id uuid, p_status text, p_exit_code integer) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (p_run.claimed_instance = p_instance_id) is true
        and (p_run.claimed_by = p_worker_id) is not false
        and p_run.started_at is not null
        and p_run.status = p_status
        and p_run.exit_code is not distinct from p_exit_code;
end
$$;

CREATE FUNCTION ops_private.reserved_keys() RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return array[
        'approval', 'artifacts', 'cache', 'command', 'concurrency_key', 'labels', 'network', 'on_newer', 'priority',
        'queue_timeout_seconds', 'read_only', 'resources', 'retry', 'run_env', 'schedule', 'secrets', 'serve', 'services',
        'then', 'timeout_seconds', 'tool', 'user', 'version', 'volumes'];
end
$$;

CREATE FUNCTION ops_private.retire_artifacts(p_store text, p_worker_id text, p_limit integer DEFAULT 1000) RETURNS TABLE(artifact_id uuid, artifact_key text, size_bytes bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    with expired as (
        select e.* from ops_private.expired_artifacts(p_store, p_worker_id) as e limit p_limit
    ), gone as (
        delete from ops.run_artifacts as a using expired as e where a.id = e.artifact_id
    )
    insert into ops_private.retired_artifacts as t
    select e.* from expired as e
    on conflict on constraint retired_artifacts_pkey do nothing;
    return query
        select t.artifact_id, t.artifact_key, t.size_bytes
        from ops_private.retired_artifacts as t
        where t.artifact_url = p_store || '/' || t.artifact_key
            and (p_worker_id is null or t.claimed_by = p_worker_id)
        limit p_limit;
end
$$;

CREATE FUNCTION ops_private.retry_class(p_reason text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.retry_if_asked(p_run_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.role_refusal(p_project_id uuid, p_roles text[], p_change text, p_thing text) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.run_commit(p_metadata jsonb, p_default text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return ops_private.run_git(
        p_metadata, 'git_commit', case when p_metadata ->> 'git_ref' is null then p_default end);
end
$$;

CREATE FUNCTION ops_private.run_git(p_metadata jsonb, p_key text, p_default text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return coalesce(nullif(case when jsonb_typeof(p_metadata -> p_key) = 'string' then p_metadata ->> p_key end, ''),
        nullif(p_default, ''));
end
$$;

CREATE FUNCTION ops_private.run_payload(p_run_id uuid) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.service_tools(p_services jsonb, p_odoo_version text) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.set_giver() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    new.given_by := case ops_private.caller() when 'authenticated' then ops.current_user_id() end;
    return new;
end
$$;

CREATE FUNCTION ops_private.set_project_of_run() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    select r.project_id into new.project_id from ops.runs as r where r.id = new.run_id;
    if new.project_id is null then
        raise exception 'there is no run %', new.run_id using errcode = 'foreign_key_violation';
    end if;
    return new;
end
$$;

CREATE FUNCTION ops_private.set_run_of_line() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    select r.project_id into new.project_id from ops.runs as r where r.id = new.run_id for key share;
    if not found then
        raise exception 'there is no run %', new.run_id using errcode = 'foreign_key_violation';
    end if;
    perform ops_private.reopen_log(new.run_id, new.project_id, new.seq);
    return new;
end
$$;

CREATE FUNCTION ops_private.set_schedules() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_schedule constant jsonb := coalesce(new.config -> 'schedule', '[]');
    v_wrong constant text := ops_private.bad_schedule(v_schedule);
begin
    if v_wrong is not null then
        raise exception 'workflow config, %', v_wrong using errcode = 'check_violation';
    end if;
    delete from ops_private.schedules as s
    where s.workflow_id = new.id and s.place >= jsonb_array_length(v_schedule);
    insert into ops_private.schedules as s (workflow_id, place, cron, timezone, catch_up, next_at)
    select new.id, e.place - 1, e.line ->> 'cron', z.name, coalesce(e.line ->> 'catch_up', 'skip'),
        ops_private.next_time(e.line ->> 'cron', z.name, ops_private.current_time())
    from jsonb_array_elements(v_schedule) with ordinality as e (line, place)
    cross join lateral (select coalesce(e.line ->> 'timezone', 'UTC') as name) as z
    on conflict (workflow_id, place) do update
    set cron = excluded.cron, timezone = excluded.timezone, catch_up = excluded.catch_up, problem = null,
        next_at = case
            when (s.cron, s.timezone) = (excluded.cron, excluded.timezone) then s.next_at else excluded.next_at end;
    return null;
end
$$;

CREATE FUNCTION ops_private.source_of(p_run ops.runs, p_workflow ops.workflows) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'git_ref', coalesce(p_run.metadata ->> 'git_ref', p_workflow.git_ref),
        'git_commit', lower(coalesce(
            p_run.metadata ->> 'git_commit',
            case when p_run.metadata ->> 'git_ref' is null then p_workflow.git_commit end))));
end
$$;

CREATE FUNCTION ops_private.stale_leases() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        select coalesce(jsonb_agg(to_jsonb(s) order by s.seconds desc), '[]')
        from (
            select p.slug || '#' || r.run_number as run, r.status, l.worker_id, l.lease_seconds,
                extract(epoch from ops_private.current_time() - l.expires_at)::bigint as seconds
            from ops_private.leases as l
            join ops.runs as r on r.id = l.run_id
            join ops.projects as p on p.id = r.project_id
            where l.expires_at < ops_private.current_time()
            order by l.expires_at limit 20
        ) as s);
end
$$;

CREATE FUNCTION ops_private.stop_run(p_run_id uuid, p_status text, p_reason text, p_message text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

CREATE FUNCTION ops_private.supersede_older(p_run_ids uuid[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_now constant timestamptz := ops_private.current_time();
    v_new record;
    v_old record;
begin
    for v_new in
        select distinct on (
            r.project_id, r.workflow_id, r.concurrency_key, ref.name, kind.is_pending, kind.is_later)
            kind.is_pending, kind.is_later, r.project_id, r.workflow_id, r.concurrency_key, r.run_number,
            ref.name as git_ref,
            w.git_ref as default_ref, w.config ->> 'on_newer' as on_newer
        from ops.runs as r
        join ops.workflows as w on w.id = r.workflow_id
        cross join lateral (select coalesce(r.metadata ->> 'git_ref', w.git_ref) as name) as ref
        cross join lateral (
            select coalesce(r.approval = 'pending', false) as is_pending,
                coalesce(r.scheduled_at > v_now, false) as is_later
        ) as kind
        where r.id = any (p_run_ids) and w.config ->> 'on_newer' in ('newest', 'cancel_running')
        order by r.project_id, r.workflow_id, r.concurrency_key, ref.name, kind.is_pending, kind.is_later,
            r.run_number desc
    loop
        for v_old in
            select o.id, o.status from ops.runs as o
            where o.id = any (array(
                    select q.run_id from ops_private.lanes as l
                    join ops_private.queued as q on q.lane_id = l.lane_id
                    where l.project_id = v_new.project_id and l.concurrency_key = v_new.concurrency_key
                    union all
                    select a.run_id from ops_private.leases as a
                    where a.project_id = v_new.project_id and a.concurrency_key = v_new.concurrency_key))
                and o.workflow_id = v_new.workflow_id and o.run_number < v_new.run_number
                and coalesce(o.metadata ->> 'git_ref', v_new.default_ref) is not distinct from v_new.git_ref
                and (o.status = 'queued' or v_new.on_newer = 'cancel_running')
                and (not v_new.is_pending or o.approval = 'pending')
                and (not v_new.is_later or (o.status = 'queued' and o.scheduled_at > v_now))
            order by o.id
            for no key update of o
        loop
            perform ops_private.stop_run(v_old.id, v_old.status, p_reason => 'superseded', p_message => format(
                'superseded: run #%s of the same workflow, key and git ref is newer', v_new.run_number));
        end loop;
    end loop;
end
$$;

CREATE FUNCTION ops_private.sync_settings(p_project jsonb, p_old ops.projects, OUT change text, OUT fields text[], OUT refusal jsonb) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_trusted constant boolean := ops_private.trusted();
    v_new ops.projects;
    v_limits constant jsonb := '{"max_active_runs": null, "max_queued_runs": null}' || (p_project -> 'limits');
    v_limited boolean;
    v_key text;
begin
    v_new := jsonb_populate_record(p_old, '{"description": null, "config": {}}' || (p_project - 'workspace_key'));
    v_new.id := coalesce(p_old.id, gen_random_uuid());
    v_new.workspace_key := coalesce(
        p_old.workspace_key, p_project ->> 'workspace_key', replace(v_new.slug, '-', '_'));
    v_new.status := coalesce(v_new.status, p_old.status, 'active');
    if p_project ->> 'workspace_key' <> v_new.workspace_key then
        refusal := ops_private.refusal('bad_argument', format(
            'project.workspace_key: a project keeps it; expected %s', v_new.workspace_key));
        return;
    end if;
    fields := case when p_old.id is null then '{}'::text[]
        else ops_private.changed_keys(to_jsonb(p_old), to_jsonb(v_new)) end;
    if fields <> '{}' and not v_trusted and ops.current_user_role(v_new.id) <> 'owner' then
        refusal := ops_private.refusal('not_allowed', format(
            'a %s may not edit the settings of a project: %s', ops.current_user_role(v_new.id),
            array_to_string(fields[:10], ', ')));
        return;
    end if;
    select v_limits <> jsonb_build_object(
        'max_active_runs', max(k.max_active_runs), 'max_queued_runs', max(k.max_queued_runs))
    into v_limited from ops_private.project_limits as k where k.project_id = v_new.id;
    if v_limited and not v_trusted then
        refusal := ops_private.refusal('not_allowed', 'only service_role changes the limits of a project');
        return;
    end if;
    if p_old.id is null then
        insert into ops.projects (id, workspace_key, slug, name, description, odoo_version, status, config)
        values (v_new.id, v_new.workspace_key, v_new.slug, v_new.name, v_new.description, v_new.odoo_version,
            v_new.status, v_new.config);
    elsif fields <> '{}' then
        update ops.projects as p
        set name = v_new.name, description = v_new.description, odoo_version = v_new.odoo_version,
            status = v_new.status, config = v_new.config
        where p.id = v_new.id;
    end if;
    if v_limited then
        fields := fields || case when p_old.id is null then '{}'::text[] else '{limits}'::text[] end;
        perform ops_private.limit_project(
            v_new.id, (v_limits ->> 'max_active_runs')::integer, (v_limits ->> 'max_queued_runs')::integer);
    end if;
    change := case when p_old.id is null then 'added' when fields = '{}' then 'unchanged' else 'changed' end;
exception
    when unique_violation then
        get stacked diagnostics v_key = constraint_name;
        refusal := ops_private.refusal('bad_argument', format('project.%s: another project has it',
            case v_key when 'projects_slug_key' then 'slug' else 'workspace_key' end));
    when check_violation then
        get stacked diagnostics v_key = constraint_name;
        refusal := ops_private.refusal('bad_argument', case v_key
            when '' then 'project: ' || sqlerrm else format('project breaks the rule %s', v_key) end);
end
$$;

CREATE FUNCTION ops_private.sync_workflows(p_project ops.projects, p_workflows jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_old ops.workflows;
    v_new ops.workflows;
    v_ids uuid[] := '{}'::uuid[];
    v_changes jsonb := '[]'::jsonb;
begin
    for v_round in 1 .. 2 loop
        for v_place in 0 .. jsonb_array_length(p_workflows) - 1 loop
            select w.* into v_old from ops.workflows as w
            where w.project_id = p_project.id and w.workflow_type = p_workflows -> v_place ->> 'workflow_type'
                and w.name = p_workflows -> v_place ->> 'name';
            v_new := jsonb_populate_record(
                v_old, '{"description": null, "enabled": true, "git_ref": null, "git_commit": null, "config": {}}'
                || (p_workflows -> v_place));
            v_new.id := coalesce(v_old.id, gen_random_uuid());
            v_new.project_id := p_project.id;
            if v_round = 1 then
                v_ids := v_ids || v_new.id;
                v_changes := v_changes || jsonb_build_object(
                    'workflow_id', v_new.id, 'workflow_type', v_new.workflow_type, 'name', v_new.name,
                    'change', case when v_old.id is null then 'added' when v_old = v_new then 'unchanged'
                        else 'changed' end,
                    'fields', case when v_old.id is null then '{}'::text[]
                        else ops_private.changed_keys(to_jsonb(v_old), to_jsonb(v_new)) end,
                    'missing_tool', ops_private.missing_tool(p_project, v_new));
                if v_old.config -> 'then' is distinct from v_new.config -> 'then' then
                    v_new.config := v_new.config - 'then';
                end if;
            end if;
            if v_old is distinct from v_new then
                perform ops_private.write_workflow(v_place, v_new);
            end if;
        end loop;
    end loop;
    with disabled as (
        update ops.workflows as w set enabled = false
        where w.project_id = p_project.id and w.enabled and w.id <> all (v_ids)
        returning w.id, w.workflow_type, w.name
    )
    select v_changes || coalesce(jsonb_agg(jsonb_build_object(
        'workflow_id', d.id, 'workflow_type', d.workflow_type, 'name', d.name, 'change', 'disabled',
        'fields', '{enabled}'::text[], 'missing_tool', null) order by d.workflow_type, d.name), '[]'::jsonb)
    into v_changes from disabled as d;
    return v_changes;
end
$$;

CREATE FUNCTION ops_private.tell_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if exists (select from ops_private.destinations) then
        perform ops_private.fill_outbox(array[new.id], case new.status
            when 'running' then 'started' when 'failed' then 'red' when 'canceled' then 'canceled'
            else case when exists (
                select from ops_private.destinations as d where d.events && '{green_again,every}'::text[]
            ) and ops_private.was_red(new) then 'green_again' else 'succeeded' end end);
    end if;
    return null;
end
$$;

CREATE FUNCTION ops_private.tell_queued() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if exists (select from ops_private.destinations as d where 'queued' = any (d.events)) then
        perform ops_private.fill_outbox(array(select i.id from inserted as i), 'queued');
    end if;
    return null;
end
$$;

CREATE FUNCTION ops_private.tool_image(p_workflow_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        select t.docker_image
        from ops.workflows as w
        join ops.projects as p on p.id = w.project_id
        join ops.tools as t
            on t.tool_name = coalesce(w.config ->> 'tool', 'odoo')
            and t.version = coalesce(w.config ->> 'version', p.odoo_version)
        where w.id = p_workflow_id);
end
$$;

CREATE FUNCTION ops_private.touch_updated_at() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    new.updated_at := ops_private.current_time();
    return new;
end
$$;

CREATE FUNCTION ops_private.trusted() RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_caller constant name := ops_private.caller();
begin
    if pg_has_role(v_caller, to_regrole('service_role'), 'usage') then
        return true;
    end if;
    return pg_has_role(v_caller, (select n.nspowner from pg_namespace as n where n.nspname = 'ops'), 'usage');
end
$$;

CREATE FUNCTION ops_private.unserved_runs() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return (
        with lane as (
            select l.lane_id, l.labels from ops_private.lanes as l
            where not exists (
                select from ops_private.workers as w
                where l.labels <@ w.labels and w.expires_at > ops_private.current_time())
        )
        select jsonb_build_object(
            'runs', (select count(*) from lane as l join ops_private.queued as q on q.lane_id = l.lane_id),
            'labels', (
                select coalesce(jsonb_agg(n.label order by n.label), '[]')
                from (
                    select distinct e.label from lane as l cross join unnest(l.labels) as e (label)
                    where exists (select from ops_private.queued as q where q.lane_id = l.lane_id)
                    order by 1 limit 20
                ) as n))
    );
end
$$;

CREATE FUNCTION ops_private.version_key(p_version text) RETURNS integer[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
begin
    if p_version ~ '^\d{1,9}(\.\d{1,9})*$' then
        return string_to_array(regexp_replace(p_version, '(\.0+)+$', ''), '.')::integer[];
    end if;
    return null;
end
$_$;

CREATE FUNCTION ops_private.visible_projects() RETURNS uuid[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return case when ops_private.trusted() then array(select p.id from ops.projects as p)
        else array(select ops_private.my_projects()) end;
end
$$;

CREATE FUNCTION ops_private.wake_scheduled_runs() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
    v_woken integer;
begin
    with due as (
        select r.id from ops.runs as r
        where r.status = 'queued' and r.id = any (array(
            select q.run_id from ops_private.queued as q
            where q.scheduled_at <= (select ops_private.current_time())
            order by q.scheduled_at limit 1000))
        order by r.id
        for update of r skip locked
    ), woken as (
        update ops.runs as r set scheduled_at = null from due where r.id = due.id returning r.id
    )
    select count(*) into v_woken from woken;
    return v_woken + ops_private.fire_schedules();
end
$$;

CREATE FUNCTION ops_private.wanted_until(p_config jsonb, p_since timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if ops_private.is_whole_number(p_config -> 'queue_timeout_seconds', 1, 31536000) then
        return p_since + make_interval(secs => (p_config ->> 'queue_timeout_seconds')::integer);
    end if;
    return null;
end
$$;

CREATE FUNCTION ops_private.was_red(p_run ops.runs) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_default constant text := (select w.git_ref from ops.workflows as w where w.id = p_run.workflow_id);
    v_ref constant text := ops_private.run_git(p_run.metadata, 'git_ref', v_default);
begin
    return coalesce((
        select b.status = 'failed'
        from (
            select r.workflow_id, r.status, r.metadata, r.finished_at, r.run_number from ops.runs as r
            where r.project_id = p_run.project_id and r.run_number <> p_run.run_number
            order by r.run_number desc limit 1000
        ) as b
        where b.workflow_id = p_run.workflow_id and b.status in ('succeeded', 'failed')
            and ops_private.run_git(b.metadata, 'git_ref', v_default) is not distinct from v_ref
        order by b.finished_at desc, b.run_number desc limit 1), false);
end
$$;

CREATE FUNCTION ops_private.why_image_waits(p_workflow_id uuid, p_labels text[]) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_image text;
    v_next timestamptz;
begin
    if not exists (select from ops_private.missing_images as m where m.until > ops_private.current_time()) then
        return null;
    end if;
    v_image := ops_private.tool_image(p_workflow_id);
    select min(m.until) into v_next
    from ops_private.workers as w
    left join ops_private.worker_ids as i on i.worker_id = w.worker_id
    left join ops_private.missing_images as m
        on m.worker_id = w.worker_id and m.docker_image = v_image and m.until > ops_private.current_time()
    where p_labels <@ w.labels and w.expires_at > ops_private.current_time() and i.drained_at is null
    having bool_and(m.until is not null);
    return format('image: %s is missing on every worker, which try again from ', v_image)
        || to_char(v_next at time zone 'UTC', 'HH24:MI:SS "UTC"');
end
$$;

CREATE TABLE ops_private.lanes (
    lane_id bigint NOT NULL,
    group_id bigint,
    project_id uuid NOT NULL,
    priority integer NOT NULL,
    labels text[] NOT NULL,
    concurrency_key text,
    digest bytea NOT NULL
);

COMMENT ON COLUMN ops_private.lanes.group_id IS 'The lane of the same project, priority and labels without a key; null: this one.';

COMMENT ON COLUMN ops_private.lanes.digest IS 'Of priority, labels and key, which are too long for an index.';

CREATE FUNCTION ops_private.why_lane_waits(p_lane ops_private.lanes, OUT paused text, OUT held text, OUT lacking text) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_limits ops_private.project_limits;
    v_claims boolean;  -- whether a worker with these labels claims runs; null if there is none
begin
    select bool_or(i.drained_at is null) into v_claims
    from ops_private.workers as w left join ops_private.worker_ids as i on i.worker_id = w.worker_id
    where p_lane.labels <@ w.labels and w.expires_at > ops_private.current_time();
    select k.* into v_limits from ops_private.project_limits as k where k.project_id = p_lane.project_id;
    paused := case
        when exists (select from ops_private.control as c where c.paused_at is not null) then 'queue: paused'
        when v_limits.paused_at is not null then 'project: paused by ' || v_limits.paused_by end;
    select format('key: run #%s holds %s', r.run_number, p_lane.concurrency_key) into held
    from ops_private.leases as l join ops.runs as r on r.id = l.run_id
    where l.project_id = p_lane.project_id and l.concurrency_key = p_lane.concurrency_key;
    lacking := case
        when v_limits.max_active_runs <= (
            select count(*) from ops_private.leases as l where l.project_id = p_lane.project_id
        ) then format('limit: the project has %s active runs', v_limits.max_active_runs)
        when v_claims is null then
            'labels: no worker has ' || coalesce(nullif(array_to_string(p_lane.labels, ', '), ''), 'registered')
        when not v_claims then 'worker: each that has its labels is drained' end;
end
$$;

CREATE FUNCTION ops_private.words(p_lexemes text[]) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return array(
        select m.word[1]
        from regexp_matches(array_to_string(p_lexemes, ' ') collate "C", '[a-z0-9]+|[^\x01-\x7f]+', 'g') as m (word));
end
$$;

CREATE FUNCTION ops_private.words_of_lines(p_lines text) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return ops_private.words(tsvector_to_array(to_tsvector('simple', translate(p_lines, '<', ' '))));
end
$$;

CREATE FUNCTION ops_private.words_of_query(p_query tsquery, p_project_id uuid) RETURNS tsquery
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_any constant text := quote_literal(p_project_id);
    v_words text;
begin
    select string_agg(
        case when left(t.part[1], 1) = '''' then coalesce(
            (select '(' || string_agg(quote_literal(w.word), ' & ') || ')'
             from unnest(ops_private.words(array[t.part[1]])) as w (word)),
            v_any)
        else regexp_replace(t.part[1], '<(-|\d+)>', '&', 'g') end, '' order by t.place) into v_words
    from regexp_matches(querytree(p_query), '''(?:[^'']|'''')*''|[^'']+', 'g') with ordinality as t (part, place);
    return v_any::tsquery && case v_words when 'T' then v_any else v_words end::tsquery;
end
$$;

CREATE FUNCTION ops_private.worker_id_taken(p_worker_id text, p_instance_id uuid) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION ops_private.workflows_named(p_project_id uuid, p_name text) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return coalesce(
        nullif(array(
            select w.id from ops.workflows as w
            where w.project_id = p_project_id and p_name in (w.name, w.workflow_type || '/' || w.name)
            order by w.workflow_type, w.name), '{}'),
        array(
            select w.id from ops.workflows as w
            where w.project_id = p_project_id and w.workflow_type = p_name order by w.name));
end
$$;

CREATE FUNCTION ops_private.write_workflow(p_place integer, p_new ops.workflows) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    v_rule text;
begin
    insert into ops.workflows as w
        (id, project_id, workflow_type, name, description, enabled, git_ref, git_commit, config)
    values (p_new.id, p_new.project_id, p_new.workflow_type, p_new.name, p_new.description, p_new.enabled,
        p_new.git_ref, p_new.git_commit, p_new.config)
    on conflict (project_id, workflow_type, name) do update
    set description = excluded.description, enabled = excluded.enabled, git_ref = excluded.git_ref,
        git_commit = excluded.git_commit, config = excluded.config;
exception
    when check_violation or insufficient_privilege then
        get stacked diagnostics v_rule = constraint_name;
        raise exception 'project.workflows[%]%', p_place,
            case v_rule when '' then ': ' || sqlerrm else ' breaks the rule ' || v_rule end using errcode = sqlstate;
end
$$;

CREATE TABLE ops.run_artifacts (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    run_id uuid NOT NULL,
    artifact_key text NOT NULL,
    artifact_url text NOT NULL,
    content_type text,
    size_bytes bigint,
    checksum text,
    expires_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    project_id uuid NOT NULL,
    CONSTRAINT run_artifacts_artifact_key_format CHECK (((octet_length(artifact_key) <= 1024) AND (artifact_key !~ '[[:cntrl:]]'::text) AND (artifact_key !~ '(^|/)\.{0,2}(/|$)'::text))),
    CONSTRAINT run_artifacts_artifact_url_fits CHECK ((octet_length(artifact_url) <= 8192)),
    CONSTRAINT run_artifacts_artifact_url_format CHECK ((artifact_url <> ''::text)),
    CONSTRAINT run_artifacts_checksum_fits CHECK ((octet_length(checksum) <= 1024)),
    CONSTRAINT run_artifacts_content_type_fits CHECK ((length(content_type) <= 255)),
    CONSTRAINT run_artifacts_metadata_at_most_256_kib CHECK ((octet_length((metadata)::text) <= 262144)),
    CONSTRAINT run_artifacts_metadata_at_most_32_deep CHECK ((NOT jsonb_path_exists(metadata, 'strict $.**{33}'::jsonpath))),
    CONSTRAINT run_artifacts_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT run_artifacts_size_bytes_not_negative CHECK ((size_bytes >= 0))
);

CREATE TABLE ops.run_events (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    run_id uuid NOT NULL,
    event_type text NOT NULL,
    message text NOT NULL,
    payload jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    seq bigint NOT NULL,
    project_id uuid NOT NULL,
    CONSTRAINT run_events_valid CHECK (ops_private.is_valid_event(event_type, message, payload))
);

COMMENT ON COLUMN ops.run_events.event_type IS 'One of state_change, error, warning and info.';

ALTER TABLE ops.run_events ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME ops.run_events_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE ops.tools (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    tool_name text NOT NULL,
    version text NOT NULL,
    docker_image text NOT NULL,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT tools_config_at_most_256_kib CHECK ((octet_length((config)::text) <= 262144)),
    CONSTRAINT tools_config_at_most_32_deep CHECK ((NOT jsonb_path_exists(config, 'strict $.**{33}'::jsonpath))),
    CONSTRAINT tools_config_check CHECK ((jsonb_typeof(config) = 'object'::text)),
    CONSTRAINT tools_docker_image_format CHECK (((length(docker_image) <= 512) AND (docker_image ~ '^[^[:space:][:cntrl:]]+$'::text))),
    CONSTRAINT tools_texts_fit CHECK (((length(tool_name) <= 200) AND (length(version) <= 100)))
);

CREATE TABLE ops_private.control (
    singleton boolean DEFAULT true NOT NULL,
    database_id uuid DEFAULT gen_random_uuid() NOT NULL,
    fingerprint text,
    max_lost_leases integer DEFAULT 5 NOT NULL,
    max_queued_runs integer DEFAULT 100000 NOT NULL,
    paused_at timestamp with time zone,
    paused_by text,
    pause_reason text,
    CONSTRAINT control_max_lost_leases_check CHECK ((max_lost_leases > 0)),
    CONSTRAINT control_max_queued_runs_check CHECK ((max_queued_runs > 0)),
    CONSTRAINT control_pause_reason_check CHECK ((octet_length(pause_reason) <= 10000)),
    CONSTRAINT control_singleton_check CHECK (singleton)
);

COMMENT ON COLUMN ops_private.control.max_lost_leases IS 'A run is quarantined when more workers than this were lost with it in a row, over a minute or more.';

COMMENT ON COLUMN ops_private.control.max_queued_runs IS 'How many runs of one project may be queued at once. Retries by the database are not refused, but they count.';

CREATE TABLE ops_private.destinations (
    worker_id text NOT NULL,
    name text NOT NULL,
    events text[] NOT NULL,
    commits_only boolean NOT NULL,
    projects text[] NOT NULL,
    workflows text[] NOT NULL,
    branches text[] NOT NULL,
    seen_at timestamp with time zone NOT NULL,
    CONSTRAINT destinations_worker_id_check CHECK ((octet_length(worker_id) <= 200))
);

COMMENT ON TABLE ops_private.destinations IS 'What the workers send, and where. Workers that register the same name share the messages for it.';

COMMENT ON COLUMN ops_private.destinations.commits_only IS 'Only runs with a commit: its status on a forge.';

COMMENT ON COLUMN ops_private.destinations.seen_at IS 'When the worker last asked for messages. A destination that no worker asked for in 24 hours gets no new ones.';

CREATE TABLE ops_private.idle_workers (
    instance_id uuid NOT NULL,
    labels text[] NOT NULL,
    since timestamp with time zone NOT NULL
);

CREATE TABLE ops_private.known_errors (
    project_id uuid NOT NULL,
    fingerprint text NOT NULL,
    note text,
    marked_by text NOT NULL,
    marked_at timestamp with time zone NOT NULL,
    CONSTRAINT known_errors_note_check CHECK ((octet_length(note) <= 4000))
);

ALTER TABLE ops_private.lanes ALTER COLUMN lane_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME ops_private.lanes_lane_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE ops_private.log_blocks (
    run_id uuid NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    first_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone NOT NULL,
    lines integer NOT NULL,
    words tsvector NOT NULL
);

CREATE TABLE ops_private.log_tails (
    run_id uuid NOT NULL,
    project_id uuid NOT NULL,
    from_seq bigint DEFAULT 1 NOT NULL,
    warnings integer DEFAULT 0 NOT NULL,
    errors integer DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE ops_private.missing_images (
    worker_id text NOT NULL,
    docker_image text NOT NULL,
    until timestamp with time zone NOT NULL
);

COMMENT ON COLUMN ops_private.missing_images.docker_image IS 'As ops.tools has it.';

ALTER TABLE ops_private.outbox ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME ops_private.outbox_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE ops_private.pending_retries (
    run_id uuid NOT NULL
);

CREATE TABLE ops_private.project_limits (
    project_id uuid NOT NULL,
    paused_at timestamp with time zone,
    paused_by text,
    pause_reason text,
    max_active_runs integer,
    max_queued_runs integer,
    CONSTRAINT project_limits_max_active_runs_check CHECK ((max_active_runs > 0)),
    CONSTRAINT project_limits_max_queued_runs_check CHECK ((max_queued_runs > 0)),
    CONSTRAINT project_limits_pause_reason_check CHECK ((octet_length(pause_reason) <= 10000))
);

COMMENT ON COLUMN ops_private.project_limits.max_queued_runs IS 'Null: max_queued_runs of ops_private.control.';

CREATE TABLE ops_private.retired_artifacts (
    artifact_id uuid NOT NULL,
    artifact_key text NOT NULL,
    artifact_url text NOT NULL,
    size_bytes bigint,
    claimed_by text
);

CREATE TABLE ops_private.run_counters (
    project_id uuid NOT NULL,
    last integer NOT NULL,
    counted integer DEFAULT 0 NOT NULL,
    CONSTRAINT run_counters_last_check CHECK ((last >= 0))
);

COMMENT ON COLUMN ops_private.run_counters.counted IS 'The run number at which the queued runs were last counted.';

CREATE TABLE ops_private.run_fingerprints (
    run_id uuid NOT NULL,
    fingerprint text NOT NULL,
    project_id uuid NOT NULL,
    place integer NOT NULL,
    kind text NOT NULL,
    message text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT run_fingerprints_kind_check CHECK ((kind = ANY (ARRAY['test'::text, 'error'::text, 'reason'::text]))),
    CONSTRAINT run_fingerprints_message_check CHECK ((octet_length(message) <= 2000))
);

COMMENT ON COLUMN ops_private.run_fingerprints.place IS 'The order in the run: the first failing test, the last error.';

COMMENT ON COLUMN ops_private.run_fingerprints.message IS 'The name of the test, or the error without what varies.';

CREATE TABLE ops_private.run_logs_other (
    run_id uuid CONSTRAINT run_logs_run_id_not_null NOT NULL,
    seq bigint DEFAULT nextval('ops_private.run_log_seq'::regclass) CONSTRAINT run_logs_seq_not_null NOT NULL,
    log_level text CONSTRAINT run_logs_log_level_not_null NOT NULL,
    message text CONSTRAINT run_logs_message_not_null NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb CONSTRAINT run_logs_metadata_not_null NOT NULL,
    "timestamp" timestamp with time zone DEFAULT now() CONSTRAINT run_logs_timestamp_not_null NOT NULL,
    stream text,
    created_at timestamp with time zone DEFAULT now() CONSTRAINT run_logs_created_at_not_null NOT NULL,
    project_id uuid CONSTRAINT run_logs_project_id_not_null NOT NULL,
    CONSTRAINT run_logs_log_level_check CHECK ((log_level = ANY (ARRAY['debug'::text, 'info'::text, 'warn'::text, 'error'::text]))),
    CONSTRAINT run_logs_message_check CHECK ((octet_length(message) <= 65600)),
    CONSTRAINT run_logs_metadata_at_most_256_kib CHECK (((metadata = '{}'::jsonb) OR (octet_length((metadata)::text) <= 262144))),
    CONSTRAINT run_logs_metadata_at_most_32_deep CHECK (((metadata = '{}'::jsonb) OR (NOT jsonb_path_exists(metadata, 'strict $.**{33}'::jsonpath)))),
    CONSTRAINT run_logs_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT run_logs_seq_check CHECK ((seq > 0)),
    CONSTRAINT run_logs_stream_check CHECK ((stream = ANY (ARRAY['stdout'::text, 'stderr'::text])))
);

CREATE TABLE ops_private.run_requests (
    run_id uuid NOT NULL,
    digest bytea NOT NULL
);

CREATE TABLE ops_private.run_summaries (
    run_id uuid NOT NULL,
    summary text NOT NULL,
    CONSTRAINT run_summaries_summary_check CHECK ((octet_length(summary) <= 1048576))
);

CREATE SEQUENCE ops_private.turn_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE ops_private.turns (
    project_id uuid NOT NULL,
    turn bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE ops_private.webhooks (
    project_id uuid NOT NULL,
    secret text NOT NULL,
    set_at timestamp with time zone NOT NULL,
    set_by text NOT NULL,
    CONSTRAINT webhooks_secret_check CHECK (((octet_length(secret) >= 16) AND (octet_length(secret) <= 1000)))
);

CREATE TABLE ops_private.worker_ids (
    worker_id text NOT NULL,
    db_role text NOT NULL,
    drained_at timestamp with time zone,
    drained_by text,
    drain_reason text,
    CONSTRAINT worker_ids_drain_reason_check CHECK ((octet_length(drain_reason) <= 10000))
);

COMMENT ON COLUMN ops_private.worker_ids.drained_at IS 'Since when the worker claims no runs; null if it is not drained (ops.drain_worker).';

CREATE TABLE ops_private.workers (
    worker_id text NOT NULL,
    instance_id uuid NOT NULL,
    db_role text NOT NULL,
    host_id text,
    engine_id text,
    version text,
    labels text[] DEFAULT '{}'::text[] NOT NULL,
    started_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    disk_free bigint,
    disk_total bigint,
    CONSTRAINT workers_disk_free_check CHECK ((disk_free >= 0)),
    CONSTRAINT workers_disk_total_check CHECK ((disk_total >= 0)),
    CONSTRAINT workers_texts_fit CHECK (((octet_length(worker_id) <= 200) AND (octet_length(host_id) <= 1000) AND (octet_length(engine_id) <= 1000) AND (octet_length(version) <= 1000) AND (cardinality(labels) <= 1000) AND (octet_length(array_to_string(labels, ''::text)) <= 100000)))
)
WITH (fillfactor='50');

COMMENT ON COLUMN ops_private.workers.disk_free IS 'Bytes on the fullest of the engine''s disks, when the worker last renewed; null if it cannot see them.';

ALTER TABLE ONLY ops.run_logs ATTACH PARTITION ops_private.run_logs_other DEFAULT;

ALTER TABLE ONLY ops.project_memberships
    ADD CONSTRAINT project_memberships_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.project_memberships
    ADD CONSTRAINT project_memberships_project_id_user_id_key UNIQUE (project_id, user_id);

ALTER TABLE ONLY ops.projects
    ADD CONSTRAINT projects_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.projects
    ADD CONSTRAINT projects_slug_key UNIQUE (slug);

ALTER TABLE ONLY ops.projects
    ADD CONSTRAINT projects_workspace_key_key UNIQUE (workspace_key);

ALTER TABLE ONLY ops.run_artifacts
    ADD CONSTRAINT run_artifacts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.run_artifacts
    ADD CONSTRAINT run_artifacts_run_id_artifact_key_key UNIQUE (run_id, artifact_key);

ALTER TABLE ONLY ops.run_events
    ADD CONSTRAINT run_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.run_logs
    ADD CONSTRAINT run_logs_pkey PRIMARY KEY (run_id, seq);

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_idempotency_key_key UNIQUE (idempotency_key);

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_project_id_run_number_key UNIQUE (project_id, run_number);

ALTER TABLE ops.runs
    ADD CONSTRAINT runs_valid CHECK (ops_private.is_valid_run(runs.*));

ALTER TABLE ONLY ops.tools
    ADD CONSTRAINT tools_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.tools
    ADD CONSTRAINT tools_tool_name_version_key UNIQUE (tool_name, version);

ALTER TABLE ONLY ops.upgrade_advisories
    ADD CONSTRAINT upgrade_advisories_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.workflows
    ADD CONSTRAINT workflows_pkey PRIMARY KEY (id);

ALTER TABLE ONLY ops.workflows
    ADD CONSTRAINT workflows_project_id_id_key UNIQUE (project_id, id);

ALTER TABLE ONLY ops.workflows
    ADD CONSTRAINT workflows_project_id_workflow_type_name_key UNIQUE (project_id, workflow_type, name);

ALTER TABLE ONLY ops_private.control
    ADD CONSTRAINT control_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY ops_private.destinations
    ADD CONSTRAINT destinations_pkey PRIMARY KEY (worker_id, name);

ALTER TABLE ONLY ops_private.idle_workers
    ADD CONSTRAINT idle_workers_pkey PRIMARY KEY (instance_id);

ALTER TABLE ONLY ops_private.known_errors
    ADD CONSTRAINT known_errors_pkey PRIMARY KEY (project_id, fingerprint);

ALTER TABLE ONLY ops_private.lanes
    ADD CONSTRAINT lanes_pkey PRIMARY KEY (lane_id);

ALTER TABLE ONLY ops_private.lanes
    ADD CONSTRAINT lanes_project_id_digest_key UNIQUE (project_id, digest);

ALTER TABLE ONLY ops_private.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY ops_private.log_blocks
    ADD CONSTRAINT log_blocks_pkey PRIMARY KEY (run_id, first_seq);

ALTER TABLE ONLY ops_private.log_tails
    ADD CONSTRAINT log_tails_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY ops_private.missing_images
    ADD CONSTRAINT missing_images_pkey PRIMARY KEY (worker_id, docker_image);

ALTER TABLE ONLY ops_private.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (delivery_id);

ALTER TABLE ONLY ops_private.pending_retries
    ADD CONSTRAINT pending_retries_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY ops_private.project_limits
    ADD CONSTRAINT project_limits_pkey PRIMARY KEY (project_id);

ALTER TABLE ONLY ops_private.queued
    ADD CONSTRAINT queued_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY ops_private.retired_artifacts
    ADD CONSTRAINT retired_artifacts_pkey PRIMARY KEY (artifact_id);

ALTER TABLE ONLY ops_private.run_counters
    ADD CONSTRAINT run_counters_pkey PRIMARY KEY (project_id);

ALTER TABLE ONLY ops_private.run_fingerprints
    ADD CONSTRAINT run_fingerprints_pkey PRIMARY KEY (run_id, fingerprint);

ALTER TABLE ONLY ops_private.run_logs_other
    ADD CONSTRAINT run_logs_other_pkey PRIMARY KEY (run_id, seq);

ALTER TABLE ONLY ops_private.run_requests
    ADD CONSTRAINT run_requests_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY ops_private.run_summaries
    ADD CONSTRAINT run_summaries_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY ops_private.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (workflow_id, place);

ALTER TABLE ONLY ops_private.turns
    ADD CONSTRAINT turns_pkey PRIMARY KEY (project_id);

ALTER TABLE ONLY ops_private.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (project_id);

ALTER TABLE ONLY ops_private.worker_ids
    ADD CONSTRAINT worker_ids_pkey PRIMARY KEY (worker_id);

ALTER TABLE ONLY ops_private.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (worker_id);

CREATE INDEX project_memberships_user_idx ON ops.project_memberships USING btree (user_id);

CREATE INDEX run_artifacts_expires_idx ON ops.run_artifacts USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX run_events_run_idx ON ops.run_events USING btree (run_id, seq);

CREATE INDEX run_logs_levels_idx ON ONLY ops.run_logs USING btree (run_id, log_level, seq) WHERE (log_level = ANY (ARRAY['warn'::text, 'error'::text]));

CREATE INDEX run_logs_marks_idx ON ONLY ops.run_logs USING btree (run_id, seq) WHERE ((message ~~ '::group::%'::text) OR (message ~~ '::endgroup::%'::text));

CREATE INDEX runs_parent_idx ON ops.runs USING btree (parent_run_id) WHERE (parent_run_id IS NOT NULL);

CREATE INDEX runs_retry_of_idx ON ops.runs USING btree (retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX runs_workflow_idx ON ops.runs USING btree (workflow_id);

CREATE INDEX lanes_group_idx ON ops_private.lanes USING btree (group_id);

CREATE INDEX lanes_key_idx ON ops_private.lanes USING btree (project_id, concurrency_key) WHERE (concurrency_key IS NOT NULL);

CREATE UNIQUE INDEX leases_concurrency_idx ON ops_private.leases USING btree (project_id, concurrency_key) WHERE (concurrency_key IS NOT NULL);

CREATE INDEX log_blocks_words_idx ON ops_private.log_blocks USING gin (words);

CREATE INDEX log_tails_project_idx ON ops_private.log_tails USING btree (project_id);

CREATE INDEX outbox_due_idx ON ops_private.outbox USING btree (destination, due_at);

CREATE INDEX outbox_run_idx ON ops_private.outbox USING btree (run_id, destination);

CREATE INDEX queued_group_idx ON ops_private.queued USING btree (group_id, scheduled_at NULLS FIRST, created_at, run_number);

CREATE INDEX queued_lane_idx ON ops_private.queued USING btree (lane_id, scheduled_at NULLS FIRST, created_at, run_number);

CREATE INDEX queued_scheduled_idx ON ops_private.queued USING btree (scheduled_at) WHERE (scheduled_at IS NOT NULL);

CREATE INDEX queued_wanted_idx ON ops_private.queued USING btree (wanted_until) WHERE (wanted_until IS NOT NULL);

CREATE INDEX run_fingerprints_fingerprint_idx ON ops_private.run_fingerprints USING btree (fingerprint, created_at, project_id, run_id);

CREATE INDEX run_logs_other_run_id_log_level_seq_idx ON ops_private.run_logs_other USING btree (run_id, log_level, seq) WHERE (log_level = ANY (ARRAY['warn'::text, 'error'::text]));

CREATE INDEX run_logs_other_run_id_seq_idx ON ops_private.run_logs_other USING btree (run_id, seq) WHERE ((message ~~ '::group::%'::text) OR (message ~~ '::endgroup::%'::text));

CREATE INDEX schedules_next_idx ON ops_private.schedules USING btree (next_at);

ALTER INDEX ops.run_logs_pkey ATTACH PARTITION ops_private.run_logs_other_pkey;

ALTER INDEX ops.run_logs_levels_idx ATTACH PARTITION ops_private.run_logs_other_run_id_log_level_seq_idx;

ALTER INDEX ops.run_logs_marks_idx ATTACH PARTITION ops_private.run_logs_other_run_id_seq_idx;

CREATE TRIGGER check_changed_push AFTER UPDATE OF config ON ops.projects FOR EACH ROW WHEN (((new.config ? 'push'::text) AND ((old.config -> 'push'::text) IS DISTINCT FROM (new.config -> 'push'::text)))) EXECUTE FUNCTION ops_private.check_push();

CREATE TRIGGER check_changed_triggers AFTER UPDATE OF config, name, workflow_type ON ops.workflows FOR EACH ROW WHEN (((old.config ? 'approval'::text) OR (new.config ?| '{then,approval,on_newer,queue_timeout_seconds}'::text[]))) EXECUTE FUNCTION ops_private.check_triggers();

CREATE TRIGGER check_push AFTER INSERT ON ops.projects FOR EACH ROW WHEN ((new.config ? 'push'::text)) EXECUTE FUNCTION ops_private.check_push();

CREATE TRIGGER check_triggers AFTER INSERT ON ops.workflows FOR EACH ROW WHEN ((new.config ?| '{then,approval,on_newer,queue_timeout_seconds}'::text[])) EXECUTE FUNCTION ops_private.check_triggers();

CREATE TRIGGER count_runs AFTER INSERT ON ops.runs REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION ops_private.count_runs();

CREATE TRIGGER delete_run_logs AFTER DELETE ON ops.runs FOR EACH ROW EXECUTE FUNCTION ops_private.delete_run_logs();

CREATE TRIGGER enforce_run_status_transition BEFORE UPDATE ON ops.runs FOR EACH ROW EXECUTE FUNCTION ops_private.enforce_run_status_transition();

CREATE TRIGGER keep_all_run_events BEFORE TRUNCATE ON ops.run_events FOR EACH STATEMENT EXECUTE FUNCTION ops_private.keep_run_events();

CREATE TRIGGER keep_an_owner AFTER UPDATE ON ops.project_memberships FOR EACH ROW WHEN ((old.role = 'owner'::text)) EXECUTE FUNCTION ops_private.keep_an_owner();

CREATE TRIGGER keep_an_owner_who_leaves AFTER DELETE ON ops.project_memberships FOR EACH ROW WHEN (((old.role = 'owner'::text) AND (pg_trigger_depth() = 0))) EXECUTE FUNCTION ops_private.keep_an_owner();

CREATE TRIGGER keep_run_events BEFORE DELETE OR UPDATE ON ops.run_events FOR EACH ROW EXECUTE FUNCTION ops_private.keep_run_events();

CREATE TRIGGER leave_queue AFTER DELETE ON ops.runs REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION ops_private.leave_queue();

CREATE TRIGGER prepare_run BEFORE INSERT ON ops.runs FOR EACH ROW EXECUTE FUNCTION ops_private.prepare_run();

CREATE TRIGGER record_fingerprints AFTER UPDATE OF status ON ops.runs FOR EACH ROW WHEN (((new.status <> old.status) AND (new.status = 'failed'::text))) EXECUTE FUNCTION ops_private.record_fingerprints();

CREATE TRIGGER record_run_change AFTER UPDATE OF status, scheduled_at, cancel_requested_at, created_at, priority, labels, concurrency_key, approval, wanted_until ON ops.runs FOR EACH ROW EXECUTE FUNCTION ops_private.record_run_change();

CREATE TRIGGER set_changed_schedules AFTER UPDATE OF config ON ops.workflows FOR EACH ROW WHEN (((old.config -> 'schedule'::text) IS DISTINCT FROM (new.config -> 'schedule'::text))) EXECUTE FUNCTION ops_private.set_schedules();

CREATE TRIGGER set_giver BEFORE INSERT OR UPDATE OF role ON ops.project_memberships FOR EACH ROW EXECUTE FUNCTION ops_private.set_giver();

CREATE TRIGGER set_project_of_run BEFORE INSERT OR UPDATE OF run_id, project_id ON ops.run_artifacts FOR EACH ROW EXECUTE FUNCTION ops_private.set_project_of_run();

CREATE TRIGGER set_project_of_run BEFORE INSERT ON ops.run_events FOR EACH ROW WHEN (((new.project_id IS NULL) OR (pg_trigger_depth() = 0))) EXECUTE FUNCTION ops_private.set_project_of_run();

CREATE TRIGGER set_run_of_changed_line BEFORE UPDATE OF run_id, project_id, seq, message ON ops.run_logs FOR EACH ROW EXECUTE FUNCTION ops_private.set_run_of_line();

CREATE TRIGGER set_run_of_line BEFORE INSERT ON ops.run_logs FOR EACH ROW WHEN ((current_setting('ops.appending'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION ops_private.set_run_of_line();

CREATE TRIGGER set_schedules AFTER INSERT ON ops.workflows FOR EACH ROW WHEN ((new.config ? 'schedule'::text)) EXECUTE FUNCTION ops_private.set_schedules();

CREATE TRIGGER tell_change AFTER UPDATE OF status ON ops.runs FOR EACH ROW WHEN (((new.status <> old.status) AND (new.status = ANY (ARRAY['running'::text, 'succeeded'::text, 'failed'::text, 'canceled'::text])))) EXECUTE FUNCTION ops_private.tell_change();

CREATE TRIGGER tell_queued AFTER INSERT ON ops.runs REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION ops_private.tell_queued();

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON ops.project_memberships FOR EACH ROW EXECUTE FUNCTION ops_private.touch_updated_at();

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON ops.projects FOR EACH ROW EXECUTE FUNCTION ops_private.touch_updated_at();

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON ops.tools FOR EACH ROW EXECUTE FUNCTION ops_private.touch_updated_at();

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON ops.upgrade_advisories FOR EACH ROW EXECUTE FUNCTION ops_private.touch_updated_at();

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON ops.workflows FOR EACH ROW EXECUTE FUNCTION ops_private.touch_updated_at();

ALTER TABLE ONLY ops.project_memberships
    ADD CONSTRAINT project_memberships_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops.run_artifacts
    ADD CONSTRAINT run_artifacts_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops.run_events
    ADD CONSTRAINT run_events_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_parent_run_id_fkey FOREIGN KEY (parent_run_id) REFERENCES ops.runs(id) ON DELETE SET NULL;

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_retry_of_fkey FOREIGN KEY (retry_of) REFERENCES ops.runs(id) ON DELETE SET NULL;

ALTER TABLE ONLY ops.runs
    ADD CONSTRAINT runs_workflow_of_project_fkey FOREIGN KEY (project_id, workflow_id) REFERENCES ops.workflows(project_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY ops.workflows
    ADD CONSTRAINT workflows_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.known_errors
    ADD CONSTRAINT known_errors_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.lanes
    ADD CONSTRAINT lanes_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.leases
    ADD CONSTRAINT leases_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.log_blocks
    ADD CONSTRAINT log_blocks_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.log_tails
    ADD CONSTRAINT log_tails_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.outbox
    ADD CONSTRAINT outbox_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.pending_retries
    ADD CONSTRAINT pending_retries_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.project_limits
    ADD CONSTRAINT project_limits_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.run_counters
    ADD CONSTRAINT run_counters_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.run_fingerprints
    ADD CONSTRAINT run_fingerprints_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.run_requests
    ADD CONSTRAINT run_requests_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.run_summaries
    ADD CONSTRAINT run_summaries_run_id_fkey FOREIGN KEY (run_id) REFERENCES ops.runs(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.schedules
    ADD CONSTRAINT schedules_workflow_id_fkey FOREIGN KEY (workflow_id) REFERENCES ops.workflows(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.turns
    ADD CONSTRAINT turns_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

ALTER TABLE ONLY ops_private.webhooks
    ADD CONSTRAINT webhooks_project_id_fkey FOREIGN KEY (project_id) REFERENCES ops.projects(id) ON DELETE CASCADE;

CREATE POLICY admins_add ON ops.project_memberships FOR INSERT TO authenticated WITH CHECK (((project_id = ANY (ARRAY( SELECT ops_private.my_projects('owner'::text) AS my_projects))) OR ((role <> 'owner'::text) AND (project_id = ANY (ARRAY( SELECT ops_private.my_projects('admin'::text) AS my_projects))))));

CREATE POLICY admins_change ON ops.project_memberships FOR UPDATE TO authenticated USING (((project_id = ANY (ARRAY( SELECT ops_private.my_projects('owner'::text) AS my_projects))) OR ((role <> 'owner'::text) AND (project_id = ANY (ARRAY( SELECT ops_private.my_projects('admin'::text) AS my_projects)))))) WITH CHECK (((project_id = ANY (ARRAY( SELECT ops_private.my_projects('owner'::text) AS my_projects))) OR ((role <> 'owner'::text) AND (project_id = ANY (ARRAY( SELECT ops_private.my_projects('admin'::text) AS my_projects))))));

CREATE POLICY admins_remove ON ops.project_memberships FOR DELETE TO authenticated USING (((user_id = ( SELECT ops.current_user_id() AS current_user_id)) OR (project_id = ANY (ARRAY( SELECT ops_private.my_projects('owner'::text) AS my_projects))) OR ((role <> 'owner'::text) AND (project_id = ANY (ARRAY( SELECT ops_private.my_projects('admin'::text) AS my_projects))))));

CREATE POLICY developers_create ON ops.runs FOR INSERT TO authenticated WITH CHECK (((status = 'queued'::text) AND (project_id = ANY (ARRAY( SELECT ops_private.my_projects('developer'::text) AS my_projects)))));

CREATE POLICY developers_create ON ops.workflows FOR INSERT TO authenticated WITH CHECK ((project_id = ANY (ARRAY( SELECT ops_private.my_projects('developer'::text) AS my_projects))));

CREATE POLICY developers_edit ON ops.workflows FOR UPDATE TO authenticated USING ((project_id = ANY (ARRAY( SELECT ops_private.my_projects('developer'::text) AS my_projects)))) WITH CHECK ((project_id = ANY (ARRAY( SELECT ops_private.my_projects('developer'::text) AS my_projects))));

CREATE POLICY members_read ON ops.project_memberships FOR SELECT TO authenticated USING ((project_id = ANY (ARRAY( SELECT ops_private.my_projects() AS my_projects))));

CREATE POLICY members_read ON ops.projects FOR SELECT TO authenticated USING ((id = ANY (ARRAY( SELECT ops_private.my_projects() AS my_projects))));

CREATE POLICY members_read ON ops.run_artifacts FOR SELECT TO authenticated USING ((project_id = ANY (ARRAY( SELECT ops_private.my_projects() AS my_projects))));

CREATE POLICY members_read ON ops.run_events FOR SELECT TO authenticated USING ((project_id = ANY (ARRAY( SELECT ops_private.my_projects() AS my_projects))));

CREATE POLICY members_read ON ops.run_logs FOR SELECT TO authenticated USING ((array_position(ARRAY( SELECT ops_private.my_projects() AS my_projects), project_id) IS NOT NULL));

CREATE POLICY members_read ON ops.runs FOR SELECT TO authenticated USING ((project_id = ANY (ARRAY( SELECT ops_private.my_projects() AS my_projects))));

CREATE POLICY members_read ON ops.workflows FOR SELECT TO authenticated USING ((project_id = ANY (ARRAY( SELECT ops_private.my_projects() AS my_projects))));

CREATE POLICY owners_edit ON ops.projects FOR UPDATE TO authenticated USING ((id = ANY (ARRAY( SELECT ops_private.my_projects('owner'::text) AS my_projects)))) WITH CHECK ((id = ANY (ARRAY( SELECT ops_private.my_projects('owner'::text) AS my_projects))));

ALTER TABLE ops.project_memberships ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops.projects ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops.run_artifacts ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops.run_events ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops.run_logs ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops.runs ENABLE ROW LEVEL SECURITY;

CREATE POLICY service_all ON ops.project_memberships TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.projects TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.run_artifacts TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.run_events TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.run_logs TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.runs TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.tools TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.upgrade_advisories TO service_role USING (true) WITH CHECK (true);

CREATE POLICY service_all ON ops.workflows TO service_role USING (true) WITH CHECK (true);

ALTER TABLE ops.tools ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops.upgrade_advisories ENABLE ROW LEVEL SECURITY;

CREATE POLICY users_read ON ops.tools FOR SELECT TO authenticated USING (true);

CREATE POLICY users_read ON ops.upgrade_advisories FOR SELECT TO authenticated USING (true);

CREATE POLICY workers_read ON ops.tools FOR SELECT TO ops_worker USING (true);

CREATE POLICY workers_read ON ops.upgrade_advisories FOR SELECT TO ops_worker USING (true);

ALTER TABLE ops.workflows ENABLE ROW LEVEL SECURITY;

ALTER TABLE ops_private.run_logs_other ENABLE ROW LEVEL SECURITY;

GRANT USAGE ON SCHEMA ops TO authenticated;
GRANT USAGE ON SCHEMA ops TO service_role;
GRANT USAGE ON SCHEMA ops TO ops_worker;
GRANT USAGE ON SCHEMA ops TO ops_webhook;

REVOKE ALL ON FUNCTION ops.add_run_artifact(p_run_id uuid, p_artifact_key text, p_artifact_url text, p_content_type text, p_size_bytes bigint, p_checksum text, p_expires_at timestamp with time zone, p_metadata jsonb, p_worker_id text, p_instance_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.add_run_artifact(p_run_id uuid, p_artifact_key text, p_artifact_url text, p_content_type text, p_size_bytes bigint, p_checksum text, p_expires_at timestamp with time zone, p_metadata jsonb, p_worker_id text, p_instance_id uuid) TO ops_worker;
GRANT ALL ON FUNCTION ops.add_run_artifact(p_run_id uuid, p_artifact_key text, p_artifact_url text, p_content_type text, p_size_bytes bigint, p_checksum text, p_expires_at timestamp with time zone, p_metadata jsonb, p_worker_id text, p_instance_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.add_run_event(p_run_id uuid, p_event_type text, p_message text, p_payload jsonb, p_worker_id text, p_instance_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.add_run_event(p_run_id uuid, p_event_type text, p_message text, p_payload jsonb, p_worker_id text, p_instance_id uuid) TO ops_worker;
GRANT ALL ON FUNCTION ops.add_run_event(p_run_id uuid, p_event_type text, p_message text, p_payload jsonb, p_worker_id text, p_instance_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.adopt_run(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.adopt_run(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer) TO ops_worker;
GRANT ALL ON FUNCTION ops.adopt_run(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer) TO service_role;

REVOKE ALL ON FUNCTION ops.adoptable_runs(p_worker_id text, p_instance_id uuid, p_engine_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.adoptable_runs(p_worker_id text, p_instance_id uuid, p_engine_id text) TO ops_worker;
GRANT ALL ON FUNCTION ops.adoptable_runs(p_worker_id text, p_instance_id uuid, p_engine_id text) TO service_role;

REVOKE ALL ON FUNCTION ops.append_run_log(p_run_id uuid, p_level text, p_message text, p_metadata jsonb, p_worker_id text, p_instance_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.append_run_log(p_run_id uuid, p_level text, p_message text, p_metadata jsonb, p_worker_id text, p_instance_id uuid) TO ops_worker;
GRANT ALL ON FUNCTION ops.append_run_log(p_run_id uuid, p_level text, p_message text, p_metadata jsonb, p_worker_id text, p_instance_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.append_run_logs(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_first_seq bigint, p_messages text, p_marks text, p_timestamps timestamp with time zone[], p_words text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.append_run_logs(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_first_seq bigint, p_messages text, p_marks text, p_timestamps timestamp with time zone[], p_words text) TO ops_worker;
GRANT ALL ON FUNCTION ops.append_run_logs(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_first_seq bigint, p_messages text, p_marks text, p_timestamps timestamp with time zone[], p_words text) TO service_role;

GRANT SELECT ON TABLE ops.upgrade_advisories TO authenticated;
GRANT SELECT ON TABLE ops.upgrade_advisories TO ops_worker;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.upgrade_advisories TO service_role;

REVOKE ALL ON FUNCTION ops_private.applicable_advisories(p_from text, p_to text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.applicable_advisories(p_from text, p_to text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.applicable_advisories(p_from text, p_to text) TO service_role;

REVOKE ALL ON FUNCTION ops.applicable_advisories(p_from text, p_to text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.applicable_advisories(p_from text, p_to text) TO authenticated;
GRANT ALL ON FUNCTION ops.applicable_advisories(p_from text, p_to text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.decide_run(p_run_id uuid, p_decision text, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.decide_run(p_run_id uuid, p_decision text, p_reason text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.decide_run(p_run_id uuid, p_decision text, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.approve_run(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.approve_run(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.approve_run(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.cancel_run(p_run_id uuid, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.cancel_run(p_run_id uuid, p_reason text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.cancel_run(p_run_id uuid, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.cancel_run(p_run_id uuid, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.cancel_run(p_run_id uuid, p_reason text) TO authenticated;
GRANT ALL ON FUNCTION ops.cancel_run(p_run_id uuid, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.claim_next_run(p_worker_id text, p_instance_id uuid, p_labels text[], p_lease_seconds integer, p_engine_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.claim_next_run(p_worker_id text, p_instance_id uuid, p_labels text[], p_lease_seconds integer, p_engine_id text) TO ops_worker;
GRANT ALL ON FUNCTION ops.claim_next_run(p_worker_id text, p_instance_id uuid, p_labels text[], p_lease_seconds integer, p_engine_id text) TO service_role;

REVOKE ALL ON FUNCTION ops.complete_workflow_run(p_run_id uuid, p_exit_code integer, p_error_message text, p_worker_id text, p_instance_id uuid, p_reason text, p_details jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.complete_workflow_run(p_run_id uuid, p_exit_code integer, p_error_message text, p_worker_id text, p_instance_id uuid, p_reason text, p_details jsonb) TO ops_worker;
GRANT ALL ON FUNCTION ops.complete_workflow_run(p_run_id uuid, p_exit_code integer, p_error_message text, p_worker_id text, p_instance_id uuid, p_reason text, p_details jsonb) TO service_role;

REVOKE ALL ON FUNCTION ops.current_user_id() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.current_user_id() TO authenticated;
GRANT ALL ON FUNCTION ops.current_user_id() TO service_role;

GRANT SELECT,DELETE ON TABLE ops.project_memberships TO authenticated;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.project_memberships TO service_role;

GRANT INSERT(project_id) ON TABLE ops.project_memberships TO authenticated;

GRANT INSERT(user_id) ON TABLE ops.project_memberships TO authenticated;

GRANT INSERT(role),UPDATE(role) ON TABLE ops.project_memberships TO authenticated;

REVOKE ALL ON FUNCTION ops.current_user_role(p_project_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.current_user_role(p_project_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.current_user_role(p_project_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.drain_worker(p_worker_id text, p_drain boolean, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.drain_worker(p_worker_id text, p_drain boolean, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.drain_worker(p_worker_id text, p_drain boolean, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.drain_worker(p_worker_id text, p_drain boolean, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) TO authenticated;
GRANT ALL ON FUNCTION ops_private.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) TO service_role;

REVOKE ALL ON FUNCTION ops.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) TO authenticated;
GRANT ALL ON FUNCTION ops.enqueue_run(p_workflow_id uuid, p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) TO service_role;

REVOKE ALL ON FUNCTION ops_private.find_user(p_email text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.find_user(p_email text) TO service_role;

REVOKE ALL ON FUNCTION ops.find_user(p_email text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.find_user(p_email text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.health() FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.health() TO service_role;

REVOKE ALL ON FUNCTION ops.health() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.health() TO service_role;

REVOKE ALL ON FUNCTION ops.heartbeat(p_worker_id text, p_instance_id uuid, p_lease_seconds integer, p_disk_free bigint, p_disk_total bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.heartbeat(p_worker_id text, p_instance_id uuid, p_lease_seconds integer, p_disk_free bigint, p_disk_total bigint) TO ops_worker;
GRANT ALL ON FUNCTION ops.heartbeat(p_worker_id text, p_instance_id uuid, p_lease_seconds integer, p_disk_free bigint, p_disk_total bigint) TO service_role;

REVOKE ALL ON FUNCTION ops_private.limit_project(p_project_id uuid, p_max_active_runs integer, p_max_queued_runs integer) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.limit_project(p_project_id uuid, p_max_active_runs integer, p_max_queued_runs integer) TO service_role;

REVOKE ALL ON FUNCTION ops.limit_project(p_project_id uuid, p_max_active_runs integer, p_max_queued_runs integer) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.limit_project(p_project_id uuid, p_max_active_runs integer, p_max_queued_runs integer) TO service_role;

REVOKE ALL ON FUNCTION ops_private.list_queued_runs(p_limit bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.list_queued_runs(p_limit bigint) TO authenticated;
GRANT ALL ON FUNCTION ops_private.list_queued_runs(p_limit bigint) TO service_role;

REVOKE ALL ON FUNCTION ops.list_queued_runs(p_limit bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.list_queued_runs(p_limit bigint) TO authenticated;
GRANT ALL ON FUNCTION ops.list_queued_runs(p_limit bigint) TO service_role;

REVOKE ALL ON FUNCTION ops_private.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) TO authenticated;
GRANT ALL ON FUNCTION ops_private.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) TO authenticated;
GRANT ALL ON FUNCTION ops.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.mark_ready(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_url text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.mark_ready(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_url text) TO ops_worker;
GRANT ALL ON FUNCTION ops.mark_ready(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_url text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.pause_project(p_project_id uuid, p_paused boolean, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.pause_project(p_project_id uuid, p_paused boolean, p_reason text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.pause_project(p_project_id uuid, p_paused boolean, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.pause_project(p_project_id uuid, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.pause_project(p_project_id uuid, p_reason text) TO authenticated;
GRANT ALL ON FUNCTION ops.pause_project(p_project_id uuid, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.pause_queue(p_paused boolean, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.pause_queue(p_paused boolean, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.pause_queue(p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.pause_queue(p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.project_overview() FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.project_overview() TO authenticated;
GRANT ALL ON FUNCTION ops_private.project_overview() TO service_role;

REVOKE ALL ON FUNCTION ops.project_overview() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.project_overview() TO authenticated;
GRANT ALL ON FUNCTION ops.project_overview() TO service_role;

REVOKE ALL ON FUNCTION ops.reap() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.reap() TO ops_worker;
GRANT ALL ON FUNCTION ops.reap() TO service_role;

REVOKE ALL ON FUNCTION ops_private.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) TO ops_webhook;
GRANT ALL ON FUNCTION ops_private.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) TO service_role;

REVOKE ALL ON FUNCTION ops.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) TO ops_webhook;
GRANT ALL ON FUNCTION ops.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) TO service_role;

REVOKE ALL ON FUNCTION ops_private.receive_webhook(p_body json) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.receive_webhook(p_body json) TO ops_webhook;
GRANT ALL ON FUNCTION ops_private.receive_webhook(p_body json) TO service_role;

REVOKE ALL ON FUNCTION ops.receive_webhook(json) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.receive_webhook(json) TO ops_webhook;
GRANT ALL ON FUNCTION ops.receive_webhook(json) TO service_role;

REVOKE ALL ON FUNCTION ops.record_container(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_container_id text, p_details jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.record_container(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_container_id text, p_details jsonb) TO ops_worker;
GRANT ALL ON FUNCTION ops.record_container(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_container_id text, p_details jsonb) TO service_role;

REVOKE ALL ON FUNCTION ops.record_report(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_tests jsonb, p_summary text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.record_report(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_tests jsonb, p_summary text) TO ops_worker;
GRANT ALL ON FUNCTION ops.record_report(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_tests jsonb, p_summary text) TO service_role;

REVOKE ALL ON FUNCTION ops.register_destinations(p_worker_id text, p_destinations jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.register_destinations(p_worker_id text, p_destinations jsonb) TO ops_worker;
GRANT ALL ON FUNCTION ops.register_destinations(p_worker_id text, p_destinations jsonb) TO service_role;

REVOKE ALL ON FUNCTION ops.register_worker(p_worker_id text, p_instance_id uuid, p_host_id text, p_engine_id text, p_version text, p_labels text[], p_lease_seconds integer, p_takeover boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.register_worker(p_worker_id text, p_instance_id uuid, p_host_id text, p_engine_id text, p_version text, p_labels text[], p_lease_seconds integer, p_takeover boolean) TO ops_worker;
GRANT ALL ON FUNCTION ops.register_worker(p_worker_id text, p_instance_id uuid, p_host_id text, p_engine_id text, p_version text, p_labels text[], p_lease_seconds integer, p_takeover boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.reject_run(p_run_id uuid, p_reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.reject_run(p_run_id uuid, p_reason text) TO authenticated;
GRANT ALL ON FUNCTION ops.reject_run(p_run_id uuid, p_reason text) TO service_role;

REVOKE ALL ON FUNCTION ops.release_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.release_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) TO ops_worker;
GRANT ALL ON FUNCTION ops.release_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.remove_member(p_project_id uuid, p_user_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.remove_member(p_project_id uuid, p_user_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops_private.remove_member(p_project_id uuid, p_user_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.remove_member(p_project_id uuid, p_user_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.remove_member(p_project_id uuid, p_user_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.remove_member(p_project_id uuid, p_user_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.resume_project(p_project_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.resume_project(p_project_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.resume_project(p_project_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.resume_queue() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.resume_queue() TO service_role;

REVOKE ALL ON FUNCTION ops_private.retry_run(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.retry_run(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops_private.retry_run(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.retry_run(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.retry_run(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.retry_run(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.run_fingerprints(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.run_fingerprints(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops_private.run_fingerprints(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.run_fingerprints(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.run_fingerprints(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.run_fingerprints(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.new_run_id() FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.new_run_id() TO authenticated;
GRANT ALL ON FUNCTION ops_private.new_run_id() TO service_role;

GRANT USAGE ON SEQUENCE ops_private.run_log_seq TO service_role;

GRANT SELECT ON TABLE ops.run_logs TO authenticated;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.run_logs TO service_role;

GRANT SELECT ON TABLE ops.runs TO authenticated;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.runs TO service_role;

GRANT INSERT(project_id) ON TABLE ops.runs TO authenticated;

GRANT INSERT(workflow_id) ON TABLE ops.runs TO authenticated;

GRANT INSERT(status) ON TABLE ops.runs TO authenticated;

GRANT INSERT(metadata) ON TABLE ops.runs TO authenticated;

REVOKE ALL ON FUNCTION ops.run_logs(p_run ops.runs) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.run_logs(p_run ops.runs) TO authenticated;
GRANT ALL ON FUNCTION ops.run_logs(p_run ops.runs) TO service_role;

REVOKE ALL ON FUNCTION ops_private.run_summary(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.run_summary(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops_private.run_summary(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.run_summary(p_run_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.run_summary(p_run_id uuid) TO authenticated;
GRANT ALL ON FUNCTION ops.run_summary(p_run_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops.runs(p_line ops.run_logs) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.runs(p_line ops.run_logs) TO authenticated;
GRANT ALL ON FUNCTION ops.runs(p_line ops.run_logs) TO service_role;

REVOKE ALL ON FUNCTION ops_private.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) TO authenticated;
GRANT ALL ON FUNCTION ops_private.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) TO service_role;

REVOKE ALL ON FUNCTION ops.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) TO authenticated;
GRANT ALL ON FUNCTION ops.search_run_logs(p_query text, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) TO service_role;

REVOKE ALL ON FUNCTION ops_private.set_member(p_project_id uuid, p_user_id uuid, p_role text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.set_member(p_project_id uuid, p_user_id uuid, p_role text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.set_member(p_project_id uuid, p_user_id uuid, p_role text) TO service_role;

REVOKE ALL ON FUNCTION ops.set_member(p_project_id uuid, p_user_id uuid, p_role text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.set_member(p_project_id uuid, p_user_id uuid, p_role text) TO authenticated;
GRANT ALL ON FUNCTION ops.set_member(p_project_id uuid, p_user_id uuid, p_role text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.set_webhook_secret(p_project_id uuid, p_secret text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.set_webhook_secret(p_project_id uuid, p_secret text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.set_webhook_secret(p_project_id uuid, p_secret text) TO service_role;

REVOKE ALL ON FUNCTION ops.set_webhook_secret(p_project_id uuid, p_secret text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.set_webhook_secret(p_project_id uuid, p_secret text) TO authenticated;
GRANT ALL ON FUNCTION ops.set_webhook_secret(p_project_id uuid, p_secret text) TO service_role;

REVOKE ALL ON FUNCTION ops.settle_delivery(p_delivery_id uuid, p_instance_id uuid, p_error text, p_final boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.settle_delivery(p_delivery_id uuid, p_instance_id uuid, p_error text, p_final boolean) TO ops_worker;
GRANT ALL ON FUNCTION ops.settle_delivery(p_delivery_id uuid, p_instance_id uuid, p_error text, p_final boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.shut_out_worker(p_name text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.shut_out_worker(p_name text) TO service_role;

REVOKE ALL ON FUNCTION ops.start_workflow_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.start_workflow_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) TO ops_worker;
GRANT ALL ON FUNCTION ops.start_workflow_run(p_run_id uuid, p_worker_id text, p_instance_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.sync_project(p_project jsonb, p_dry_run boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.sync_project(p_project jsonb, p_dry_run boolean) TO authenticated;
GRANT ALL ON FUNCTION ops_private.sync_project(p_project jsonb, p_dry_run boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.sync_project(p_project jsonb, p_dry_run boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.sync_project(p_project jsonb, p_dry_run boolean) TO authenticated;
GRANT ALL ON FUNCTION ops.sync_project(p_project jsonb, p_dry_run boolean) TO service_role;

REVOKE ALL ON FUNCTION ops_private.sync_tools(p_tools jsonb, p_dry_run boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.sync_tools(p_tools jsonb, p_dry_run boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.sync_tools(p_tools jsonb, p_dry_run boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.sync_tools(p_tools jsonb, p_dry_run boolean) TO service_role;

REVOKE ALL ON FUNCTION ops.take_deliveries(p_worker_id text, p_instance_id uuid, p_destinations text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.take_deliveries(p_worker_id text, p_instance_id uuid, p_destinations text[]) TO ops_worker;
GRANT ALL ON FUNCTION ops.take_deliveries(p_worker_id text, p_instance_id uuid, p_destinations text[]) TO service_role;

REVOKE ALL ON FUNCTION ops.unclaimable_runs(p_labels text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.unclaimable_runs(p_labels text[]) TO ops_worker;
GRANT ALL ON FUNCTION ops.unclaimable_runs(p_labels text[]) TO service_role;

REVOKE ALL ON FUNCTION ops.unregister_worker(p_worker_id text, p_instance_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION ops.unregister_worker(p_worker_id text, p_instance_id uuid) TO ops_worker;
GRANT ALL ON FUNCTION ops.unregister_worker(p_worker_id text, p_instance_id uuid) TO service_role;

REVOKE ALL ON FUNCTION ops_private.worker_overview() FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.worker_overview() TO authenticated;
GRANT ALL ON FUNCTION ops_private.worker_overview() TO service_role;

REVOKE ALL ON FUNCTION ops.worker_overview() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.worker_overview() TO authenticated;
GRANT ALL ON FUNCTION ops.worker_overview() TO service_role;

REVOKE ALL ON FUNCTION ops_private.workflow_overview() FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.workflow_overview() TO authenticated;
GRANT ALL ON FUNCTION ops_private.workflow_overview() TO service_role;

REVOKE ALL ON FUNCTION ops.workflow_overview() FROM PUBLIC;
GRANT ALL ON FUNCTION ops.workflow_overview() TO authenticated;
GRANT ALL ON FUNCTION ops.workflow_overview() TO service_role;

REVOKE ALL ON FUNCTION ops_private.actor() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.add_event(p_run_id uuid, p_event_type text, p_message text, p_payload jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.add_log_blocks(p_run_id uuid, p_project_id uuid, p_from bigint, p_before bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.add_log_partitions() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.adopt_refusal(p_status text, p_lease ops_private.leases, p_worker_id text, p_instance_id uuid, p_engine_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.applied_migrations() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.apply_push(p_project_id uuid, p_forge text, p_event text, p_delivery text, p_digest text, p_body jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.archived_projects(p_database_id uuid, p_project_ids uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.archived_projects(p_database_id uuid, p_project_ids uuid[]) TO service_role;

REVOKE ALL ON FUNCTION ops_private.backoff(p_attempt integer, p_first double precision) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_git_ref(p_ref text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.is_git_ref(p_ref text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.is_git_ref(p_ref text) TO service_role;

GRANT SELECT ON TABLE ops.workflows TO authenticated;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.workflows TO service_role;

GRANT INSERT(project_id) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(workflow_type),UPDATE(workflow_type) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(name),UPDATE(name) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(description),UPDATE(description) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(enabled),UPDATE(enabled) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(git_ref),UPDATE(git_ref) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(git_commit),UPDATE(git_commit) ON TABLE ops.workflows TO authenticated;

GRANT INSERT(config),UPDATE(config) ON TABLE ops.workflows TO authenticated;

REVOKE ALL ON FUNCTION ops_private.bad_chain(p_workflow ops.workflows) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_config(p_config jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_cron(p_cron text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_destination(p_destination jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_document(p_name text, p_document jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_metadata(p_metadata jsonb, p_config jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_name(p_name text, p_found uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_object(p_value jsonb, p_texts jsonb, p_needed text[], p_others jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_project(p_project jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_push(p_push jsonb) FROM PUBLIC;

GRANT SELECT ON TABLE ops.projects TO authenticated;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.projects TO service_role;

GRANT UPDATE(name) ON TABLE ops.projects TO authenticated;

GRANT UPDATE(description) ON TABLE ops.projects TO authenticated;

GRANT UPDATE(odoo_version) ON TABLE ops.projects TO authenticated;

GRANT UPDATE(status) ON TABLE ops.projects TO authenticated;

GRANT UPDATE(config) ON TABLE ops.projects TO authenticated;

REVOKE ALL ON FUNCTION ops_private.bad_push_name(p_project ops.projects) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_request(p_metadata jsonb, p_idempotency_key text, p_scheduled_at timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_retry(p_retry jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_schedule(p_schedule jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_tests(p_tests jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_tools(p_tools jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_triggers(p_config jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.bad_worker(p_worker_id text, p_lease_seconds integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.become_busy(p_instance_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.become_idle(p_instance_id uuid, p_labels text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.blocked_workflows(p_worker_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.body_of(p_body bytea) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.branch_of(p_event text, p_body jsonb, OUT branch text, OUT commit text, OUT ignored text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.branch_rule(p_push jsonb, p_branch text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.caller() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.calling_worker() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.cancel_branch(p_project_id uuid, p_names jsonb, p_branch text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.chain_of(p_run_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.changed_keys(p_before jsonb, p_after jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.channel_of(p_instance_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.check_notifier() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.check_push() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.check_run(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_statuses text[], p_shared boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.check_search(p_query tsquery, p_project_id uuid, p_run_id uuid, p_limit integer, p_before timestamp with time zone, p_before_run_id uuid, p_before_seq bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.check_triggers() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.check_workflow(p_workflow_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.close_ended_logs() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.close_log(p_run_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.continue_chain(p_run_id uuid, p_locked boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.count_runs() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.create_console(p_name text, p_password text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.create_login(p_kind text, p_name text, p_password text, p_roles name[], p_inherits boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.create_worker(p_name text, p_password text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.cron_field(p_field text, p_least integer, p_most integer, p_names text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.cron_fields(p_cron text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private."current_time"() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.database_identity() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.delete_run_logs() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.delivery_of(p_headers jsonb, OUT forge text, OUT event text, OUT delivery text, OUT signature text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.delivery_payload(p_message ops_private.outbox) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.drain_lock(p_worker_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.drop_empty_lanes() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.drop_log_partitions(p_before timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.drop_log_partitions(p_before timestamp with time zone) TO service_role;

REVOKE ALL ON FUNCTION ops_private.enforce_run_status_transition() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.expire_queued_runs() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.expired_artifacts(p_store text, p_worker_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fail_lost(p_run_id uuid, p_lease ops_private.leases, p_error text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fail_unreadable(p_run_id uuid, p_error text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.failures_of(p_run ops.runs) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fill_outbox(p_run_ids uuid[], p_event text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fingerprint() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fingerprint_of(p_kind text, p_message text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fingerprints_of(p_run_id uuid, p_projects uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fire_schedule(p_line ops_private.schedules, p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.fire_schedules() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.first_instant(p_local timestamp without time zone, p_timezone text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.first_of_lanes(p_group_id bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.first_run_id(p_time timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.forget_artifacts(p_artifact_ids uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.forget_artifacts(p_artifact_ids uuid[]) TO service_role;

REVOKE ALL ON FUNCTION ops_private.forget_idle_workers() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.hand_over(p_lease ops_private.leases, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.has_room(p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.hmac_sha256(p_key bytea, p_data bytea) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.inherited(p_lease ops_private.leases) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_commit(p_commit text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_drained(p_worker_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_final(p_status text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_signed(p_project_id uuid, p_forge text, p_signature text, p_body bytea) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_superseded(p_run ops.runs) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.is_valid_event(p_event_type text, p_message text, p_payload jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.is_valid_event(p_event_type text, p_message text, p_payload jsonb) TO authenticated;
GRANT ALL ON FUNCTION ops_private.is_valid_event(p_event_type text, p_message text, p_payload jsonb) TO service_role;

REVOKE ALL ON FUNCTION ops_private.is_valid_run(p_run ops.runs) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.is_valid_run(p_run ops.runs) TO authenticated;
GRANT ALL ON FUNCTION ops_private.is_valid_run(p_run ops.runs) TO service_role;

REVOKE ALL ON FUNCTION ops_private.is_whole_number(p_value jsonb, p_least integer, p_most integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.keep_an_owner() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.keep_run_events() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.known_lines(p_run_id uuid, p_projects uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lane_digest(p_priority integer, p_labels text[], p_key text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lane_of(p_run ops.runs, p_key text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.last_errors(p_run_id uuid, p_limit integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.leave_queue() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lock_for_retry(p_run_id uuid, p_wait boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lock_log(p_run_id uuid, p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lock_queue(p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lock_queue_at_once(p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.lock_queue_briefly(p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.locked_member_refusal(p_project_id uuid, p_user_id uuid, p_role text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.log_is_old(p_run_id uuid, p_finished_at timestamp with time zone, p_before timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.log_position(p_run_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.loses_its_workers(p_lease ops_private.leases) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.matches_one(p_text text, p_patterns text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.max_queued_runs(p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.may_adopt(p_lease ops_private.leases, p_worker_id text, p_engine_id text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.member_refusal(p_project_id uuid, p_user_id uuid, p_role text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.missing_tool(p_project ops.projects, p_workflow ops.workflows) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.my_projects(p_role text) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.my_projects(p_role text) TO authenticated;
GRANT ALL ON FUNCTION ops_private.my_projects(p_role text) TO service_role;

REVOKE ALL ON FUNCTION ops_private.names_of(p_workflow_ids uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.next_run(p_labels text[], p_blocked uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.next_time(p_cron text, p_timezone text, p_after timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.next_workflows(p_workflow ops.workflows) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.normalized_error(p_line text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.nothing_claimed(p_labels text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.notify_idle_workers(p_labels text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.one_line(p_text text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.open_snapshots() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.prepare_run() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.prunable(p_store text, p_worker_id text, p_logs_before timestamp with time zone, p_events_before timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.prunable(p_store text, p_worker_id text, p_logs_before timestamp with time zone, p_events_before timestamp with time zone) TO service_role;

REVOKE ALL ON FUNCTION ops_private.prune_outbox() FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.prune_outbox() TO service_role;

REVOKE ALL ON FUNCTION ops_private.prune_run_events(p_before timestamp with time zone, p_after uuid, p_runs integer) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.prune_run_events(p_before timestamp with time zone, p_after uuid, p_runs integer) TO service_role;

REVOKE ALL ON FUNCTION ops_private.prune_run_logs(p_before timestamp with time zone, p_after uuid, p_runs integer) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.prune_run_logs(p_before timestamp with time zone, p_after uuid, p_runs integer) TO service_role;

REVOKE ALL ON FUNCTION ops_private.put_into_queue(p_run ops.runs) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.quarantine(p_run_id uuid, p_status text, p_lost integer, p_lease ops_private.leases) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_is_full(p_project_id uuid, p_more integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_new_runs(p_run_ids uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_next_run(p_run ops.runs, p_source jsonb, p_chain uuid[], p_name text, p_found uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_next_runs(p_run_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_once(p_project_id uuid, p_workflow_id uuid, p_metadata jsonb, p_key text, p_parent ops.runs, OUT run_id uuid, OUT problem text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_order(p_projects uuid[], p_limit bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_push(p_project_id uuid, p_name text, p_metadata jsonb, p_key text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_retry(p_run_id uuid, p_delay interval) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queue_terms(p_run ops.runs, p_config jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.queued_answer(p_run_id uuid, p_created boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.rebuild_queue() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.record_failure(p_run ops.runs, p_details jsonb, p_locked boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.record_fingerprints() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.record_missing_image(p_run ops.runs, p_image text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.record_run_change() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.refusal(p_code text, p_error text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.reopen_log(p_run_id uuid, p_project_id uuid, p_seq bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.repeats(p_run ops.runs, p_worker_id text, p_instance_id uuid, p_status text, p_exit_code integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.reserved_keys() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.retire_artifacts(p_store text, p_worker_id text, p_limit integer) FROM PUBLIC;
GRANT ALL ON FUNCTION ops_private.retire_artifacts(p_store text, p_worker_id text, p_limit integer) TO service_role;

REVOKE ALL ON FUNCTION ops_private.retry_class(p_reason text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.retry_if_asked(p_run_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.role_refusal(p_project_id uuid, p_roles text[], p_change text, p_thing text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.run_commit(p_metadata jsonb, p_default text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.run_git(p_metadata jsonb, p_key text, p_default text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.run_payload(p_run_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.service_tools(p_services jsonb, p_odoo_version text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.set_giver() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.set_project_of_run() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.set_run_of_line() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.set_schedules() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.source_of(p_run ops.runs, p_workflow ops.workflows) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.stale_leases() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.stop_run(p_run_id uuid, p_status text, p_reason text, p_message text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.supersede_older(p_run_ids uuid[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.sync_settings(p_project jsonb, p_old ops.projects, OUT change text, OUT fields text[], OUT refusal jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.sync_workflows(p_project ops.projects, p_workflows jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.tell_change() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.tell_queued() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.tool_image(p_workflow_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.touch_updated_at() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.trusted() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.unserved_runs() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.version_key(p_version text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.visible_projects() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.wake_scheduled_runs() FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.wanted_until(p_config jsonb, p_since timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.was_red(p_run ops.runs) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.why_image_waits(p_workflow_id uuid, p_labels text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.why_lane_waits(p_lane ops_private.lanes, OUT paused text, OUT held text, OUT lacking text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.words(p_lexemes text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.words_of_lines(p_lines text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.words_of_query(p_query tsquery, p_project_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.worker_id_taken(p_worker_id text, p_instance_id uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.workflows_named(p_project_id uuid, p_name text) FROM PUBLIC;

REVOKE ALL ON FUNCTION ops_private.write_workflow(p_place integer, p_new ops.workflows) FROM PUBLIC;

GRANT SELECT ON TABLE ops.run_artifacts TO authenticated;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.run_artifacts TO service_role;

GRANT SELECT ON TABLE ops.run_events TO authenticated;
GRANT SELECT,INSERT ON TABLE ops.run_events TO service_role;

GRANT SELECT ON TABLE ops.tools TO authenticated;
GRANT SELECT ON TABLE ops.tools TO ops_worker;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ops.tools TO service_role;
