#!/usr/bin/env bash
# Many clients queue and claim at once; checks that no run is lost, claimed twice or misnumbered.
#
#   concurrency.sh [--runs N] [--clients N]
#
#   --runs N      how many runs, 200 by default
#   --clients N   how many connections at once, 8 by default
#
# Run it on your own database, as the owner of the schema (on Supabase: postgres), with a direct connection or the session
# pooler. The URL is read from OPS_WORKER_DATABASE_URL, else DATABASE_URL, else SUPABASE_URL. The script creates a project,
# and deletes it with all its runs at the end. Its runs have a label that no worker offers, so no worker executes them. It
# refuses to start while other runs are queued.
#
# Exit codes: 0 every check passed, 1 a check failed, 2 wrong arguments, 5 other runs are queued, 6 the database
# refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/odooops/common.sh"

runs=200 clients=8 project=''

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --runs | --clients)
            need_value "$@"
            need_number "$1" "$2"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        *) usage_error "unknown argument '$1'" ;;
    esac
done
[ "$runs" -gt 0 ] && [ "$clients" -gt 0 ] || usage_error "--runs and --clients must be at least 1"

# at_once FUNCTION: runs FUNCTION with the client's number in one process for each client, and prints all output.
at_once() {
    local pids=() pid code=0 n
    for ((n = 1; n <= clients; n++)); do
        "$1" "$n" > "$folder/$n" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    [ $code -eq 0 ] || die $code "a client failed"
    for ((n = 1; n <= clients; n++)); do cat "$folder/$n"; done
}

# Client n queues its share, each run in a separate transaction.
queue() {
    local share=$((runs / clients + ($1 <= runs % clients)))
    query --set project="$project" --set workflow="$workflow" --set share="$share" << 'SQL'
select format('insert into ops.runs (project_id, workflow_id, status) values (%L, %L, %L)', :'project', :'workflow', 'queued')
from generate_series(1, :'share'::integer) \gexec
SQL
}

# Client n claims until no run is left, each in a separate transaction, and prints their ids.
claim() {
    query --set worker="$project-$1" --set label="$project" --set tries="$runs" << 'SQL' | sed '/^$/d'
select format('select ops.claim_next_run(%L, p_labels => array[%L]) ->> %L', :'worker', :'label', 'run_id')
from generate_series(1, :'tries'::integer) \gexec
SQL
}

claim_one() {
    query --set worker="$project-$1" --set label="$project" << 'SQL' | sed '/^$/d'
select ops.claim_next_run(:'worker', p_labels => array[:'label']) ->> 'run_id';
SQL
}

# value SQL: prints the answer of a query about the project.
value() { query --set project="$project" <<< "$1"; }

# expect WHAT FOUND EXPECTED
expect() {
    [ "$2" = "$3" ] || die $EX_NEGATIVE "not ok: $1: expected $3, found $2"
    printf 'ok      %s\n' "$1"
}

clean_up() {
    rm -rf "$folder"
    [ -z "$project" ] || value "delete from ops.projects where id = :'project';"
}

find_database
others=$(query <<< "select count(*) from ops.runs where status = 'queued' and labels = '{}';")
[ "$others" = 0 ] || die $EX_REFUSED "other runs are queued ($others): use a database without queued runs"
folder=$(mktemp -d)
trap clean_up EXIT

project=$(query << 'SQL'
select replace(gen_random_uuid()::text, '-', '') as name \gset
insert into ops.projects (workspace_key, slug, name, odoo_version)
values (:'name', :'name', 'concurrency test', '18.0') returning id;
SQL
)
workflow=$(value "insert into ops.workflows (project_id, workflow_type, name, config)
    values (:'project', 'build', 'any', jsonb_build_object('labels', array[:'project'])) returning id;")

at_once queue
expect "$runs runs queued by $clients clients at once are numbered without a gap" \
    "$(value "select count(distinct run_number) || ' from ' || min(run_number) || ' to ' || max(run_number)
        from ops.runs where project_id = :'project';")" "$runs from 1 to $runs"

at_once claim > "$folder/claimed"
expect "$clients clients that claim at once claim every run" "$(sort -u "$folder/claimed" | wc -l)" "$runs"
expect "and none of them twice" "$(sort "$folder/claimed" | uniq -d | wc -l)" 0
expect "each run was claimed in one step" "$(value "select count(*) from ops.run_events as e
    where e.project_id = :'project' and e.payload ->> 'new_status' = 'claimed';")" "$runs"

workflow=$(value "insert into ops.workflows (project_id, workflow_type, name, config) values (:'project', 'deploy', 'one',
    jsonb_build_object('labels', array[:'project'], 'concurrency_key', 'one')) returning id;")
at_once queue
at_once claim_one > "$folder/claimed"
expect "of runs with one concurrency key one is claimed at a time" "$(wc -l < "$folder/claimed")" 1
