-- Gives the agent tables their old names back, with their indexes, sequences and constraints, and drops the two views.
--
-- Lost: nothing; every row and every grant stays. Refused while our own ops.runs or ops.run_logs exist: roll
-- those back first. An index, sequence or constraint that was called agent_* before the migration loses that prefix too.

do $$
declare
    v_name text;
    v_table regclass;
    v_object record;
begin
    -- Both tables or neither, and who reads a view locks it before its table.
    if pg_catalog.to_regclass('ops.agent_runs_v') is not null
        and pg_catalog.to_regclass('ops.agent_run_logs_v') is not null then
        for v_try in 1 .. 1000 loop
            begin
                lock table ops.agent_runs_v in access exclusive mode;
                lock table ops.agent_run_logs_v in access exclusive mode nowait;
                exit;
            exception when lock_not_available then
                perform pg_catalog.pg_sleep(0.01);
            end;
        end loop;
    end if;

    foreach v_name in array '{runs,run_logs}'::text[] loop
        v_table := pg_catalog.to_regclass(pg_catalog.format('ops.%I', 'agent_' || v_name));
        continue when v_table is null;
        if pg_catalog.to_regclass(pg_catalog.format('ops.%I', v_name)) is not null then
            raise exception 'ops.% exists: roll back the later migrations first', v_name;
        end if;
        execute pg_catalog.format('drop view if exists ops.%I', 'agent_' || v_name || '_v');
        for v_object in
            select c.relname as name, c.relkind as kind
            from pg_catalog.pg_class as c
            where c.relname like 'agent\_%' and (
                c.oid in (select i.indexrelid from pg_catalog.pg_index as i where i.indrelid = v_table)
                or (c.relkind = 'S' and c.oid in (
                    select d.objid from pg_catalog.pg_depend as d
                    where d.refobjid = v_table and d.deptype in ('a', 'i'))))
        loop
            execute pg_catalog.format(
                'alter %s ops.%I rename to %I', case v_object.kind when 'S' then 'sequence' else 'index' end,
                v_object.name, pg_catalog.substr(v_object.name, 7));
        end loop;
        for v_object in
            select k.conname as name
            from pg_catalog.pg_constraint as k
            where k.conrelid = v_table and k.contype in ('c', 'f') and k.conname like 'agent\_%'
        loop
            execute pg_catalog.format(
                'alter table ops.%I rename constraint %I to %I',
                'agent_' || v_name, v_object.name, pg_catalog.substr(v_object.name, 7));
        end loop;
        execute pg_catalog.format('alter table ops.%I rename to %I', 'agent_' || v_name, v_name);
    end loop;
end
$$;
