# shellcheck shell=bash
# Functions that the scripts of this folder share; each script sources this file first. Messages are printed to stderr, so
# stdout has only the script's answer.

set -euo pipefail

# The PATH of a root shell by `su`, or of a service, may lack these folders.
PATH="${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export PATH

# shellcheck disable=SC2034  # the scripts use it
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The worker's SDK uses DOCKER_HOST and ignores `docker context`, so the command line must use DOCKER_HOST too.
export DOCKER_HOST="${DOCKER_HOST:-unix:///var/run/docker.sock}"

say() { printf '%s\n' "$*" >&2; }

die() {
    say "$(basename "$0"): $*"
    exit 1
}

have() { command -v "$1" > /dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

has_apt() { have apt-get && have dpkg; }

# state_folder: prints the folder for this user's locks and cached answers; all checkouts share it.
state_folder() {
    local folder
    if is_root; then
        folder=/run/ops-worker-dev
    else
        folder=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/ops-worker-dev-$(id -u)
    fi
    [ -d "$folder" ] || mkdir -m 700 "$folder" 2> /dev/null || true
    [ -O "$folder" ] || die "$folder belongs to another user"
    printf '%s\n' "$folder"
}

# apt_install PACKAGE...: installs without recommends, and prints apt's output only if it failed. It updates apt's lists only
# if a package is unknown or can no longer be downloaded.
apt_install() {
    local log
    log=$(mktemp)
    say "installing $* (apt)"
    if ! apt_get "$log" install "$@"; then
        if ! apt_get "$log" update || ! apt_get "$log" install "$@"; then
            tail -n 20 "$log" >&2
            rm -f "$log"
            return 1
        fi
    fi
    rm -f "$log"
}

apt_get() {
    local log=$1
    shift
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" < /dev/null >> "$log" 2>&1 9>&-
}

# os_release FIELD: prints a value of os-release; empty if it does not exist.
os_release() {
    (
        # shellcheck disable=SC1091
        [ ! -r /etc/os-release ] || . /etc/os-release
        printf '%s\n' "${!1:-}"
    )
}

# apt_site LABEL [SUITE]: prints the site from which apt gets the main packages of an archive, e.g. Debian.
apt_site() {
    # shellcheck disable=SC2016  # the fields are apt's
    apt_targets() { apt-get indextargets --format '$(CREATED_BY) $(LABEL) $(CODENAME) $(COMPONENT) $(SITE)'; }
    [ -n "$(apt_targets)" ] || apt-get -q update > /dev/null 2>&1 || true
    apt_targets | awk -v label="$1" -v suite="${2:-}" \
        '$1 == "Packages" && $2 == label && (suite == "" || $3 == suite) && $4 == "main" { print $5; exit }'
}

# bootstrap_root SUITE FOLDER SITE [OPTION...]: creates a minimal root of that release with debootstrap; prints its stages.
bootstrap_root() {
    local suite=$1 folder=$2 site=$3
    shift 3
    have debootstrap || apt_install debootstrap || die "apt could not install debootstrap"
    eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
    export http_proxy https_proxy
    mkdir -p "$ROOT/build/debs"
    debootstrap --variant=minbase --cache-dir="$ROOT/build/debs" "$@" "$suite" "$folder" "$site" 9>&- |
        awk '/^I: (Retrieving InRelease|(Installing|Unpacking|Configuring) (core|required|the base))/ {
                 sub(/^I: /, "  "); print; fflush()
             }
             /^[EW]:/ { print; fflush() }' >&2 ||
        die "debootstrap failed: $(tail -n 3 "$folder/debootstrap/debootstrap.log" 2> /dev/null)"
    rm -rf "$folder"/var/{cache/apt/archives/*.deb,lib/apt/lists/*,log/*.log}
}
