#!/usr/bin/env bash
# Cancels a run: at once while it waits, else by asking its worker to stop it.
#
#   env_destroy.sh RUN_ID [--reason TEXT]
#
# What a run has left behind stays: its log, its events, its artifacts. `env_wait_ready.sh RUN_ID` waits until a
# running one has stopped, and then exits with code 3.
#
# The database is in OPS_WORKER_DATABASE_URL, else in DATABASE_URL, else in SUPABASE_URL (postgresql://…, not the
# https:// address of the API).
# stdout has the status: canceled, or running while the worker is asked.
#
# Exit codes: 0 canceled or asked, 2 wrong arguments, 5 no such run or it has already ended, 6 the database
# refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run='' reason=''

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
        *)
            [ -z "$run" ] || usage_error "one run at a time"
            run=$1 && shift
            ;;
    esac
done
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
