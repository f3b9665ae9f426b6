-- The log store: how a line is found again, and in which partition it is.
--
-- A line has no entry in a full-text index, which would cost three times as much as the line. Instead, a row of
-- ops_private.log_blocks has the words of 250 lines of one run. A search compares the query with the lines of those
-- blocks that have all words of the query, newest block first, until its page is full. The lines that are in no block
-- yet, the tail of a log, are compared too. In blocks of 1,000 lines two words would more often meet by chance: where
-- each of them is in every such block, finding both took 5 to 8 times as long, for 6 bytes less of a line.
--
-- A word of a block is a run of a-z and 0-9, or of characters beyond ASCII, in a lexeme of a line. Lexemes contain
-- more (a-b.example/c), but a program that is not PostgreSQL could not split a text into the same lexemes.
--
-- ops.run_logs has a partition for each week, by the ids of the runs, which begin with their time. Old lines are
-- deleted with their partition, at once, and the disk has its room again. Lines of runs whose week has no partition
-- are in ops_private.run_logs_other: of runs whose id another program chose, or that came before the first worker.

-- Words -----------------------------------------------------------------------------------------------------

create function ops_private.words(p_lexemes text[]) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select m.word[1]
        from regexp_matches(array_to_string(p_lexemes, ' ') collate "C", '[a-z0-9]+|[^\x01-\x7f]+', 'g') as m (word));
end
$$;

-- The words of lines that are joined by newlines. "<" begins a tag for PostgreSQL, which may end in another line.
create function ops_private.words_of_lines(p_lines text) returns text[]
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return ops_private.words(tsvector_to_array(to_tsvector('simple', translate(p_lines, '<', ' '))));
end
$$;

-- The words that a block must have if one of its lines matches the query. Each block has its project as a word.
-- querytree leaves out what follows a "not"; its text has lexemes in quotes, and operators.
create function ops_private.words_of_query(p_query tsquery, p_project_id uuid) returns tsquery
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
declare
    v_any constant text := quote_literal(p_project_id);
    v_words text;
begin
    select string_agg(
        case when left(t.part[1], 1) = '''' then coalesce(
            (select '(' || string_agg(quote_literal(w.word), ' & ') || ')'
             from unnest(ops_private.words(array[t.part[1]])) as w (word)),
            v_any)
        else regexp_replace(t.part[1], '<(-|\d+)>', '&', 'g') end, '' order by t.place) into v_words
    from regexp_matches(querytree(p_query), '''(?:[^'']|'''')*''|[^'']+', 'g') with ordinality as t (part, place);
    return v_any::tsquery && case v_words when 'T' then v_any else v_words end::tsquery;
end
$$;

-- Blocks ----------------------------------------------------------------------------------------------------

create table ops_private.log_blocks (
    run_id uuid not null references ops.runs (id) on delete cascade,
    first_seq bigint not null,
    last_seq bigint not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    lines integer not null,
    words tsvector not null,
    primary key (run_id, first_seq)
);

create index log_blocks_words_idx on ops_private.log_blocks using gin (words);

-- Of each log with lines that are in no block: the first of them, and how many lines of these levels the whole log has.
-- The row is also what the appends to one log lock, so that they take turns; a heartbeat locks the lease, and waits for
-- none of them.
create table ops_private.log_tails (
    run_id uuid primary key references ops.runs (id) on delete cascade,
    project_id uuid not null,
    from_seq bigint not null default 1,
    warnings integer not null default 0,
    errors integer not null default 0
) with (fillfactor = 50);

create index log_tails_project_idx on ops_private.log_tails (project_id);

-- Logs that were stored before these tables existed.
insert into ops_private.log_tails (run_id, project_id)
select r.id, r.project_id from ops.runs as r where exists (select from ops.run_logs as g where g.run_id = r.id);

-- Makes the appends to one log take turns, so that each reads the position that the one before it left. Like check_run,
-- it waits at most 3 s. Returns the first line that is in no block.
create function ops_private.lock_log(p_run_id uuid, p_project_id uuid) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '3s'
as $$
declare
    v_from bigint;
begin
    select t.from_seq into v_from from ops_private.log_tails as t where t.run_id = p_run_id for update;
    if not found then
        insert into ops_private.log_tails (run_id, project_id) values (p_run_id, p_project_id)
        on conflict (run_id) do nothing;
        select t.from_seq into v_from from ops_private.log_tails as t where t.run_id = p_run_id for update;
    end if;
    return v_from;
end
$$;

-- Writes blocks for the lines of a run with numbers from p_from on and below p_before: at most 250 lines and about
-- 256 KiB each, since a tsvector holds at most 1 MiB.
create function ops_private.add_log_blocks(p_run_id uuid, p_project_id uuid, p_from bigint, p_before bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
begin
    insert into ops_private.log_blocks (run_id, first_seq, last_seq, first_at, last_at, lines, words)
    select p_run_id, min(g.seq), max(g.seq), min(g."timestamp"), max(g."timestamp"), count(*),
        array_to_tsvector(
            ops_private.words_of_lines(string_agg(g.message, E'\n' order by g.seq)) || p_project_id::text)
    from (
        select x.seq, x."timestamp", left(x.message, 1000) as message,
            (row_number() over seqs - 1) / 250 as number,
            sum(octet_length(left(x.message, 1000)) + 1) over seqs / 262144 as size
        from ops.run_logs as x
        where x.run_id = p_run_id and x.seq >= p_from and x.seq < p_before
        window seqs as (order by x.seq)
    ) as g
    group by g.number, g.size;
end
$$;

-- Puts the tail of an ended run's log into blocks, at most 10,000 lines at a time. ops.reap continues, and does it for a
-- log that another transaction writes to now.
create function ops_private.close_log(p_run_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
    v_tail ops_private.log_tails;
    v_next bigint;
begin
    select t.* into v_tail from ops_private.log_tails as t where t.run_id = p_run_id for update skip locked;
    if not found then
        return;
    end if;
    select g.seq into v_next from ops.run_logs as g
    where g.run_id = p_run_id and g.seq >= v_tail.from_seq order by g.seq offset 10000 limit 1;
    perform ops_private.add_log_blocks(
        p_run_id, v_tail.project_id, v_tail.from_seq, coalesce(v_next, 9223372036854775807));
    if v_next is null then
        delete from ops_private.log_tails as t where t.run_id = p_run_id;
    else
        update ops_private.log_tails as t set from_seq = v_next where t.run_id = p_run_id;
    end if;
end
$$;

create function ops_private.close_ended_logs() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    perform ops_private.close_log(e.run_id) from (
        select t.run_id from ops_private.log_tails as t join ops.runs as r on r.id = t.run_id
        where ops_private.is_final(r.status) limit 20
    ) as e;
end
$$;

-- Takes the lines of a run from p_seq on out of its blocks, since a line was written that no block knows.
create function ops_private.reopen_log(p_run_id uuid, p_project_id uuid, p_seq bigint) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_from bigint;
begin
    with gone as (
        delete from ops_private.log_blocks as b where b.run_id = p_run_id and b.last_seq >= p_seq returning b.first_seq
    )
    select least(min(g.first_seq), p_seq) into v_from from gone as g;
    insert into ops_private.log_tails as t (run_id, project_id, from_seq)
    select p_run_id, p_project_id, case when exists (
        select from ops_private.log_blocks as b where b.run_id = p_run_id
    ) then v_from else 1 end
    on conflict (run_id) do update set from_seq = excluded.from_seq where t.from_seq > excluded.from_seq;
end
$$;

-- Lines that other programs write ---------------------------------------------------------------------------

-- Does for a log line what a foreign key does for others: its run exists, and is not deleted before the line is stored.
-- And takes the line into the tail of the log, so that a search finds it.
create function ops_private.set_run_of_line() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    select r.project_id into new.project_id from ops.runs as r where r.id = new.run_id for key share;
    if not found then
        raise exception 'there is no run %', new.run_id using errcode = 'foreign_key_violation';
    end if;
    perform ops_private.reopen_log(new.run_id, new.project_id, new.seq);
    return new;
end
$$;

-- The two functions that append have locked the run and its tail, so they do not call the trigger for each line.
create trigger set_run_of_line before insert on ops.run_logs
    for each row when (current_setting('ops.appending', true) is distinct from 'on')
    execute function ops_private.set_run_of_line();
create trigger set_run_of_changed_line before update of run_id, project_id, seq, message on ops.run_logs
    for each row execute function ops_private.set_run_of_line();

-- Without the setting, a plan that was made while the table was empty could read all of it for each run.
create function ops_private.delete_run_logs() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
begin
    delete from ops.run_logs as g where g.run_id = old.id;
    return null;
end
$$;

create trigger delete_run_logs after delete on ops.runs
    for each row execute function ops_private.delete_run_logs();

-- Search ----------------------------------------------------------------------------------------------------

-- Raises an error if the arguments of a search are wrong.
create function ops_private.check_search(
    p_query tsquery, p_project_id uuid, p_run_id uuid, p_limit integer,
    p_before timestamptz, p_before_run_id uuid, p_before_seq bigint
) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if num_nonnulls(p_project_id, p_run_id) <> 1 then
        raise exception 'a search has either a project_id or a run_id' using errcode = 'invalid_parameter_value';
    elsif numnode(p_query) > 0 is not true then
        raise exception 'the query needs a word' using errcode = 'invalid_parameter_value';
    elsif (p_limit between 1 and 1000) is not true then
        raise exception 'the limit must be from 1 to 1000' using errcode = 'invalid_parameter_value';
    elsif num_nonnulls(p_before, p_before_run_id, p_before_seq) not in (0, 3) then
        raise exception 'before, before_run_id and before_seq go together: they are those of the last line'
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;

-- PostgreSQL applies row policies before an operator that is not leakproof, such as @@, so no index could be used. So
-- this function bypasses the policies and checks the membership itself.
--
-- A block is read only if it can hold a newer line than the last of a full page. Within a block, the lines are compared
-- newest first (`offset 0` keeps the sort below the comparison), and only those that contain the words as text: to
-- make the lexemes of a line costs 6 µs.
create function ops_private.search_run_logs(
    p_query text,
    p_project_id uuid,
    p_run_id uuid,
    p_limit integer,
    p_before timestamptz,
    p_before_run_id uuid,
    p_before_seq bigint
) returns table (
    run_id uuid,
    run_number integer,
    seq bigint,
    "timestamp" timestamptz,
    log_level text,
    message text
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
    v_query constant tsquery := websearch_to_tsquery('simple', p_query);
    v_before constant timestamptz := coalesce(p_before, 'infinity');
    v_project_id constant uuid := coalesce(
        p_project_id, (select r.project_id from ops.runs as r where r.id = p_run_id));
    v_words tsquery;
    v_texts text[] := array['%'];
    v_block record;
    v_new ops.run_logs[];
    v_found ops.run_logs[] := array[]::ops.run_logs[];
begin
    perform ops_private.check_search(
        v_query, p_project_id, p_run_id, p_limit, p_before, p_before_run_id, p_before_seq);
    if not ops_private.trusted()
        and (v_project_id = any (array(select ops_private.my_projects()))) is not true then
        return;
    end if;
    v_words := ops_private.words_of_query(v_query, v_project_id);
    if v_words::text !~ '\|' then
        v_texts := array(
            select '%' || m.word[1] || '%' from regexp_matches(v_words::text, '''([a-z0-9]+)''', 'g') as m (word));
    end if;

    for v_block in
        select b.run_id, b.first_seq, b.last_seq, b.last_at
        from ops_private.log_blocks as b
        where b.words @@ v_words and (p_run_id is null or b.run_id = p_run_id) and b.first_at <= v_before
        union all
        select t.run_id, t.from_seq, 9223372036854775807, 'infinity'
        from ops_private.log_tails as t
        where t.project_id = v_project_id and (p_run_id is null or t.run_id = p_run_id)
        order by last_at desc
    loop
        exit when cardinality(v_found) = p_limit and v_block.last_at < v_found[p_limit]."timestamp";
        v_new := array(
            select c from (
                select x.* from ops.run_logs as x
                where x.run_id = v_block.run_id and x.seq between v_block.first_seq and v_block.last_seq
                    and (x."timestamp", x.run_id, x.seq) < (
                        v_before, coalesce(p_before_run_id, x.run_id), coalesce(p_before_seq, 0))
                    and lower(x.message collate "C") like all (v_texts)
                order by x."timestamp" desc, x.seq desc offset 0
            ) as c
            where to_tsvector('simple', left(c.message, 1000)) @@ v_query
            limit p_limit);
        if v_new <> '{}' then
            v_found := array(
                select f from unnest(v_found || v_new) as f
                order by f."timestamp" desc, f.run_id desc, f.seq desc limit p_limit);
        end if;
    end loop;
    return query
        select f.run_id, r.run_number, f.seq, f."timestamp", f.log_level, f.message
        from unnest(v_found) with ordinality as f
        join ops.runs as r on r.id = f.run_id
        order by f.ordinality;
end
$$;

-- Partitions ------------------------------------------------------------------------------------------------

-- The lowest id that a run of this time can have.
create function ops_private.first_run_id(p_time timestamptz) returns uuid
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    return rpad(lpad(to_hex((extract(epoch from p_time) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
end
$$;

-- The time in milliseconds, then random bits (a UUID of version 7).
create function ops_private.new_run_id() returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return overlay(gen_random_uuid()::text placing
        left(ops_private.first_run_id(ops_private.current_time())::text, 14) || '7' from 1 for 15)::uuid;
end
$$;

alter table ops.runs alter column id set default ops_private.new_run_id();

-- Adds the partitions of this week and of the next two. To attach one, PostgreSQL reads all of run_logs_other under an
-- exclusive lock, so the first worker that registers adds them, before there are lines. This week's is not added to a
-- database that has lines in run_logs_other already. A partition is attached, since creating it in place would wait for
-- all readers. If a reader holds the lock for long all the same, the next call does it.
create function ops_private.add_log_partitions() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
declare
    v_week constant timestamp := date_trunc('week', ops_private.current_time() at time zone 'UTC');
    v_name text;
begin
    for v_weeks in 0 .. 2 loop
        v_name := to_char(v_week + v_weeks * interval '7 days', '"run_logs_"YYYYMMDD');
        begin
            continue when to_regclass('ops_private.' || v_name) is not null
                or not pg_try_advisory_xact_lock(hashtext('ops_private.add_log_partitions'))
                or v_weeks = 0 and exists (select from ops_private.run_logs_other);
            execute format('create table ops_private.%I (like ops.run_logs including all)', v_name);
            execute format('alter table ops_private.%I enable row level security', v_name);
            execute format(
                'alter table ops.run_logs attach partition ops_private.%I for values from (%L) to (%L)', v_name,
                ops_private.first_run_id((v_week + v_weeks * interval '7 days') at time zone 'UTC'),
                ops_private.first_run_id((v_week + (v_weeks + 1) * interval '7 days') at time zone 'UTC'));
        exception when lock_not_available or check_violation then
            null;  -- check_violation: run_logs_other has lines of this week
        end;
    end loop;
end
$$;

revoke execute on all functions in schema ops_private from public;
