-- A control plane of organisations: tables of 2026-02-12.
create schema ops;
grant usage on schema ops to authenticated;
create table ops.organizations (id uuid primary key default gen_random_uuid(), name text not null);
create table ops.organization_members (
  org_id uuid not null references ops.organizations (id), user_id uuid not null, primary key (org_id, user_id)
);
create table ops.projects (
  id uuid primary key default gen_random_uuid(),
  org_id uuid not null references ops.organizations (id) on delete cascade,
  name text not null,
  slug text not null,
  repo_url text,
  default_branch text not null default 'main',
  runtime_version text not null default '19.0',
  status text not null default 'active' check (status in ('active', 'archived', 'suspended')),
  created_at timestamptz not null default now(),
  unique (org_id, slug)
);
create table ops.branches (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references ops.projects (id) on delete cascade,
  name text not null,
  stage text not null check (stage in ('production', 'staging', 'development'))
);
create table ops.builds (
  id uuid primary key default gen_random_uuid(),
  branch_id uuid not null references ops.branches (id) on delete cascade,
  status text not null default 'queued'
);
create table ops.artifacts (
  id uuid primary key default gen_random_uuid(),
  build_id uuid not null references ops.builds (id) on delete cascade,
  type text not null,
  name text not null,
  storage_path text not null
);
create table ops.run_queue (id bigserial primary key, build_id uuid references ops.builds (id), claimed_by text);
create table ops.advisories (id bigserial primary key, project_id uuid references ops.projects (id), title text);
create index projects_org_idx on ops.projects (org_id);

create function ops.my_org_ids() returns setof uuid language sql stable security definer as $$
  select m.org_id from ops.organization_members m where m.user_id = auth.uid();
$$;
alter table ops.projects enable row level security;
create policy members_read on ops.projects for select to authenticated using (org_id in (select ops.my_org_ids()));
grant select on ops.projects to authenticated;
create function ops.list_projects() returns setof ops.projects language sql stable as $$
  select * from ops.projects where status <> 'archived' order by name;
$$;
create function ops.project_branches(p_project_id uuid) returns table (name text, stage text)
language sql stable begin atomic
  select b.name, b.stage from ops.branches b join ops.projects p on p.id = b.project_id where p.id = p_project_id;
end;
create view ops.project_metrics as
  select p.id, p.name, count(b.id) as branches from ops.projects p
  left join ops.branches b on b.project_id = p.id group by p.id;
create function ops.enqueue_build(p_build_id uuid) returns bigint language sql as $$
  insert into ops.run_queue (build_id) values (p_build_id) returning id;
$$;

insert into ops.organizations (name) values ('Acme');
insert into ops.projects (org_id, name, slug)
  select o.id, 'Shop ' || i, 'shop-' || i from ops.organizations o, generate_series(1, 20) as i;
insert into ops.branches (project_id, name, stage) select p.id, 'main', 'production' from ops.projects p;
insert into ops.builds (branch_id) select b.id from ops.branches b;
insert into ops.artifacts (build_id, type, name, storage_path) select b.id, 'log', 'build.log', 's3://x' from ops.builds b;
