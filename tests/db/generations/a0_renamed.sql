-- The rename of 2026-02-13, on top of a0.sql. It drops functions of other signatures than those that are there.
alter table ops.runs rename to agent_runs;
alter table ops.run_events rename to agent_events;
alter table ops.artifacts rename to agent_artifacts;
alter table ops.agent_events drop constraint run_events_run_id_fkey,
  add constraint agent_events_run_id_fkey foreign key (run_id) references ops.agent_runs (id) on delete cascade;
alter table ops.agent_artifacts drop constraint artifacts_run_id_fkey,
  add constraint agent_artifacts_run_id_fkey foreign key (run_id) references ops.agent_runs (id) on delete cascade;
alter index ops.runs_pkey rename to agent_runs_pkey;
alter index ops.runs_status_idx rename to agent_runs_status_idx;
alter index ops.run_events_pkey rename to agent_events_pkey;
alter trigger trg_ops_runs_updated_at on ops.agent_runs rename to trg_agent_runs_updated_at;
create function ops.start_agent_run(p_actor text, p_repo text) returns uuid language plpgsql security definer as $$
declare v_run_id uuid;
begin
  insert into ops.agent_runs (actor, repo, status) values (p_actor, p_repo, 'running') returning id into v_run_id;
  return v_run_id;
end $$;
