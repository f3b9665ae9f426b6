-- Drops the function that registers the tools of a file. The rows of ops.tools stay.

drop function ops.sync_tools, ops_private.sync_tools, ops_private.bad_tools;
