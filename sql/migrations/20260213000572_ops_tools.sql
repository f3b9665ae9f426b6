-- The catalogue of tools as a file describes it: `ops-worker tools sync` sends the tools of its file, and this function
-- adds and changes rows of ops.tools.
--
-- Only who may write the table may call it: service_role and the owner of the schema. A tool that the file does not name
-- stays as it is: another file may describe it, and workflows may use it. A dry run makes the same changes and takes
-- them back, so it finds the same mistakes.

-- Says what is wrong with the tools of a file; null if nothing is.
create function ops_private.bad_tools(p_tools jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_keys constant text[] := '{tool_name,version,docker_image,config}'::text[];
begin
    if jsonb_typeof(p_tools) is distinct from 'array' then
        return 'the tools must be an array of objects';
    elsif jsonb_array_length(p_tools) not between 1 and 1000 then
        return 'the tools must be 1 to 1000 objects';
    end if;
    return (
        select 'tools[' || t.i - 1 || ']' || w.wrong
        from (
            select e.value, e.i, row_number() over (
                partition by e.value -> 'tool_name', e.value -> 'version' order by e.i) as n
            from jsonb_array_elements(p_tools) with ordinality as e (value, i)
        ) as t
        cross join lateral (
            select case when jsonb_typeof(t.value) <> 'object' then ' must be an object' else coalesce(
                (
                    select '.' || left(k.key, 100) || ': unknown key; expected one of ' || array_to_string(v_keys, ', ')
                    from jsonb_object_keys(t.value) as k (key) where k.key <> all (v_keys) order by k.key limit 1
                ), (
                    select '.' || k.key || ' must be a text of at least one character'
                    from unnest('{tool_name,version,docker_image}'::text[]) with ordinality as k (key, n)
                    where jsonb_typeof(t.value -> k.key) is distinct from 'string' or t.value ->> k.key = ''
                    order by k.n limit 1
                ),
                case
                    when jsonb_typeof(t.value -> 'config') <> 'object' then '.config must be an object'
                    when t.n > 1 then ': an earlier one has the same tool_name and version'
                end
            ) end
        ) as w (wrong)
        where w.wrong is not null
        order by t.i
        limit 1);
end
$$;

create function ops_private.sync_tools(p_tools jsonb, p_dry_run boolean) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text := ops_private.bad_tools(p_tools);
    v_tool record;
    v_before record;
    v_change text;
    v_changes jsonb[] := '{}'::jsonb[];
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role changes the tools'
            using errcode = 'insufficient_privilege';
    end if;
    if v_wrong is not null then
        return ops_private.refusal('bad_argument', v_wrong);
    end if;
    begin
        -- one at a time, so that each answer says what its own call changed; readers do not wait
        lock table ops.tools in share row exclusive mode;
        for v_tool in
            select t.i, t.value ->> 'tool_name' as tool_name, t.value ->> 'version' as version,
                t.value ->> 'docker_image' as docker_image, coalesce(t.value -> 'config', '{}'::jsonb) as config
            from jsonb_array_elements(p_tools) with ordinality as t (value, i)
        loop
            select t.docker_image, t.config into v_before
            from ops.tools as t where t.tool_name = v_tool.tool_name and t.version = v_tool.version;
            if not found then
                v_change := 'added';
                insert into ops.tools (tool_name, version, docker_image, config)
                values (v_tool.tool_name, v_tool.version, v_tool.docker_image, v_tool.config);
            elsif (v_before.docker_image, v_before.config) = (v_tool.docker_image, v_tool.config) then
                v_change := 'unchanged';
            else
                v_change := 'changed';
                update ops.tools as t set docker_image = v_tool.docker_image, config = v_tool.config
                where t.tool_name = v_tool.tool_name and t.version = v_tool.version;
            end if;
            v_changes := array_append(v_changes, jsonb_build_object(
                'tool_name', v_tool.tool_name, 'version', v_tool.version, 'change', v_change,
                'docker_image', v_tool.docker_image, 'config', v_tool.config,
                'previous_image', v_before.docker_image, 'previous_config', v_before.config));
        end loop;
        if p_dry_run then
            raise exception 'a dry run changes nothing' using errcode = 'OPS05';
        end if;
    exception
        when check_violation then
            get stacked diagnostics v_wrong = constraint_name;
            return ops_private.refusal('bad_argument', format('tools[%s] breaks the rule %s', v_tool.i - 1, v_wrong));
        when sqlstate 'OPS05' then null;  -- all of the block is undone
    end;
    return jsonb_build_object(
        'success', true, 'dry_run', coalesce(p_dry_run, false), 'tools', to_jsonb(v_changes));
end
$$;

create function ops.sync_tools(p_tools jsonb, p_dry_run boolean default false) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.sync_tools(p_tools, p_dry_run);

revoke execute on function ops_private.bad_tools, ops_private.sync_tools, ops.sync_tools from public;

grant execute on function ops.sync_tools, ops_private.sync_tools to service_role;
