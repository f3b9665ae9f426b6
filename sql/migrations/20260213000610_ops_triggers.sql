-- What starts a run besides a person, and what keeps one back: chains, newer runs, approvals.
--
-- The keys are in the configuration of a workflow. `then` names the workflows that a success starts; the new run names
-- its parent and has its commit. `on_newer` cancels older runs of the same workflow, concurrency key and git ref when a
-- new one is queued. `queue_timeout_seconds` bounds how long a run waits. A run of a workflow with `approval`
-- waits with the time infinity in ops_private.queued, behind all runs of its lane that are due, so it costs a claim
-- nothing and blocks no other run.
--
-- A trigger of ops.workflows checks these keys when a workflow is written, after the policies. The triggers of ops.runs
-- call queue_terms and supersede_older, ops.complete_workflow_run continues the chain, and ops.reap cancels what waited
-- too long.

-- Configuration ---------------------------------------------------------------------------------------------

-- Says what is wrong with the keys of this file in a workflow's configuration; null if nothing is. The worker refuses
-- the same values (worker/model/config.py).
create function ops_private.bad_triggers(p_config jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
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

-- The workflows of a project that a text names: NAME, or TYPE/NAME; else TYPE, if no workflow has that name. The
-- commands read names by the same rule.
create function ops_private.workflows_named(p_project_id uuid, p_name text) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- TYPE/NAME of workflows, in this order.
create function ops_private.names_of(p_workflow_ids uuid[]) returns text[]
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select w.workflow_type || '/' || w.name
        from unnest(p_workflow_ids) with ordinality as i (id, place) join ops.workflows as w on w.id = i.id
        order by i.place);
end
$$;

-- Says why a text names not exactly one of these workflows; null if it does.
create function ops_private.bad_name(p_name text, p_found uuid[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return case cardinality(p_found)
        when 1 then null
        when 0 then format('the project has no workflow "%s"', left(p_name, 60))
        else format('"%s" may mean several workflows; expected one of %s', left(p_name, 60),
            array_to_string((ops_private.names_of(p_found))[:10], ', ')) end;
end
$$;

-- Chains ----------------------------------------------------------------------------------------------------

-- The texts in `then` of a workflow, in their order, and the workflows that each names.
create function ops_private.next_workflows(p_workflow ops.workflows) returns table (name text, found uuid[])
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select e.name, ops_private.workflows_named(p_workflow.project_id, e.name)
        from jsonb_array_elements_text(case jsonb_typeof(p_workflow.config -> 'then')
            when 'array' then p_workflow.config -> 'then' else '[]' end) with ordinality as e (name, place)
        order by e.place;
end
$$;

-- Says what is wrong with the chain that begins at this workflow: a name that is not that of one workflow, or a cycle
-- back to this one. It visits each workflow once, breadth first.
create function ops_private.bad_chain(p_workflow ops.workflows) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The workflows of a run and of all runs before it in its chain. Two workflows that are written at the same time can
-- make a cycle that neither check sees, and a later rename or deletion can change what a name means.
create function ops_private.chain_of(p_run_id uuid) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
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

-- The git ref and the commit of a run as its program sees them, as metadata of the next run.
create function ops_private.source_of(p_run ops.runs, p_workflow ops.workflows) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'git_ref', coalesce(p_run.metadata ->> 'git_ref', p_workflow.git_ref),
        'git_commit', lower(coalesce(
            p_run.metadata ->> 'git_commit',
            case when p_run.metadata ->> 'git_ref' is null then p_workflow.git_commit end))));
end
$$;

-- Queues a run of the workflow as the child of a run, with the source of that run. Returns why it did not; null if it
-- did, or had done before.
create function ops_private.queue_next_run(
    p_run ops.runs, p_source jsonb, p_chain uuid[], p_name text, p_found uuid[]
) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Queues the runs that follow a run that succeeded. What cannot be queued is a warning of that run.
create function ops_private.queue_next_runs(p_run_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
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

-- At once if the caller holds the locks that queueing needs and no client keeps a run locked that a new one supersedes,
-- else with the next ops.reap.
create function ops_private.continue_chain(p_run_id uuid, p_locked boolean) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- How long a run waits --------------------------------------------------------------------------------------

-- When a run that begins to wait at p_since is no longer wanted; null if its workflow sets no time.
create function ops_private.wanted_until(p_config jsonb, p_since timestamptz) returns timestamptz
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if ops_private.is_whole_number(p_config -> 'queue_timeout_seconds', 1, 31536000) then
        return p_since + make_interval(secs => (p_config ->> 'queue_timeout_seconds')::integer);
    end if;
    return null;
end
$$;

-- A new run with what its workflow says about approval and the time that it may wait. Every value of `approval` but
-- false demands one, also a value that is not allowed.
create function ops_private.queue_terms(p_run ops.runs, p_config jsonb) returns ops.runs
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
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

-- Cancels the queued runs that waited too long, up to 1,000 at a time; returns their ids.
create function ops_private.expire_queued_runs() returns uuid[]
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- A newer run -----------------------------------------------------------------------------------------------

-- Cancels the runs that the newest of each workflow, concurrency key and git ref among p_run_ids supersedes: those that
-- are queued, and with cancel_running also the active one. The caller holds the lock of the counter of their projects.
-- A new run that waits for its approval cancels only those that wait for theirs; when it is approved, decide_run calls
-- this again. One that is not yet due cancels only those that are not yet due either, now and later. The function waits
-- for a claim of such a run, and then finds the run claimed.
create function ops_private.supersede_older(p_run_ids uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- Whether a newer run that is queued makes a retry of this run unwanted.
create function ops_private.is_superseded(p_run ops.runs) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- Approval --------------------------------------------------------------------------------------------------

-- Approves or rejects a run that waits for it. A repeated call changes nothing. The approval cancels what the run
-- supersedes, so it locks the project's counter before the run.
create function ops_private.decide_run(p_run_id uuid, p_decision text, p_reason text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
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

create function ops.approve_run(p_run_id uuid) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.decide_run(p_run_id, 'approved', null);

create function ops.reject_run(p_run_id uuid, p_reason text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.decide_run(p_run_id, 'rejected', p_reason);

-- A workflow is written -------------------------------------------------------------------------------------

-- Refuses a configuration whose keys of this file are wrong. A developer may add `approval`, and an admin remove it.
create function ops_private.check_triggers() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
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

-- In a condition, a name or a type that changes can close a cycle only through a workflow that has `then` itself.
create trigger check_triggers after insert on ops.workflows
    for each row when (new.config ?| '{then,approval,on_newer,queue_timeout_seconds}')
    execute function ops_private.check_triggers();
create trigger check_changed_triggers after update of config, name, workflow_type on ops.workflows
    for each row when (
        old.config ? 'approval' or new.config ?| '{then,approval,on_newer,queue_timeout_seconds}')
    execute function ops_private.check_triggers();

-- Grants ----------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.approve_run, ops.reject_run from public;

grant execute on function ops.approve_run, ops.reject_run, ops_private.decide_run to authenticated, service_role;
