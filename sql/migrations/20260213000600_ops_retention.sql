-- Retention: what is deleted, when, and in which order.
--
-- `ops-worker prune` calls these with the rights of service_role. An expired artifact is a row here and an object in a
-- store, and no transaction can delete both. So its row moves to ops_private.retired_artifacts first; then the object
-- is deleted, and last the retired row. After a crash between these steps, no row of ops.run_artifacts names a deleted
-- object, and no object is forgotten. Log lines and events are deleted by the time at which their run ended. Each call
-- deletes a batch.

create table ops_private.retired_artifacts (
    artifact_id uuid primary key,
    artifact_key text not null,
    artifact_url text not null,
    size_bytes bigint,
    claimed_by text
);

-- The expired artifacts of ended runs in the store with the URL p_store; if the store is a folder of one host, only
-- those of its worker p_worker_id. A client that records artifacts could name the object of another run, so the key
-- must name the run itself. (A key is workspace/run/path; the workspace may have been renamed.)
create function ops_private.expired_artifacts(p_store text, p_worker_id text)
returns table (artifact_id uuid, artifact_key text, artifact_url text, size_bytes bigint, claimed_by text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select a.id, a.artifact_key, a.artifact_url, a.size_bytes, r.claimed_by
    from ops.run_artifacts as a
    join ops.runs as r on r.id = a.run_id
    where a.expires_at <= (select ops_private.current_time()) and r.finished_at is not null
        and a.artifact_url = p_store || '/' || a.artifact_key
        and split_part(a.artifact_key, '/', 2) = r.id::text
        and (p_worker_id is null or r.claimed_by = p_worker_id);
$$;

create index run_artifacts_expires_idx on ops.run_artifacts (expires_at) where expires_at is not null;

-- Retires a batch of expired artifacts, and returns all that are retired: also those of an earlier call that crashed.
create function ops_private.retire_artifacts(p_store text, p_worker_id text, p_limit integer default 1000)
returns table (artifact_id uuid, artifact_key text, size_bytes bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Deletes the retired rows after their objects were deleted.
create function ops_private.forget_artifacts(p_artifact_ids uuid[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.retired_artifacts as t where t.artifact_id = any (p_artifact_ids);
end
$$;

-- Whether the log of a run may be deleted. Logs of the week that contains p_before are kept until the week is over, so
-- that they can be deleted with its partition.
create function ops_private.log_is_old(p_run_id uuid, p_finished_at timestamptz, p_before timestamptz) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return p_finished_at < p_before and not (
        p_run_id >= ops_private.first_run_id(date_trunc('week', p_before, 'UTC'))
        and p_run_id < ops_private.first_run_id(p_before));
end
$$;

-- Drops the partitions whose runs all ended before p_before; returns how many lines they had. A partition with a run
-- that is kept stays; prune_run_logs deletes the lines of its other runs. A partition that a reader uses for more than a
-- second stays until the next call.
create function ops_private.drop_log_partitions(p_before timestamptz) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '1s'
as $$
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
$$;

-- Deletes the log lines of runs that ended before p_before: of at most p_runs runs that have some, from the first id
-- after p_after on. Returns how many lines they had, and the last of these runs: null if there are no more. So all calls
-- together read each run once.
create function ops_private.prune_run_logs(
    p_before timestamptz, p_after uuid default null, p_runs integer default 20
) returns table (lines bigint, last_run uuid)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- Deletes the events of runs that ended before p_before: of p_runs runs, from the first id after p_after on. Returns how
-- many events they had, and the last of these runs: null if there are no more. Only this function can delete events and
-- keep their run: the trigger that protects them requires this setting and the rights of the owner, which the function
-- runs with.
create function ops_private.prune_run_events(
    p_before timestamptz, p_after uuid default null, p_runs integer default 1000
) returns table (events bigint, last_run uuid)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- Counts what the functions above would delete now; for a time that is null, nothing.
create function ops_private.prunable(
    p_store text, p_worker_id text, p_logs_before timestamptz, p_events_before timestamptz
) returns table (artifacts bigint, bytes numeric, lines bigint, events bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Of these projects those that are archived, with their workspace key, and those that do not exist; none if another
-- database has this identity. `ops-worker prune` reads both from the labels of volumes.
create function ops_private.archived_projects(p_database_id uuid, p_project_ids uuid[])
returns table (project_id uuid, workspace_key text)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select a.id, p.workspace_key
    from unnest(p_project_ids) as a (id)
    left join ops.projects as p on p.id = a.id
    where p.status is distinct from 'active'
        and exists (
            select from ops_private.control as c
            where c.database_id = p_database_id and c.fingerprint = ops_private.fingerprint());
$$;

revoke execute on function
    ops_private.archived_projects, ops_private.expired_artifacts, ops_private.retire_artifacts,
    ops_private.forget_artifacts, ops_private.log_is_old, ops_private.drop_log_partitions, ops_private.prune_run_logs,
    ops_private.prune_run_events, ops_private.prunable
from public;

grant execute on function
    ops_private.archived_projects, ops_private.retire_artifacts, ops_private.forget_artifacts,
    ops_private.drop_log_partitions,
    ops_private.prune_run_logs, ops_private.prune_run_events, ops_private.prunable
to service_role;
