#!/usr/bin/env bash
# Queues a run, such as an environment that stays, and prints its id.
#
#   env_create.sh --project SLUG --type TYPE [--workflow NAME] [--ref REF] [--commit SHA] [--key KEY]
#   env_create.sh PROJECT TYPE REF SHA [ENVIRONMENT] [--key KEY]
#
#   --project SLUG    PROJECT: the project
#   --type TYPE       TYPE: build, test, deploy, backup or upgrade
#   --workflow NAME   ENVIRONMENT: the workflow, where the project has several of that type
#   --ref REF         REF: branch or tag; default: the workflow's
#   --commit SHA      SHA: 7 to 64 hexadecimal digits; default: the workflow's, if no --ref is given
#   --key KEY         an idempotency key of the project: the same call again prints the id of the same run
#
# ENVIRONMENT is the name of a workflow. A project that deploys to staging and to production has one workflow of type
# deploy for each, because image, secrets and limits belong to the workflow. A run cannot choose them. A workflow with
# `serve` in its configuration makes an environment that stays: env_wait_ready.sh prints its URL, env_destroy.sh ends it.
#
# The database URL is read from OPS_WORKER_DATABASE_URL, else DATABASE_URL, else SUPABASE_URL (postgresql://…, not the
# https:// address of the API).
# It prints the run's id to stdout and nothing else.
#
# Exit codes: 0 queued, 2 wrong arguments, 5 no such project or workflow, or the key belongs to another run, 6 the
# database refused, 7 it cannot be reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

project='' type='' workflow='' ref='' commit='' key='' words=()

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --project | --type | --workflow | --ref | --commit | --key)
            need_value "$@"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        -*) usage_error "unknown argument '$1'" ;;
        *) words+=("$1") && shift ;;
    esac
done
if [ ${#words[@]} -gt 0 ]; then
    need_words ${#words[@]} 4 5 "PROJECT TYPE REF SHA [ENVIRONMENT]"
    take_word PROJECT "${words[0]}" project
    take_word TYPE "${words[1]}" type
    take_word REF "${words[2]}" ref
    take_word SHA "${words[3]}" commit
    [ ${#words[@]} -eq 4 ] || take_word ENVIRONMENT "${words[4]}" workflow
fi
[ -n "$project" ] || usage_error "--project is missing"
[[ $type =~ ^(build|test|deploy|backup|upgrade)$ ]] ||
    usage_error "--type: expected build, test, deploy, backup or upgrade, got '$type'"
commit=${commit,,}
[[ $commit =~ ^([0-9a-f]{7,64})?$ ]] || usage_error "--commit: expected 7 to 64 hexadecimal digits, got '$commit'"
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
[ "$count" = 1 ] || die $EX_REFUSED "project $project has several workflows of type $type: choose one with --workflow: $names"

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
