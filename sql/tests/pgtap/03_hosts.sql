-- Build hosts with a role each: no host can start, append to, complete, renew or adopt the run of another host, with
-- any worker id. service_role can.
--
-- Run it as 01_who_may_do_what.sql says.
\ir world.psql

select plan(24);

-- the verifier of the example in RFC 7677
create function pg_temp.create_worker(p_name text) returns jsonb
language sql as $$
    select ops_private.create_worker(p_name,
        'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:'
        'wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=')
$$;
select is(pg_temp.create_worker('tap_host_one') ->> 'created', 'true', 'a role for a host is made');
select is(pg_temp.create_worker('tap_host_two') ->> 'created', 'true', 'and another');
select is(pg_temp.create_worker('tap_host_two') ->> 'created', 'false', 'again: it gets a new password');
select is(pg_temp.create_worker('service_role') ->> 'code', 'not_allowed', 'no other role gets one');
grant tap_host_one, tap_host_two to current_user;

-- The answer to a role; its changes stay.
create function pg_temp.answer(p_role text, p_call text) returns jsonb
language plpgsql as $$
declare
    v_statement constant text := 'select ops.' || pg_temp.filled(p_call);
    v_answer jsonb;
begin
    perform set_config('role', p_role, true);
    execute v_statement into v_answer;
    perform set_config('role', 'none', true);
    return v_answer;
end
$$;

-- the database may have other queued runs
update ops.runs set status = 'canceled' where status = 'queued';
select pg_temp.new_run('run', 'queued', null);
insert into known values ('instance', gen_random_uuid()), ('other', gen_random_uuid());

select is(
    pg_temp.answer('tap_host_one', $$claim_next_run('one', '{instance}', p_engine_id => 'engine')$$) ->> 'run_id',
    pg_temp.filled('{run}'), 'the first host claims the run');
select is(
    pg_temp.answer('tap_host_two', $$start_workflow_run('{run}', 'one', '{instance}')$$) ->> 'code', 'not_owner',
    'the second cannot start it under the first one''s name');
select is(
    pg_temp.answer('tap_host_two', $$release_run('{run}', 'one', '{instance}')$$) ->> 'code', 'not_owner',
    'nor give it back');
select is(
    pg_temp.answer('tap_host_one', $$start_workflow_run('{run}', 'one', '{instance}')$$) ->> 'success', 'true',
    'the first starts it');

select is(pg_temp.answer('tap_host_two', c.call) ->> 'code', 'not_owner', 'not the second: ' || c.call)
from (values
    ($$append_run_log('{run}', 'info', 'x')$$),
    ($$append_run_log('{run}', 'info', 'x', p_worker_id => 'one', p_instance_id => '{instance}')$$),
    ($$append_run_logs('{run}', 'one', '{instance}', 1, 'x', 'i', array[now()])$$),
    ($$add_run_event('{run}', 'info', 'x', p_worker_id => 'one')$$),
    ($$add_run_artifact('{run}', 'x', 'x', p_worker_id => 'one')$$),
    ($$complete_workflow_run('{run}', 0)$$),
    ($$complete_workflow_run('{run}', 0, p_worker_id => 'one', p_instance_id => '{instance}')$$),
    ($$adopt_run('{run}', 'one', '{other}', 'engine')$$)) as c (call);
select is(
    pg_temp.answer('tap_host_two', $$heartbeat('one', '{instance}')$$) -> 'runs', '[]'::jsonb,
    'the second renews nothing');
select is(
    jsonb_array_length(pg_temp.answer('tap_host_one', $$heartbeat('one', '{instance}')$$) -> 'runs'), 1,
    'the first renews its run');
select is(
    pg_temp.answer('tap_host_one', $$append_run_log('{run}', 'info', 'x')$$) ->> 'success', 'true',
    'and writes its log');
select is(
    pg_temp.answer('service_role', $$append_run_log('{run}', 'info', 'x')$$) ->> 'success', 'true',
    'so does service_role');
select is(
    (select count(*) from ops.run_logs as g, known as k where k.name = 'run' and g.run_id = k.id), 2::bigint,
    'nothing else is written');
select is(
    pg_temp.answer('tap_host_one', $$complete_workflow_run('{run}', 0)$$) ->> 'status', 'succeeded',
    'the first completes it');
select is(
    array(select pg_temp.attempt('tap_host_one', 'new', 'select from ops.' || t)
          from unnest('{runs,projects,run_logs,project_memberships}'::text[]) as t),
    array(
        select '42501 permission denied for table ' || t
        from unnest('{runs,projects,run_logs,project_memberships}'::text[]) as t),
    'a host reads no table of projects');
select is(
    pg_temp.attempt('tap_host_one', 'new', 'select from ops.tools'), 'yes', 'it reads the catalogue of tools');
select * from finish();
rollback;
