-- Our nine tables and functions as the guide of 2026-02-15 makes them, shortened.
create schema ops;
grant usage on schema ops to service_role;
create table ops.projects (id uuid primary key default gen_random_uuid(), slug text not null unique);
create table ops.workflows (id uuid primary key default gen_random_uuid(), project_id uuid references ops.projects (id));
create table ops.runs (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references ops.projects (id) on delete cascade,
  workflow_id uuid references ops.workflows (id),
  run_number serial,
  idempotency_key text unique,
  status text not null default 'queued' constraint runs_status_check check (status <> ''),
  claimed_by text
);
create table ops.run_events (id bigserial primary key, run_id uuid references ops.runs (id), message text);
create table ops.run_artifacts (id bigserial primary key, run_id uuid references ops.runs (id), checksum text);
create table ops.run_logs (id bigserial primary key, run_id uuid references ops.runs (id), message text not null);
create table ops.tools (id uuid primary key default gen_random_uuid(), tool_name text unique);
create table ops.upgrade_advisories (id uuid primary key default gen_random_uuid(), title text);
create table ops.project_memberships (project_id uuid references ops.projects (id), user_id uuid, role text);
create index runs_claim_idx on ops.runs (status);
create index idx_run_logs_message on ops.run_logs using gin (to_tsvector('english', message));
alter table ops.project_memberships enable row level security;
create policy members on ops.project_memberships using (user_id = auth.uid());
create function ops.current_user_id() returns uuid language sql stable as $$ select auth.uid() $$;
create function ops.claim_next_run(p_worker_id text) returns jsonb language plpgsql as $$
declare v_run record;
begin
  select * into v_run from ops.runs where status = 'queued' for update skip locked limit 1;
  update ops.runs set status = 'claimed', claimed_by = p_worker_id where id = v_run.id;
  insert into ops.run_events (run_id, message) values (v_run.id, 'Run claimed by worker');
  return jsonb_build_object('run_id', v_run.id);
end $$;
create function ops.list_queued_runs() returns setof ops.runs language sql as $$ select * from ops.runs $$;
insert into ops.projects (slug) values ('acme');
insert into ops.runs (project_id) select p.id from ops.projects p, generate_series(1, 3);
