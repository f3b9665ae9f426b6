-- Drops the constraints, indexes and triggers.
--
-- Lost: nothing that is stored. But new runs get no number, transitions are not checked, and events and leases are not
-- written. So no worker may run until this migration is applied again or the earlier ones are rolled back too.

do $$
begin
    if exists (
        select from pg_catalog.pg_publication as p
        join pg_catalog.pg_publication_rel as t on t.prpubid = p.oid and t.prrelid = 'ops.runs'::regclass
        where p.pubname = 'supabase_realtime' and pg_catalog.pg_has_role(current_user, p.pubowner, 'usage')
    ) then
        alter publication supabase_realtime drop table ops.runs, ops.run_events;
    end if;
end
$$;

drop trigger keep_an_owner_who_leaves on ops.project_memberships;
drop trigger keep_an_owner on ops.project_memberships;
drop trigger set_giver on ops.project_memberships;
drop trigger keep_all_run_events on ops.run_events;
drop trigger keep_run_events on ops.run_events;
drop trigger set_project_of_run on ops.run_artifacts;
drop trigger set_project_of_run on ops.run_events;
drop trigger leave_queue on ops.runs;
drop trigger record_run_change on ops.runs;
drop trigger enforce_run_status_transition on ops.runs;
drop trigger count_runs on ops.runs;
drop trigger prepare_run on ops.runs;
drop trigger touch_updated_at on ops.projects;
drop trigger touch_updated_at on ops.workflows;
drop trigger touch_updated_at on ops.tools;
drop trigger touch_updated_at on ops.upgrade_advisories;
drop trigger touch_updated_at on ops.project_memberships;

drop function ops_private.keep_an_owner;
drop function ops_private.set_giver;
drop function ops_private.keep_run_events;
drop function ops_private.set_project_of_run;
drop function ops_private.leave_queue;
drop function ops_private.record_run_change;
drop function ops_private.enforce_run_status_transition;
drop function ops_private.count_runs;
drop function ops_private.prepare_run;
drop function ops_private.touch_updated_at;

drop index ops.project_memberships_user_idx;
drop index ops.run_events_run_idx;
drop index ops.runs_parent_idx;
drop index ops.runs_retry_of_idx;
drop index ops.runs_workflow_idx;

alter table ops.runs drop constraint runs_valid;
drop function ops_private.is_valid_run;
alter table ops.run_events drop constraint run_events_valid;
drop function ops_private.is_valid_event;

alter table ops.run_logs
    drop constraint run_logs_metadata_at_most_256_kib,
    drop constraint run_logs_metadata_at_most_32_deep;

alter table ops.tools
    drop constraint tools_docker_image_format,
    drop constraint tools_texts_fit,
    drop constraint tools_config_at_most_256_kib,
    drop constraint tools_config_at_most_32_deep;

alter table ops.workflows
    drop constraint workflows_git_ref_format,
    drop constraint workflows_git_commit_format,
    drop constraint workflows_texts_fit,
    drop constraint workflows_config_at_most_256_kib,
    drop constraint workflows_config_at_most_32_deep;

alter table ops.run_artifacts
    drop constraint run_artifacts_artifact_key_format,
    drop constraint run_artifacts_artifact_url_format,
    drop constraint run_artifacts_size_bytes_not_negative,
    drop constraint run_artifacts_artifact_url_fits,
    drop constraint run_artifacts_content_type_fits,
    drop constraint run_artifacts_checksum_fits,
    drop constraint run_artifacts_metadata_at_most_256_kib,
    drop constraint run_artifacts_metadata_at_most_32_deep;

alter table ops.projects
    drop constraint projects_workspace_key_format,
    drop constraint projects_slug_format,
    drop constraint projects_odoo_version_format,
    drop constraint projects_texts_fit,
    drop constraint projects_config_at_most_256_kib,
    drop constraint projects_config_at_most_32_deep;
