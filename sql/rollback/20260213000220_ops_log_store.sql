-- Drops the search of the logs, and what maintains it. The partitions of ops.run_logs stay, with their lines.
--
-- Lost: nothing. A later `ops-worker db migrate` lists all logs as not searchable yet, and the workers make them so.

alter table ops.runs alter column id set default gen_random_uuid();
drop trigger delete_run_logs on ops.runs;
drop trigger set_run_of_changed_line on ops.run_logs;
drop trigger set_run_of_line on ops.run_logs;
drop function
    ops_private.add_log_partitions, ops_private.new_run_id, ops_private.first_run_id, ops_private.search_run_logs,
    ops_private.check_search, ops_private.delete_run_logs, ops_private.set_run_of_line, ops_private.reopen_log,
    ops_private.close_ended_logs, ops_private.close_log, ops_private.add_log_blocks, ops_private.lock_log,
    ops_private.words_of_query, ops_private.words_of_lines, ops_private.words;
drop table ops_private.log_tails, ops_private.log_blocks;
