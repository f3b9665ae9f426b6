#!/usr/bin/env bash
# Cancels a run, and so ends a served environment. A waiting run is canceled at once; for a running one, its worker is
# asked to stop it.
#
#   env_destroy.sh RUN [--reason TEXT]
#
# RUN is the id that env_create.sh prints. The log, the events and the artifacts of the run are kept.
# `env_wait_ready.sh RUN` waits until a running one has stopped, and then exits with code 3.
#
# The database URL is read from OPS_WORKER_DATABASE_URL, else DATABASE_URL, else SUPABASE_URL (postgresql://…, not the
# https:// address of the API).
# It prints the status to stdout: canceled, or running if the worker was asked to stop it.
#
# Exit codes: 0 canceled or asked, 2 wrong arguments, 5 no such run or it has already ended, 6 the database
# refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run='' reason='' words=()

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --reason)
            need_value "$@"
            reason=$2
            shift 2
            ;;
        -*) usage_error "unknown argument '$1'" ;;
        *) words+=("$1") && shift ;;
    esac
done
need_words ${#words[@]} 1 1 RUN
run=${words[0]}
need_run_id "$run"
find_database

answer=$(query --set run="$run" --set reason="$reason" << 'SQL'
select a ->> 'success', a ->> 'status', coalesce(a ->> 'message', a ->> 'error')
from ops.cancel_run(:'run', nullif(:'reason', '')) as a;
SQL
)
IFS=$US read -r success status message <<< "$answer"
[ "$success" = true ] || die $EX_REFUSED "run $run: $message"
say "$message"
printf '%s\n' "$status"
