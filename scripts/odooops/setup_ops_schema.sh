#!/usr/bin/env bash
# Applies the migrations of sql/migrations that a database lacks, and verifies the result.
#
#   setup_ops_schema.sh [--verify-only] [--cli [--workdir FOLDER]]
#
#   --verify-only       change nothing
#   --cli               the Supabase CLI pushes the migrations; without this flag, psql applies them
#   --workdir FOLDER    the folder of your Supabase project, with supabase/ in it: the migrations are copied there and
#                       pushed with your own. Default: a temporary folder with these migrations only
#
# The database URL is read from OPS_WORKER_DATABASE_URL, else DATABASE_URL, else SUPABASE_URL (postgresql://…, not the
# https:// address of the API). Its role will own the schema: on Supabase postgres, elsewhere a superuser or a role that
# may create roles and schemas. psql, the CLI and `ops-worker db migrate` share one history
# (supabase_migrations.schema_migrations), so each continues where another stopped. Each migration is one transaction,
# under the lock that `ops-worker db migrate` takes.
#
# Exit codes: 0 the schema is complete and as expected, 1 something is missing or different, 2 wrong arguments, 5 the
# history has another migration under one of these versions, or the CLI failed, 6 the database refused, 7 it cannot be
# reached.

# shellcheck source=scripts/odooops/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

sql=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../sql" && pwd)
verify_only='' cli='' workdir=''

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) show_help ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --verify-only) verify_only=1 && shift ;;
        --cli) cli=1 && shift ;;
        --workdir)
            need_value "$@"
            workdir=$2
            shift 2
            ;;
        *) usage_error "unknown argument '$1'" ;;
    esac
done
[ -z "$workdir" ] || [ -n "$cli" ] || usage_error "--workdir goes with --cli"
[ -z "$workdir" ] || [ -d "$workdir/supabase" ] || usage_error "$workdir has no folder supabase"

# Prints version<US>name of each applied migration. Older or other tools may have left out the name.
history() {
    query << 'SQL'
select to_regclass('supabase_migrations.schema_migrations') is not null as there \gset
\if :there
select m.version, to_jsonb(m) ->> 'name' from supabase_migrations.schema_migrations as m;
\endif
SQL
}

# apply FILE VERSION NAME: applies one migration, unless another process has applied it in the meantime.
apply() {
    OPS_MIGRATION=$1 query --set ops_file="$1" --set ops_version="$2" --set ops_name="$3" << 'SQL'
begin;
select from pg_advisory_xact_lock(hashtextextended('ops-worker migrations', 0));

-- `if not exists` needs the right to create even if the object exists, so existence is checked first.
select to_regnamespace('supabase_migrations') is null as schema,
    to_regclass('supabase_migrations.schema_migrations') is null as history \gset no_
\if :no_schema
create schema supabase_migrations;
\endif
\if :no_history
create table supabase_migrations.schema_migrations (version text not null primary key);
\endif
select not exists (
    select from pg_attribute where attname = 'statements' and not attisdropped
        and attrelid = 'supabase_migrations.schema_migrations'::regclass) as statements,
    not exists (
    select from pg_attribute where attname = 'name' and not attisdropped
        and attrelid = 'supabase_migrations.schema_migrations'::regclass) as name \gset no_
\if :no_statements
alter table supabase_migrations.schema_migrations add column statements text[];
\endif
\if :no_name
alter table supabase_migrations.schema_migrations add column name text;
\endif

select exists (
    select from supabase_migrations.schema_migrations where version = :'ops_version') as ops_applied \gset
\if :ops_applied
\else
\i :ops_file
\set ops_text `cat "$OPS_MIGRATION"`
insert into supabase_migrations.schema_migrations (version, name, statements)
values (:'ops_version', :'ops_name', array[:'ops_text']);
\endif
commit;
SQL
}

apply_all() {
    local file name version found applied=0
    found=$(history)
    for file in "$sql"/migrations/*.sql; do
        name=$(basename "$file" .sql)
        version=${name%%_*}
        name=${name#*_}
        if grep -q -x -F -e "$version$US$name" -e "$version$US" <<< "$found"; then
            continue
        elif grep -q "^$version$US" <<< "$found"; then
            die $EX_REFUSED "${file##*/}: the history has another migration with version $version"
        fi
        apply "$file" "$version" "$name" || die $? "${file##*/} was not applied; those before it stay"
        printf 'applied  %s\n' "${file##*/}"
        applied=$((applied + 1))
    done
    printf '%s applied\n' $applied
}

push() {
    local flag=--db-url
    command -v supabase > /dev/null || die $EX_USAGE "supabase is not installed: npm install supabase, or leave out --cli"
    if [ -z "$workdir" ]; then
        workdir=$(mktemp -d)
        trap 'rm -rf "$workdir"' EXIT
        mkdir "$workdir/supabase"
        touch "$workdir/supabase/config.toml"
    fi
    mkdir -p "$workdir/supabase/migrations"
    cp "$sql"/migrations/*.sql "$workdir/supabase/migrations/"
    ! supabase db push --help 2>&1 | grep -q -e --remote || flag=--remote # since its version 3
    supabase db push --workdir "$workdir" --include-all --yes "$flag=$url" ||
        die $EX_REFUSED "supabase db push failed"
}

# Prints a line for each object of the schema, in the format of sql/catalog.txt.
live() {
    query --field-separator=$'\t' --set catalog="$sql/catalog.sql" << 'SQL' | sed 's/\t/ /; s/\t/ = /'
begin isolation level repeatable read read only;
set local search_path = '';
\i :catalog
;
commit;
SQL
}

labels() {
    sed 's/ = .*//'
}

verify() {
    local expected actual differing ambiguous
    actual=$(live)
    expected=$(grep -v '^#' "$sql/catalog.txt")
    # only Supabase has auth.users
    [ "$(query <<< "select to_regclass('auth.users') is not null")" = t ] ||
        expected=$(grep -v -F ' auth.users(' <<< "$expected")
    differing=$(grep -v -x -F -f <(printf '%s\n' "$actual") <<< "$expected" | labels) || true
    if [ -n "$differing" ]; then
        say "missing or different:"
        sed -n '1,20p; 21{s/.*/…/p;q}' <<< "$differing" >&2
        die $EX_NEGATIVE "$(wc -l <<< "$differing") of $(wc -l <<< "$expected") objects are not as sql/catalog.txt says"
    fi
    ambiguous=$(grep -F -f <(grep -o '^function ops\.[a-z_]*(' <<< "$expected") <<< "$actual" | labels |
        grep -v -x -F -f <(labels <<< "$expected")) || true
    if [ -n "$ambiguous" ]; then
        say "ambiguous:"
        printf '%s\n' "$ambiguous" >&2
        die $EX_NEGATIVE "a call may reach one of these functions instead of the schema's own: rename or drop them"
    fi
    printf 'verified %s objects\n' "$(wc -l <<< "$expected")"
}

find_database
if [ -z "$verify_only" ]; then
    if [ -n "$cli" ]; then push; else apply_all; fi
fi
verify
