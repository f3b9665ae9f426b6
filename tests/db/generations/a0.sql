-- Agents and their runs: tables of 2026-01-25.
create schema ops;
grant usage on schema ops to authenticated, service_role;

create function ops.set_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at = now();
  return new;
end $$;

create table ops.runs (
  id uuid primary key default gen_random_uuid(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  status text not null default 'queued' check (status in ('queued', 'running', 'completed', 'failed', 'cancelled')),
  actor text not null,
  repo text,
  ref text,
  pack_id text,
  input jsonb not null default '{}',
  output jsonb not null default '{}',
  claimed_by text,
  heartbeat_at timestamptz
);
create table ops.run_events (
  id bigserial primary key,
  run_id uuid not null references ops.runs (id) on delete cascade,
  created_at timestamptz not null default now(),
  level text not null default 'info' check (level in ('debug', 'info', 'warn', 'error')),
  message text not null,
  data jsonb not null default '{}'
);
create table ops.artifacts (
  id uuid primary key default gen_random_uuid(),
  run_id uuid not null references ops.runs (id) on delete cascade,
  created_at timestamptz not null default now(),
  kind text not null,
  uri text not null,
  meta jsonb not null default '{}'
);
create index runs_status_idx on ops.runs (status);
create index run_events_run_id_idx on ops.run_events (run_id, created_at desc);
create trigger trg_ops_runs_updated_at before update on ops.runs
  for each row execute function ops.set_updated_at();
alter table ops.runs enable row level security;
create policy "Signed-in users read runs" on ops.runs for select to authenticated using (status <> 'queued');
grant select on ops.runs, ops.run_events to authenticated;
grant update (ref) on ops.runs to authenticated;
grant all on all tables in schema ops to service_role;
comment on table ops.runs is 'What agents did';
create view ops.run_summary as
  select r.id, r.actor, r.status, count(e.id) as events
  from ops.runs r left join ops.run_events e on e.run_id = r.id group by r.id;
alter publication supabase_realtime add table ops.runs;

create function ops.start_run(p_actor text, p_repo text, p_ref text, p_pack_id text, p_input jsonb default '{}')
returns uuid language plpgsql security definer as $$
declare v_id uuid;
begin
  INSERT INTO OPS.Runs (actor, repo, ref, pack_id, input, status)
  values (p_actor, p_repo, p_ref, p_pack_id, p_input, 'running') returning id into v_id;
  perform ops.log_event(v_id, 'info', 'started');
  return v_id;
end $$;
create function ops.log_event(p_run_id uuid, p_level text, p_message text, p_data jsonb default '{}')
returns void language sql as $$
  insert into "ops"."run_events" (run_id, level, message, data) values (p_run_id, p_level, p_message, p_data);
$$;
create function ops.add_artifact(p_run_id uuid, p_kind text, p_uri text, p_meta jsonb default '{}')
returns uuid language sql as $$
  insert into ops.artifacts (run_id, kind, uri, meta) values (p_run_id, p_kind, p_uri, p_meta) returning id;
$$;
create function ops.complete_run(p_run_id uuid, p_output jsonb default '{}') returns ops.runs language plpgsql as $$
declare v_run ops.runs%rowtype;
begin
  update ops.runs set status = 'completed', output = p_output where ops.runs.id = p_run_id returning * into v_run;
  return v_run;
end $$;
create function ops.fail_run(p_run_id uuid, p_error text, p_output jsonb default '{}') returns void language sql as $$
  update ops.runs set status = 'failed', output = p_output || jsonb_build_object('error', p_error) where id = p_run_id;
$$;
create function ops.claim_run(p_worker text) returns setof ops.runs language sql set search_path = ops, public as $$
  update ops.runs set status = 'running', claimed_by = p_worker, heartbeat_at = now()
  where id = (select r.id from ops.runs r where r.status = 'queued' order by created_at limit 1 for update skip locked)
  returning *;
$$;
create function ops.heartbeat_run(p_run_id uuid) returns boolean language sql as $$
  update ops.runs set heartbeat_at = now() where id = p_run_id returning true;
$$;
create function ops.cancel_run(p_run_id uuid) returns boolean language sql security definer as $$
  update ops.runs set status = 'cancelled' where id = p_run_id returning true;
$$;
create function public.give_up(p_run_id uuid) returns boolean language sql as $$ select ops.cancel_run(p_run_id) $$;
revoke execute on function ops.start_run(text, text, text, text, jsonb) from public;
grant execute on function ops.start_run(text, text, text, text, jsonb) to service_role;
comment on function ops.cancel_run(uuid) is 'Ends a run';

insert into ops.runs (actor, repo, status) select 'agent ' || i, 'odoo', 'completed' from generate_series(1, 40) as i;
insert into ops.run_events (run_id, message) select r.id, 'step ' || i from ops.runs r, generate_series(1, 5) as i;
insert into ops.artifacts (run_id, kind, uri) select r.id, 'report', 'file:///' || r.actor from ops.runs r;
