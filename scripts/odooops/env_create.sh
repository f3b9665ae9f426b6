#!/usr/bin/env bash
# Queues a run and prints its id.
#
#   env_create.sh --project SLUG --type TYPE [--workflow NAME] [--ref REF] [--commit SHA] [--key KEY]
#
#   --project SLUG    the project
#   --type TYPE       build, test, deploy, backup or upgrade
#   --workflow NAME   which one, where the project has several of that type
#   --ref REF         branch or tag; default: the workflow's
#   --commit SHA      7 to 64 hexadecimal digits; default: the workflow's, if no --ref is given
#   --key KEY         an idempotency key of the project: the same call again prints the id of the same run
#
# The database is in OPS_WORKER_DATABASE_URL, else in DATABASE_URL, else in SUPABASE_URL (postgresql://…, not the
# https:// address of the API).
# stdout has the id and nothing else.
#
# Exit codes: 0 queued, 2 wrong arguments, 5 no such project or workflow or the key is another run's, 6 the
# database refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

project='' type='' workflow='' ref='' commit='' key=''

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --project | --type | --workflow | --ref | --commit | --key)
            need_value "$@"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        *) usage_error "unknown argument '$1'" ;;
    esac
done
[ -n "$project" ] || usage_error "--project is missing"
[[ $type =~ ^(build|test|deploy|backup|upgrade)$ ]] ||
    usage_error "--type must be build, test, deploy, backup or upgrade"
commit=${commit,,}
[[ $commit =~ ^([0-9a-f]{7,64})?$ ]] || usage_error "--commit needs 7 to 64 hexadecimal digits, not '$commit'"
find_database

found=$(query --set project="$project" --set type="$type" --set workflow="$workflow" << 'SQL'
select
    (select p.status from ops.projects as p where p.slug = :'project'),
    count(*), min(w.id::text), string_agg(w.name, ', ' order by w.name)
from ops.workflows as w
join ops.projects as p on p.id = w.project_id
where p.slug = :'project' and w.workflow_type = :'type' and w.enabled
    and (:'workflow' = '' or w.name = :'workflow');
SQL
)
IFS=$US read -r state count id names <<< "$found"
[ -n "$state" ] || die $EX_REFUSED "there is no project $project"
[ "$state" = active ] || die $EX_REFUSED "project $project is $state"
[ "$count" != 0 ] || die $EX_REFUSED "project $project has no enabled workflow${workflow:+ $workflow} of type $type"
[ "$count" = 1 ] || die $EX_REFUSED "project $project has several workflows of type $type: say --workflow, one of: $names"

queued=$(query --set workflow="$id" --set ref="$ref" --set commit="$commit" --set key="$key" << 'SQL'
select a ->> 'success', a ->> 'run_id', a ->> 'run_number', a ->> 'status', a ->> 'error'
from ops.enqueue_run(
    :'workflow',
    jsonb_strip_nulls(jsonb_build_object('git_ref', nullif(:'ref', ''), 'git_commit', nullif(:'commit', ''))),
    nullif(:'key', '')) as a;
SQL
)
IFS=$US read -r success run number status error <<< "$queued"
[ "$success" = true ] || die $EX_REFUSED "$error"
say "run #$number of $project is $status${ref:+, ref $ref}${commit:+, commit $commit}"
printf '%s\n' "$run"
