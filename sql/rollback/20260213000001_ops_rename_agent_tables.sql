-- Restores the former names and the former text of functions, and drops the views that the migration added.
--
-- Lost: nothing; every row and every grant stays. The rollback is refused while one of the former names is in use. Our
-- own tables use them, so roll those back first. A function that was changed after the migration keeps its new text. An
-- object that was dropped or renamed again stays as it is.

do $$
declare
    v_ops constant oid := pg_catalog.to_regnamespace('ops');
    v_search_path constant text := pg_catalog.current_setting('search_path');
    v_check constant text := pg_catalog.current_setting('check_function_bodies');
    v_lock text[];
    v_item record;
    v_routine record;
begin
    if pg_catalog.to_regclass('ops_private.renamed') is null then
        return;
    end if;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    perform pg_catalog.set_config('check_function_bodies', 'off', true);

    for v_item in select r.former from ops_private.renamed as r where r.kind = 'relation' order by r.position loop
        if to_regclass(format('ops.%I', v_item.former)) is not null then
            raise exception 'ops.% exists: roll back the later migrations first', v_item.former;
        end if;
    end loop;

    -- Locks all or none, views first: a reader locks a view before its table.
    v_lock := array(
        select c.oid::regclass::text
        from ops_private.renamed as r
        join pg_class as c on c.relnamespace = v_ops and c.relname in (r.name, r.on_table)
        where (r.kind = 'view' and c.relkind = 'v')
            or (r.kind in ('relation', 'constraint') and c.relkind in ('r', 'p'))
        group by c.oid
        order by c.relkind = 'v' desc, c.relname);
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

    for v_item in select r.* from ops_private.renamed as r order by r.position desc loop
        if v_item.kind = 'view' then
            execute format('drop view if exists ops.%I', v_item.name);
        elsif v_item.kind = 'body' then
            for v_routine in select p.oid from pg_proc as p where p.prosrc = v_item.name loop
                execute replace(pg_get_functiondef(v_routine.oid), v_item.name, v_item.former);
            end loop;
        elsif v_item.kind = 'function' then
            for v_routine in
                select p.oid from pg_proc as p where p.pronamespace = v_ops and p.proname = v_item.name
            loop
                execute format('alter routine %s rename to %I', v_routine.oid::regprocedure, v_item.former);
            end loop;
        elsif v_item.kind = 'constraint' then
            if exists (
                select from pg_constraint as k
                where k.conrelid = to_regclass(format('ops.%I', v_item.on_table)) and k.conname = v_item.name
            ) then
                execute format(
                    'alter table ops.%I rename constraint %I to %I', v_item.on_table, v_item.name, v_item.former);
            end if;
        elsif v_item.kind = 'type' then
            if to_regtype(format('ops.%I', v_item.name)) is not null then
                execute format('alter type ops.%I rename to %I', v_item.name, v_item.former);
            end if;
        elsif v_item.kind <> 'grant' then
            execute format(
                'alter %s if exists ops.%I rename to %I',
                case v_item.kind when 'index' then 'index' else 'table' end, v_item.name, v_item.former);
        end if;
    end loop;

    drop table ops_private.renamed;
    if not exists (
        select from pg_depend as d
        where d.refclassid = 'pg_namespace'::regclass and d.refobjid = to_regnamespace('ops_private')
            and d.deptype = 'n'
    ) then
        drop schema ops_private;
    end if;
    perform pg_catalog.set_config('check_function_bodies', v_check, true);
    perform pg_catalog.set_config('search_path', v_search_path, true);
end
$$;
