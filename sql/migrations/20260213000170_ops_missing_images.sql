-- The images that a worker could not get: the engine of its host does not have them, and the pull failed.
--
-- When a run fails as image_missing, complete_workflow_run records the image of its tool for that worker. For a minute
-- this worker claims no run of a workflow that needs the image, so another host, which may have it, executes the run.
-- If it is missing on every host, the run waits, list_queued_runs says for which image, and after the minute a worker
-- tries again. A worker that registers again may try at once. Only the image of the tool counts, not those of services.

create table ops_private.missing_images (
    worker_id text not null,
    docker_image text not null,
    until timestamptz not null,
    primary key (worker_id, docker_image)
);

comment on column ops_private.missing_images.docker_image is 'As ops.tools has it.';

-- The image of the tool that a workflow names; null if ops.tools has none.
create function ops_private.tool_image(p_workflow_id uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select t.docker_image
        from ops.workflows as w
        join ops.projects as p on p.id = w.project_id
        join ops.tools as t
            on t.tool_name = coalesce(w.config ->> 'tool', 'odoo')
            and t.version = coalesce(w.config ->> 'version', p.odoo_version)
        where w.id = p_workflow_id);
end
$$;

-- Records that the worker of a failed run could not get the image. p_image is its full name; ops.tools may have a short
-- one, such as odoo:19 for docker.io/library/odoo:19. A call for another image, such as that of a service, records nothing.
create function ops_private.record_missing_image(p_run ops.runs, p_image text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_image constant text := ops_private.tool_image(p_run.workflow_id);
begin
    delete from ops_private.missing_images as m where m.until <= ops_private.current_time();
    if p_run.claimed_by is not null and p_image in (
        select r.registry || v_image || t.tag
        from unnest('{"",docker.io/,docker.io/library/}'::text[]) as r (registry)
        cross join unnest('{"",:latest}'::text[]) as t (tag)
    ) then
        insert into ops_private.missing_images as m (worker_id, docker_image, until)
        values (p_run.claimed_by, v_image, ops_private.current_time() + interval '1 minute')
        on conflict (worker_id, docker_image) do update set until = excluded.until;
    end if;
end
$$;

-- The workflows of which the worker claims no runs now, since their image is missing there.
create function ops_private.blocked_workflows(p_worker_id text) returns uuid[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_images text[];
begin
    select array_agg(m.docker_image) into v_images from ops_private.missing_images as m
    where m.worker_id = p_worker_id and m.until > ops_private.current_time();
    if v_images is null then
        return '{}'::uuid[];
    end if;
    return array(select w.id from ops.workflows as w where ops_private.tool_image(w.id) = any (v_images));
end
$$;

-- Why a run waits that every worker with its labels would pass over for its image; null if one would not.
create function ops_private.why_image_waits(p_workflow_id uuid, p_labels text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_image text;
    v_next timestamptz;
begin
    if not exists (select from ops_private.missing_images as m where m.until > ops_private.current_time()) then
        return null;
    end if;
    v_image := ops_private.tool_image(p_workflow_id);
    select min(m.until) into v_next
    from ops_private.workers as w
    left join ops_private.worker_ids as i on i.worker_id = w.worker_id
    left join ops_private.missing_images as m
        on m.worker_id = w.worker_id and m.docker_image = v_image and m.until > ops_private.current_time()
    where p_labels <@ w.labels and w.expires_at > ops_private.current_time() and i.drained_at is null
    having bool_and(m.until is not null);
    return format('image: %s is missing on every worker, which try again from ', v_image)
        || to_char(v_next at time zone 'UTC', 'HH24:MI:SS "UTC"');
end
$$;

revoke execute on all functions in schema ops_private from public;
