-- Fingerprints: which errors of a failed run are known, since when, and how often they occurred.
--
-- When a run fails, a trigger reads its failing tests, else its last errors, else the message of its reason. Each is
-- normalised (ops_private.normalized_error takes out what differs from run to run) and hashed. Equal hashes are the same
-- error, in every run and project. A run that succeeds costs nothing.
--
-- ops.run_fingerprints answers, for each error of a run, since which run it is known, how often it occurred and in how
-- many projects, of those that the caller may see. The same lines stand at the top of ops.run_summary and in the messages
-- of the outbox; a message counts only the project of the run. A member may mark an error as known in a project, with a
-- note (ops.mark_known).

create table ops_private.run_fingerprints (
    run_id uuid not null references ops.runs (id) on delete cascade,
    fingerprint text not null,
    project_id uuid not null,
    place integer not null,
    kind text not null check (kind in ('test', 'error', 'reason')),
    message text not null check (octet_length(message) <= 2000),
    created_at timestamptz not null,
    primary key (run_id, fingerprint)
);

comment on column ops_private.run_fingerprints.place is 'The order in the run: the first failing test, the last error.';
comment on column ops_private.run_fingerprints.message is 'The name of the test, or the error without what varies.';

create index run_fingerprints_fingerprint_idx
    on ops_private.run_fingerprints (fingerprint, created_at, project_id, run_id);

create table ops_private.known_errors (
    project_id uuid not null references ops.projects (id) on delete cascade,
    fingerprint text not null,
    note text check (octet_length(note) <= 4000),
    marked_by text not null,
    marked_at timestamptz not null,
    primary key (project_id, fingerprint)
);

-- Normalise -------------------------------------------------------------------------------------------------

-- A text without the escape sequences of a terminal, and with a space for each other control character.
create function ops_private.one_line(p_text text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return regexp_replace(
        regexp_replace(p_text, '\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(\x07|\x1b\\))', '', 'g'), '[\x01-\x1f\x7f]+', ' ', 'g');
end
$$;

-- A line of an error without what differs from run to run: times, numbers, ids, hashes, addresses, paths, and quoted
-- texts, except plain identifiers such as "partner_id" or 'res.partner'. Odoo's time, process, level and database are
-- removed. The first 1,000 characters count, which bounds the cost.
create function ops_private.normalized_error(p_line text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
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

create function ops_private.fingerprint_of(p_kind text, p_message text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return left(encode(sha256(convert_to(p_kind || E'\n' || p_message, 'UTF8')), 'hex'), 16);
end
$$;

-- Record ----------------------------------------------------------------------------------------------------

-- What failed in a run, the most telling first: up to 5 failing tests; without any, the last 3 different errors; without
-- any, the message of a reason that the worker or the engine gave. Lines that only count failures are left out.
create function ops_private.failures_of(p_run ops.runs) returns table (kind text, message text, place bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

create function ops_private.record_fingerprints() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    insert into ops_private.run_fingerprints (run_id, fingerprint, project_id, place, kind, message, created_at)
    select new.id, ops_private.fingerprint_of(f.kind, f.message), new.project_id, f.place, f.kind, f.message,
        new.finished_at
    from ops_private.failures_of(new) as f
    on conflict (run_id, fingerprint) do nothing;
    return null;
end
$$;

create trigger record_fingerprints after update of status on ops.runs
    for each row when (new.status <> old.status and new.status = 'failed')
    execute function ops_private.record_fingerprints();

-- Answer ----------------------------------------------------------------------------------------------------

-- The errors of a run, and what is known of each in these projects. It counts up to 10,000 occurrences, the oldest
-- first. A note of the run's project goes before those of others, of which the newest is shown.
create function ops_private.fingerprints_of(p_run_id uuid, p_projects uuid[]) returns table (
    fingerprint text, kind text, message text, times bigint, projects bigint, first_run text, first_run_id uuid,
    first_at timestamptz, note text, marked_by text, marked_at timestamptz, line text
)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

create or replace function ops_private.known_lines(p_run_id uuid, p_projects uuid[]) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return query select f.line from ops_private.fingerprints_of(p_run_id, p_projects) as f;
end
$$;

create function ops_private.run_fingerprints(p_run_id uuid) returns table (
    fingerprint text, kind text, message text, times bigint, projects bigint, first_run text, first_run_id uuid,
    first_at timestamptz, note text, marked_by text, marked_at timestamptz, line text
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return query select f.* from ops_private.fingerprints_of(p_run_id, ops_private.visible_projects()) as f;
end
$$;

-- What is known of the errors of a run, a line for each as a quotation, an empty line, and the file summary.md in the
-- artifacts of the run; null if there is none of these, or the caller may not read the run.
create or replace function ops_private.run_summary(p_run_id uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Marks errors of a run as known in its project, or with p_known false no longer: one, or all of the run.
create function ops_private.mark_known(p_run_id uuid, p_fingerprint text, p_note text, p_known boolean) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- What an API exposes ---------------------------------------------------------------------------------------

create function ops.run_fingerprints(p_run_id uuid) returns table (
    fingerprint text,
    kind text,
    message text,
    times bigint,
    projects bigint,
    first_run text,
    first_run_id uuid,
    first_at timestamptz,
    note text,
    marked_by text,
    marked_at timestamptz,
    line text
)
language sql stable set search_path = pg_catalog, pg_temp
begin atomic
    select f.* from ops_private.run_fingerprints(p_run_id) as f;
end;

create function ops.mark_known(
    p_run_id uuid, p_fingerprint text default null, p_note text default null, p_known boolean default true
) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.mark_known(p_run_id, p_fingerprint, p_note, p_known);

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.run_fingerprints, ops.mark_known from public;
grant execute on function
    ops.run_fingerprints, ops.mark_known, ops_private.run_fingerprints(uuid), ops_private.mark_known
to authenticated, service_role;
