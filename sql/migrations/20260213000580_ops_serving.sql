-- Served runs: runs that stay and answer HTTP, such as the preview of a branch.
--
-- A workflow or its tool has `serve` in its configuration. The database gives such a run the label ops:serve, which a
-- worker offers while it has room for another one. The worker asks the health path of the run, and calls mark_ready at
-- the first good answer. From then on ready_at and url are set; a user finds the environment there until the run ends.

create function ops.mark_ready(p_run_id uuid, p_worker_id text, p_instance_id uuid, p_url text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.check_run(p_run_id, p_worker_id, p_instance_id, '{running}');
    v_run ops.runs;
begin
    if v_refusal is not null then
        return v_refusal;
    end if;
    if (octet_length(p_url) <= 2048 and p_url ~ '^https?://[!-~]+$') is not true then
        return ops_private.refusal('bad_argument', 'the url must be http or https, of at most 2048 bytes');
    end if;
    update ops.runs as r set ready_at = ops_private.current_time(), url = p_url
    where r.id = p_run_id and r.ready_at is null;
    if found then
        perform ops_private.add_event(p_run_id, 'info', 'ready', jsonb_build_object('url', p_url));
    end if;
    select r.* into v_run from ops.runs as r where r.id = p_run_id;
    return jsonb_build_object('success', true, 'ready_at', v_run.ready_at, 'url', v_run.url);
end
$$;

revoke execute on function ops.mark_ready from public;
grant execute on function ops.mark_ready to ops_worker, service_role;
