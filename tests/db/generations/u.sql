-- One table for runs of every kind, and the agents' names as views on it: tables of 2026-03-02.
create schema ops;
create table ops.runs (
  id uuid primary key default gen_random_uuid(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  status text not null default 'queued' check (status in ('queued', 'running', 'completed', 'failed', 'cancelled')),
  kind text not null default 'agent' check (kind in ('agent', 'maintenance', 'convergence_scan', 'autoheal')),
  agent_id text,
  triggered_by text,
  repo text,
  ref text,
  input jsonb not null default '{}',
  output jsonb not null default '{}',
  metadata jsonb default '{}'
);
create table ops.run_events (
  id uuid primary key default gen_random_uuid(),
  run_id uuid not null references ops.runs (id) on delete cascade,
  created_at timestamptz not null default now(),
  step text,
  outcome text,
  level text not null default 'info' check (level in ('debug', 'info', 'warn', 'error')),
  message text,
  detail jsonb not null default '{}',
  event_type text,
  payload jsonb default '{}',
  data jsonb not null default '{}'
);
create table ops.artifacts (
  id uuid primary key default gen_random_uuid(),
  run_id uuid not null references ops.runs (id) on delete cascade,
  name text,
  uri text
);
create index runs_kind_idx on ops.runs (kind, created_at);
create view ops.agent_runs as select id, created_at, updated_at, status, agent_id, metadata from ops.runs
  where kind = 'agent';
create view ops.agent_events as select id, run_id, created_at, event_type, payload from ops.run_events
  where run_id in (select id from ops.runs where kind = 'agent');
create view ops.agent_artifacts as select id, run_id, name from ops.artifacts;
create function ops.set_runs_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at = now();
  return new;
end $$;
create trigger trg_ops_runs_updated_at before update on ops.runs
  for each row execute function ops.set_runs_updated_at();
alter table ops.runs enable row level security;
create policy readers on ops.runs for select to authenticated using (kind <> 'agent');
grant select on ops.runs, ops.agent_runs to authenticated;

insert into ops.runs (kind, agent_id) select case i % 2 when 0 then 'agent' else 'maintenance' end, 'agent ' || i
  from generate_series(1, 40) as i;
insert into ops.run_events (run_id, step, message) select r.id, 'one', 'step' from ops.runs r;
insert into ops.artifacts (run_id, name) select r.id, 'report' from ops.runs r;
