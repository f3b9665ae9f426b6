-- An object of another project looks like one that does not exist: the same rows, the same answer, the same error.
--
-- Run it as 01_who_may_do_what.sql says.
\ir world.psql

select pg_temp.new_run('run', 'failed', null);
update ops.runs as r set idempotency_key = p.id || ':nightly'
from known as k, known as p where k.name = 'run' and p.name = 'project' and r.id = k.id;
insert into known select 'own', id from known where name = 'elsewhere';

create temp table probe (statement text);
insert into probe values
    ($$insert into ops.runs (project_id, workflow_id) values ('{project}', '{workflow}')$$),
    ($$insert into ops.runs (project_id, workflow_id) values ('{own}', '{workflow}')$$),
    ($$insert into ops.runs (project_id, workflow_id, idempotency_key)
       values ('{own}', '{workflow}', '{project}:nightly')$$),
    ($$insert into ops.workflows (project_id, workflow_type, name) values ('{project}', 'build', 'nightly')$$),
    ($$insert into ops.workflows (project_id, workflow_type, name) values ('{project}', 'build', 'nightly')
       on conflict do nothing$$),
    ($$insert into ops.project_memberships (project_id, user_id, role) values ('{project}', '{owner}', 'viewer')$$),
    ($$update ops.projects set name = 'x' where id = '{project}'$$),
    ($$update ops.workflows set name = 'x' where id = '{workflow}'$$),
    ($$delete from ops.project_memberships where project_id = '{project}'$$),
    ($$select from ops.runs where id = '{run}'$$),
    ($$select from ops.search_run_logs('hello', p_run_id => '{run}')$$),
    ($$select ops.enqueue_run('{workflow}')$$),
    ($$select ops.enqueue_run('{workflow}', '{}', 'nightly')$$),
    ($$select from ops.project_overview() where project_id = '{project}'$$),
    ($$select from ops.worker_overview() where runs @> jsonb_build_array(jsonb_build_object('run_id', '{run}'))$$),
    ($$select from ops.workflow_overview() where workflow_id = '{workflow}'$$),
    ($$select ops.cancel_run('{run}')$$),
    ($$select ops.set_webhook_secret('{project}', 'correct-horse-battery')$$),
    ($$select ops.approve_run('{run}')$$),
    ($$select ops.reject_run('{run}')$$),
    ($$select ops.retry_run('{run}')$$);

create function pg_temp.without_ids(p_text text) returns text
language sql as $$ select regexp_replace(p_text, '[0-9a-f]{8}-[0-9a-f-]{27}', 'an id', 'g') $$;

create temp table there as
select p.statement, pg_temp.without_ids(pg_temp.attempt('stranger', 'new', p.statement)) as answer
from probe as p;
update known set id = gen_random_uuid() where name in ('project', 'workflow', 'run', 'owner');

select plan((select count(*)::integer + 1 from probe));
select is(pg_temp.without_ids(pg_temp.attempt('stranger', 'new', t.statement)), t.answer, t.statement)
from there as t;
select is(
    pg_temp.attempt(
        'stranger', 'new', $$insert into ops.workflows (project_id, workflow_type, name)
        values ('{own}', 'build', 'nightly')$$),
    'yes', 'a name that another project uses is free in one''s own');
select * from finish();
rollback;
