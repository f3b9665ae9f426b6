-- Retention: what is deleted, when, and in which order.
--
-- `ops-worker prune` calls these with an operator's rights. An expired artifact is in two places that no transaction
-- spans: a row here and an object in a store. So its row moves to ops_private.retired_artifacts first, then the object
-- is deleted, then the retired row: whatever dies in between, no row of ops.run_artifacts names an object that is gone,
-- and no object is forgotten. Log lines and events go by the time at which their run ended. Each call deletes a batch.

create table ops_private.retired_artifacts (
    artifact_id uuid primary key,
    artifact_key text not null,
    artifact_url text not null,
    size_bytes bigint,
    claimed_by text
);

-- The expired artifacts of runs that have ended, in the store whose URL begins so, and, where that is a folder of one
-- host, stored by that host's worker. Who may record artifacts could name the object of another run: such a record is
-- not followed. (A key is workspace/run/path; the project's workspace may have another name by now.)
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

-- Retires a batch of them and returns what is retired by now: those of an earlier call that died on the way, too.
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

-- Their objects are deleted.
create function ops_private.forget_artifacts(p_artifact_ids uuid[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.retired_artifacts as t where t.artifact_id = any (p_artifact_ids);
end
$$;

-- Log lines of the runs that ended before p_before, of at most p_runs runs; returns how many lines and runs.
create function ops_private.prune_run_logs(p_before timestamptz, p_runs integer default 20)
returns table (lines bigint, runs bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        with old as (
            select r.id from ops.runs as r
            where r.finished_at < p_before and exists (select from ops.run_logs as g where g.run_id = r.id)
            limit p_runs
        ), gone as (
            delete from ops.run_logs as g using old where g.run_id = old.id returning g.run_id
        )
        select count(*), count(distinct gone.run_id) from gone;
end
$$;

-- Events of the runs that ended before p_before: the only way to delete events and keep their run. The trigger that
-- guards them looks for this setting and for the owner, whose rights only this function lends.
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

-- What a call of the others would delete now. A time that is null: nothing.
create function ops_private.prunable(
    p_store text, p_worker_id text, p_logs_before timestamptz, p_events_before timestamptz
) returns table (artifacts bigint, bytes numeric, lines bigint, events bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select e.artifacts, e.bytes,
        (select count(*) from ops.run_logs as g join ops.runs as r on r.id = g.run_id
         where r.finished_at < p_logs_before),
        (select count(*) from ops.run_events as v join ops.runs as r on r.id = v.run_id
         where r.finished_at < p_events_before)
    from (
        select count(*) as artifacts, coalesce(sum(x.size_bytes), 0) as bytes
        from ops_private.expired_artifacts(p_store, p_worker_id) as x
    ) as e;
$$;

revoke execute on function
    ops_private.expired_artifacts, ops_private.retire_artifacts, ops_private.forget_artifacts,
    ops_private.prune_run_logs, ops_private.prune_run_events, ops_private.prunable
from public;

grant execute on function
    ops_private.retire_artifacts, ops_private.forget_artifacts, ops_private.prune_run_logs,
    ops_private.prune_run_events, ops_private.prunable
to service_role;
