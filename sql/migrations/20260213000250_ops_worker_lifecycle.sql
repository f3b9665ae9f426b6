-- Workers: registration, renewal, and what happens to the runs of a worker that is gone.
--
-- A worker registers its worker id for one instance, gets the identity of the database, and renews its registration and
-- all its leases with one heartbeat. When a worker stops, its next instance adopts its runs at once. If it does not
-- start again, another worker on its engine adopts them after their leases ran out. reap ends the runs that no worker
-- adopted: it returns claimed runs to the queue and fails running ones. A run that keeps killing workers is
-- quarantined. shut_out_worker removes all runs and worker ids from a host that is no longer trusted.

-- Registration ----------------------------------------------------------------------------------------------

-- Which server and which of its databases this is: a copy elsewhere has another fingerprint.
create function ops_private.fingerprint() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select format('%s/%s', s.system_identifier, d.oid)
        from pg_control_system() as s, pg_database as d where d.datname = current_database());
end
$$;

-- The identity of this database, which it gets when its first worker registers. A copy on another server or under
-- another name has another fingerprint, and gets a new identity. The claimed and running runs of a copy continue in the
-- original; so in the copy they end here, and are not retried.
create function ops_private.database_identity() returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Renews all leases of this instance. The worker has lost each run that the answer does not list. The leases are locked
-- in the order of their run ids, so that two renewals never wait for each other. p_disk_free and p_disk_total: bytes of
-- the fullest of the engine's disks, for worker_overview.
create function ops.heartbeat(
    p_worker_id text,
    p_instance_id uuid,
    p_lease_seconds integer default 300,
    p_disk_free bigint default null,
    p_disk_total bigint default null
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Adoption --------------------------------------------------------------------------------------------------

-- Ends a run that too many workers were lost with.
create function ops_private.quarantine(
    p_run_id uuid, p_status text, p_lost integer, p_lease ops_private.leases
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_error constant text := format(
        'quarantined: %s workers in a row were lost with this run, the last one %s', p_lost, p_lease.worker_id);
begin
    update ops.runs as r set status = p_status, reason = 'poison', error_message = v_error where r.id = p_run_id;
    perform ops_private.add_event(p_run_id, 'error', v_error, jsonb_build_object(
        'reason', 'poison', 'worker_id', p_lease.worker_id, 'lease_expired_at', p_lease.expires_at));
end
$$;

-- Whether the worker may adopt a run with this lease. It may adopt a run of its own earlier instance at once, and a run
-- on its engine after the lease ran out. If the earlier instance is alive, adopt_refusal has refused before.
create function ops_private.may_adopt(p_lease ops_private.leases, p_worker_id text, p_engine_id text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        (p_lease.expires_at <= ops_private.current_time()
            and (p_lease.engine_id = p_engine_id or p_lease.worker_id = p_worker_id))
        or (p_lease.worker_id = p_worker_id and p_lease.instance_id is not null), false);
end
$$;

-- The refusal if the worker may not adopt the run, which the caller has locked; null if it may.
create function ops_private.adopt_refusal(
    p_status text, p_lease ops_private.leases, p_worker_id text, p_instance_id uuid, p_engine_id text
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- The lease for the next holder, with the number of holders that were lost in a row. A holder does not count as lost if
-- it handed the run over, stored a line, or renewed the lease after the container was created. Before that, a renewal
-- proves nothing: a worker may renew the lease while the run kills it.
create function ops_private.inherited(p_lease ops_private.leases) returns ops_private.leases
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Whether to quarantine a run, because too many holders in a row were lost. Losses within one minute are not enough:
-- another cause may kill the workers before any of them can make progress.
create function ops_private.loses_its_workers(p_lease ops_private.leases) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return p_lease.lost > (select c.max_lost_leases from ops_private.control as c)
        and p_lease.lost_since <= ops_private.current_time() - interval '1 minute';
end
$$;

-- Makes the instance the holder of the run.
create function ops_private.hand_over(
    p_lease ops_private.leases, p_worker_id text, p_instance_id uuid, p_engine_id text, p_lease_seconds integer
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- A worker that starts again adopts the runs of its earlier instance, and continues with their containers. Every worker
-- on the same engine may adopt a run after its lease ran out.
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

-- The runs that a worker should try to adopt, with or without a container: those of its own earlier instances, and
-- those on its engine whose lease ran out. adopt_run decides.
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

-- Workers that are gone -------------------------------------------------------------------------------------

-- Fails a running run whose worker is lost. The caller holds the locks that a retry needs.
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

-- Ends the runs that no worker holds any more. All workers may call it at the same time: each call skips the rows that
-- another has locked. A claimed run returns to the queue, or is quarantined if too many of its claims were lost. A
-- running run whose engine is known stays adoptable for the length of another lease. Then it fails, and is retried if
-- its workflow asks for that. A queued run that waited too long is canceled.
create function ops.reap() returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Removes all runs and worker ids from a host that is no longer trusted, by its database role or worker id: its claimed
-- runs return to the queue, its running ones fail, its worker ids become free. First make sure that the host cannot log
-- in again (docs/guide.md).
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

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function
    ops.register_worker, ops.unregister_worker, ops.heartbeat, ops.adopt_run, ops.adoptable_runs, ops.reap,
    ops.shut_out_worker
from public;
