# Sourced by ./demo and ./check: what both need before they start. Expects ROOT, the checkout.
#
# Installs Debian packages only if something is missing, and Python packages only if pyproject.toml or the compiled part
# has changed since.

VENV="$ROOT/.venv"
WORK="$ROOT/.shoal"

say() { printf '%s\n' "$*"; }

fail() { # what: where: what to do next
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

now() { date +%s.%N; }

since() { # seconds since $1, with one decimal
    awk -v start="$1" -v end="$(now)" 'BEGIN { printf "%.1f", end - start }'
}

# find_python: sets PYTHON to the first interpreter that is new enough.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            PYTHON=$candidate
            return
        fi
    done
    fail "python: no Python 3.11 or newer on PATH: install python3 (Debian 12 has 3.11)"
}

# What the packages are needed for is tested, not whether dpkg knows them: that also works on other systems.
something_is_missing() {
    local command file
    for command in "${COMMANDS[@]}"; do
        command -v "$command" >/dev/null || return 0
    done
    for file in "${FILES[@]}"; do
        [ -e "$file" ] || return 0
    done
    ! pkg-config --exists fuse3 ||
        ! python3 -c 'import ctypes; ctypes.CDLL("libisal.so.2")' 2>/dev/null ||
        ! python3 -c 'import ensurepip, os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# install_debian: needs root only if something is missing.
install_debian() {
    local log="$WORK/apt.log"
    something_is_missing || return 0
    [ "$(id -u)" = 0 ] || fail "packages: some are missing: run as root once, or install: ${PACKAGES[*]}"
    command -v apt-get >/dev/null || fail "packages: no apt-get here: install the like of: ${PACKAGES[*]}"
    say "installing Debian packages: ${PACKAGES[*]}"
    {
        apt-get update &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${PACKAGES[@]}"
    } >"$log" 2>&1 </dev/null || fail "apt-get: failed: read $log"
}

# install_python EXTRAS: EXTRAS is "" or "[dev]". A stamp holds what was installed, so that a second run is quick.
install_python() {
    local extras=$1 log="$WORK/pip.log" wanted stamp="$VENV/installed"
    find_python
    wanted="$(cat "$ROOT"/{pyproject.toml,hatch_build.py,fs/native/*.{c,h,py}} | sha256sum | cut -c -64) $ROOT"
    if [ -x "$VENV/bin/shoal" ] && grep -qxF "$wanted $extras" "$stamp" 2>/dev/null; then
        return 0
    fi
    say "installing Python packages into .venv"
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" >"$log" 2>&1 ||
        fail "venv: cannot be made: read $log"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        -e "$ROOT$extras" >"$log" 2>&1 </dev/null || fail "pip: failed: read $log"
    {
        printf '%s \n' "$wanted"
        [ -z "$extras" ] || printf '%s %s\n' "$wanted" "$extras"
    } >"$stamp"
}

COMMANDS=(gcc pkg-config fusermount3 python3)
FILES=()
PACKAGES=(python3-venv python3-dev gcc libc6-dev pkg-config libfuse3-dev fuse3 libisal2)
mkdir -p "$WORK"
