-- Drops the function for served runs.
--
-- Lost: nothing that is stored. A worker cannot record that a served run is ready, and fails such a run.

drop function ops.mark_ready;
