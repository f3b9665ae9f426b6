-- Drops the functions that write projects from their descriptions and manage members. The rows that they wrote stay.

drop function
    ops.sync_project, ops.set_member, ops.remove_member, ops.find_user,
    ops_private.sync_project, ops_private.set_member, ops_private.remove_member, ops_private.find_user,
    ops_private.locked_member_refusal, ops_private.member_refusal,
    ops_private.bad_push_name, ops_private.sync_settings, ops_private.sync_workflows,
    ops_private.missing_tool, ops_private.write_workflow, ops_private.changed_keys, ops_private.bad_project,
    ops_private.bad_object;
