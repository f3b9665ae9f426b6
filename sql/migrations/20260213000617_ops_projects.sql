-- A project as a file describes it, and its members.
--
-- `ops-worker projects sync` sends the description of one project with all its workflows, and ops.sync_project creates
-- or changes their rows. A workflow that the description does not name is disabled, never deleted. A key that is absent
-- has the default of its column; only `status` and `limits` stay as they are. A dry run makes the same changes and takes
-- them back, so it finds the same mistakes.
--
-- The functions require the roles that the policies of these tables require: developers write workflows, owners the
-- settings of their project, and only service_role and the owner of the schema create a project or limit it. Every
-- answer to a caller without a role is that of a project that does not exist.

-- What a description may have -------------------------------------------------------------------------------

-- Says what is wrong with an object that has texts and other keys: an unknown key, a text that is missing, empty or too
-- long, a value of another type. p_texts has the greatest length of each text; p_others the JSON type of each other key.
create function ops_private.bad_object(p_value jsonb, p_texts jsonb, p_needed text[], p_others jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_value) is distinct from 'object' then
        return ': expected an object';
    end if;
    return coalesce(
        (
            select format('.%s: unknown key; expected one of %s', left(k.key, 100), (
                select string_agg(x.key, ', ' order by x.key) from jsonb_object_keys(p_texts || p_others) as x (key)))
            from jsonb_object_keys(p_value) as k (key) where not (p_texts || p_others) ? k.key order by k.key limit 1
        ), (
            select format('.%s: expected a text of %s to %s characters', k.key, (k.key = any (p_needed))::integer, k.most)
            from jsonb_each_text(p_texts) as k (key, most)
            where (p_value -> k.key <> 'null' or k.key = any (p_needed))
                and (jsonb_typeof(p_value -> k.key) = 'string' and length(p_value ->> k.key)
                    between (k.key = any (p_needed))::integer and k.most::integer) is not true
            order by k.key limit 1
        ), (
            select format('.%s: expected %s', k.key, k.kind)
            from jsonb_each_text(p_others) as k (key, kind)
            where p_value ? k.key and jsonb_typeof(p_value -> k.key) <> split_part(k.kind, ' ', 2)
            order by k.key limit 1
        ));
end
$$;

-- Says what is wrong with the description of a project; null if the tables will find the rest.
create function ops_private.bad_project(p_project jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text := ops_private.bad_object(
        p_project,
        '{"slug": 100, "workspace_key": 100, "name": 200, "description": 10000, "odoo_version": 20, "status": 20}',
        '{slug,name,odoo_version}'::text[],
        '{"config": "an object", "limits": "an object", "workflows": "an array"}');
    v_workflow record;
    v_twin text;
begin
    v_wrong := coalesce(v_wrong, case
        when p_project ->> 'slug' !~ '^[a-z0-9-]+$' then '.slug: expected lower case letters, digits and -'
        when p_project ->> 'workspace_key' !~ '^[a-z0-9_]+$' then
            '.workspace_key: expected lower case letters, digits and _'
        when p_project ->> 'odoo_version' !~ '^\d+\.\d+$' then '.odoo_version: expected a version such as 19.0'
        when p_project ->> 'status' not in ('active', 'archived') then '.status: expected active or archived'
        when (p_project -> 'limits') - '{max_active_runs,max_queued_runs}'::text[] <> '{}' then
            '.limits: expected max_active_runs and max_queued_runs'
        when jsonb_array_length(p_project -> 'workflows') > 200 then '.workflows: expected at most 200'
    end, (
        select format('.limits.%s: expected a whole number of at least 1', l.key)
        from jsonb_each(p_project -> 'limits') as l
        where l.value <> 'null' and not ops_private.is_whole_number(l.value, 1, 2147483647) order by l.key limit 1));
    if v_wrong is not null then
        return 'project' || v_wrong;
    end if;
    for v_workflow in
        select w.value, w.i - 1 as i
        from jsonb_array_elements(p_project -> 'workflows') with ordinality as w (value, i)
    loop
        v_wrong := coalesce(ops_private.bad_object(
            v_workflow.value,
            '{"workflow_type": 20, "name": 200, "description": 10000, "git_ref": 255, "git_commit": 64}',
            '{workflow_type,name}'::text[], '{"enabled": "a boolean", "config": "an object"}'),
            case
                when v_workflow.value ->> 'workflow_type' not in ('build', 'test', 'deploy', 'backup', 'upgrade') then
                    '.workflow_type: expected build, test, deploy, backup or upgrade'
                when not ops_private.is_git_ref(v_workflow.value ->> 'git_ref') then
                    '.git_ref: expected the name of a branch, a tag or a ref'
                when v_workflow.value ->> 'git_commit' !~ '^[0-9A-Za-z]{1,64}$' then
                    '.git_commit: expected letters and digits'
                else ': ' || ops_private.bad_config(v_workflow.value -> 'config')
            end);
        if v_wrong is not null then
            return format('project.workflows[%s]%s', v_workflow.i, v_wrong);
        end if;
    end loop;
    select t.value ->> 'workflow_type' || '/' || (t.value ->> 'name') into v_twin
    from jsonb_array_elements(p_project -> 'workflows') as t (value) group by 1 having count(*) > 1 order by 1 limit 1;
    return case when v_twin is not null then format('project.workflows: two have the type and the name %s', v_twin) end;
end
$$;

-- What is described, compared with what there is ------------------------------------------------------------

-- The keys that differ between two rows, in their order; of `config` those in it.
create function ops_private.changed_keys(p_before jsonb, p_after jsonb) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select k.key from jsonb_object_keys(p_before || p_after) as k (key)
        where k.key <> 'config' and p_before -> k.key is distinct from p_after -> k.key
        union all
        select 'config.' || k.key from jsonb_object_keys((p_before -> 'config') || (p_after -> 'config')) as k (key)
        where p_before #> array['config', k.key] is distinct from p_after #> array['config', k.key]
        order by 1);
end
$$;

-- Writes one workflow; an error says where it stands in the description.
create function ops_private.write_workflow(p_place integer, p_new ops.workflows) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule text;
begin
    insert into ops.workflows as w
        (id, project_id, workflow_type, name, description, enabled, git_ref, git_commit, config)
    values (p_new.id, p_new.project_id, p_new.workflow_type, p_new.name, p_new.description, p_new.enabled,
        p_new.git_ref, p_new.git_commit, p_new.config)
    on conflict (project_id, workflow_type, name) do update
    set description = excluded.description, enabled = excluded.enabled, git_ref = excluded.git_ref,
        git_commit = excluded.git_commit, config = excluded.config;
exception
    when check_violation or insufficient_privilege then
        get stacked diagnostics v_rule = constraint_name;
        raise exception 'project.workflows[%]%', p_place,
            case v_rule when '' then ': ' || sqlerrm else ' breaks the rule ' || v_rule end using errcode = sqlstate;
end
$$;

-- The tool of a workflow as NAME VERSION, if it is not registered; null if it is.
create function ops_private.missing_tool(p_project ops.projects, p_workflow ops.workflows) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_tool constant text := coalesce(p_workflow.config ->> 'tool', 'odoo');
    v_version constant text := coalesce(p_workflow.config ->> 'version', p_project.odoo_version);
begin
    return case when not exists (select from ops.tools as t where t.tool_name = v_tool and t.version = v_version) then
        left(v_tool || ' ' || v_version, 300) end;
end
$$;

-- Writes the workflows of a description into their project, and disables all others. Returns what became of each. The
-- names in `then` are checked when their workflow is written, so changed ones follow when all workflows are there.
create function ops_private.sync_workflows(p_project ops.projects, p_workflows jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_old ops.workflows;
    v_new ops.workflows;
    v_ids uuid[] := '{}'::uuid[];
    v_changes jsonb := '[]'::jsonb;
begin
    for v_round in 1 .. 2 loop
        for v_place in 0 .. jsonb_array_length(p_workflows) - 1 loop
            select w.* into v_old from ops.workflows as w
            where w.project_id = p_project.id and w.workflow_type = p_workflows -> v_place ->> 'workflow_type'
                and w.name = p_workflows -> v_place ->> 'name';
            v_new := jsonb_populate_record(
                v_old, '{"description": null, "enabled": true, "git_ref": null, "git_commit": null, "config": {}}'
                || (p_workflows -> v_place));
            v_new.id := coalesce(v_old.id, gen_random_uuid());
            v_new.project_id := p_project.id;
            if v_round = 1 then
                v_ids := v_ids || v_new.id;
                v_changes := v_changes || jsonb_build_object(
                    'workflow_id', v_new.id, 'workflow_type', v_new.workflow_type, 'name', v_new.name,
                    'change', case when v_old.id is null then 'added' when v_old = v_new then 'unchanged'
                        else 'changed' end,
                    'fields', case when v_old.id is null then '{}'::text[]
                        else ops_private.changed_keys(to_jsonb(v_old), to_jsonb(v_new)) end,
                    'missing_tool', ops_private.missing_tool(p_project, v_new));
                if v_old.config -> 'then' is distinct from v_new.config -> 'then' then
                    v_new.config := v_new.config - 'then';
                end if;
            end if;
            if v_old is distinct from v_new then
                perform ops_private.write_workflow(v_place, v_new);
            end if;
        end loop;
    end loop;
    with disabled as (
        update ops.workflows as w set enabled = false
        where w.project_id = p_project.id and w.enabled and w.id <> all (v_ids)
        returning w.id, w.workflow_type, w.name
    )
    select v_changes || coalesce(jsonb_agg(jsonb_build_object(
        'workflow_id', d.id, 'workflow_type', d.workflow_type, 'name', d.name, 'change', 'disabled',
        'fields', '{enabled}'::text[], 'missing_tool', null) order by d.workflow_type, d.name), '[]'::jsonb)
    into v_changes from disabled as d;
    return v_changes;
end
$$;

-- Writes the row of the project and its limits. Returns what changed, or why the caller may not.
create function ops_private.sync_settings(
    p_project jsonb, p_old ops.projects, out change text, out fields text[], out refusal jsonb
)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_trusted constant boolean := ops_private.trusted();
    v_new ops.projects;
    v_limits constant jsonb := '{"max_active_runs": null, "max_queued_runs": null}' || (p_project -> 'limits');
    v_limited boolean;
    v_key text;
begin
    v_new := jsonb_populate_record(p_old, '{"description": null, "config": {}}' || (p_project - 'workspace_key'));
    v_new.id := coalesce(p_old.id, gen_random_uuid());
    v_new.workspace_key := coalesce(
        p_old.workspace_key, p_project ->> 'workspace_key', replace(v_new.slug, '-', '_'));
    v_new.status := coalesce(v_new.status, p_old.status, 'active');
    if p_project ->> 'workspace_key' <> v_new.workspace_key then
        refusal := ops_private.refusal('bad_argument', format(
            'project.workspace_key: a project keeps it; expected %s', v_new.workspace_key));
        return;
    end if;
    fields := case when p_old.id is null then '{}'::text[]
        else ops_private.changed_keys(to_jsonb(p_old), to_jsonb(v_new)) end;
    if fields <> '{}' and not v_trusted and ops.current_user_role(v_new.id) <> 'owner' then
        refusal := ops_private.refusal('not_allowed', format(
            'a %s may not edit the settings of a project: %s', ops.current_user_role(v_new.id),
            array_to_string(fields[:10], ', ')));
        return;
    end if;
    select v_limits <> jsonb_build_object(
        'max_active_runs', max(k.max_active_runs), 'max_queued_runs', max(k.max_queued_runs))
    into v_limited from ops_private.project_limits as k where k.project_id = v_new.id;
    if v_limited and not v_trusted then
        refusal := ops_private.refusal('not_allowed', 'only service_role changes the limits of a project');
        return;
    end if;
    if p_old.id is null then
        insert into ops.projects (id, workspace_key, slug, name, description, odoo_version, status, config)
        values (v_new.id, v_new.workspace_key, v_new.slug, v_new.name, v_new.description, v_new.odoo_version,
            v_new.status, v_new.config);
    elsif fields <> '{}' then
        update ops.projects as p
        set name = v_new.name, description = v_new.description, odoo_version = v_new.odoo_version,
            status = v_new.status, config = v_new.config
        where p.id = v_new.id;
    end if;
    if v_limited then
        fields := fields || case when p_old.id is null then '{}'::text[] else '{limits}'::text[] end;
        perform ops_private.limit_project(
            v_new.id, (v_limits ->> 'max_active_runs')::integer, (v_limits ->> 'max_queued_runs')::integer);
    end if;
    change := case when p_old.id is null then 'added' when fields = '{}' then 'unchanged' else 'changed' end;
exception
    when unique_violation then
        get stacked diagnostics v_key = constraint_name;
        refusal := ops_private.refusal('bad_argument', format('project.%s: another project has it',
            case v_key when 'projects_slug_key' then 'slug' else 'workspace_key' end));
    when check_violation then
        get stacked diagnostics v_key = constraint_name;
        refusal := ops_private.refusal('bad_argument', case v_key
            when '' then 'project: ' || sqlerrm else format('project breaks the rule %s', v_key) end);
end
$$;

-- Says which name in the rules for pushes is not that of one workflow of the project; null if each is.
create function ops_private.bad_push_name(p_project ops.projects) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select format('project.config.push.branches.%s.run: %s', b.i - 1, w.wrong)
        from jsonb_array_elements(p_project.config #> '{push,branches}') with ordinality as b (rule, i)
        cross join lateral jsonb_array_elements_text(b.rule -> 'run') with ordinality as r (name, place)
        cross join lateral ops_private.bad_name(
            r.name, ops_private.workflows_named(p_project.id, r.name)) as w (wrong)
        where w.wrong is not null order by b.i, r.place limit 1);
end
$$;

create function ops_private.sync_project(p_project jsonb, p_dry_run boolean) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal jsonb := ops_private.refusal('bad_argument', ops_private.bad_project(p_project));
    v_found ops.projects;
    v_row ops.projects;
    v_settings record;
    v_answer jsonb;
begin
    if v_refusal ->> 'error' is not null then
        return v_refusal;
    end if;
    select p.* into v_found from ops.projects as p where p.slug = p_project ->> 'slug';
    v_refusal := ops_private.role_refusal(
        v_found.id, '{developer,admin,owner}'::text[], 'change the workflows of a project',
        'project, and only service_role creates one');
    if v_refusal is not null and (v_found.id is not null or not ops_private.trusted()) then
        return v_refusal;
    end if;
    begin
        -- one at a time, so that each answer says what its own call changed; queueing does not wait
        select p.* into v_row from ops.projects as p where p.id = v_found.id for no key update;
        if v_row.id is distinct from v_found.id then
            return ops_private.refusal('not_found', 'there is no such project any more');
        end if;
        v_settings := ops_private.sync_settings(p_project, v_row);
        if v_settings.refusal is not null then
            return v_settings.refusal;
        end if;
        select p.* into v_row from ops.projects as p where p.slug = p_project ->> 'slug';
        v_answer := ops_private.sync_workflows(v_row, coalesce(p_project -> 'workflows', '[]'));
        v_refusal := ops_private.refusal('bad_argument', ops_private.bad_push_name(v_row));
        if p_dry_run then  -- rows that are taken back have no id
            v_row.id := v_found.id;
            v_answer := (
                select coalesce(jsonb_agg(case w.value ->> 'change'
                    when 'added' then w.value || '{"workflow_id": null}' else w.value end order by w.i), '[]')
                from jsonb_array_elements(v_answer) with ordinality as w (value, i));
        end if;
        if v_refusal ->> 'error' is not null or p_dry_run then
            raise exception 'nothing is to be changed' using errcode = 'OPS05';
        end if;
    exception
        when check_violation then
            return ops_private.refusal('bad_argument', sqlerrm);
        when insufficient_privilege then
            return ops_private.refusal('not_allowed', sqlerrm);
        when sqlstate 'OPS05' then  -- all of the block is undone
            if v_refusal ->> 'error' is not null then
                return v_refusal;
            end if;
    end;
    return jsonb_build_object(
        'success', true, 'dry_run', coalesce(p_dry_run, false),
        'project', jsonb_build_object('project_id', v_row.id, 'slug', v_row.slug, 'change', v_settings.change,
            'fields', v_settings.fields),
        'workflows', v_answer);
end
$$;

-- Members ---------------------------------------------------------------------------------------------------

-- Why the caller may not give this role to this user, or remove the user if it is null; null if the caller may.
create function ops_private.member_refusal(p_project_id uuid, p_user_id uuid, p_role text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_held constant text := (
        select m.role from ops.project_memberships as m
        where m.project_id = p_project_id and m.user_id = p_user_id);
    v_roles text[] := '{admin,owner}'::text[];
begin
    if 'owner' in (v_held, p_role) then
        v_roles := '{owner}'::text[];
    end if;
    if p_role is null and p_user_id = ops.current_user_id() then
        v_roles := '{viewer,developer,admin,owner}'::text[];
    end if;
    return ops_private.role_refusal(
        (select p.id from ops.projects as p where p.id = p_project_id), v_roles, case
            when p_role = 'owner' then 'make a user an owner'
            when v_held = 'owner' then 'change an owner' else 'manage members' end, 'project');
end
$$;

-- The same after it has locked the project and the membership: another caller may have made the user an owner meanwhile.
-- A caller who may not waits for no lock.
create function ops_private.locked_member_refusal(p_project_id uuid, p_user_id uuid, p_role text) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.member_refusal(p_project_id, p_user_id, p_role);
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    perform from ops.projects as p where p.id = p_project_id for no key update;
    perform from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = p_user_id for update;
    return ops_private.member_refusal(p_project_id, p_user_id, p_role);
end
$$;

create function ops_private.set_member(p_project_id uuid, p_user_id uuid, p_role text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.locked_member_refusal(p_project_id, p_user_id, coalesce(p_role, ''));
    v_held text;
begin
    if v_refusal is not null then
        return v_refusal;
    elsif p_user_id is null then
        return ops_private.refusal('bad_argument', 'the user_id must not be null');
    elsif (p_role in ('viewer', 'developer', 'admin', 'owner')) is not true then
        return ops_private.refusal('bad_argument', 'the role must be viewer, developer, admin or owner');
    end if;
    select m.role into v_held from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = p_user_id;
    if v_held is distinct from p_role then
        insert into ops.project_memberships (project_id, user_id, role) values (p_project_id, p_user_id, p_role)
        on conflict (project_id, user_id) do update set role = excluded.role;
    end if;
    return jsonb_build_object(
        'success', true, 'role', p_role, 'previous_role', v_held, 'changed', v_held is distinct from p_role);
exception
    when foreign_key_violation then
        return ops_private.refusal('not_found', 'there is no such user');
    when sqlstate 'OPS03' then
        return ops_private.refusal('last_owner', sqlerrm);
end
$$;

create function ops_private.remove_member(p_project_id uuid, p_user_id uuid) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.locked_member_refusal(p_project_id, p_user_id, null);
    v_held text;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    delete from ops.project_memberships as m
    where m.project_id = p_project_id and m.user_id = p_user_id returning m.role into v_held;
    return jsonb_build_object('success', true, 'previous_role', v_held, 'changed', v_held is not null);
exception
    when sqlstate 'OPS03' then
        return ops_private.refusal('last_owner', sqlerrm);
end
$$;

-- The user of a mail address, on a database that has auth.users. For operators only: with it an admin of one project
-- could find out who has an account.
create function ops_private.find_user(p_email text) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_users uuid[];
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role finds users by their mail addresses'
            using errcode = 'insufficient_privilege';
    elsif not exists (
        select from pg_attribute as a
        where a.attrelid = to_regclass('auth.users') and a.attname = 'email' and not a.attisdropped
    ) then
        return ops_private.refusal('not_found', 'this database knows no email of a user; name the user by UUID');
    end if;
    execute 'select array(select u.id from auth.users as u where lower(u.email) = lower($1) limit 2)'
        into v_users using p_email;
    return case cardinality(v_users)
        when 0 then ops_private.refusal('not_found', 'there is no user with this email')
        when 1 then jsonb_build_object('success', true, 'user_id', v_users[1])
        else ops_private.refusal('bad_argument', 'several users have this email; name one by UUID') end;
end
$$;

-- What an API exposes ---------------------------------------------------------------------------------------

create function ops.sync_project(p_project jsonb, p_dry_run boolean default false) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.sync_project(p_project, p_dry_run);

create function ops.set_member(p_project_id uuid, p_user_id uuid, p_role text) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.set_member(p_project_id, p_user_id, p_role);

create function ops.remove_member(p_project_id uuid, p_user_id uuid) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.remove_member(p_project_id, p_user_id);

create function ops.find_user(p_email text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
return ops_private.find_user(p_email);

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.sync_project, ops.set_member, ops.remove_member, ops.find_user from public;

grant execute on function
    ops.sync_project, ops.set_member, ops.remove_member,
    ops_private.sync_project, ops_private.set_member, ops_private.remove_member
to authenticated, service_role;

grant execute on function ops.find_user, ops_private.find_user to service_role;
