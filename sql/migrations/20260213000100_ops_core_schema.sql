-- The nine tables of the control plane, and the machinery behind them.
--
-- A project has workflows. Queueing a workflow creates a run, and one run is one attempt. Three tables hold the output
-- of a run: run_events (its history), run_logs (what its container printed), run_artifacts (the files that it stored).
-- tools names the image that a workflow runs in, upgrade_advisories lists known problems between two versions, and
-- project_memberships gives each user a role in a project. The schema ops holds exactly these nine tables. Counters,
-- leases and the registry of workers are in ops_private, which no API exposes.

create schema if not exists ops;
create schema if not exists ops_private;

create table ops.projects (
    id uuid primary key default gen_random_uuid(),
    workspace_key text not null unique,
    slug text not null unique,
    name text not null,
    description text,
    odoo_version text not null,
    status text not null default 'active' check (status in ('active', 'archived')),
    config jsonb not null default '{}' check (jsonb_typeof(config) = 'object'),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table ops.workflows (
    id uuid primary key default gen_random_uuid(),
    project_id uuid not null references ops.projects (id) on delete cascade,
    workflow_type text not null check (workflow_type in ('build', 'test', 'deploy', 'backup', 'upgrade')),
    name text not null,
    description text,
    enabled boolean not null default true,
    git_ref text,
    git_commit text,
    config jsonb not null default '{}' check (jsonb_typeof(config) = 'object'),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (project_id, workflow_type, name),
    unique (project_id, id)
);

-- Half of each page is left for updates. With a fillfactor of 70, one update in 40 found no room in its page and wrote
-- all indexes, and a claim took a tenth longer.
create table ops.runs (
    id uuid primary key default gen_random_uuid(),
    project_id uuid not null references ops.projects (id) on delete cascade,
    workflow_id uuid not null,
    run_number integer not null,
    idempotency_key text unique,
    status text not null default 'queued',
    claimed_by text,
    claimed_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    exit_code integer,
    error_message text,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    priority integer not null default 0,
    labels text[] not null default '{}',
    concurrency_key text,
    scheduled_at timestamptz,
    cancel_requested_at timestamptz,
    claim_count integer not null default 0,
    claimed_instance uuid,
    created_by uuid,
    retry_of uuid references ops.runs (id) on delete set null,
    attempt integer not null default 1,
    reason text,
    container_id text,
    warnings integer not null default 0,
    errors integer not null default 0,
    tests jsonb,
    parent_run_id uuid references ops.runs (id) on delete set null,
    approval text,
    wanted_until timestamptz,
    ready_at timestamptz,
    url text,
    unique (project_id, run_number),
    constraint runs_workflow_of_project_fkey foreign key (project_id, workflow_id)
        references ops.workflows (project_id, id) on delete cascade
) with (fillfactor = 50);

comment on column ops.runs.run_number is 'Counts 1, 2, 3 and so on within the project, without gaps.';
comment on column ops.runs.status is 'One of queued, claimed, running, succeeded, failed and canceled.';
comment on column ops.runs.scheduled_at is 'The earliest time of a claim; null when the run is due.';
comment on column ops.runs.claim_count is 'How many claims and adoptions the run had; a released claim does not count.';
comment on column ops.runs.created_by is 'The signed-in user who queued the run; null for other callers.';
comment on column ops.runs.reason is 'The reason of the last change of status, in one word.';
comment on column ops.runs.container_id is 'The container of the run; a run has at most one.';
comment on column ops.runs.warnings is 'How many lines of level warn the log had when the run ended; errors: of level error.';
comment on column ops.runs.ready_at is 'When a served run answered for the first time; url: where it answers until it ends.';
comment on column ops.runs.tests is
    'Of the JUnit files in /artifacts: how many tests passed, failed, were skipped, and the first failing names.';

comment on column ops.runs.parent_run_id is 'The run whose success queued this one, by `then` in its workflow.';
comment on column ops.runs.approval is 'Null: it needs none. Else one of pending, approved, rejected and expired.';
comment on column ops.runs.wanted_until is 'A run that is still queued at this time is canceled.';

-- project_id repeats the project of the run, so that row policies need no join; a trigger fills it.
create table ops.run_events (
    id uuid primary key default gen_random_uuid(),
    run_id uuid not null references ops.runs (id) on delete cascade,
    event_type text not null,
    message text not null,
    payload jsonb not null default '{}',
    created_at timestamptz not null default now(),
    seq bigint generated always as identity,
    project_id uuid not null
);

comment on column ops.run_events.event_type is 'One of state_change, error, warning and info.';

create table ops.run_artifacts (
    id uuid primary key default gen_random_uuid(),
    run_id uuid not null references ops.runs (id) on delete cascade,
    artifact_key text not null,
    artifact_url text not null,
    content_type text,
    size_bytes bigint,
    checksum text,
    expires_at timestamptz,
    metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz not null default now(),
    project_id uuid not null,
    unique (run_id, artifact_key)
);

-- The file summary.md in /artifacts. Not a column of ops.runs, whose rows Realtime sends.
create table ops_private.run_summaries (
    run_id uuid primary key references ops.runs (id) on delete cascade,
    summary text not null check (octet_length(summary) <= 1048576)
);

-- Lines of the container's journal have numbers from 1. A line without a number gets one from this sequence. Its first
-- value is 2^40, which no journal reaches.
create sequence ops_private.run_log_seq as bigint start with 1099511627776 minvalue 1099511627776;

-- The hot table: a foreign key would cost as much per line as all else. A trigger checks what is not written by
-- ops.append_run_logs, and another deletes the lines of a deleted run.
create table ops.run_logs (
    run_id uuid not null,
    seq bigint not null default nextval('ops_private.run_log_seq') check (seq > 0),
    log_level text not null check (log_level in ('debug', 'info', 'warn', 'error')),
    message text not null check (octet_length(message) <= 65600),
    metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
    "timestamp" timestamptz not null default now(),
    stream text check (stream in ('stdout', 'stderr')),
    created_at timestamptz not null default now(),
    project_id uuid not null,
    primary key (run_id, seq)
) partition by range (run_id);

create table ops_private.run_logs_other partition of ops.run_logs default;

-- The lines that a reader looks for in a log of any length: warnings and errors, and the marks of groups. Most lines are
-- in neither index.
create index run_logs_levels_idx on ops.run_logs (run_id, log_level, seq) where log_level in ('warn', 'error');
create index run_logs_marks_idx on ops.run_logs (run_id, seq)
    where message like '::group::%' or message like '::endgroup::%';

comment on column ops.run_logs."timestamp" is 'The time at which the line was written, not stored.';
comment on column ops.run_logs.seq is
    'The number of the line in the container''s journal; a line that is not from the journal has 2^40 or more.';

create table ops.tools (
    id uuid primary key default gen_random_uuid(),
    tool_name text not null,
    version text not null,
    docker_image text not null,
    config jsonb not null default '{}' check (jsonb_typeof(config) = 'object'),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (tool_name, version)
);

create table ops.upgrade_advisories (
    id uuid primary key default gen_random_uuid(),
    from_version text not null,
    to_version text not null,
    severity text not null check (severity in ('low', 'medium', 'high', 'critical')),
    title text not null,
    description text,
    migration_guide text,
    affects_modules text[] not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table ops.project_memberships (
    id uuid primary key default gen_random_uuid(),
    project_id uuid not null references ops.projects (id) on delete cascade,
    user_id uuid not null,
    role text not null check (role in ('owner', 'admin', 'developer', 'viewer')),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    given_by uuid,
    unique (project_id, user_id)
);

comment on column ops.project_memberships.given_by is
    'The signed-in user who gave this role; null for other callers. The last owner may leave if another user gave it.';

-- A plain PostgreSQL has no auth.users.
do $$
begin
    if pg_catalog.to_regclass('auth.users') is not null then
        alter table ops.project_memberships
            add constraint project_memberships_user_id_fkey
            foreign key (user_id) references auth.users (id) on delete cascade;
    end if;
end
$$;

-- One row: the identity of this database. Containers carry it, because databases may share an engine. The database gets
-- its identity when its first worker registers. A copy of it has another fingerprint, and gets a new identity when a
-- worker registers there.
create table ops_private.control (
    singleton boolean primary key default true check (singleton),
    database_id uuid not null default gen_random_uuid(),
    fingerprint text,
    max_lost_leases integer not null default 5 check (max_lost_leases > 0),
    max_queued_runs integer not null default 100000 check (max_queued_runs > 0),
    paused_at timestamptz,
    paused_by text,
    pause_reason text check (octet_length(pause_reason) <= 10000)
);

comment on column ops_private.control.max_lost_leases is
    'A run is quarantined when more workers than this were lost with it in a row, over a minute or more.';
comment on column ops_private.control.max_queued_runs is
    'How many runs of one project may be queued at once. Retries by the database are not refused, but they count.';

insert into ops_private.control default values;

-- The highest run number of each project. A deleted run does not free its number.
create table ops_private.run_counters (
    project_id uuid primary key references ops.projects (id) on delete cascade,
    last integer not null check (last >= 0),
    counted integer not null default 0
);

comment on column ops_private.run_counters.counted is 'The run number at which the queued runs were last counted.';

-- A row exists exactly while its run is claimed or running. A heartbeat changes no indexed column, so it is a cheap
-- update in the same page.
create table ops_private.leases (
    run_id uuid primary key references ops.runs (id) on delete cascade,
    worker_id text not null,
    instance_id uuid,
    db_role text not null,
    engine_id text,
    lease_seconds integer not null check (lease_seconds > 0),
    expires_at timestamptz not null,
    renewed boolean not null default false,
    log_position bigint not null default 0,
    lost integer not null default 0,
    lost_since timestamptz,
    handed_over boolean not null default false,
    project_id uuid not null,
    concurrency_key text
) with (fillfactor = 50);

-- At most one active run of a project per concurrency key.
create unique index leases_concurrency_idx on ops_private.leases (project_id, concurrency_key)
    where concurrency_key is not null;

comment on column ops_private.leases.renewed is 'Whether the present holder has renewed the lease.';
comment on column ops_private.leases.handed_over is
    'Whether the present holder has unregistered, so that its next instance adopts the run.';
comment on column ops_private.leases.log_position is
    'The last journal line that was stored when the present holder claimed or adopted the run.';
comment on column ops_private.leases.lost is
    'How many holders in a row were lost before they stored a line, or renewed the lease of a created container.';
comment on column ops_private.leases.lost_since is 'When the first of these losses was noticed.';

create table ops_private.workers (
    worker_id text primary key,
    instance_id uuid not null,
    db_role text not null,
    host_id text,
    engine_id text,
    version text,
    labels text[] not null default '{}',
    started_at timestamptz not null,
    expires_at timestamptz not null,
    disk_free bigint check (disk_free >= 0),
    disk_total bigint check (disk_total >= 0),
    constraint workers_texts_fit check (
        octet_length(worker_id) <= 200 and octet_length(host_id) <= 1000 and octet_length(engine_id) <= 1000
        and octet_length(version) <= 1000 and cardinality(labels) <= 1000
        and octet_length(array_to_string(labels, '')) <= 100000)
) with (fillfactor = 50);

comment on column ops_private.workers.disk_free is
    'Bytes on the fullest of the engine''s disks, when the worker last renewed; null if it cannot see them.';

-- A worker id belongs to the database role that registered it first, as long as that role exists, even when no worker
-- uses the id. Otherwise a host could take the id of a stopped worker of another host. For the same reason a worker that
-- is drained stays so when it starts again.
create table ops_private.worker_ids (
    worker_id text primary key,
    db_role text not null,
    drained_at timestamptz,
    drained_by text,
    drain_reason text check (octet_length(drain_reason) <= 10000)
);

comment on column ops_private.worker_ids.drained_at is
    'Since when the worker claims no runs; null if it is not drained (ops.drain_worker).';

-- Runs that ended while another transaction held the locks that their retry, or the next run of their chain, needs;
-- ops.reap queues it.
create table ops_private.pending_retries (
    run_id uuid primary key references ops.runs (id) on delete cascade
);
