-- Frees the names ops.runs and ops.run_logs.
--
-- An older schema kept the runs of its agents under these two names. Where those tables exist, this file
-- renames them, their indexes, sequences and constraints to agent_*, keeps every row and every grant, and leaves a view
-- for each. A table counts as an agent table when it lacks the columns that only our table of that name has,
-- so on a fresh database and on our own tables nothing happens.

do $$
declare
    -- what only our own table of that name has
    v_ours constant jsonb := '{"runs": ["workflow_id", "run_number", "idempotency_key"],
                               "run_logs": ["seq", "log_level"]}';
    v_name text;
    v_old regclass;
    v_new regclass;
    v_object record;
begin
    -- Both tables or neither: writers lock them in either order (the check of a foreign key follows the insert), so
    -- who waits for one must not hold the other.
    if pg_catalog.to_regclass('ops.runs') is not null and pg_catalog.to_regclass('ops.run_logs') is not null
        and not exists (
            select from pg_catalog.pg_attribute as a
            where a.attrelid = pg_catalog.to_regclass('ops.runs') and a.attname = 'run_number') then
        for v_try in 1 .. 1000 loop
            begin
                lock table ops.runs in access exclusive mode;
                lock table ops.run_logs in access exclusive mode nowait;
                exit;
            exception when lock_not_available then
                perform pg_catalog.pg_sleep(0.01);
            end;
        end loop;
    end if;

    for v_name in select k.name from pg_catalog.jsonb_object_keys(v_ours) as k (name) order by k.name loop
        v_old := pg_catalog.to_regclass(pg_catalog.format('ops.%I', v_name));
        v_new := pg_catalog.to_regclass(pg_catalog.format('ops.%I', 'agent_' || v_name));

        if v_old is not null and (
            select pg_catalog.count(*)
            from pg_catalog.pg_attribute as a
            where a.attrelid = v_old and not a.attisdropped and v_ours -> v_name ? a.attname::text
        ) < pg_catalog.jsonb_array_length(v_ours -> v_name) then
            if v_new is not null then
                raise exception 'ops.% and ops.agent_% both hold agent data', v_name, v_name
                    using hint = 'Move the rows of one into the other and drop it, then migrate again.';
            end if;

            -- the schema's indexes and sequences share one set of names: free those too
            for v_object in
                select c.relname as name
                from pg_catalog.pg_index as i
                join pg_catalog.pg_class as c on c.oid = i.indexrelid
                where i.indrelid = v_old and c.relname not like 'agent\_%'
            loop
                execute pg_catalog.format(
                    'alter index ops.%I rename to %I',
                    v_object.name, pg_catalog.left('agent_' || v_object.name, 63));
            end loop;
            for v_object in
                select c.relname as name
                from pg_catalog.pg_depend as d
                join pg_catalog.pg_class as c on c.oid = d.objid and c.relkind = 'S'
                where d.refobjid = v_old and d.deptype in ('a', 'i')
                    and c.relnamespace = 'ops'::pg_catalog.regnamespace and c.relname not like 'agent\_%'
            loop
                execute pg_catalog.format(
                    'alter sequence ops.%I rename to %I',
                    v_object.name, pg_catalog.left('agent_' || v_object.name, 63));
            end loop;
            -- and names for constraints are chosen so that no two in the schema are alike
            for v_object in
                select k.conname as name
                from pg_catalog.pg_constraint as k
                where k.conrelid = v_old and k.contype in ('c', 'f') and k.conname not like 'agent\_%'
            loop
                execute pg_catalog.format(
                    'alter table ops.%I rename constraint %I to %I',
                    v_name, v_object.name, pg_catalog.left('agent_' || v_object.name, 63));
            end loop;
            execute pg_catalog.format('alter table ops.%I rename to %I', v_name, 'agent_' || v_name);
            v_new := v_old;
        end if;

        if v_new is not null
            and pg_catalog.to_regclass(pg_catalog.format('ops.%I', 'agent_' || v_name || '_v')) is null then
            execute pg_catalog.format(
                'create view ops.%I with (security_invoker = true) as select * from ops.%I',
                'agent_' || v_name || '_v', 'agent_' || v_name);
            for v_object in
                select distinct
                    case a.grantee when 0 then 'public' else a.grantee::pg_catalog.regrole::text end as name
                from pg_catalog.pg_class as c
                cross join lateral pg_catalog.aclexplode(c.relacl) as a
                where c.oid = v_new and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
            loop
                execute pg_catalog.format(
                    'grant select on ops.%I to %s', 'agent_' || v_name || '_v', v_object.name);
            end loop;
        end if;
    end loop;
end
$$;
