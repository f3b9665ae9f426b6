-- Drops the function that creates roles for build hosts.
--
-- Lost: nothing. The roles that it created stay and can still work, because roles belong to the whole cluster.

drop function ops_private.create_worker;
