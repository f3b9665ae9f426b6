-- Takes back the function that makes roles for build hosts.
--
-- Lost: nothing. The roles that it made stay, and can go on working: they belong to the whole cluster.

drop function ops_private.create_worker;
