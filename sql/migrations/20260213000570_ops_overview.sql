-- What a person sees of the machinery in ops_private: the workers, the state of each project, the health of all.
--
-- Members of a project may not read ops_private. These functions show them what they need: every worker with its labels,
-- and of the runs only those of their own projects. ops.health is for operators. It returns facts; `ops-worker doctor`
-- says what they mean.

-- Workers -----------------------------------------------------------------------------------------------------

-- The registered workers, those that are drained, and the holders of leases that are not registered. A signed-in user
-- without a project sees none. db_role is null for users.
create function ops_private.worker_overview() returns table (
    worker_id text, alive boolean, version text, labels text[], started_at timestamptz, expires_at timestamptz,
    db_role text, runs jsonb, disk_free bigint, disk_total bigint, drained_at timestamptz, drained_by text,
    drain_reason text
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Projects ----------------------------------------------------------------------------------------------------

-- The projects that the caller may see, with the caller's role (null for operators), what is queued and active, and
-- what holds their runs back.
create function ops_private.project_overview() returns table (
    project_id uuid, slug text, name text, odoo_version text, status text, role text, queued_runs bigint,
    active_runs bigint, paused_at timestamptz, paused_by text, pause_reason text, max_active_runs integer,
    max_queued_runs integer
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Health ------------------------------------------------------------------------------------------------------

-- The versions in the history of migrations; another program may keep none.
create function ops_private.applied_migrations() returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The sessions and prepared transactions with the oldest snapshots: while one is open, no row that was changed since can
-- be removed, and the queue becomes slow. sees_all: whether the owner of this function sees the sessions of others.
create function ops_private.open_snapshots() returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The leases that ran out and that no worker has adopted or ended yet, the oldest first.
create function ops_private.stale_leases() returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The queued runs whose labels no live worker offers: how many, and up to 20 of these labels.
create function ops_private.unserved_runs() returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

create function ops_private.health() returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
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

-- What an API exposes -----------------------------------------------------------------------------------------

create function ops.worker_overview() returns table (
    worker_id text,
    alive boolean,
    version text,
    labels text[],
    started_at timestamptz,
    expires_at timestamptz,
    db_role text,
    runs jsonb,
    disk_free bigint,
    disk_total bigint,
    drained_at timestamptz,
    drained_by text,
    drain_reason text
)
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select w.* from ops_private.worker_overview() as w;
end;

create function ops.project_overview() returns table (
    project_id uuid,
    slug text,
    name text,
    odoo_version text,
    status text,
    role text,
    queued_runs bigint,
    active_runs bigint,
    paused_at timestamptz,
    paused_by text,
    pause_reason text,
    max_active_runs integer,
    max_queued_runs integer
)
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select p.* from ops_private.project_overview() as p;
end;

create function ops.health() returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
return ops_private.health();

-- Grants ------------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.worker_overview, ops.project_overview, ops.health from public;

grant execute on function
    ops.worker_overview, ops.project_overview, ops_private.worker_overview, ops_private.project_overview
to authenticated, service_role;

grant execute on function ops.health, ops_private.health to service_role;
