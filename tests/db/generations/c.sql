-- A control plane with ids of text: tables of 2026-02-14.
create schema ops;
grant usage on schema ops to authenticated, service_role;
create function ops.update_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at = now();
  return new;
end $$;
create table ops.projects (
  project_id text primary key constraint project_id_format check (project_id ~ '^[a-z0-9-]+$'),
  name text not null,
  repo_slug text not null unique,
  odoo_version text not null,
  updated_at timestamptz not null default now(),
  metadata jsonb not null default '{}'
);
create table ops.environments (
  env_id text primary key,
  project_id text not null references ops.projects (project_id) on delete cascade,
  env_type text not null check (env_type in ('dev', 'staging', 'prod')),
  branch_pattern text not null,
  db_name text,
  config jsonb not null default '{}',
  unique (project_id, env_type)
);
create table ops.runs (
  run_id text primary key,
  project_id text not null references ops.projects (project_id) on delete cascade,
  env_id text not null references ops.environments (env_id) on delete cascade,
  git_sha text not null,
  git_ref text not null,
  status text not null check (status in ('queued', 'claimed', 'running', 'success', 'failed', 'cancelled')),
  claimed_by text,
  queued_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz,
  updated_at timestamptz not null default now(),
  metadata jsonb not null default '{}'
);
create table ops.run_events (
  event_id text primary key default 'evt-' || gen_random_uuid(),
  run_id text not null references ops.runs (run_id) on delete cascade,
  level text not null check (level in ('debug', 'info', 'warn', 'error')),
  message text not null,
  payload jsonb not null default '{}'
);
create table ops.artifacts (
  artifact_id text primary key default 'art-' || gen_random_uuid(),
  run_id text not null references ops.runs (run_id) on delete cascade,
  artifact_type text not null check (artifact_type in ('image', 'sbom', 'logs', 'evidence', 'manifest')),
  storage_path text not null,
  digest text,
  size_bytes bigint
);
create table ops.approvals (
  approval_id text primary key,
  run_id text references ops.runs (run_id),
  approval_type text not null check (approval_type in ('deploy_prod', 'restore_prod', 'upgrade_prod')),
  status text not null default 'pending',
  expires_at timestamptz not null default now() + interval '24 hours'
);
create index idx_runs_project_id on ops.runs (project_id);
create index idx_run_events_run_id on ops.run_events (run_id);
create trigger projects_updated_at before update on ops.projects
  for each row execute function ops.update_updated_at();
create trigger runs_updated_at before update on ops.runs for each row execute function ops.update_updated_at();
alter table ops.projects enable row level security;
create policy service_all on ops.projects to service_role using (true) with check (true);
grant all on all tables in schema ops to service_role;
create view ops.queue_depth as select project_id, count(*) from ops.runs where status = 'queued' group by project_id;

create function ops.queue_run(p_project_id text, p_env text, p_git_sha text, p_git_ref text, p_metadata jsonb default '{}')
returns table (run_id text, status text) language plpgsql security definer as $$
declare v_run_id text := 'run-' || gen_random_uuid();
begin
  insert into ops.runs (run_id, project_id, env_id, git_sha, git_ref, status, metadata)
  select v_run_id, p_project_id, e.env_id, p_git_sha, p_git_ref, 'queued', p_metadata
  from ops.environments e where e.project_id = p_project_id and e.env_type = p_env;
  return query select r.run_id, r.status from ops.runs r where r.run_id = v_run_id;
end $$;
create function ops.claim_next_run(p_worker_id text)
returns table (run_id text, project_id text, git_sha text) language plpgsql security definer as $$
declare v_run_id text;
begin
  select r.run_id into v_run_id from ops.runs r where r.status = 'queued' order by r.queued_at limit 1
  for update skip locked;
  if v_run_id is null then
    return;
  end if;
  update ops.runs set status = 'claimed', claimed_by = p_worker_id where ops.runs.run_id = v_run_id;
  return query select r.run_id, r.project_id, r.git_sha from ops.runs r where r.run_id = v_run_id;
end $$;
create function ops.append_event(p_run_id text, p_level text, p_message text, p_payload jsonb default '{}')
returns text language sql as $$
  insert into ops.run_events (run_id, level, message, payload) values (p_run_id, p_level, p_message, p_payload)
  returning event_id;
$$;
create function ops.finish_run(p_run_id text, p_status text, p_metadata jsonb default '{}')
returns void language sql as $$
  update ops.runs set status = p_status, finished_at = now(), metadata = p_metadata where run_id = p_run_id;
$$;
create function public.list_projects() returns setof ops.projects
language sql security definer set search_path = ops, public as $$ select * from ops.projects order by name; $$;
create function public.list_environments(p_project_id text default null) returns setof ops.environments
language sql security definer set search_path = ops, public as $$
  select * from ops.environments where p_project_id is null or project_id = p_project_id;
$$;
create function public.list_runs(p_project_id text default null, p_limit int default 50) returns setof ops.runs
language sql security definer set search_path = ops, public as $$
  select * from ops.runs where p_project_id is null or project_id = p_project_id order by queued_at desc limit p_limit;
$$;
grant execute on function public.list_runs(text, int) to authenticated, service_role;

insert into ops.projects (project_id, name, repo_slug, odoo_version)
  select 'shop-' || i, 'Shop ' || i, 'acme/shop-' || i, '19.0' from generate_series(1, 10) as i;
insert into ops.environments (env_id, project_id, env_type, branch_pattern)
  select p.project_id || '-dev', p.project_id, 'dev', 'feature/*' from ops.projects p;
insert into ops.runs (run_id, project_id, env_id, git_sha, git_ref, status)
  select 'run-' || e.env_id || i, e.project_id, e.env_id, 'abc', 'main', 'success'
  from ops.environments e, generate_series(1, 5) as i;
insert into ops.run_events (run_id, level, message) select r.run_id, 'info', 'done' from ops.runs r;
insert into ops.artifacts (run_id, artifact_type, storage_path) select r.run_id, 'image', 'ghcr.io/x' from ops.runs r;
