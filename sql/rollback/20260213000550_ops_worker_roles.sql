-- Drops the functions that create roles for build hosts and consoles.
--
-- Lost: nothing. The roles that it created stay and can still work, because roles belong to the whole cluster.

drop function ops_private.create_console, ops_private.create_worker, ops_private.create_login;
