# shellcheck shell=bash
# What these scripts share; each sources it first. The answer of a script goes to stdout, messages to stderr.
#
# The database is the one in OPS_WORKER_DATABASE_URL, else in DATABASE_URL, else in SUPABASE_URL. Values reach SQL as
# psql variables only, and the password reaches psql in its environment, where other users of the machine do not see it.

set -euo pipefail

# Exit codes. A run's outcome has codes of its own, so that a script can tell a red run from a broken wait.
export EX_NEGATIVE=1 EX_USAGE=2 EX_CANCELED=3 EX_TIMEOUT=4 EX_REFUSED=5 EX_DATABASE=6 EX_UNREACHABLE=7

# Between the columns of a row: a character that no name holds.
export US=$'\x1f'

# Names and reasons come from others: they do not reach the terminal with control characters.
say() { printf '%s: %s\n' "${0##*/}" "${*//[[:cntrl:]]/ }" >&2; }

# die CODE MESSAGE
die() {
    local code=$1
    shift
    say "$*"
    exit "$code"
}

usage_error() { die $EX_USAGE "$*; see --help"; }

# The comment at the top of the script.
show_help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
}

need_value() { [ $# -ge 2 ] && [ -n "$2" ] || usage_error "$1 needs a value"; }

need_number() { [[ $2 =~ ^[0-9]{1,9}$ ]] || usage_error "$1 needs a whole number, not '$2'"; }

need_run_id() {
    [[ ${1,,} =~ ^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$ ]] || usage_error "'$1' is not the id of a run"
}

# pass_password VARIABLE PASSWORD: hands a percent-encoded password to psql.
pass_password() {
    local password=${2//\\/\\\\}
    [[ $password =~ ^([^%]|%[0-9a-fA-F]{2})*$ ]] || die $EX_USAGE "$1: a % of the password must be written %25"
    printf -v PGPASSWORD '%b' "${password//%/\\x}"
    export PGPASSWORD
}

# find_database: sets url, and PGPASSWORD to the password that it takes out of it. Never prints either.
find_database() {
    local name
    command -v psql > /dev/null || die $EX_USAGE "there is no psql here: install a PostgreSQL client"
    for name in OPS_WORKER_DATABASE_URL DATABASE_URL SUPABASE_URL; do
        url=${!name:-}
        [ -z "$url" ] || break
    done
    case $url in
        "")
            die $EX_USAGE "set OPS_WORKER_DATABASE_URL, DATABASE_URL or SUPABASE_URL to" \
                "postgresql://user:password@host/database"
            ;;
        http://* | https://*)
            die $EX_USAGE "$name is the address of an API; psql needs the database's own, postgresql://…" \
                "(Supabase: Connect, Session pooler)"
            ;;
        postgres://* | postgresql://*) ;;
        *) die $EX_USAGE "$name must begin with postgresql://" ;;
    esac
    if [[ $url =~ ^([a-z]+://[^:@/?#]*):([^@/?#]*)(@[^@]*)$ ]]; then
        url=${BASH_REMATCH[1]}${BASH_REMATCH[3]}
        pass_password "$name" "${BASH_REMATCH[2]}"
    elif [[ $url == *@* && ! $url =~ ^[a-z]+://[^:@/?#]*@[^@]*$ ]]; then
        die $EX_USAGE "$name: @ / ? # and : in user or password must be percent-encoded, as %40 %2F %3F %23 %3A"
    fi
    if [[ $url =~ ^([^?]*\?)(.*&)?password=([^&]*)(&.*)?$ ]]; then
        url=${BASH_REMATCH[1]}${BASH_REMATCH[2]}${BASH_REMATCH[4]#&}
        pass_password "$name" "${BASH_REMATCH[3]}"
    fi
    export PGAPPNAME=${0##*/} PGCLIENTENCODING=UTF8 PGCONNECT_TIMEOUT=${PGCONNECT_TIMEOUT:-10}
}

# query [PSQL-OPTION...] < SCRIPT: prints the rows, a line each. Where it fails, one line says why, and the code
# is $EX_UNREACHABLE when there is no connection, else $EX_DATABASE.
query() {
    local errors code=0
    { errors=$(psql --no-psqlrc --quiet --tuples-only --no-align --field-separator "$US" \
        --set ON_ERROR_STOP=1 "$@" --dbname "$url" 2>&1 >&3 3>&-) || code=$?; } 3>&1
    [ $code -ne 0 ] || return 0
    errors=$(sed -n -E '/(ERROR|FATAL|error):/ { s/^psql:[^ ]*: //; s/^psql: error: //; s/^ERROR: +//; p; q }' \
        <<< "$errors")
    say "database: ${errors:-psql ended with code $code}"
    [ $code -ne 2 ] || return $EX_UNREACHABLE
    return $EX_DATABASE
}
