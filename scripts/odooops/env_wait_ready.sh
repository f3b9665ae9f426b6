#!/usr/bin/env bash
# Waits until a run has ended, shows its log meanwhile, and prints the URL of its first artifact.
#
#   env_wait_ready.sh RUN_ID [--timeout SECONDS] [--interval SECONDS] [--quiet]
#
#   --timeout SECONDS    give up waiting then; the run goes on. Default: wait as long as it takes
#   --interval SECONDS   between two looks, 2 by default
#   --quiet              without the log
#
# The database is in OPS_WORKER_DATABASE_URL, else in DATABASE_URL, else in SUPABASE_URL (postgresql://…, not the
# https:// address of the API).
# stdout has the URL and nothing else, and is empty when a successful run left no artifact; the log goes to stderr,
# without escape sequences. A database that goes away while it waits is waited for.
#
# Exit codes: 0 succeeded, 1 failed, 2 wrong arguments, 3 canceled, 4 the time is up, 5 no such run, 6 the
# database refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run='' timeout='' interval=2 lines=1000

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --timeout | --interval)
            need_value "$@"
            need_number "$1" "$2"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        --quiet) lines=0 && shift ;;
        -*) usage_error "unknown argument '$1'" ;;
        *)
            [ -z "$run" ] || usage_error "one run at a time"
            run=$1 && shift
            ;;
    esac
done
need_run_id "$run"
find_database

# The run as it is, and up to $lines new lines of its log, of one moment. Lines that the container printed are
# numbered from 1, those that a client appended from 2^40 on; both kinds go on side by side.
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
     where a.run_id = r.id order by a.created_at, a.artifact_key limit 1)
from ops.runs as r
where r.id = :'run';

-- Who controls the program must not control the terminal: colours go, other control characters show.
select regexp_replace(
    regexp_replace(l.message, e'\x1b\\[[0-9;]*m|\r$', '', 'g'), e'[\x01-\x08\x0b-\x1f\x7f\u0080-\u009f]', '�', 'g')
from ops.run_logs as l
where l.run_id = :'run' and (
    l.seq > :'journal' and l.seq <= :'to_journal' or l.seq > :'appended' and l.seq <= :'to_appended')
order by l.seq;

commit;
SQL
}

# show: sets what is known of the run, says when its status changed, and shows the lines. Fails as query does.
show() {
    {
        IFS=$US read -r status number reason more journal appended worker message artifact || status=''
        if [ -n "$status" ] && [ "$status" != "$shown" ]; then
            shown=$status
            [[ $status =~ $final ]] || say "run #$number is $status${worker:+, worker $worker}"
        fi
        cat >&2
    } < <(look)
    wait $!
}

status='' number='' reason='' more='' worker='' message='' artifact='' shown=''
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
        [ "$more" != t ] || continue
        [[ ! $status =~ $final ]] || break
    fi
    [ -z "$timeout" ] || [ $SECONDS -lt "$timeout" ] || die $EX_TIMEOUT "run #$number is still $shown after $timeout s"
    sleep "$interval"
done

case $status in
    succeeded)
        say "run #$number succeeded"
        [ -z "$artifact" ] || printf '%s\n' "$artifact"
        ;;
    failed) die $EX_NEGATIVE "run #$number failed ($reason): $message" ;;
    canceled) die $EX_CANCELED "run #$number was canceled${message:+: $message}" ;;
esac
