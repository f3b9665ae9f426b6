-- The tables of a run as they were when the marks of the benchmark were set, with their checks, keys and indexes, and
-- without triggers and functions: what the plain SQL of the baseline writes to. They do not follow the schema.

create schema plain;

create table plain.runs (
    id uuid default gen_random_uuid() not null,
    project_id uuid not null,
    workflow_id uuid not null,
    run_number integer not null,
    idempotency_key text,
    status text default 'queued'::text not null,
    claimed_by text,
    claimed_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    exit_code integer,
    error_message text,
    metadata jsonb default '{}'::jsonb not null,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    priority integer default 0 not null,
    labels text[] default '{}'::text[] not null,
    concurrency_key text,
    scheduled_at timestamp with time zone,
    cancel_requested_at timestamp with time zone,
    claim_count integer default 0 not null,
    claimed_instance uuid,
    created_by uuid,
    retry_of uuid,
    attempt integer default 1 not null,
    reason text,
    container_id text,
    constraint runs_attempt_check check ((attempt > 0)),
    constraint runs_claim_count_check check ((claim_count >= 0)),
    constraint runs_claimed_by_not_empty check ((claimed_by <> ''::text)),
    constraint runs_claimed_names_worker check (((status <> all (array['claimed'::text, 'running'::text])) or ((claimed_by is not null) and (claimed_at is not null)))),
    constraint runs_claimed_not_started check (((status <> 'claimed'::text) or (started_at is null))),
    constraint runs_concurrency_key_length check (((length(concurrency_key) >= 1) and (length(concurrency_key) <= 200))),
    constraint runs_container_id_length check (((octet_length(container_id) >= 1) and (octet_length(container_id) <= 200))),
    constraint runs_container_of_started check (((container_id is null) or (started_at is not null))),
    constraint runs_exit_code_of_finished check (((exit_code is null) or (finished_at is not null))),
    constraint runs_finished_at_iff_final check (((finished_at is not null) = (status = any (array['succeeded'::text, 'failed'::text, 'canceled'::text])))),
    constraint runs_labels_at_most_20_of_100_characters check (((cardinality(labels) <= 20) and (length(array_to_string(labels, ''::text)) <= 2000) and (array_to_string(labels, '
'::text) !~ '[^\n]{101}'::text))),
    constraint runs_labels_hold_no_null check ((array_position(labels, null::text) is null)),
    constraint runs_metadata_at_most_256_kib check ((octet_length((metadata)::text) <= 262144)),
    constraint runs_metadata_at_most_32_deep check ((not jsonb_path_exists(metadata, 'strict $.**{33}'::jsonpath))),
    constraint runs_metadata_check check ((jsonb_typeof(metadata) = 'object'::text)),
    constraint runs_queued_is_unclaimed check (((status <> 'queued'::text) or ((claimed_by is null) and (claimed_at is null) and (claimed_instance is null) and (started_at is null)))),
    constraint runs_reason_is_a_word check ((reason ~ '^[a-z][a-z0-9_]{0,62}$'::text)),
    constraint runs_retry_is_later_attempt check (((retry_of is null) or (attempt > 1))),
    constraint runs_run_number_check check ((run_number > 0)),
    constraint runs_scheduled_is_unclaimed check (((scheduled_at is null) or (claimed_at is null))),
    constraint runs_started_at check (((status <> all (array['running'::text, 'succeeded'::text, 'failed'::text])) or (started_at is not null))),
    constraint runs_status_check check ((status = any (array['queued'::text, 'claimed'::text, 'running'::text, 'succeeded'::text, 'failed'::text, 'canceled'::text]))),
    constraint runs_succeeded_exited_zero check (((status <> 'succeeded'::text) or (not (exit_code is distinct from 0)))),
    constraint runs_texts_fit check (((octet_length(idempotency_key) <= 300) and (octet_length(claimed_by) <= 200) and (length(error_message) <= 10000)))
);

create table plain.run_events (
    id uuid default gen_random_uuid() not null,
    run_id uuid not null,
    event_type text not null,
    message text not null,
    payload jsonb default '{}'::jsonb not null,
    created_at timestamp with time zone default now() not null,
    seq bigint generated always as identity,
    project_id uuid not null,
    constraint run_events_event_type_check check ((event_type = any (array['state_change'::text, 'error'::text, 'warning'::text, 'info'::text]))),
    constraint run_events_payload_at_most_256_kib check ((octet_length((payload)::text) <= 262144)),
    constraint run_events_payload_at_most_32_deep check ((not jsonb_path_exists(payload, 'strict $.**{33}'::jsonpath))),
    constraint run_events_payload_check check ((jsonb_typeof(payload) = 'object'::text)),
    constraint run_events_texts_fit check ((octet_length(message) <= 65600))
);

create table plain.leases (
    run_id uuid not null,
    worker_id text not null,
    instance_id uuid,
    db_role text not null,
    engine_id text,
    lease_seconds integer not null,
    expires_at timestamp with time zone not null,
    renewed boolean default false not null,
    log_position bigint default 0 not null,
    lost integer default 0 not null,
    lost_since timestamp with time zone,
    handed_over boolean default false not null,
    constraint leases_lease_seconds_check check ((lease_seconds > 0))
) with (fillfactor = 50);

alter table plain.runs
    add primary key (id),
    add unique (idempotency_key),
    add unique (project_id, run_number),
    add foreign key (project_id) references ops.projects (id) on delete cascade,
    add foreign key (project_id, workflow_id) references ops.workflows (project_id, id) on delete cascade,
    add foreign key (retry_of) references plain.runs (id) on delete set null;
alter table plain.run_events
    add primary key (id),
    add foreign key (run_id) references plain.runs (id);
alter table plain.leases
    add primary key (run_id),
    add foreign key (run_id) references plain.runs (id);

create index on plain.runs (priority desc, created_at, run_number)
    where status = 'queued' and scheduled_at is null;
create unique index on plain.runs (project_id, concurrency_key) where status in ('claimed', 'running');
create index on plain.runs (project_id) where status = 'queued';
create index on plain.runs (retry_of) where retry_of is not null;
create index on plain.runs (scheduled_at) where status = 'queued' and scheduled_at is not null;
create index on plain.runs (workflow_id);
create index on plain.run_events (run_id, seq);
