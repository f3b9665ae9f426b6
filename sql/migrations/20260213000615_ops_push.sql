-- Pushes: the webhooks of GitHub, GitLab, Gitea and Forgejo.
--
-- A project has a secret in ops_private.webhooks, and rules in `push` of its configuration: {"repository": "acme/shop",
-- "branches": [{"match": "main", "run": ["test", "deploy"]}]}. A delivery is a raw body with its headers. Its signature
-- (the HMAC-SHA256 of the body, or GitLab's token) is checked first: without it the caller learns nothing. Then the
-- first rule whose pattern matches the branch queues its workflows, or cancels their runs if the branch was deleted. The
-- digest of the body is in the idempotency keys of the runs, so a repeated delivery queues nothing. The delivery's id is
-- not: the signature does not cover the headers, so a captured body with another id would queue runs again.
--
-- ops.receive_push gets a project, a body and headers as arguments. ops.receive_webhook is for PostgREST, which passes
-- the raw body to a function with one unnamed parameter, and the headers in the setting request.headers. Its project is
-- the one whose repository the body names.

create table ops_private.webhooks (
    project_id uuid primary key references ops.projects (id) on delete cascade,
    secret text not null check (octet_length(secret) between 16 and 1000),
    set_at timestamptz not null,
    set_by text not null
);

-- Rules -----------------------------------------------------------------------------------------------------

-- Says what is wrong with `push` of a project's configuration; null if nothing is, or there is none.
create function ops_private.bad_push(p_push jsonb) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_rule record;
begin
    if jsonb_typeof(p_push) <> 'object' or p_push - '{repository,branches}'::text[] <> '{}'::jsonb then
        return 'push: expected repository and branches';
    elsif (jsonb_typeof(p_push -> 'repository') = 'string'
        and length(p_push ->> 'repository') between 1 and 300) is not true then
        return 'push.repository: expected the full name of a repository, such as acme/shop';
    elsif (jsonb_typeof(p_push -> 'branches') = 'array'
        and jsonb_array_length(p_push -> 'branches') <= 50) is not true then
        return 'push.branches: expected a list of at most 50 rules';
    end if;
    for v_rule in
        select e.rule, e.place - 1 as place
        from jsonb_array_elements(p_push -> 'branches') with ordinality as e (rule, place)
    loop
        if jsonb_typeof(v_rule.rule) <> 'object' or v_rule.rule - '{match,run}'::text[] <> '{}'::jsonb then
            return format('push.branches.%s: expected match and run', v_rule.place);
        elsif (jsonb_typeof(v_rule.rule -> 'match') = 'string'
            and length(v_rule.rule ->> 'match') between 1 and 255) is not true then
            return format('push.branches.%s.match: expected a pattern such as feature/*', v_rule.place);
        elsif (jsonb_typeof(v_rule.rule -> 'run') = 'array' and jsonb_array_length(v_rule.rule -> 'run') <= 10
            and not jsonb_path_exists(v_rule.rule -> 'run', 'strict $[*] ? (@.type() != "string")')) is not true then
            return format('push.branches.%s.run: expected a list of at most 10 names of workflows', v_rule.place);
        end if;
    end loop;
    return null;
end
$$;

create function ops_private.check_push() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong constant text := ops_private.bad_push(new.config -> 'push');
begin
    if v_wrong is not null then
        raise exception 'project config, %', v_wrong using errcode = 'check_violation';
    end if;
    return null;
end
$$;

create trigger check_push after insert on ops.projects
    for each row when (new.config ? 'push') execute function ops_private.check_push();
create trigger check_changed_push after update of config on ops.projects
    for each row when (new.config ? 'push' and old.config -> 'push' is distinct from new.config -> 'push')
    execute function ops_private.check_push();

-- The workflows of the first rule whose pattern matches the branch; null if none does. A star stands for any characters
-- but a slash, two stars for any characters.
create function ops_private.branch_rule(p_push jsonb, p_branch text) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select e.rule -> 'run'
        from jsonb_array_elements(p_push -> 'branches') with ordinality as e (rule, place)
        where p_branch ~ ('^' || replace(replace(
            regexp_replace(e.rule ->> 'match', '([^[:alnum:]*])', '\\\1', 'g'), '**', '.+'), '*', '[^/]+') || '$')
        order by e.place limit 1);
end
$$;

-- Signatures ------------------------------------------------------------------------------------------------

-- HMAC-SHA256 (RFC 2104). A plain PostgreSQL has no pgcrypto.
create function ops_private.hmac_sha256(p_key bytea, p_data bytea) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_key bytea := case when length(p_key) > 64 then sha256(p_key) else p_key end;
    v_inner bytea;
    v_outer bytea;
begin
    v_key := v_key || decode(repeat('00', 64 - length(v_key)), 'hex');
    v_inner := v_key;
    v_outer := v_key;
    for i in 0 .. 63 loop
        v_inner := set_byte(v_inner, i, get_byte(v_key, i) # 54);
        v_outer := set_byte(v_outer, i, get_byte(v_key, i) # 92);
    end loop;
    return sha256(v_outer || sha256(v_inner || p_data));
end
$$;

-- What a delivery says of itself in its headers, which have lower-case names: who sent it, the kind of event, its id,
-- and the signature. Gitea and Forgejo send the headers of GitHub too, so their own are read first.
create function ops_private.delivery_of(
    p_headers jsonb, out forge text, out event text, out delivery text, out signature text
)
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    forge := case
        when p_headers ? 'x-forgejo-event' then 'forgejo'
        when p_headers ? 'x-gitea-event' then 'gitea'
        when p_headers ? 'x-gitlab-event' then 'gitlab'
        when p_headers ? 'x-github-event' then 'github' end;
    event := p_headers ->> format('x-%s-event', forge);
    delivery := substring(case forge
        when 'gitlab' then coalesce(p_headers ->> 'idempotency-key', p_headers ->> 'x-gitlab-event-uuid')
        else p_headers ->> format('x-%s-delivery', forge) end from '^[!-~]{1,100}$');
    signature := case forge
        when 'gitlab' then p_headers ->> 'x-gitlab-token'
        when 'github' then substring(p_headers ->> 'x-hub-signature-256' from '^sha256=([0-9a-f]{64})$')
        else substring(p_headers ->> format('x-%s-signature', forge) from '^[0-9a-f]{64}$') end;
end
$$;

-- Whether the sender of the body knows the secret of the project. Digests are compared, so the time of the comparison
-- tells nothing of the secret.
create function ops_private.is_signed(p_project_id uuid, p_forge text, p_signature text, p_body bytea) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_secret constant bytea := (
        select convert_to(h.secret, 'UTF8') from ops_private.webhooks as h where h.project_id = p_project_id);
begin
    return coalesce(sha256(case p_forge
        when 'gitlab' then v_secret
        else convert_to(encode(ops_private.hmac_sha256(v_secret, p_body), 'hex'), 'UTF8') end)
        = sha256(convert_to(p_signature, 'UTF8')), false);
end
$$;

-- A delivery ------------------------------------------------------------------------------------------------

-- The branch of a delivery and the commit that it has now (null: the branch is deleted), or why the delivery starts
-- nothing. The four forges agree in `ref` and `after`. The event delete of three of them has a ref without refs/heads.
create function ops_private.branch_of(
    p_event text, p_body jsonb, out branch text, out commit text, out ignored text
)
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if p_event = 'delete' then
        branch := case p_body ->> 'ref_type' when 'branch' then p_body ->> 'ref' end;
    elsif p_event in ('push', 'Push Hook') then
        branch := substring(p_body ->> 'ref' from '^refs/heads/(.+)$');
        commit := nullif(p_body ->> 'after', repeat('0', length(p_body ->> 'after')));
    else
        ignored := format('the event %s starts nothing', left(p_event, 60));
        return;
    end if;
    ignored := case
        when branch is null then 'it is not about a branch'
        when ops_private.is_git_ref(branch) is not true then 'its branch is no name of a git ref'
        when p_event <> 'delete' and coalesce(p_body ->> 'after', '') !~ '^[0-9a-f]{40,64}$' then
            'its commit is not of 40 to 64 hexadecimal digits' end;
end
$$;

-- Queues a run of one workflow for a push. Returns what became of it.
create function ops_private.queue_push(
    p_project_id uuid, p_name text, p_metadata jsonb, p_key text
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_found constant uuid[] := ops_private.workflows_named(p_project_id, p_name);
    v_key constant text := format('push:%s:%s:%s', p_project_id, v_found[1], p_key);
    v_wrong constant text := ops_private.bad_name(p_name, v_found);
    v_run record;
begin
    if v_wrong is not null then
        return jsonb_build_object('workflow', p_name, 'created', false, 'error', v_wrong);
    end if;
    v_run := ops_private.queue_once(p_project_id, v_found[1], p_metadata, v_key);
    if v_run.problem is not null then
        return jsonb_build_object('workflow', p_name, 'created', false, 'error', v_run.problem);
    end if;
    return jsonb_build_object('workflow', p_name, 'created', v_run.run_id is not null, 'run_id', coalesce(
        v_run.run_id, (select r.id from ops.runs as r where r.idempotency_key = v_key)));
end
$$;

-- Cancels the queued runs of these workflows for a branch, and asks the workers of active ones to stop them; returns
-- their ids.
create function ops_private.cancel_branch(p_project_id uuid, p_names jsonb, p_branch text) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
    v_workflows constant uuid[] := array(
        select n.id from jsonb_array_elements_text(p_names) as e (name)
        cross join lateral unnest(ops_private.workflows_named(p_project_id, e.name)) as n (id));
    v_run record;
    v_runs uuid[] := '{}'::uuid[];
begin
    for v_run in
        select r.id, r.status from ops.runs as r
        where r.id = any (array(
                select q.run_id from ops_private.lanes as l
                join ops_private.queued as q on q.lane_id = l.lane_id where l.project_id = p_project_id
                union all
                select a.run_id from ops_private.leases as a where a.project_id = p_project_id))
            and r.workflow_id = any (v_workflows) and r.metadata ->> 'git_ref' = p_branch
            and r.status in ('queued', 'claimed', 'running')
        order by r.id
        for no key update of r
    loop
        perform ops_private.stop_run(
            v_run.id, v_run.status, 'canceled', format('the branch %s is deleted', p_branch));
        v_runs := v_runs || v_run.id;
    end loop;
    return to_jsonb(v_runs);
end
$$;

-- What a delivery does whose signature is right.
create function ops_private.apply_push(
    p_project_id uuid, p_forge text, p_event text, p_delivery text, p_digest text, p_body jsonb
) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_push constant jsonb := (select p.config -> 'push' from ops.projects as p where p.id = p_project_id);
    v_nothing constant jsonb := jsonb_build_object('success', true, 'runs', '[]'::jsonb, 'canceled', '[]'::jsonb);
    v_branch record;
    v_names jsonb;
    v_metadata jsonb;
begin
    v_branch := ops_private.branch_of(p_event, p_body);
    if v_branch.ignored is not null then
        return v_nothing || jsonb_build_object('message', 'nothing: ' || v_branch.ignored);
    elsif ops_private.bad_push(v_push) is not null or v_push is null then
        return v_nothing || jsonb_build_object('message', 'nothing: the project has no rules for pushes');
    end if;
    v_names := ops_private.branch_rule(v_push, v_branch.branch);
    if v_names is null then
        return v_nothing || jsonb_build_object(
            'message', format('nothing: no rule matches the branch %s', v_branch.branch));
    end if;
    perform ops_private.lock_queue(p_project_id);
    if v_branch.commit is null then
        return v_nothing || jsonb_build_object(
            'canceled', ops_private.cancel_branch(p_project_id, v_names, v_branch.branch),
            'message', format('the branch %s is deleted', v_branch.branch));
    end if;
    v_metadata := jsonb_build_object(
        'git_ref', v_branch.branch, 'git_commit', v_branch.commit,
        'push', jsonb_strip_nulls(jsonb_build_object('forge', p_forge, 'delivery', p_delivery)));
    return v_nothing || jsonb_build_object(
        'message', format('push to %s', v_branch.branch),
        'runs', (
            select coalesce(jsonb_agg(
                ops_private.queue_push(p_project_id, e.name, v_metadata, p_digest)
                order by e.place), '[]'::jsonb)
            from jsonb_array_elements_text(v_names) with ordinality as e (name, place)));
end
$$;

-- The body as JSON; null if it is none.
create function ops_private.body_of(p_body bytea) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return convert_from(p_body, 'UTF8')::jsonb;
exception when data_exception or program_limit_exceeded then
    return null;
end
$$;

-- The project comes with the call, or, if it is null, is the one whose repository the body names and whose secret the
-- sender knows. A wrong signature, an unknown project and a project without a secret have the same answer.
create function ops_private.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 26214400;
    v_sent record;
    v_body jsonb;
    v_project_id uuid;
begin
    v_sent := ops_private.delivery_of((
        select coalesce(jsonb_object_agg(lower(h.key), h.value), '{}'::jsonb)
        from jsonb_each(case jsonb_typeof(p_headers) when 'object' then p_headers else '{}'::jsonb end) as h));
    if v_sent.forge is null then
        return ops_private.refusal(
            'bad_argument', 'the headers name no event of GitHub, GitLab, Gitea or Forgejo');
    elsif (length(p_body) <= v_most) is not true then
        return ops_private.refusal('bad_argument', 'the body must have at most 25 MiB');
    end if;
    if p_project_id is null then
        v_body := ops_private.body_of(p_body);
        select p.id into v_project_id
        from ops.projects as p
        where p.config #>> '{push,repository}' = coalesce(
                v_body #>> '{repository,full_name}', v_body #>> '{project,path_with_namespace}')
            and ops_private.is_signed(p.id, v_sent.forge, v_sent.signature, p_body)
        order by p.slug limit 1;
    elsif ops_private.is_signed(p_project_id, v_sent.forge, v_sent.signature, p_body) then
        v_project_id := p_project_id;
        v_body := ops_private.body_of(p_body);
    end if;
    if v_project_id is null then
        return ops_private.refusal(
            'not_allowed', 'there is no such project, it has no secret, or the signature is wrong');
    elsif jsonb_typeof(v_body) is distinct from 'object' then
        return ops_private.refusal('bad_argument', 'the body must be a JSON object');
    end if;
    return ops_private.apply_push(
        v_project_id, v_sent.forge, v_sent.event, v_sent.delivery, encode(sha256(p_body), 'hex'), v_body);
end
$$;

-- A refusal has the HTTP status 403 or 400, so that the forge shows the delivery as failed.
create function ops_private.receive_webhook(p_body json) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_headers constant jsonb := nullif(current_setting('request.headers', true), '')::jsonb;
    v_answer constant jsonb := ops_private.receive_push(null, convert_to(p_body::text, 'UTF8'), v_headers);
begin
    if v_answer ? 'code' then
        perform set_config(
            'response.status', case v_answer ->> 'code' when 'not_allowed' then '403' else '400' end, true);
    end if;
    return v_answer;
end
$$;

-- The secret ------------------------------------------------------------------------------------------------

-- Sets the secret of a project's webhook; null removes it. No function returns it.
create function ops_private.set_webhook_secret(p_project_id uuid, p_secret text) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_refusal constant jsonb := ops_private.role_refusal(
        (select p.id from ops.projects as p where p.id = p_project_id), '{owner}'::text[],
        'set the secret of the webhook', 'project');
begin
    if v_refusal is not null then
        return v_refusal;
    elsif octet_length(p_secret) not between 16 and 1000 then
        return ops_private.refusal('bad_argument', 'the secret must have 16 to 1000 bytes');
    elsif p_secret is null then
        delete from ops_private.webhooks as h where h.project_id = p_project_id;
        return jsonb_build_object('success', true, 'set', false);
    end if;
    insert into ops_private.webhooks (project_id, secret, set_at, set_by)
    values (p_project_id, p_secret, ops_private.current_time(), ops_private.actor())
    on conflict (project_id) do update
    set secret = excluded.secret, set_at = excluded.set_at, set_by = excluded.set_by;
    return jsonb_build_object('success', true, 'set', true);
end
$$;

-- What an API exposes ---------------------------------------------------------------------------------------

create function ops.set_webhook_secret(p_project_id uuid, p_secret text default null) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.set_webhook_secret(p_project_id, p_secret);

create function ops.receive_push(p_project_id uuid, p_body bytea, p_headers jsonb) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.receive_push(p_project_id, p_body, p_headers);

-- For PostgREST: POST /rpc/receive_webhook. The type json keeps the text of the body as it was sent.
create function ops.receive_webhook(json) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp
return ops_private.receive_webhook($1);

-- Grants ----------------------------------------------------------------------------------------------------

-- The role of an API that receives webhooks and nothing else: `db-anon-role` of a PostgREST of its own. anon stays
-- without any right.
do $$
begin
    if not exists (select from pg_catalog.pg_roles as r where r.rolname = 'ops_webhook') then
        create role ops_webhook nologin;
    end if;
exception when duplicate_object or unique_violation then
    null;
end
$$;

revoke execute on all functions in schema ops_private from public;
revoke execute on function ops.set_webhook_secret, ops.receive_push, ops.receive_webhook from public;

grant usage on schema ops to ops_webhook;
grant execute on function
    ops.receive_push, ops.receive_webhook, ops_private.receive_push, ops_private.receive_webhook
to ops_webhook, service_role;
grant execute on function ops.set_webhook_secret, ops_private.set_webhook_secret to authenticated, service_role;
