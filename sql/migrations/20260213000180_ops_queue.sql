-- The queue: which run a worker claims next, and why the others wait.
--
-- Each queued run has a row in ops_private.queued, in a lane. A lane holds the queued runs of one project with the same
-- priority, labels and concurrency key, so a worker may take every run of a lane or none. A lane without a key is also
-- the group of the lanes that differ from it by their keys only. A claim reads the groups and the first runs of each,
-- and the lanes of a group only if its first runs all have keys that are held. Its cost grows with the number of
-- groups, not with the number of runs or of keys that wait.
--
-- Workers claim the highest priority first. Among equal priorities, the project with the fewest active runs comes
-- first, and among those the one whose last turn is longest ago, so a project with many queued runs does not delay
-- another; within a project, the oldest run.
--
-- Triggers of ops.runs maintain both tables. An index on the status of ops.runs would do the same, but then no update
-- of a run would be a heap-only one, and a claim would read past all runs that it cannot take.

create table ops_private.lanes (
    lane_id bigint generated always as identity primary key,
    group_id bigint,
    project_id uuid not null references ops.projects (id) on delete cascade,
    priority integer not null,
    labels text[] not null,
    concurrency_key text,
    digest bytea not null,
    unique (project_id, digest)
);

create index lanes_group_idx on ops_private.lanes (group_id);
create index lanes_key_idx on ops_private.lanes (project_id, concurrency_key) where concurrency_key is not null;

comment on column ops_private.lanes.group_id is
    'The lane of the same project, priority and labels without a key; null: this one.';
comment on column ops_private.lanes.digest is 'Of priority, labels and key, which are too long for an index.';

create table ops_private.queued (
    run_id uuid primary key,
    lane_id bigint not null,
    group_id bigint not null,
    scheduled_at timestamptz,
    created_at timestamptz not null,
    run_number integer not null,
    wanted_until timestamptz
);

comment on column ops_private.queued.scheduled_at is 'Infinity: the run waits for an approval.';

-- The first runs of a lane, and of a group; runs that are scheduled for later come after those that are due.
create index queued_lane_idx on ops_private.queued (lane_id, scheduled_at nulls first, created_at, run_number);
create index queued_group_idx on ops_private.queued (group_id, scheduled_at nulls first, created_at, run_number);
create index queued_scheduled_idx on ops_private.queued (scheduled_at) where scheduled_at is not null;
create index queued_wanted_idx on ops_private.queued (wanted_until) where wanted_until is not null;

-- What holds back the runs of a project; a project without a row has no limits of its own.
create table ops_private.project_limits (
    project_id uuid primary key references ops.projects (id) on delete cascade,
    paused_at timestamptz,
    paused_by text,
    pause_reason text check (octet_length(pause_reason) <= 10000),
    max_active_runs integer check (max_active_runs > 0),
    max_queued_runs integer check (max_queued_runs > 0)
);

comment on column ops_private.project_limits.max_queued_runs is 'Null: max_queued_runs of ops_private.control.';

-- When each project had its last turn: a number that grows with every claim.
create table ops_private.turns (
    project_id uuid primary key references ops.projects (id) on delete cascade,
    turn bigint not null default 0
) with (fillfactor = 50);

create sequence ops_private.turn_seq as bigint;

-- The instances whose last claim found nothing. A new run is announced to a few of them, so that a hundred idle workers do
-- not all ask for one run.
create table ops_private.idle_workers (
    instance_id uuid primary key,
    labels text[] not null,
    since timestamptz not null
);

create function ops_private.lane_digest(p_priority integer, p_labels text[], p_key text) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return sha256(convert_to(jsonb_build_array(p_priority, p_labels, p_key)::text, 'UTF8'));
end
$$;

-- Returns the lane of a run with this key and makes it, and its group, if there is none. The locks prevent that
-- drop_empty_lanes deletes them before the caller's transaction ends.
create function ops_private.lane_of(p_run ops.runs, p_key text) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Puts a queued run into its lane, or moves it after a change.
create function ops_private.put_into_queue(p_run ops.runs) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Puts new runs into their lanes, and makes the lanes that are missing. The caller holds the lock of the counter of
-- their projects. A new plan for each call would cost more than the call.
create function ops_private.queue_new_runs(p_run_ids uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
    set plan_cache_mode = force_generic_plan
as $$
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

-- Fills the tables of the queue again after runs were written without triggers, as by a restore of data only. No
-- worker may work meanwhile.
create function ops_private.rebuild_queue() returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.queued;
    delete from ops_private.lanes;
    perform ops_private.queue_new_runs(array(select r.id from ops.runs as r where r.status = 'queued'));
    return (select count(*) from ops_private.queued);
end
$$;

-- Deletes lanes without runs; a group goes after its lanes. lane_of and, for new runs, the lock of the project's
-- counter keep a lane that is about to get a run. The delete is a statement of its own, because only a later snapshot
-- shows the rows that were committed before the lane was locked.
create function ops_private.drop_empty_lanes() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- How many runs of the project may be queued at once.
create function ops_private.max_queued_runs(p_project_id uuid) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        (select k.max_queued_runs from ops_private.project_limits as k where k.project_id = p_project_id),
        (select c.max_queued_runs from ops_private.control as c));
end
$$;

-- Whether a project has max_queued_runs + p_more queued runs or more.
create function ops_private.queue_is_full(p_project_id uuid, p_more integer default 0) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- Whether the project may have one more active run. The lock makes the claims of a project with a limit take turns, so
-- two claims never both take its last place.
create function ops_private.has_room(p_project_id uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_most integer;
begin
    select k.max_active_runs into v_most from ops_private.project_limits as k
    where k.project_id = p_project_id and k.max_active_runs is not null for no key update;
    return v_most is null
        or v_most > (select count(*) from ops_private.leases as l where l.project_id = p_project_id);
end
$$;

-- The first run of each lane of a group whose key is not held, in their order; nothing if the group has at most 32
-- runs.
create function ops_private.first_of_lanes(p_group_id bigint) returns setof ops_private.queued
language plpgsql stable set search_path = pg_catalog, pg_temp
    set enable_seqscan = off set jit = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan
as $$
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

-- Locks the run that a worker with these labels claims next and returns its id; null if there is none. It skips runs
-- that another transaction has locked. It is one statement, because two loops over cursors cost 60 µs more. PostgreSQL
-- reads the groups in their order, for each group its runs in their order, and stops at the first run that it can lock.
-- Of a group it reads the first 32 runs; if it can take none of them, it reads the lanes of the group. The first runs
-- stand here twice, for the order of the groups and for the run, because a function would read all 32 each time. To ask a
-- function whether a key is held would cost 9 µs for each run, in place of 1.
-- `lateral` makes it read the queue before the runs, `offset 0` makes it sort the groups before it calls has_room, and
-- the settings prevent a plan from the time when the queue was empty. It passes over the runs of p_blocked; of a lane
-- it then reads only the first 1,000 runs, so that a claim ends soon.
create function ops_private.next_run(p_labels text[], p_blocked uuid[]) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
    set enable_seqscan = off set jit = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan
as $$
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

-- Makes scheduled runs claimable once they are due, up to 1,000 at a time, and queues the runs of schedules that are
-- due; returns how many.
create function ops_private.wake_scheduled_runs() returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- The answer of a claim that found no run. waiting: a run for these labels waits for its time or its concurrency key. A
-- run that waits for its approval does not count.
create function ops_private.nothing_claimed(p_labels text[]) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- The first condition keeps a claim from waiting for a client that queues a run and keeps its transaction open: such a
-- transaction has deleted the row.
create function ops_private.become_idle(p_instance_id uuid, p_labels text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    insert into ops_private.idle_workers as i (instance_id, labels, since)
    select p_instance_id, p_labels, ops_private.current_time()
    where p_instance_id is not null
        and not exists (select from ops_private.idle_workers as k where k.instance_id = p_instance_id)
    on conflict (instance_id) do nothing;
end
$$;

-- Skips a row that another transaction has locked: that transaction deletes it.
create function ops_private.become_busy(p_instance_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.idle_workers as i where i.instance_id in (
        select k.instance_id from ops_private.idle_workers as k
        where k.instance_id = p_instance_id for update skip locked);
end
$$;

-- The channel of notifications for one instance. It has a digest, since the instance id is a part of a lease.
create function ops_private.channel_of(p_instance_id uuid) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return 'ops_queue_' || left(encode(sha256(convert_to(p_instance_id::text, 'UTF8')), 'hex'), 16);
end
$$;

-- Notifies workers of a run with these labels that can be claimed: up to three of those that have been idle for the
-- longest time, each on its own channel, so that the others receive nothing. They count as idle again once a claim of
-- theirs finds nothing. If none is idle, the channel ops_queue reaches all. If the three are dead, the run waits for the
-- next poll of another worker.
create function ops_private.notify_idle_workers(p_labels text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Deletes the rows of instances that no longer live.
create function ops_private.forget_idle_workers() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ops_private.idle_workers as i where i.instance_id in (
        select k.instance_id from ops_private.idle_workers as k
        where not exists (
            select from ops_private.workers as w
            where w.instance_id = k.instance_id and w.expires_at > ops_private.current_time())
        for update skip locked);
end
$$;

create function ops_private.drain_lock(p_worker_id text) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return hashtextextended('ops_private.worker_ids ' || p_worker_id, 0);
end
$$;

-- Whether a worker is drained, so that its claims find nothing. The claims of a worker share the lock, and drain_worker
-- takes it alone: when that has returned, no earlier claim is under way. A claim does not wait for it.
create function ops_private.is_drained(p_worker_id text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock_shared(ops_private.drain_lock(p_worker_id)) then
        return true;
    end if;
    return exists (
        select from ops_private.worker_ids as i where i.worker_id = p_worker_id and i.drained_at is not null);
end
$$;

-- Why the runs of a lane wait, by the conditions of next_run. For a scheduled run, its time goes before held and
-- lacking.
create function ops_private.why_lane_waits(
    p_lane ops_private.lanes, out paused text, out held text, out lacking text
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The queued runs of these projects in the order in which they will be claimed, at most p_limit, and why each waits.
-- place is the number of active runs that its project has when the run is claimed, if no active run ends before. The
-- lanes are materialized, so that the reasons of a lane are looked up once, not for each of its runs.
create function ops_private.queue_order(p_projects uuid[], p_limit bigint)
returns table (run_id uuid, waits_for text)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

revoke execute on all functions in schema ops_private from public;
