-- What the table of rights implies: no member can become owner without an owner, move a membership, forge an event, a
-- log line or an artifact, insert a run with another status than queued, or write a column that users may not write.
--
-- Run it as 01_who_may_do_what.sql says.
\ir world.psql

select pg_temp.new_run('run', 'running', null);
insert into ops.run_logs (run_id, log_level, message) select id, 'info', 'hello' from known where name = 'run';
insert into ops.run_artifacts (run_id, artifact_key, artifact_url)
select id, 'a', 'file:///a' from known where name = 'run';

create temp table forbidden (statement text);

insert into forbidden
select format(
    $$insert into ops.runs (project_id, workflow_id, status) values ('{project}', '{workflow}', %L)$$, s)
from unnest('{claimed,running,succeeded,failed,canceled}'::text[]) as s;

-- every column of a run except the four that a user may write
insert into forbidden
select format(
    $$insert into ops.runs (project_id, workflow_id, %I) select '{project}', '{workflow}', r.%1$I
    from (select (jsonb_populate_record(null::ops.runs, '{}')).*) as r$$, a.attname)
from pg_attribute as a
where a.attrelid = 'ops.runs'::regclass and a.attnum > 0 and not a.attisdropped
    and a.attname <> all ('{project_id,workflow_id,status,metadata}');
insert into forbidden
select format($$update ops.%I set %I = %2$I$$, c.relname, a.attname)
from pg_attribute as a
join pg_class as c on c.oid = a.attrelid
where c.oid in ('ops.runs'::regclass, 'ops.run_events'::regclass, 'ops.run_logs'::regclass,
    'ops.run_artifacts'::regclass) and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    and a.attidentity = '';

insert into forbidden values
    ($$insert into ops.run_events (run_id, event_type, message) values ('{run}', 'state_change', 'x')$$),
    ($$insert into ops.run_logs (run_id, log_level, message) values ('{run}', 'info', 'x')$$),
    ($$insert into ops.run_artifacts (run_id, artifact_key, artifact_url) values ('{run}', 'x', 'x')$$),
    ('delete from ops.run_events'), ('delete from ops.run_logs'), ('delete from ops.run_artifacts'),
    ('delete from ops.runs'), ('delete from ops.workflows'), ('delete from ops.projects'),
    ('truncate ops.run_events'),
    ($$update ops.project_memberships set project_id = '{elsewhere}'$$),
    ($$update ops.project_memberships set user_id = '{stranger}'$$),
    ($$update ops.workflows set project_id = '{elsewhere}'$$),
    ($$update ops.projects set slug = 'tap-x'$$), ($$update ops.projects set workspace_key = 'tap_x'$$),
    ($$insert into ops.projects (workspace_key, slug, name, odoo_version) values ('t', 't', 't', '1.0')$$),
    ($$insert into ops.tools (tool_name, version, docker_image) values ('x', '1', 'x')$$),
    ('select from ops_private.leases'), ('select from ops_private.run_requests'),
    ($$select ops_private.queue_retry('{run}')$$), ($$select ops_private.run_payload('{run}')$$);

select plan((select count(*)::integer + 4 from forbidden));
select is(
    array(
        select w from unnest('{viewer,developer,admin,owner,stranger,anon,ops_worker}'::text[]) as w
        where pg_temp.attempt(w, 'new', f.statement) !~ '^(no|42501|OPS01)'),
    '{}'::text[], 'no role but service_role may: ' || f.statement)
from forbidden as f;

select matches(
    pg_temp.attempt('service_role', 'new', 'delete from ops.run_events'), '^(42501|OPS02) ', 'events stay');
select matches(
    pg_temp.attempt('service_role', 'new', $$update ops.runs set status = 'succeeded' where id = '{run}'$$),
    '^yes', 'service_role moves a run along');
select matches(
    pg_temp.attempt('service_role', 'new', $$update ops.runs set status = 'queued' where id = '{run}'$$),
    '^OPS01 ', 'but not back');
select matches(
    pg_temp.attempt('service_role', 'new', $$delete from ops.project_memberships where project_id = '{project}'$$),
    '^OPS03 ', 'a project keeps an owner');
select * from finish();
rollback;
