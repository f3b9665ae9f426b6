-- Our names in every other kind of object, and the names that the migration would choose taken.
create schema ops;
create table ops.old_projects (id int primary key);
create table ops.projects (id int constraint runs_pkey primary key, old_projects_pkey text unique);
create table ops.workflows (id int not null, part int not null, primary key (id, part)) partition by list (part);
create table ops.workflows_1 partition of ops.workflows (check (id > 0)) for values in (1);
create table ops.runs (project_id int, id int generated always as identity constraint run_events_pkey primary key);
create materialized view ops.tools as select id from ops.projects;
create index tools_tool_name_version_key on ops.tools (id);
create view ops.run_logs with (security_barrier = true) as select id, 'x'::text as message from ops.runs;
create type ops.run_events as (a int);
create type ops.run_artifacts as enum ('log', 'image');
create domain ops.upgrade_advisories as text check (value <> '');
create sequence ops.project_memberships;
create sequence ops.runs_next start 100;
create table ops.others (
  kind ops.run_artifacts, event ops.run_events, why ops.upgrade_advisories,
  number bigint default nextval('ops.project_memberships'), runs int constraint runs_status_check check (runs > 0)
);
create procedure ops.reap() language plpgsql as $$ begin insert into ops.projects values (nextval('ops.runs_next')); end $$;
create aggregate ops.heartbeat (int) (sfunc = int4pl, stype = int);
create function ops.list_queued_runs() returns setof ops.runs language sql as $$ select * from ops . "runs"; $$;
create function ops.current_user_id() returns uuid return null::uuid;
create function ops.current_user_id(text) returns text language sql as $$ select ops.current_user_id()::text $$;
create table ops.runs_archive (id int);
create function public.mine() returns int language sql as
  $$ select count(*)::int from ops.runs_archive as runs where runs.id > 0 -- not ops.runs_next $$;

insert into ops.old_projects values (1);
insert into ops.projects values (1), (2);
insert into ops.workflows values (1, 1);
insert into ops.runs (project_id) values (1), (2);
insert into ops.others values ('log', row (1)::ops.run_events, 'why', default, 1);
refresh materialized view ops.tools;
