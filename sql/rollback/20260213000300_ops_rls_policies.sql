-- Drops the policies and revokes the grants.
--
-- Lost: nothing that is stored, but only the owner can use the schema until this migration is applied again. The roles
-- anon, authenticated, service_role and ops_worker stay, because roles belong to the whole cluster, and another
-- database may use them. The members of ops_worker stay too.

-- A grant on the schema that is older than our migrations stays: the first migration recorded it.
do $$
declare
    v_role text;
begin
    foreach v_role in array '{authenticated,service_role,ops_worker}'::text[] loop
        if pg_catalog.to_regclass('ops_private.renamed') is not null then
            continue when exists (
                select from ops_private.renamed as r where r.kind = 'grant' and r.former = v_role);
        end if;
        execute pg_catalog.format('revoke all on schema ops from %I', v_role);
    end loop;
end
$$;
revoke all on
    ops.projects, ops.workflows, ops.runs, ops.run_events, ops.run_artifacts, ops.run_logs, ops.tools,
    ops.upgrade_advisories, ops.project_memberships
from authenticated, service_role, ops_worker;
revoke all on sequence ops_private.run_log_seq from service_role;
revoke execute on all functions in schema ops_private from authenticated, service_role;
revoke execute on function ops.current_user_id, ops.current_user_role, ops.shut_out_worker
from authenticated, service_role;
revoke execute on function
    ops.register_worker, ops.unregister_worker, ops.heartbeat, ops.adopt_run, ops.adoptable_runs, ops.reap,
    ops.claim_next_run, ops.unclaimable_runs, ops.start_workflow_run, ops.complete_workflow_run, ops.release_run,
    ops.record_container, ops.append_run_log, ops.append_run_logs, ops.add_run_artifact, ops.record_report,
    ops.add_run_event
from ops_worker, service_role;

do $$
declare
    v_policy record;
begin
    for v_policy in
        select p.tablename, p.policyname
        from pg_catalog.pg_policies as p
        where p.schemaname = 'ops' and p.tablename in (
            'projects', 'workflows', 'runs', 'run_events', 'run_artifacts', 'run_logs', 'tools',
            'upgrade_advisories', 'project_memberships')
    loop
        execute pg_catalog.format('drop policy %I on ops.%I', v_policy.policyname, v_policy.tablename);
    end loop;
end
$$;

alter table ops.projects disable row level security;
alter table ops.workflows disable row level security;
alter table ops.runs disable row level security;
alter table ops.run_events disable row level security;
alter table ops.run_artifacts disable row level security;
alter table ops.run_logs disable row level security;
alter table ops_private.run_logs_other disable row level security;
alter table ops.tools disable row level security;
alter table ops.upgrade_advisories disable row level security;
alter table ops.project_memberships disable row level security;

drop function ops_private.visible_projects, ops_private.my_projects;
