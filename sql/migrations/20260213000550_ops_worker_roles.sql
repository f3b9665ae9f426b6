-- A database role for each build host, and one for consoles.
--
-- A lease belongs to the role that claimed the run. So a host with a separate role can change only the runs that it
-- claimed, and dropping the role shuts out only that host. The function creates such a role, or gives it a new
-- password. It runs with the rights of its caller, which needs CREATEROLE, and from PostgreSQL 16 on also ADMIN on
-- ops_worker (the creator of that role has it). Only the owner of the function may execute it.
--
-- The role of a console may switch to `authenticated`, to act for a user, and to `ops_webhook`, to pass on the deliveries
-- of forges; it has no rights of its own (noinherit).

-- Creates a login that is a member of these roles and has no other right, or gives it a new password.
create function ops_private.create_login(
    p_kind text, p_name text, p_password text, p_roles name[], p_inherits boolean
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_role record;
begin
    if p_name !~ '^[a-z][a-z0-9_-]{0,62}$' is not false then
        return ops_private.refusal('bad_argument', format(
            'the name of a %s''s role has up to 63 of a-z, 0-9, _ and -, a letter first', p_kind));
    end if;
    -- a password in plain text could be written to the server's log
    if p_password !~ '^SCRAM-SHA-256\$' is not false then
        return ops_private.refusal('bad_argument', 'the password must be a SCRAM-SHA-256 verifier');
    end if;
    select r.oid, r.rolcanlogin and r.rolinherit = p_inherits
            and not (r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication or r.rolbypassrls)
            and p_roles = array(
                select g.rolname from pg_auth_members as m join pg_roles as g on g.oid = m.roleid
                where m.member = r.oid order by g.rolname) as is_kind
    into v_role
    from pg_roles as r where r.rolname = p_name;
    if v_role.oid is null then
        execute format('create role %I login %s password %L in role %s', p_name,
            case when p_inherits then 'inherit' else 'noinherit' end, p_password, array_to_string(p_roles, ', '));
        return jsonb_build_object('success', true, 'created', true);
    elsif not v_role.is_kind then
        return ops_private.refusal('not_allowed', format('the role %s exists, and is not just a %s', p_name, p_kind));
    end if;
    execute format('alter role %I password %L', p_name, p_password);
    return jsonb_build_object('success', true, 'created', false);
end
$$;

create function ops_private.create_worker(p_name text, p_password text) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return ops_private.create_login('worker', p_name, p_password, '{ops_worker}'::name[], true);
end
$$;

create function ops_private.create_console(p_name text, p_password text) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return ops_private.create_login('console', p_name, p_password, '{authenticated,ops_webhook}'::name[], false);
end
$$;

revoke execute on function ops_private.create_login, ops_private.create_worker, ops_private.create_console from public;
