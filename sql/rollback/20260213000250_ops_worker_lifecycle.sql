-- Drops the functions for registration, renewal, adoption and lost workers.
--
-- Lost: nothing that is stored. Workers cannot work until this migration is applied again.

drop function
    ops.shut_out_worker, ops.reap, ops_private.fail_lost, ops.adoptable_runs, ops.adopt_run,
    ops_private.hand_over, ops_private.loses_its_workers, ops_private.inherited, ops_private.adopt_refusal,
    ops_private.may_adopt, ops_private.quarantine, ops.heartbeat, ops.unregister_worker, ops.register_worker,
    ops_private.database_identity, ops_private.fingerprint;
