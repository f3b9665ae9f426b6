# shellcheck shell=bash
# Functions that the scripts of this folder share; each script sources this file first. A script prints its answer to
# stdout and messages to stderr.
#
# The database URL is read from OPS_WORKER_DATABASE_URL, else DATABASE_URL, else SUPABASE_URL. Values are passed to SQL
# as psql variables only. The password is passed to psql in its environment, which other users cannot read.

set -euo pipefail

# Exit codes. The outcomes of a run have separate codes, so that a caller can distinguish a failed run from a failed wait.
export EX_NEGATIVE=1 EX_USAGE=2 EX_CANCELED=3 EX_TIMEOUT=4 EX_REFUSED=5 EX_DATABASE=6 EX_UNREACHABLE=7

# The separator between the columns of a row: a character that no name contains.
export US=$'\x1f'

# Names and reasons are user input: control characters are replaced before they reach the terminal.
say() { printf '%s: %s\n' "${0##*/}" "${*//[[:cntrl:]]/ }" >&2; }

# die CODE MESSAGE
die() {
    local code=$1
    shift
    say "$*"
    exit "$code"
}

usage_error() { die $EX_USAGE "$*; see --help"; }

# Prints the comment at the top of the script.
show_help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
}

need_value() { [ $# -ge 2 ] && [ -n "$2" ] || usage_error "$1 needs a value"; }

need_number() { [[ $2 =~ ^[0-9]{1,9}$ ]] || usage_error "$1 needs a whole number, not '$2'"; }

# need_words COUNT LEAST MOST FORM: FORM says how the script is called.
need_words() {
    local plural=s
    [ "$1" -ne 1 ] || plural=''
    [ "$1" -ge "$2" ] && [ "$1" -le "$3" ] || usage_error "expected $4, got $1 argument$plural"
}

# take_word NAME VALUE OPTION: sets the variable of OPTION to VALUE, unless OPTION itself was given too.
take_word() {
    [ -n "$2" ] || usage_error "$1 is empty"
    [ -z "${!3}" ] || usage_error "$1 and --$3 mean the same: give one of them"
    printf -v "$3" '%s' "$2"
}

need_run_id() {
    [[ ${1,,} =~ ^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$ ]] || usage_error "'$1' is not the id of a run"
}

# pass_password VARIABLE PASSWORD: decodes a percent-encoded password and exports it for psql.
pass_password() {
    local password=${2//\\/\\\\}
    [[ $password =~ ^([^%]|%[0-9a-fA-F]{2})*$ ]] || die $EX_USAGE "$1: a % of the password must be written %25"
    printf -v PGPASSWORD '%b' "${password//%/\\x}"
    export PGPASSWORD
}

# find_database: sets url, and moves the password from it to PGPASSWORD. It never prints either.
find_database() {
    local name
    command -v psql > /dev/null || die $EX_USAGE "psql is not installed: install a PostgreSQL client"
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

# query [PSQL-OPTION...] < SCRIPT: prints the rows, one per line. If psql fails, it prints one line with the reason and
# returns $EX_UNREACHABLE when there is no connection, else $EX_DATABASE.
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
