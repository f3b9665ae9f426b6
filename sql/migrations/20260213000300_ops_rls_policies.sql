-- Who may do what.
--
-- There are four database roles. anon may do nothing. authenticated, a signed-in user, sees the projects of which the
-- user is a member, and changes what the user's role there allows. ops_worker executes the worker functions and reads
-- the two catalogues. service_role may do everything. Policies limit the rows, column grants the columns, and function
-- grants the transitions. `array(select ...)` makes a policy call ops_private.my_projects once per statement, not once
-- per row.

-- Supabase has the first three roles already. Two databases of one cluster may be migrated at the same time.
do $$
declare
    v_role text;
begin
    foreach v_role in array '{anon,authenticated,service_role,ops_worker}'::text[] loop
        if not exists (select from pg_catalog.pg_roles as r where r.rolname = v_role) then
            begin
                execute pg_catalog.format('create role %I nologin', v_role);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end
$$;

-- Helper ----------------------------------------------------------------------------------------------------

-- The projects in which the signed-in user has at least this role. It reads memberships with the rights of its owner,
-- so the policy of memberships can call it without a recursion.
create function ops_private.my_projects(p_role text default 'viewer') returns setof uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_user_id constant uuid := ops.current_user_id();
begin
    return query
    select m.project_id from ops.project_memberships as m
    where m.user_id = v_user_id
        and array_position('{viewer,developer,admin,owner}', m.role)
            >= array_position('{viewer,developer,admin,owner}', p_role);
end
$$;

-- The projects that the caller may see: of an operator all, of a user the user's own.
create function ops_private.visible_projects() returns uuid[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return case when ops_private.trusted() then array(select p.id from ops.projects as p)
        else array(select ops_private.my_projects()) end;
end
$$;

revoke execute on function ops_private.my_projects, ops_private.visible_projects from public;

-- Policies: one permissive policy per table, action and role ------------------------------------------------

alter table ops.projects enable row level security;
alter table ops.workflows enable row level security;
alter table ops.runs enable row level security;
alter table ops.run_events enable row level security;
alter table ops.run_artifacts enable row level security;
alter table ops.run_logs enable row level security;
alter table ops_private.run_logs_other enable row level security;
alter table ops.tools enable row level security;
alter table ops.upgrade_advisories enable row level security;
alter table ops.project_memberships enable row level security;

create policy members_read on ops.projects for select to authenticated
    using (id = any (array(select ops_private.my_projects())));
create policy owners_edit on ops.projects for update to authenticated
    using (id = any (array(select ops_private.my_projects('owner'))))
    with check (id = any (array(select ops_private.my_projects('owner'))));

create policy members_read on ops.workflows for select to authenticated
    using (project_id = any (array(select ops_private.my_projects())));
create policy developers_create on ops.workflows for insert to authenticated
    with check (project_id = any (array(select ops_private.my_projects('developer'))));
create policy developers_edit on ops.workflows for update to authenticated
    using (project_id = any (array(select ops_private.my_projects('developer'))))
    with check (project_id = any (array(select ops_private.my_projects('developer'))));

create policy members_read on ops.runs for select to authenticated
    using (project_id = any (array(select ops_private.my_projects())));
create policy developers_create on ops.runs for insert to authenticated
    with check (status = 'queued' and project_id = any (array(select ops_private.my_projects('developer'))));

create policy members_read on ops.run_events for select to authenticated
    using (project_id = any (array(select ops_private.my_projects())));
create policy members_read on ops.run_artifacts for select to authenticated
    using (project_id = any (array(select ops_private.my_projects())));
-- No index of this table begins with the project. With `= any` the planner expects few lines to pass, and would read
-- and sort a whole run for its last 50 lines. With this form it expects most lines to pass.
create policy members_read on ops.run_logs for select to authenticated
    using (array_position(array(select ops_private.my_projects()), project_id) is not null);

create policy users_read on ops.tools for select to authenticated using (true);
create policy workers_read on ops.tools for select to ops_worker using (true);
create policy users_read on ops.upgrade_advisories for select to authenticated using (true);
create policy workers_read on ops.upgrade_advisories for select to ops_worker using (true);

-- An admin manages all members except the owners, and cannot make a member an owner. Every member may leave.
create policy members_read on ops.project_memberships for select to authenticated
    using (project_id = any (array(select ops_private.my_projects())));
create policy admins_add on ops.project_memberships for insert to authenticated
    with check (
        project_id = any (array(select ops_private.my_projects('owner')))
        or (role <> 'owner' and project_id = any (array(select ops_private.my_projects('admin')))));
create policy admins_change on ops.project_memberships for update to authenticated
    using (
        project_id = any (array(select ops_private.my_projects('owner')))
        or (role <> 'owner' and project_id = any (array(select ops_private.my_projects('admin')))))
    with check (
        project_id = any (array(select ops_private.my_projects('owner')))
        or (role <> 'owner' and project_id = any (array(select ops_private.my_projects('admin')))));
create policy admins_remove on ops.project_memberships for delete to authenticated
    using (
        user_id = (select ops.current_user_id())
        or project_id = any (array(select ops_private.my_projects('owner')))
        or (role <> 'owner' and project_id = any (array(select ops_private.my_projects('admin')))));

-- On Supabase, service_role bypasses policies; on other PostgreSQL servers it needs these.
create policy service_all on ops.projects to service_role using (true) with check (true);
create policy service_all on ops.workflows to service_role using (true) with check (true);
create policy service_all on ops.runs to service_role using (true) with check (true);
create policy service_all on ops.run_events to service_role using (true) with check (true);
create policy service_all on ops.run_artifacts to service_role using (true) with check (true);
create policy service_all on ops.run_logs to service_role using (true) with check (true);
create policy service_all on ops.tools to service_role using (true) with check (true);
create policy service_all on ops.upgrade_advisories to service_role using (true) with check (true);
create policy service_all on ops.project_memberships to service_role using (true) with check (true);

-- Grants ----------------------------------------------------------------------------------------------------

revoke all on
    ops.projects, ops.workflows, ops.runs, ops.run_events, ops.run_artifacts, ops.run_logs, ops.tools,
    ops.upgrade_advisories, ops.project_memberships
from public, anon, authenticated, service_role, ops_worker;

grant usage on schema ops to authenticated, service_role, ops_worker;

grant select on
    ops.projects, ops.workflows, ops.runs, ops.run_events, ops.run_artifacts, ops.run_logs, ops.tools,
    ops.upgrade_advisories, ops.project_memberships
to authenticated;

-- Users may not write a column with a unique key across projects, a column that would move a row to another project, or
-- a column that chooses a host.
grant update (name, description, odoo_version, status, config) on ops.projects to authenticated;
grant insert (project_id, workflow_type, name, description, enabled, git_ref, git_commit, config),
    update (workflow_type, name, description, enabled, git_ref, git_commit, config)
    on ops.workflows to authenticated;
grant insert (project_id, workflow_id, status, metadata) on ops.runs to authenticated;
grant insert (project_id, user_id, role), update (role), delete on ops.project_memberships to authenticated;

grant select on ops.tools, ops.upgrade_advisories to ops_worker;

grant select, insert, update, delete on
    ops.projects, ops.workflows, ops.runs, ops.run_artifacts, ops.run_logs, ops.tools,
    ops.upgrade_advisories, ops.project_memberships
to service_role;
grant select, insert on ops.run_events to service_role;
grant usage on sequence ops_private.run_log_seq to service_role;

grant execute on function
    ops_private.my_projects, ops_private.search_run_logs, ops.current_user_id, ops.current_user_role
to authenticated, service_role;

-- A CHECK and a default run with the rights of the role that writes the row.
grant execute on function ops_private.is_git_ref, ops_private.new_run_id to authenticated, service_role;

grant execute on function ops.shut_out_worker to service_role;

grant execute on function
    ops.register_worker, ops.unregister_worker, ops.heartbeat, ops.adopt_run, ops.adoptable_runs, ops.reap,
    ops.claim_next_run, ops.unclaimable_runs, ops.start_workflow_run, ops.complete_workflow_run, ops.release_run,
    ops.record_container, ops.append_run_log, ops.append_run_logs, ops.add_run_artifact, ops.record_report,
    ops.add_run_event
to ops_worker, service_role;
