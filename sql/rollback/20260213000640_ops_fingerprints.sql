-- Drops the fingerprints of failed runs, and what was marked as known.
--
-- Lost: both. After this migration is applied again, runs that failed before have no fingerprints.

drop trigger record_fingerprints on ops.runs;
drop function
    ops.mark_known, ops.run_fingerprints, ops_private.mark_known, ops_private.run_fingerprints,
    ops_private.fingerprints_of, ops_private.record_fingerprints, ops_private.failures_of,
    ops_private.fingerprint_of, ops_private.normalized_error, ops_private.one_line;
drop table ops_private.known_errors, ops_private.run_fingerprints;

create or replace function ops_private.known_lines(p_run_id uuid, p_projects uuid[]) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return;
end
$$;

create or replace function ops_private.run_summary(p_run_id uuid) returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select s.summary from ops_private.run_summaries as s
        join ops.runs as r on r.id = s.run_id
        where s.run_id = p_run_id
            and (ops_private.trusted() or r.project_id = any (array(select ops_private.my_projects()))));
end
$$;
