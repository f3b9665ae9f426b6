-- Outcomes go where people look: to a forge as commit statuses, by mail, and to a chat.
--
-- A host names destinations in its settings (--notify-file), and its worker registers them here with what each wants:
-- events, projects, workflows, branches. When a run is queued, starts or ends, a trigger writes one message for each
-- destination that wants it into ops_private.outbox, in the transaction that changes the run. So a change that is
-- rolled back sends nothing, and one that is committed is sent. Workers take messages with a lease (take_deliveries),
-- send them, and report how that went (settle_delivery). A message is deleted when it was delivered or is given up.
--
-- A message may be sent twice, with the same delivery_id, if a worker dies between the two calls. Each destination has
-- its own messages, so one that does not answer delays no other one, and no run. Without a registered destination
-- nothing is written. The bounds: 1,000 messages of a destination, 20 attempts, 24 hours.
--
-- A message has the last errors of a run, of any project. So a host may take messages only if its database role is a
-- member of ops_notifier, which an operator grants: other hosts read no runs but those that they claimed.

do $$
begin
    if not exists (select from pg_catalog.pg_roles as r where r.rolname = 'ops_notifier') then
        create role ops_notifier nologin;
    end if;
exception when duplicate_object or unique_violation then  -- another database of the cluster is migrated now
    null;
end
$$;

create table ops_private.destinations (
    worker_id text not null check (octet_length(worker_id) <= 200),
    name text not null,
    events text[] not null,
    commits_only boolean not null,
    projects text[] not null,
    workflows text[] not null,
    branches text[] not null,
    seen_at timestamptz not null,
    primary key (worker_id, name)
);

comment on table ops_private.destinations is
    'What the workers send, and where. Workers that register the same name share the messages for it.';
comment on column ops_private.destinations.commits_only is 'Only runs with a commit: its status on a forge.';
comment on column ops_private.destinations.seen_at is
    'When the worker last asked for messages. A destination that no worker asked for in 24 hours gets no new ones.';

create table ops_private.outbox (
    delivery_id uuid primary key default gen_random_uuid(),
    seq bigint generated always as identity,
    destination text not null,
    run_id uuid not null references ops.runs (id) on delete cascade,
    event text not null check (event in ('queued', 'started', 'red', 'green_again', 'succeeded', 'canceled')),
    created_at timestamptz not null,
    due_at timestamptz not null,
    attempts integer not null default 0,
    leased_by uuid,
    last_error text
);

comment on column ops_private.outbox.due_at is 'When it may be taken next: the end of its lease, or of the wait after an error.';
comment on column ops_private.outbox.leased_by is 'The instance that sends it now; null while it waits.';

create index outbox_due_idx on ops_private.outbox (destination, due_at);
create index outbox_run_idx on ops_private.outbox (run_id, destination);

-- What a destination wants ----------------------------------------------------------------------------------

-- Whether a text matches one of the patterns; * stands for any characters. A run without a branch matches * only.
create function ops_private.matches_one(p_text text, p_patterns text[]) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from unnest(p_patterns) as p (pattern)
        where coalesce(p_text, '') like replace(replace(replace(replace(
            p.pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%'));
end
$$;

-- The git ref or the commit of a run: its own, else that of its workflow.
create function ops_private.run_git(p_metadata jsonb, p_key text, p_default text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(nullif(case when jsonb_typeof(p_metadata -> p_key) = 'string' then p_metadata ->> p_key end, ''),
        nullif(p_default, ''));
end
$$;

create function ops_private.is_commit(p_commit text) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(p_commit ~ '^[0-9a-fA-F]{7,64}$', false);
end
$$;

-- The commit of a run, as its program sees it: that of the workflow belongs to the git ref of the workflow.
create function ops_private.run_commit(p_metadata jsonb, p_default text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return ops_private.run_git(
        p_metadata, 'git_commit', case when p_metadata ->> 'git_ref' is null then p_default end);
end
$$;

-- Whether the run that ended last before this one, of the same workflow and git ref, failed. It looks at the last 1,000
-- runs of the project. Canceled runs do not count.
create function ops_private.was_red(p_run ops.runs) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- Fill ------------------------------------------------------------------------------------------------------

-- Writes the messages about these runs. They replace those of the same runs that no worker has taken yet. A
-- destination that has 1,000 messages gets no more.
create function ops_private.fill_outbox(p_run_ids uuid[], p_event text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

create function ops_private.tell_change() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

create trigger tell_change after update of status on ops.runs
    for each row when (
        new.status <> old.status and new.status in ('running', 'succeeded', 'failed', 'canceled'))
    execute function ops_private.tell_change();

create function ops_private.tell_queued() returns trigger
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from ops_private.destinations as d where 'queued' = any (d.events)) then
        perform ops_private.fill_outbox(array(select i.id from inserted as i), 'queued');
    end if;
    return null;
end
$$;

create trigger tell_queued after insert on ops.runs
    referencing new table as inserted
    for each statement execute function ops_private.tell_queued();

-- What a message says ---------------------------------------------------------------------------------------

-- The last lines of level error, the newest first, without the frames of tracebacks. It looks at the last 20,000 lines
-- of the log.
create function ops_private.last_errors(p_run_id uuid, p_limit integer) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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
$$;

-- What is known of the errors of a run, a line for each; the next migration replaces it.
create function ops_private.known_lines(p_run_id uuid, p_projects uuid[]) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return;
end
$$;

create function ops_private.delivery_payload(p_message ops_private.outbox) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- Deliver ---------------------------------------------------------------------------------------------------

-- Refuses a caller that is neither trusted nor a member of ops_notifier.
create function ops_private.check_notifier() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- Says what is wrong with one destination; null if nothing is.
create function ops_private.bad_destination(p_destination jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
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
$$;

-- Records the destinations of a worker, in place of those that it had.
create function ops.register_destinations(p_worker_id text, p_destinations jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Deletes messages that are older than 24 hours, and the destinations that no worker has asked for in 30 days. Workers
-- call it when they ask for messages, and so does `ops-worker prune`, since a database may have lost all such workers.
create function ops_private.prune_outbox() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Takes messages that are due for these destinations of the worker, up to 5 for each, with a lease of 5 minutes. Of one
-- run a destination gets the messages in their order: while another worker sends the first, the next one waits.
-- registered is false if the worker has no destinations here: then it registers them again.
create function ops.take_deliveries(p_worker_id text, p_instance_id uuid, p_destinations text[]) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
    set enable_seqscan = off set jit = off
as $$
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

-- Ends an attempt: without an error the message is delivered and deleted. With one it is due again after a wait that
-- doubles from 10 seconds to an hour, or given up and deleted: after 20 attempts, 24 hours, or at once with p_final.
create function ops.settle_delivery(
    p_delivery_id uuid, p_instance_id uuid, p_error text default null, p_final boolean default false
) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.register_destinations, ops.take_deliveries, ops.settle_delivery from public;
grant execute on function ops.register_destinations, ops.take_deliveries, ops.settle_delivery
to ops_worker, service_role;
grant execute on function ops_private.prune_outbox to service_role;
