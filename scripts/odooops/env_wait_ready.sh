#!/usr/bin/env bash
# Waits until a run is ready or has ended, shows its log in the meantime, and prints its URL.
#
# A served run (its workflow has `serve`) is ready when its health path answers: then its URL is printed, and the run
# goes on. The URL of any other run is that of its first artifact. A served run that is canceled is waited for until it
# has stopped.
#
#   env_wait_ready.sh RUN [--timeout SECONDS] [--interval SECONDS] [--quiet]
#   env_wait_ready.sh RUN [TIMEOUT] [INTERVAL] [--quiet]
#
#   RUN                  the id that env_create.sh prints
#   --timeout SECONDS    TIMEOUT: stop waiting after this time; the run continues. Default: no limit
#   --interval SECONDS   INTERVAL: between two queries, 2 by default
#   --quiet              do not show the log
#
# The database URL is read from OPS_WORKER_DATABASE_URL, else DATABASE_URL, else SUPABASE_URL (postgresql://…, not the
# https:// address of the API).
# It prints the URL to stdout and nothing else; stdout is empty when a successful run has no artifact. The log is printed
# to stderr, without escape sequences. If the database goes away during the wait, the script waits for it.
#
# Exit codes: 0 ready or succeeded, 1 failed or no longer served, 2 wrong arguments, 3 canceled, 4 the time limit
# passed, 5 no such run, 6 the database refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run='' timeout='' interval='' lines=1000 words=()

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --timeout | --interval)
            need_value "$@"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        --quiet) lines=0 && shift ;;
        -*) usage_error "unknown argument '$1'" ;;
        *) words+=("$1") && shift ;;
    esac
done
need_words ${#words[@]} 1 3 "RUN [TIMEOUT] [INTERVAL]"
run=${words[0]}
[ ${#words[@]} -lt 2 ] || take_word TIMEOUT "${words[1]}" timeout
[ ${#words[@]} -lt 3 ] || take_word INTERVAL "${words[2]}" interval
need_number --timeout "${timeout:-0}"
need_number --interval "${interval:=2}"
need_run_id "$run"
find_database

# Reads the run and up to $lines new lines of its log in one snapshot. Lines that the container printed are numbered
# from 1, lines that a client appended from 2^40; both kinds can grow at the same time.
look() {
    query --set run="$run" --set journal="$journal" --set appended="$appended" --set lines="$lines" << 'SQL'
begin isolation level repeatable read read only;

with batch as (
    select l.seq
    from ops.run_logs as l
    where l.run_id = :'run'
        and (l.seq > :'journal' and l.seq < 1099511627776 or l.seq > :'appended')
    order by l.seq
    limit :'lines'
)
select
    coalesce(max(seq) filter (where seq < 1099511627776), :'journal') as journal,
    coalesce(max(seq) filter (where seq >= 1099511627776), :'appended') as appended,
    count(*) > 0 as more
from batch \gset to_

select r.status, r.run_number, r.reason, :'to_more', :'to_journal', :'to_appended',
    regexp_replace(r.claimed_by, '[[:cntrl:]]+', ' ', 'g'),
    regexp_replace(r.error_message, '[[:cntrl:]]+', ' ', 'g'),
    (select regexp_replace(a.artifact_url, '[[:cntrl:]]+', '', 'g') from ops.run_artifacts as a
     where a.run_id = r.id order by a.created_at, a.artifact_key limit 1),
    case when r.status = 'running' and r.cancel_requested_at is null then r.url end
from ops.runs as r
where r.id = :'run';

-- A program must not control the reader's terminal: colours are removed, other control characters become �.
select regexp_replace(
    regexp_replace(l.message, e'\x1b\\[[0-9;]*m|\r$', '', 'g'), e'[\x01-\x08\x0b-\x1f\x7f\u0080-\u009f]', '�', 'g')
from ops.run_logs as l
where l.run_id = :'run' and (
    l.seq > :'journal' and l.seq <= :'to_journal' or l.seq > :'appended' and l.seq <= :'to_appended')
order by l.seq;

commit;
SQL
}

# show: sets the variables of the run, prints a message when its status changed, and prints the lines. Fails as query does.
show() {
    {
        IFS=$US read -r status number reason more journal appended worker message artifact ready || status=''
        if [ -n "$status" ] && [ "$status" != "$shown" ]; then
            shown=$status
            [[ $status =~ $final ]] || say "run #$number is $status${worker:+, worker $worker}"
        fi
        cat >&2
    } < <(look)
    wait $!
}

status='' number='' reason='' more='' worker='' message='' artifact='' ready='' shown=''
final='^(succeeded|failed|canceled)$'
journal=0 appended=1099511627775

while true; do
    code=0 from=$journal from_appended=$appended
    show || code=$?
    if [ $code -ne 0 ]; then
        [ $code -eq $EX_UNREACHABLE ] && [ -n "$shown" ] || exit $code
        journal=$from appended=$from_appended
    else
        [ -n "$status" ] || die $EX_REFUSED "there is no run $run"
        if [ -n "$ready" ]; then
            say "run #$number is ready"
            printf '%s\n' "$ready"
            exit 0
        fi
        [ "$more" != t ] || continue
        [[ ! $status =~ $final ]] || break
    fi
    [ -z "$timeout" ] || [ $SECONDS -lt "$timeout" ] || die $EX_TIMEOUT "run #$number is still $shown after $timeout s"
    sleep "$interval"
done

case $status in
    succeeded)
        [ "$reason" != ttl ] || die $EX_NEGATIVE "run #$number is no longer served: its time is over (serve.ttl_seconds)"
        say "run #$number succeeded"
        [ -z "$artifact" ] || printf '%s\n' "$artifact"
        ;;
    failed) die $EX_NEGATIVE "run #$number failed ($reason): $message" ;;
    canceled) die $EX_CANCELED "run #$number was canceled${message:+: $message}" ;;
esac
