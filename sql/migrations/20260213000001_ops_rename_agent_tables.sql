-- Frees the names that this project needs, if an older schema ops uses them.
--
-- The later files create nine tables and their functions in the schema ops. This file renames every older object that
-- has one of these names: a table, a view or a type; an index, a sequence or a constraint whose name begins with the
-- name of a table; a function with the name of one of ours, since PostgreSQL could call it instead of ours. The tables
-- of the agents become agent_runs, agent_events, agent_run_logs and agent_artifacts; all other objects get the prefix
-- old_. PostgreSQL refers to tables by their identity, so rows, keys, triggers, policies, views and grants stay valid.
-- The body of a function is text, so this file replaces the former names in it by the new ones.
--
-- ops_private.renamed records each change, and the rollback undoes them. On a fresh database, and on one that has our
-- tables already, nothing changes.

do $$
declare
    v_tables constant text[] := '{projects,workflows,runs,run_events,run_artifacts,run_logs,tools,upgrade_advisories,'
        'project_memberships}';
    v_functions constant text[] := '{add_run_artifact,add_run_event,adopt_run,adoptable_runs,'
        'append_run_log,append_run_logs,applicable_advisories,approve_run,cancel_run,claim_next_run,'
        'complete_workflow_run,current_user_id,current_user_role,drain_worker,enqueue_run,find_user,health,'
        'heartbeat,limit_project,list_queued_runs,mark_known,mark_ready,pause_project,pause_queue,'
        'project_overview,reap,receive_push,receive_webhook,record_container,record_report,'
        'register_destinations,register_worker,reject_run,release_run,remove_member,resume_project,'
        'resume_queue,retry_run,run_fingerprints,run_logs,run_summary,runs,search_run_logs,set_member,'
        'set_webhook_secret,settle_delivery,shut_out_worker,start_workflow_run,sync_project,sync_tools,'
        'take_deliveries,unclaimable_runs,unregister_worker,worker_overview,workflow_overview}';
    v_parts constant text := '^(' || pg_catalog.array_to_string(v_tables, '|') || ')_';
    v_ops constant oid := pg_catalog.to_regnamespace('ops');
    v_had_private constant boolean := pg_catalog.to_regnamespace('ops_private') is not null;
    v_search_path constant text := pg_catalog.current_setting('search_path');
    v_check constant text := pg_catalog.current_setting('check_function_bodies');
    v_agents boolean;
    v_lock text[];
    v_kind text;
    v_item record;
    v_name record;
    v_routine record;
    v_wanted text;
    v_new text;
    v_body text;
    v_unclear text;
begin
    if v_ops is null or pg_catalog.to_regclass('ops_private.control') is not null then
        return;
    end if;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    perform pg_catalog.set_config('check_function_bodies', 'off', true);

    -- Runs of agents belong to no project. If one of the agents' new names is in use, all get the prefix old_.
    v_agents := not exists (
        select from pg_attribute as a
        where a.attrelid = to_regclass('ops.runs') and a.attname = 'project_id' and not a.attisdropped
    ) and not exists (
        select from pg_class as c
        where c.relnamespace = v_ops
            and c.relname in ('agent_runs', 'agent_events', 'agent_run_logs', 'agent_run_artifacts', 'agent_artifacts'));

    -- Locks all tables or none. Writers lock them in any order (the check of a foreign key follows the insert), so
    -- this transaction must not hold one table while it waits for another.
    v_lock := array(
        select c.oid::regclass::text
        from pg_class as c
        where c.relnamespace = v_ops and c.relkind in ('r', 'p') and (
            c.relname = any (v_tables) or (v_agents and c.relname = 'artifacts')
            or exists (select from pg_constraint as k where k.conrelid = c.oid and k.conname ~ v_parts))
        order by c.relname);
    for v_try in 1 .. 1000 loop
        begin
            for v_place in 1 .. cardinality(v_lock) loop
                execute format(
                    'lock table %s in access exclusive mode%s',
                    v_lock[v_place], case when v_place > 1 then ' nowait' end);
            end loop;
            exit;
        exception when lock_not_available then
            perform pg_sleep(0.01);
        end;
    end loop;

    if not v_had_private then
        create schema ops_private;
    end if;
    create table ops_private.renamed (
        position integer generated always as identity primary key,
        kind text not null,
        on_table text,
        name text,
        former text
    );
    comment on table ops_private.renamed is
        'What the first migration renamed, in this order; bodies of functions; and grants that are older than ours.';
    insert into ops_private.renamed (kind, former)
    select distinct 'grant', g.rolname::text
    from pg_namespace as n
    cross join lateral aclexplode(n.nspacl) as a
    join pg_roles as g on g.oid = a.grantee
    where n.oid = v_ops and g.rolname in ('authenticated', 'service_role', 'ops_worker');

    foreach v_kind in array '{relation,type,sequence,index,constraint,function}'::text[] loop
        for v_item in
            select o.name, o.on_table, case
                when o.owner like 'agent\_%' then 'agent_' || o.name
                when v_agents and o.name = 'run_events' and v_kind = 'relation' then 'agent_events'
                when v_agents and o.name in ('runs', 'run_logs', 'run_artifacts', 'artifacts') then 'agent_' || o.name
                else 'old_' || o.name end as wanted
            from (
                -- views first: a reader locks a view before its tables
                select
                    case when c.relkind in ('i', 'I') then 'index' when c.relkind = 'c' then 'type' else 'relation' end,
                    c.relname::text, null, null, c.relkind <> 'v'
                from pg_class as c
                where c.relnamespace = v_ops and (
                    c.relname = any (v_tables)
                    -- not one of our names, but one of the agents' tables
                    or (c.relname = 'artifacts' and v_agents and to_regclass('ops.runs') is not null and exists (
                        select from pg_attribute as a where a.attrelid = c.oid and a.attname = 'run_id')))
                union all
                select 'type', t.typname::text, null, null, false
                from pg_type as t
                where t.typnamespace = v_ops and t.typrelid = 0 and t.typname = any (v_tables)
                union all
                select case c.relkind when 'S' then 'sequence' else 'index' end, c.relname::text, null, t.relname::text,
                    false
                from pg_class as c
                left join pg_index as i on i.indexrelid = c.oid
                left join pg_depend as d
                    on c.relkind = 'S' and d.classid = 'pg_class'::regclass and d.objid = c.oid
                        and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
                left join pg_class as t on t.oid = coalesce(i.indrelid, d.refobjid)
                where c.relnamespace = v_ops and c.relkind in ('i', 'I', 'S') and c.relname ~ v_parts
                union all
                -- the server gives each constraint a name that is unique in the schema
                select 'constraint', k.conname::text, t.relname::text, t.relname::text, false
                from pg_constraint as k
                join pg_class as t on t.oid = k.conrelid
                where k.connamespace = v_ops and k.contype in ('c', 'f', 'n') and k.coninhcount = 0
                    and k.conname ~ v_parts
                union all
                select distinct 'function', p.proname::text, null, null, false
                from pg_proc as p
                where p.pronamespace = v_ops and p.proname = any (v_functions)
            ) as o (kind, name, on_table, owner, later)
            where o.kind = v_kind
            order by o.later, o.on_table, o.name
        loop
            v_wanted := v_item.wanted::name;
            v_new := v_wanted;
            for v_number in 2 .. 1000 loop
                exit when not exists (select from pg_class as c where c.relnamespace = v_ops and c.relname = v_new)
                    and not exists (select from pg_type as t where t.typnamespace = v_ops and t.typname = v_new)
                    and not exists (select from pg_constraint as k where k.connamespace = v_ops and k.conname = v_new)
                    and not exists (select from pg_proc as p where p.pronamespace = v_ops and p.proname = v_new);
                v_new := left(v_wanted, 50) || '_' || v_number;
            end loop;

            if v_kind = 'constraint' then
                execute format(
                    'alter table ops.%I rename constraint %I to %I', v_item.on_table, v_item.name, v_new);
            elsif v_kind = 'function' then
                for v_routine in
                    select p.oid from pg_proc as p where p.pronamespace = v_ops and p.proname = v_item.name
                loop
                    execute format('alter routine %s rename to %I', v_routine.oid::regprocedure, v_new);
                end loop;
            else
                execute format(
                    'alter %s ops.%I rename to %I',
                    case v_kind when 'type' then 'type' when 'index' then 'index' else 'table' end, v_item.name, v_new);
            end if;
            insert into ops_private.renamed (kind, on_table, name, former)
            values (v_kind, v_item.on_table, v_new, v_item.name);
            raise notice '% ops.% is now ops.%', v_kind, v_item.name, v_new;
        end loop;
    end loop;

    -- This file does not change a name without its schema, since it may mean another object. It refuses to go on if
    -- such a name can mean a renamed object: the search path has ops, or the same function also names the table with
    -- its schema.
    select string_agg(distinct format('%s names %s', p.oid::regprocedure, r.former), ', ')
    into v_unclear
    from pg_proc as p
    join pg_language as l on l.oid = p.prolang and l.lanname not in ('internal', 'c')
    cross join lateral (
        select coalesce(
            (select s.setting from unnest(p.proconfig) as s (setting) where s.setting like 'search\_path=%'),
            (select string_agg(s.setting, ' ')
            from pg_db_role_setting as g
            cross join unnest(g.setconfig) as s (setting)
            where s.setting like 'search\_path=%'
                and g.setdatabase in (0, (select b.oid from pg_database as b where b.datname = current_database()))))
            ~ '\mops\M'
    ) as path (has_ops)
    join ops_private.renamed as r on p.prosqlbody is null and (
        (r.kind = 'relation' and p.prosrc ~* ('(?<![\w."])"?' || r.former || '"?\s*\.\s*["\w]')
            and p.prosrc ~* ('\mops"?\s*\.\s*"?' || r.former || '\M')
            and p.prosrc !~* ('\."?' || r.former || '"?\s+(as\s+)?"?' || r.former || '\M'))
        or (path.has_ops and r.kind = 'relation'
            and p.prosrc ~* ('\m(from|join|into|update|only|table|truncate|using)\s+"?' || r.former || '\M'
                || '|(?<![\w."])"?' || r.former || '\M"?(\.\w+)?\s*%\s*(row)?type'))
        or (path.has_ops and r.kind = 'function' and p.prosrc ~* ('(?<![\w."])"?' || r.former || '\M"?\s*\(')));
    if v_unclear is not null then
        raise exception 'Functions name what has to be renamed without its schema: %', v_unclear
            using hint = 'Write ops. before these names, or drop the functions, and migrate again.';
    end if;

    -- If the user renamed ops.runs to agent_runs, a function in ops that still says ops.runs means agent_runs.
    for v_routine in
        select p.oid, p.prosrc, p.pronamespace = v_ops as of_ops
        from pg_proc as p
        join pg_namespace as n on n.oid = p.pronamespace and n.nspname not like 'pg\_%'
        join pg_language as l on l.oid = p.prolang and l.lanname not in ('internal', 'c')
        where p.prosqlbody is null and p.prosrc ~* '\mops\M"?\s*\.' and not exists (
            select from pg_depend as d
            where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
        order by p.oid::regprocedure::text
    loop
        v_body := v_routine.prosrc;
        for v_name in
            select regexp_replace(r.former, '(\W)', '\\\1', 'g') as former, r.name
            from ops_private.renamed as r
            where r.kind in ('relation', 'type', 'sequence', 'function')
            union all
            select m.former, m.name
            from (values ('runs', 'agent_runs'), ('run_events', 'agent_events'), ('run_logs', 'agent_run_logs'),
                ('artifacts', 'agent_artifacts')) as m (former, name)
            where v_routine.of_ops and to_regclass('ops.' || m.name) is not null
                and to_regclass('ops.' || m.former) is null
                and not exists (select from ops_private.renamed as r where r.former = m.former)
        loop
            v_body := regexp_replace(
                v_body, '(\mops\M"?\s*\.\s*"?)' || v_name.former || '\M', '\1' || v_name.name, 'gi');
        end loop;
        if v_body <> v_routine.prosrc then
            execute replace(pg_get_functiondef(v_routine.oid), v_routine.prosrc, v_body);
            insert into ops_private.renamed (kind, name, former) values ('body', v_body, v_routine.prosrc);
            raise notice 'the body of % has the new names', v_routine.oid::regprocedure;
        end if;
    end loop;

    -- Reports can use these views before any program writes under the new names.
    for v_item in
        select r.name, r.name || '_v' as view
        from ops_private.renamed as r
        where r.kind = 'relation' and r.name in ('agent_runs', 'agent_run_logs')
            and to_regclass('ops.' || r.name || '_v') is null
        order by r.name
    loop
        execute format(
            'create view ops.%I with (security_invoker = true) as select * from ops.%I', v_item.view, v_item.name);
        for v_name in
            select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
            from pg_class as c
            cross join lateral aclexplode(c.relacl) as a
            where c.oid = to_regclass('ops.' || v_item.name) and a.privilege_type = 'SELECT'
                and a.grantee <> c.relowner
        loop
            execute format('grant select on ops.%I to %s', v_item.view, v_name.grantee);
        end loop;
        insert into ops_private.renamed (kind, name) values ('view', v_item.view);
    end loop;

    if not exists (select from ops_private.renamed) then
        drop table ops_private.renamed;
        if not v_had_private then
            drop schema ops_private;
        end if;
    end if;
    perform pg_catalog.set_config('check_function_bodies', v_check, true);
    perform pg_catalog.set_config('search_path', v_search_path, true);
end
$$;
