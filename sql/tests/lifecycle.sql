-- Takes runs through all their states and leaves nothing behind: it is one transaction that is rolled back.
--
--     psql "$DATABASE_URL" -f sql/tests/lifecycle.sql
--
-- Run it as the owner of the schema (on Supabase: postgres). Each line that begins with "ok" is a check that passed; the
-- first failed check is an error and ends the script with exit code 3. Connected workers do not see these runs, and other
-- runs are not changed.

\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned

begin;

create function pg_temp.ok(p_what text, p_found anyelement, p_expected anyelement) returns text
language plpgsql as $$
begin
    if p_found is distinct from p_expected then
        raise exception 'not ok: %: expected %, found %', p_what, p_expected, p_found;
    end if;
    return 'ok      ' || p_what;
end
$$;

create function pg_temp.refused(p_what text, p_statement text, p_sqlstate text) returns text
language plpgsql as $$
begin
    begin
        execute p_statement;
    exception when others then
        return pg_temp.ok(p_what, sqlstate, p_sqlstate);
    end;
    raise exception 'not ok: %: nothing refused it', p_what;
end
$$;

create function pg_temp.steps(p_run_id uuid) returns text
language sql as $$
    select string_agg((e.payload ->> 'previous_status') || ' -> ' || (e.payload ->> 'new_status'), ', ' order by e.seq)
    from ops.run_events as e where e.run_id = p_run_id and e.event_type = 'state_change';
$$;

-- A project, a workflow, and four runs before all others in the queue ---------------------------------------

insert into ops.projects (workspace_key, slug, name, odoo_version)
values ('lifecycle_test', 'lifecycle-test', 'Lifecycle test', '18.0')
returning id as project \gset

insert into ops.workflows (project_id, workflow_type, name, config)
values (:'project', 'build', 'nightly', '{"priority": 2147483647}')
returning id as workflow \gset

insert into ops.runs (project_id, workflow_id, status) values (:'project', :'workflow', 'queued') returning id as good \gset
insert into ops.runs (project_id, workflow_id, status) values (:'project', :'workflow', 'queued') returning id as bad \gset
insert into ops.runs (project_id, workflow_id, status) values (:'project', :'workflow', 'queued') returning id as waiting \gset
insert into ops.runs (project_id, workflow_id, status) values (:'project', :'workflow', 'queued') returning id as stopped \gset

select pg_temp.ok('runs of a project count 1, 2, 3, 4', array_agg(run_number order by run_number), '{1,2,3,4}')
from ops.runs where project_id = :'project';
select pg_temp.ok('the queue lists them in the order of their claim', array_agg(run_id order by n), array[:'good', :'bad', :'waiting', :'stopped']::uuid[])
from ops.list_queued_runs() with ordinality as q (run_id, project_id, workflow_id, run_number, status, created_at, claimed_by, claimed_at, n)
where project_id = :'project';

-- queued, claimed, running, succeeded -----------------------------------------------------------------------

select ops.claim_next_run('lifecycle-test') as claim \gset
select pg_temp.ok('a claim takes the first of them', :'claim'::jsonb ->> 'run_id', :'good');
select pg_temp.ok('and says of which project and workflow', array[:'claim'::jsonb ->> 'project_id', :'claim'::jsonb ->> 'workflow_id'], array[:'project', :'workflow']);
select pg_temp.ok('another worker cannot start it', ops.start_workflow_run(:'good', 'another-worker') ->> 'code', 'not_owner');
select pg_temp.ok('its worker can', ops.start_workflow_run(:'good', 'lifecycle-test') ->> 'success', 'true');
select pg_temp.ok('a line of log is stored', ops.append_run_log(:'good', 'info', 'hello', '{"n": 1}') ->> 'success', 'true');
select pg_temp.ok('a line of no known level is not', ops.append_run_log(:'good', 'loud', 'hello') ->> 'code', 'bad_level');
select pg_temp.ok('an artifact is recorded', ops.add_run_artifact(:'good', 'out/a.txt', 'file:///a.txt') ->> 'success', 'true');
select pg_temp.ok('the same key again updates it', ops.add_run_artifact(:'good', 'out/a.txt', 'file:///b.txt') ->> 'success', 'true');
select pg_temp.ok('and adds none', array_agg(artifact_url), '{file:///b.txt}') from ops.run_artifacts where run_id = :'good';
select pg_temp.ok('exit code 0 is success', ops.complete_workflow_run(:'good', 0) ->> 'status', 'succeeded');
select pg_temp.ok('each step wrote an event', pg_temp.steps(:'good'), 'queued -> claimed, claimed -> running, running -> succeeded');

-- The end is the end ----------------------------------------------------------------------------------------

select pg_temp.ok('a run that has ended takes no log', ops.append_run_log(:'good', 'info', 'late') ->> 'code', 'final');
select pg_temp.refused('nor another status', format('update ops.runs set status = %L where id = %L', 'queued', :'good'), 'OPS01');
select pg_temp.refused('no run begins but as queued', format('insert into ops.runs (project_id, workflow_id, status) values (%L, %L, %L)', :'project', :'workflow', 'succeeded'), 'OPS01');
select pg_temp.refused('an event cannot be changed', format('update ops.run_events set message = %L where run_id = %L', '', :'good'), 'OPS02');
select pg_temp.refused('nor deleted', format('delete from ops.run_events where run_id = %L', :'good'), 'OPS02');
with updated as (
    update ops.runs set metadata = '{"note": 1}' where id = :'good' returning metadata
)
select pg_temp.ok('notes on a run that has ended can be made', metadata ->> 'note', '1') from updated;

-- failed ----------------------------------------------------------------------------------------------------

select pg_temp.ok('the next claim takes the next run', ops.claim_next_run('lifecycle-test') ->> 'run_id', :'bad');
select pg_temp.ok('a run that is not running cannot be completed', ops.complete_workflow_run(:'bad', 0) ->> 'code', 'not_running');
select pg_temp.ok('it starts', ops.start_workflow_run(:'bad', 'lifecycle-test') ->> 'success', 'true');
select pg_temp.ok('any other exit code is failure', ops.complete_workflow_run(:'bad', 3, 'three tests failed') ->> 'status', 'failed');
select pg_temp.ok('and says why', array[exit_code::text, error_message], '{3,three tests failed}') from ops.runs where id = :'bad';

-- canceled --------------------------------------------------------------------------------------------------

select pg_temp.ok('a queued run is canceled at once', ops.cancel_run(:'waiting', 'not needed') ->> 'status', 'canceled');
select pg_temp.ok('in one step', pg_temp.steps(:'waiting'), 'queued -> canceled');
select pg_temp.ok('and is not claimed', ops.claim_next_run('lifecycle-test') ->> 'run_id', :'stopped');
select pg_temp.ok('a claimed one starts', ops.start_workflow_run(:'stopped', 'lifecycle-test') ->> 'success', 'true');
select pg_temp.ok('a running one goes on', ops.cancel_run(:'stopped') ->> 'status', 'running');
select pg_temp.ok('until its worker has stopped it', ops.complete_workflow_run(:'stopped', 143, p_reason => 'canceled') ->> 'status', 'canceled');
select pg_temp.ok('an end is not canceled', ops.cancel_run(:'bad') ->> 'code', 'final');

rollback;
