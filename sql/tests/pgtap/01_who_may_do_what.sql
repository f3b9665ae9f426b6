-- The table "Who may do what" of docs/odooops-sh/SECURITY.md, cell by cell, with both forms of a JWT's claims.
--
-- Run the folder with `supabase test db sql/tests/pgtap`, or with `pg_prove --host HOST --dbname NAME
-- sql/tests/pgtap/*.sql` after `create extension pgtap`, as the role that migrated or a superuser. The database stays
-- unchanged.
\ir world.psql

select pg_temp.new_run('queued', 'queued', null);
select pg_temp.new_run('developers', 'queued', 'developer');
select pg_temp.new_run('viewers', 'queued', 'viewer');
select pg_temp.new_run('ended', 'failed', null);
select pg_temp.new_run('developers_ended', 'failed', 'developer');
select pg_temp.new_run('pending', 'queued', null);
select pg_temp.new_run('admins_pending', 'queued', 'admin');
update ops.runs as r set approval = 'pending'
from known as k where r.id = k.id and k.name in ('pending', 'admins_pending');
select pg_temp.new_run('claimed', 'claimed', null);
select pg_temp.new_run('run', 'running', null);
select ops.register_worker('tap-d', gen_random_uuid());
select pg_temp.new_run('red', 'running', null);
update ops.runs set tests = '{"failing": ["t"]}', status = 'failed'
where id = (select id from known where name = 'red');
insert into ops.run_logs (run_id, log_level, message) select id, 'info', 'hello' from known where name = 'run';
insert into ops.run_artifacts (run_id, artifact_key, artifact_url)
select id, 'a', 'file:///a' from known where name = 'run';

create temp table cell (who_may text[], statement text);

insert into cell values
    -- read project, workflows, runs, events, artifacts, logs, memberships
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.projects where id = '{project}'$$),
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.workflows where id = '{workflow}'$$),
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.runs where id = '{run}'$$),
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.run_events where run_id = '{run}'$$),
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.run_artifacts where run_id = '{run}'$$),
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.run_logs where run_id = '{run}'$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.project_memberships where project_id = '{project}'$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.list_queued_runs() where project_id = '{project}'$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.project_overview() where project_id = '{project}'$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.worker_overview() where runs @> jsonb_build_array(jsonb_build_object('run_id', '{run}'))$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.workflow_overview() where workflow_id = '{workflow}'$$),
    ('{service_role}', 'select ops.health()'),
    ('{service_role}', $$select ops.sync_tools('[{"tool_name": "t", "version": "1", "docker_image": "x"}]')$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.search_run_logs('hello', p_project_id => '{project}')$$),
    ('{viewer,developer,admin,owner,service_role}',
        $$select from ops.search_run_logs('hello', p_run_id => '{run}')$$),
    -- create and edit workflows, create runs
    ('{developer,admin,owner,service_role}',
        $$insert into ops.workflows (project_id, workflow_type, name) values ('{project}', 'test', 't')$$),
    ('{developer,admin,owner,service_role}', $$update ops.workflows set name = 'x' where id = '{workflow}'$$),
    ('{developer,admin,owner,service_role}',
        $$insert into ops.runs (project_id, workflow_id, status) values ('{project}', '{workflow}', 'queued')$$),
    ('{developer,admin,owner,service_role}', $$select ops.enqueue_run('{workflow}')$$),
    -- cancel and retry runs
    ('{admin,owner,service_role}', $$select ops.cancel_run('{queued}')$$),
    ('{admin,owner,service_role}', $$select ops.pause_project('{project}')$$),
    ('{admin,owner,service_role}', $$select ops.cancel_run('{run}')$$),
    ('{admin,owner,service_role}', $$select ops.cancel_run('{viewers}')$$),
    ('{developer,admin,owner,service_role}', $$select ops.cancel_run('{developers}')$$),
    ('{admin,owner,service_role}', $$select ops.retry_run('{ended}')$$),
    ('{developer,admin,owner,service_role}', $$select ops.retry_run('{developers_ended}')$$),
    -- approve and reject runs; never the own ones
    ('{admin,owner,service_role}', $$select ops.approve_run('{pending}')$$),
    ('{admin,owner,service_role}', $$select ops.reject_run('{pending}')$$),
    ('{owner,service_role}', $$select ops.approve_run('{admins_pending}')$$),
    ('{owner,service_role}', $$select ops.reject_run('{admins_pending}')$$),
    ('{developer,admin,owner,service_role}', $$select ops.mark_known('{red}')$$),
    ('{viewer,developer,admin,owner,service_role}', $$select from ops.run_fingerprints('{red}')$$),
    -- edit project settings
    ('{owner,service_role}', $$update ops.projects set name = 'x' where id = '{project}'$$),
    ('{owner,service_role}', $$update ops.projects set config = '{"a": 1}' where id = '{project}'$$),
    ('{owner,service_role}', $$select ops.set_webhook_secret('{project}', 'correct-horse-battery')$$),
    -- a description writes workflows, settings, limits, and a new project
    ('{developer,admin,owner,service_role}',
        $$select ops.sync_project('{"slug": "tap-acme", "name": "Acme", "odoo_version": "19.0"}')$$),
    ('{owner,service_role}',
        $$select ops.sync_project('{"slug": "tap-acme", "name": "x", "odoo_version": "19.0"}')$$),
    ('{service_role}',
        $$select ops.sync_project('{"slug": "tap-acme", "name": "Acme", "odoo_version": "19.0",
            "limits": {"max_active_runs": 1}}')$$),
    ('{service_role}',
        $$select ops.sync_project('{"slug": "tap-new", "name": "New", "odoo_version": "19.0"}')$$),
    -- manage memberships; every member may remove their own
    ('{admin,owner,service_role}',
        $$insert into ops.project_memberships (project_id, user_id, role)
        values ('{project}', '{stranger}', 'admin')$$),
    ('{owner,service_role}',
        $$insert into ops.project_memberships (project_id, user_id, role)
        values ('{project}', '{stranger}', 'owner')$$),
    ('{admin,owner,service_role}',
        $$update ops.project_memberships set role = 'admin' where user_id = '{viewer}'$$),
    ('{developer,admin,owner,service_role}',
        $$delete from ops.project_memberships where user_id = '{developer}'$$),
    ('{owner,service_role}', $$update ops.project_memberships set role = 'owner' where user_id = '{admin}'$$),
    ('{owner,service_role}', $$update ops.project_memberships set role = 'owner' where user_id = '{viewer}'$$),
    ('{}', $$update ops.project_memberships set role = 'viewer' where user_id = '{owner}'$$),
    ('{}', $$delete from ops.project_memberships where user_id = '{owner}'$$),
    ('{admin,owner,service_role}', $$select ops.set_member('{project}', '{stranger}', 'admin')$$),
    ('{owner,service_role}', $$select ops.set_member('{project}', '{stranger}', 'owner')$$),
    ('{developer,admin,owner,service_role}', $$select ops.remove_member('{project}', '{developer}')$$),
    ('{}', $$select ops.remove_member('{project}', '{owner}')$$),
    -- tools, advisories
    ('{viewer,developer,admin,owner,stranger,ops_worker,service_role}', 'select from ops.tools'),
    ('{viewer,developer,admin,owner,stranger,ops_worker,service_role}', 'select from ops.upgrade_advisories'),
    ('{viewer,developer,admin,owner,stranger,service_role}',
        $$select from ops.applicable_advisories('17.0', '19.0')$$),
    ('{service_role}', $$insert into ops.tools (tool_name, version, docker_image) values ('x', '1', 'x')$$),
    ('{service_role}', $$update ops.tools set docker_image = 'x'$$),
    ('{service_role}', 'delete from ops.upgrade_advisories'),
    -- claim, start, complete, append, add artifact
    ('{ops_worker,service_role}', $$select ops.claim_next_run('tap')$$),
    ('{ops_worker,service_role}', $$select ops.heartbeat('tap', gen_random_uuid())$$),
    ('{ops_worker,service_role}', $$select ops.register_worker('tap', gen_random_uuid())$$),
    ('{ops_worker,service_role}', $$select ops.unregister_worker('tap', gen_random_uuid())$$),
    ('{ops_worker,service_role}', $$select ops.reap()$$),
    -- of hosts only members of ops_notifier
    ('{service_role}', $$select ops.register_destinations('tap', '[]')$$),
    ('{service_role}', $$select ops.take_deliveries('tap', gen_random_uuid(), '{}')$$),
    ('{service_role}', $$select ops.shut_out_worker('tap')$$),
    ('{service_role}', $$select ops.drain_worker('tap-d')$$),
    -- of runs that another role claimed
    ('{service_role}', $$select ops.start_workflow_run('{claimed}', null)$$),
    ('{service_role}', $$select ops.release_run('{claimed}', null, null)$$),
    ('{service_role}', $$select ops.append_run_log('{run}', 'info', 'x')$$),
    ('{service_role}', $$select ops.record_report('{run}', null, null)$$),
    ('{service_role}', $$select ops.mark_ready('{run}', null, null, 'http://x')$$),
    ('{service_role}', $$select ops.add_run_event('{run}', 'info', 'x')$$),
    ('{service_role}', $$select ops.add_run_artifact('{run}', 'x', 'x')$$),
    ('{service_role}', $$select ops.complete_workflow_run('{run}', 0)$$);

select plan((select count(*)::integer * 2 from cell));
select is(pg_temp.who_may(f, c.statement), c.who_may, f || ' claims: ' || c.statement)
from cell as c, unnest('{old,new}'::text[]) as f;
select * from finish();
rollback;
