-- Schedules: cron lines with a time zone in the configuration of a workflow.
--
-- When a workflow is written, a trigger checks its lines and puts each into ops_private.schedules with the next time at
-- which it is due. A worker that finds nothing to claim, and every ops.reap, queues a run for each line that is due and
-- computes the time after it. The run's idempotency key names the line and the time, so a line is due once.
--
-- A line that begins with a star in the minute or the hour is due by elapsed time: `0 * * * *` every hour, also in the
-- hour that a change of the clock repeats. Every other line is due by the clock on the wall: once if the hour is
-- repeated, and right after the change if the clock skips the time.

create table ops_private.schedules (
    workflow_id uuid not null references ops.workflows (id) on delete cascade,
    place integer not null,
    cron text not null,
    timezone text not null,
    catch_up text not null,
    next_at timestamptz,
    problem text,
    primary key (workflow_id, place)
);

comment on column ops_private.schedules.problem is 'Why the line queued no run when it was due last; null if it did.';

create index schedules_next_idx on ops_private.schedules (next_at);

-- Cron lines ------------------------------------------------------------------------------------------------

-- The values of one field of a cron line; null if the field is wrong. A weekday, the only field with 7 as its highest
-- value, may be 7 for Sunday.
create function ops_private.cron_field(p_field text, p_least integer, p_most integer, p_names text[])
returns integer[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
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
$$;

-- The five fields of a cron line with their values, in the order of the line. A wrong field has the value null.
create function ops_private.cron_fields(p_cron text)
returns table (name text, field text, lowest integer, highest integer, field_values integer[])
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
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

-- The instant of a local time. If the clock shows it twice, the first; if the clock skips it, the first minute after.
create function ops_private.first_instant(p_local timestamp, p_timezone text) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The first time after p_after at which a cron line is due; null if there is none in ten years. If neither the day of
-- month nor the day of week begins with a star, one of them suffices.
create function ops_private.next_time(p_cron text, p_timezone text, p_after timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- Says what is wrong with a cron line; null if nothing is.
create function ops_private.bad_cron(p_cron text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- Says what is wrong with `schedule` of a workflow's configuration; null if nothing is, or there is none.
create function ops_private.bad_schedule(p_schedule jsonb) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- A workflow is written -------------------------------------------------------------------------------------

-- A line that did not change keeps its next time.
create function ops_private.set_schedules() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
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

create trigger set_schedules after insert on ops.workflows
    for each row when (new.config ? 'schedule') execute function ops_private.set_schedules();
create trigger set_changed_schedules after update of config on ops.workflows
    for each row when (old.config -> 'schedule' is distinct from new.config -> 'schedule')
    execute function ops_private.set_schedules();

-- A line is due ---------------------------------------------------------------------------------------------

-- Queues the run of a line that is due and computes its next time. A line that is more than 10 minutes late was missed:
-- with `skip` only a time within the last 10 minutes queues a run, with `once` one run is queued for all missed times.
-- After an error next_at is no time of the line; then no run is queued, and the next time is computed.
-- The caller holds the locks that queueing needs, and has locked the workflow and the line.
create function ops_private.fire_schedule(p_line ops_private.schedules, p_project_id uuid) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
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

-- Queues the runs of up to 10 lines that are due; returns how many. It skips what another transaction has locked: that
-- one queues the run, or the next call does. An error of one line (its time zone is no longer known to the server) must
-- not end the claim or the sweep that calls this: the line keeps it as its problem, and is tried again after an hour.
create function ops_private.fire_schedules() returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- What an API exposes ---------------------------------------------------------------------------------------

-- When each workflow that the caller may see is due next. A workflow that no worker would execute is not due.
create function ops_private.workflow_overview() returns table (
    workflow_id uuid, project_id uuid, next_at timestamptz, schedule_problem text
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
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

create function ops.workflow_overview() returns table (
    workflow_id uuid,
    project_id uuid,
    next_at timestamptz,
    schedule_problem text
)
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select w.* from ops_private.workflow_overview() as w;
end;

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.workflow_overview from public;

grant execute on function ops.workflow_overview, ops_private.workflow_overview to authenticated, service_role;
