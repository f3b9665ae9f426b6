-- Taking a host out: an operator drains its worker, which then claims no runs until that is undone.
--
-- The mark belongs to the worker id (ops_private.worker_ids), so a worker that starts again is still drained. The worker
-- stays registered, renews its leases, and finishes its runs; it also adopts the runs whose containers are on its
-- engine. claim_next_run reads the mark, so the database decides; the worker shows what it is told with its next
-- heartbeat, and a notification lets it ask earlier. SIGTERM drains one process in the same sense, and then ends it.

create function ops_private.drain_worker(p_worker_id text, p_drain boolean, p_reason text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_drain constant boolean := coalesce(p_drain, true);
    v_changed boolean;
begin
    if not ops_private.trusted() then
        raise exception 'permission denied: only service_role drains a worker'
            using errcode = 'insufficient_privilege';
    end if;
    perform pg_advisory_xact_lock(ops_private.drain_lock(p_worker_id));
    update ops_private.worker_ids as i
    set drained_at = case when v_drain then ops_private.current_time() end,
        drained_by = case when v_drain then ops_private.actor() end,
        drain_reason = case when v_drain then left(p_reason, 2500) end
    where i.worker_id = p_worker_id and (i.drained_at is null) = v_drain;
    v_changed := found;
    if not v_changed and not exists (select from ops_private.worker_ids as i where i.worker_id = p_worker_id) then
        return ops_private.refusal('not_found', 'no worker has registered this worker_id');
    end if;
    if v_changed then  -- the one that works under this id now asks the database, also if it was idle
        delete from ops_private.idle_workers as n where n.instance_id in (
            select w.instance_id from ops_private.workers as w where w.worker_id = p_worker_id);
        perform pg_notify(ops_private.channel_of(w.instance_id), '')
        from ops_private.workers as w where w.worker_id = p_worker_id;
    end if;
    return jsonb_build_object(
        'success', true, 'draining', v_drain, 'changed', v_changed,
        'runs', (select count(*) from ops_private.leases as l where l.worker_id = p_worker_id));
end
$$;

create function ops.drain_worker(p_worker_id text, p_drain boolean default true, p_reason text default null)
returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.drain_worker(p_worker_id, p_drain, p_reason);

-- Grants ------------------------------------------------------------------------------------------------------

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.drain_worker from public;
grant execute on function ops.drain_worker, ops_private.drain_worker to service_role;
