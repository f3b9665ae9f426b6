-- Drops the nine tables.
--
-- Lost: everything. All projects, workflows, runs, logs, events, artifact records, tools, advisories and memberships,
-- the counters of run numbers (they begin at 1 again) and the identity of this database (workers then ignore the
-- containers of its running runs as those of another database). Files in the artifact store stay. A schema stays if it
-- has other objects.

drop table
    ops.project_memberships, ops.upgrade_advisories, ops.tools,
    ops.run_logs, ops.run_artifacts, ops.run_events,
    ops_private.leases, ops_private.workers, ops_private.worker_ids, ops_private.pending_retries,
    ops_private.run_counters, ops_private.run_summaries, ops_private.control,
    ops.runs, ops.workflows, ops.projects;
drop sequence ops_private.run_log_seq;

do $$
declare
    v_schema text;
begin
    foreach v_schema in array '{ops_private,ops}'::text[] loop
        if not exists (
            select from pg_catalog.pg_depend as d
            where d.refclassid = 'pg_catalog.pg_namespace'::regclass
                and d.refobjid = v_schema::pg_catalog.regnamespace and d.deptype = 'n'
        ) then
            execute pg_catalog.format('drop schema %I', v_schema);
        end if;
    end loop;
end
$$;
