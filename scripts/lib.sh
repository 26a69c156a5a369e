# Shared by every script here; source it, do not run it. Sets strict mode, gives messages, cleanup, packages, caches.
# shellcheck shell=bash
set -Eeuo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${SOCIBLK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/sociblk}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

say() { printf '%s\n' "$*" >&2; }
step() { printf '\n==> %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "must run as root (it mounts file systems and installs packages): sudo $0"
}

# --- cleanup -------------------------------------------------------------------------------------------------
# A stack of commands, run last first on any exit, Ctrl-C and TERM included. Each must be safe to run when the thing is gone.
CLEANUPS=()
on_exit() { CLEANUPS+=("$*"); }
run_cleanups() {
    local status=$? i
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    for ((i = ${#CLEANUPS[@]} - 1; i >= 0; i--)); do eval "${CLEANUPS[i]}"; done
    CLEANUPS=()
    exit "$status"
}
trap run_cleanups EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# make_tmp VAR [DIR]: a private directory that goes away at exit.
make_tmp() {
    local new_tmp_
    new_tmp_=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/sociblk.XXXXXX")
    on_exit "rm -rf --one-file-system $(printf %q "$new_tmp_")"
    printf -v "$1" %s "$new_tmp_"
}

# stop_pid PID [SECONDS]: TERM, then KILL when it has not gone in that time.
stop_pid() {
    local pid=$1 left=$((${2:-10} * 10))
    kill "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do
        # A child of ours that has ended stays until it is waited for.
        if [ "$(process_state "$pid")" = Z ]; then break; fi
        if ((left-- <= 0)); then
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.1
    done
    wait "$pid" 2>/dev/null || true
}
process_state() { sed -E 's/.*\) (.) .*/\1/' "/proc/$1/stat" 2>/dev/null || true; }

# lock NAME: one such preparation at a time on this machine; held until the script ends or `unlock`.
lock() {
    mkdir -p "$CACHE"
    exec {LOCK_FD}>"$CACHE/$1.lock"
    flock -n "$LOCK_FD" || {
        say "waiting for another run that prepares $1 ..."
        flock "$LOCK_FD"
    }
}
unlock() { exec {LOCK_FD}>&-; }

# --- packages ------------------------------------------------------------------------------------------------
APT=(apt-get -qq -o DPkg::Lock::Timeout=900 -o Acquire::Retries=3)
apt_update_once() {
    [ -z "${SOCIBLK_APT_UPDATED:-}" ] || return 0
    "${APT[@]}" update >&2 || say "apt-get update failed; going on with the lists that are there"
    export SOCIBLK_APT_UPDATED=1
}
installed() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

# apt_install PACKAGE...: installs what is missing, silently when nothing is.
apt_install() {
    local missing=() p
    for p in "$@"; do installed "$p" || missing+=("$p"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    have apt-get || die "needs the packages ${missing[*]}; this is not a Debian or Ubuntu machine: install them by hand"
    [ "$(id -u)" = 0 ] || die "needs the packages ${missing[*]}: run as root, or install them first"
    apt_update_once
    say "installing: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! "${APT[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

# open_the_way DIR...: for users who are nobody on the host, as root of a user namespace is: they must get to their files, as they do
# below /run and /var/lib.
open_the_way() { chmod a+x "$@"; }

# private_package PACKAGE: prints a directory with the package's files, unpacked but not installed. For programs whose packages
# start a service and enable it (a registry, containerd): their binaries are wanted, not their services.
private_package() {
    local package=$1 version dir work
    version=$(apt-cache policy "$package" | sed -nE 's/^ *Candidate: (.*)/\1/p')
    if [ -z "$version" ] || [ "$version" = '(none)' ]; then
        apt_update_once
        version=$(apt-cache policy "$package" | sed -nE 's/^ *Candidate: (.*)/\1/p')
    fi
    [ -n "$version" ] && [ "$version" != '(none)' ] || die "this machine's package mirror has no $package"
    dir=$CACHE/packages/$package-${version//[^A-Za-z0-9.+~-]/_}
    if [ ! -d "$dir" ]; then
        mkdir -p "$CACHE/packages"
        work=$(mktemp -d "$CACHE/packages/new.XXXXXX")
        # A version superseded since the last update is gone from the mirror: fresh lists, then once more.
        if ! (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2) ||
            ! dpkg -x "$work"/*.deb "$work/root"; then
            rm -rf "$work"
            [ -z "${SOCIBLK_APT_UPDATED:-}" ] || die "could not fetch $package"
            apt_update_once
            private_package "$package"
            return
        fi
        mv -T "$work/root" "$dir" 2>/dev/null || true
        rm -rf "$work"
    fi
    printf '%s\n' "$dir"
}

host_id() { (. /etc/os-release && printf %s "$ID"); }
host_codename() { (. /etc/os-release && printf %s "${VERSION_CODENAME:-}"); }

# apt_sources: the machine's own sources as lines `URI|SUITE|COMPONENTS|KEYRING`, from one-line and deb822 files.
apt_sources() {
    local f
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$f" ] || continue
        sed -nE 's/^[[:space:]]*deb[[:space:]]+//p' "$f" | while read -r line; do
            local key=
            if [[ $line == \[* ]]; then
                [[ $line =~ signed-by=([^]\ ,]+) ]] && key=${BASH_REMATCH[1]}
                line=${line#*]}
            fi
            # shellcheck disable=SC2086
            set -- ${line%%#*}
            [ $# -ge 2 ] || continue
            local uri=$1 suite=$2
            shift 2
            printf '%s|%s|%s|%s\n' "${uri%/}" "$suite" "$*" "$key"
        done
    done
    for f in /etc/apt/sources.list.d/*.sources; do
        [ -f "$f" ] || continue
        awk '
            function flush(   i, j, n, m, u, s) {
                if (on && types ~ /(^| )deb( |$)/) {
                    n = split(uris, u, " "); m = split(suites, s, " ")
                    for (i = 1; i <= n; i++) { sub(/\/$/, "", u[i]); for (j = 1; j <= m; j++) print u[i] "|" s[j] "|" comps "|" (key ~ /^\// ? key : "") }
                }
                on = 1; types = uris = suites = comps = key = field = ""
            }
            BEGIN { on = 1 }
            /^[ \t]*#/ { next }
            /^[ \t]*$/ { flush(); next }
            {
                if ($0 ~ /^[^ \t]/) { field = tolower($0); sub(/:.*/, "", field); value = $0; sub(/^[^:]*:[ \t]*/, "", value) }
                else { value = $0; sub(/^[ \t]+/, "", value) }
                if (field == "types") types = types " " value
                else if (field == "uris") uris = uris " " value
                else if (field == "suites") suites = suites " " value
                else if (field == "components") comps = comps (comps == "" ? "" : " ") value
                else if (field == "signed-by") key = key value
                else if (field == "enabled" && tolower(value) ~ /^(no|false|0)/) on = 0
            }
            END { flush() }' "$f"
    done
}

# host_source: sets MIRROR, SUITE, COMPONENTS, KEYRING of the release that this machine runs.
host_source() {
    SUITE=$(host_codename)
    [ -n "$SUITE" ] || die "/etc/os-release names no release; Debian 12 or later or Ubuntu 24.04 is needed"
    local line
    line=$(apt_sources | awk -F'|' -v s="$SUITE" '$2 == s && $3 ~ /(^| )main( |$)/ { print; exit }')
    # A machine may follow `stable` rather than a name.
    [ -n "$line" ] || line=$(apt_sources | awk -F'|' '$2 ~ /^(stable|testing|unstable|sid)$/ && $3 ~ /(^| )main( |$)/ { print; exit }')
    [ -n "$line" ] || die "no package mirror for $SUITE main in /etc/apt/sources.list or sources.list.d: add one, then run again"
    IFS='|' read -r MIRROR _ COMPONENTS KEYRING <<<"$line"
    if [ -z "$KEYRING" ]; then
        KEYRING=/usr/share/keyrings/$(host_id)-archive-keyring.gpg
    fi
    # An ASCII-armoured key is fine for apt, not for debootstrap.
    [[ $KEYRING == *.asc ]] && KEYRING=/usr/share/keyrings/$(host_id)-archive-keyring.gpg
    [ -r "$KEYRING" ] || die "the archive keyring $KEYRING is missing: apt-get install $(host_id)-archive-keyring"
}

# debian_source: sets DEBIAN_MIRROR and DEBIAN_KEYRING, for what Debian alone has (kernels, other versions of containerd); on Ubuntu
# they are not the host's own.
debian_source() {
    DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ -n "${SOCIBLK_DEBIAN_MIRROR:-}" ]; then
        DEBIAN_MIRROR=${SOCIBLK_DEBIAN_MIRROR%/}
    elif [ "$(host_id)" = debian ]; then
        host_source
        DEBIAN_MIRROR=$MIRROR
    else
        die "these packages are Debian's, and this machine ($(host_id)) has no Debian mirror configured.
Name one and run again: SOCIBLK_DEBIAN_MIRROR=URL (what a Debian sources.list has after 'deb')"
    fi
    [ -r "$DEBIAN_KEYRING" ] || apt_install debian-archive-keyring
}

# private_apt DIR SUITE [with-host]: sets PAPT to apt options for a state of their own; nothing of the host's apt changes.
private_apt() {
    local dir=$1 suite=$2 f
    mkdir -p "$dir"/{lists/partial,cache/archives/partial,sources}
    if [ "${3:-}" = with-host ]; then
        for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
            if [ -f "$f" ]; then cp "$f" "$dir/sources/"; fi
        done
        if [ -f "$dir/sources/sources.list" ]; then mv "$dir/sources/sources.list" "$dir/sources/main.list"; fi
    fi
    printf 'deb [signed-by=%s] %s %s main\n' "$DEBIAN_KEYRING" "$DEBIAN_MIRROR" "$suite" >"$dir/sources/sociblk.list"
    PAPT=(-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o Dir::Etc::sourcelist=/dev/null
        -o "Dir::Etc::sourceparts=$dir/sources" -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root -o DPkg::Lock::Timeout=900)
    # Without -qq's silence an unreachable mirror or a bad signature would only show later, as "no such package".
    apt-get "${PAPT[@]}" -q update >"$dir/update.log" 2>&1 && ! grep -qE '^(E|Err):? ' "$dir/update.log" || {
        cat "$dir/update.log" >&2
        return 1
    }
}

# base_root: prints the path of a tar of a minimal root of the machine's own release (debootstrap minbase), made once a month.
# The guest of scripts/vm and the first layer of scripts/make-image start from it.
base_root() {
    need_root
    host_source
    local tar=$CACHE/root-$SUITE.tar dir
    if [ -s "$tar" ] && [ -n "$(find "$tar" -mtime -30)" ]; then
        printf '%s\n' "$tar"
        return
    fi
    apt_install debootstrap
    say "making a minimal $SUITE root with debootstrap (once; about a minute) ..."
    mkdir -p "$CACHE"
    dir=$(mktemp -d "$CACHE/base.XXXXXX")
    if ! debootstrap --variant=minbase --keyring="$KEYRING" --components="${COMPONENTS// /,}" "$SUITE" "$dir" "$MIRROR" >"$dir.log" 2>&1 </dev/null; then
        tail -n 20 "$dir.log" "$dir/debootstrap/debootstrap.log" >&2 || true
        rm -rf --one-file-system "$dir" "$dir.log"
        die "debootstrap of $SUITE failed"
    fi
    # mktemp made it for its owner alone; the root of a system is for all.
    chmod 755 "$dir"
    rm -rf "$dir"/var/cache/apt/archives/*.deb "$dir"/var/lib/apt/lists/* "$dir"/var/log/bootstrap.log "$dir".log
    tar -C "$dir" --xattrs --sort=name --numeric-owner -cf "$tar.new" .
    mv "$tar.new" "$tar"
    rm -rf --one-file-system "$dir"
    printf '%s\n' "$tar"
}

# chroot_apt ROOT PACKAGE...: installs packages inside ROOT from the machine's own mirrors; no service starts.
chroot_apt() {
    local root=$1 status=0
    shift
    host_source
    cp /etc/resolv.conf "$root/etc/resolv.conf.host" && mv "$root/etc/resolv.conf.host" "$root/etc/resolv.conf"
    rm -f "$root"/etc/apt/sources.list
    local s
    for s in "$SUITE" "$SUITE-updates" "$SUITE-security"; do
        apt_sources | awk -F'|' -v s="$s" '$2 == s { print "deb " $1 " " $2 " " $3; exit }' >>"$root/etc/apt/sources.list"
    done
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    # /proc in a mount name space of its own: nothing to undo on the host, whatever happens.
    unshare --mount --propagation private sh -eu -c '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/tmp"
        chroot "$root" apt-get -qq -o Acquire::Retries=3 update
        chroot "$root" apt-get -qq -o Acquire::Retries=3 install -y --no-install-recommends "$@"
    ' sh "$root" "$@" >"$root.log" 2>&1 </dev/null || status=$?
    [ "$status" = 0 ] || { tail -n 30 "$root.log" >&2; rm -f "$root.log"; die "could not install $* into $root"; }
    rm -f "$root.log" "$root/usr/sbin/policy-rc.d" "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
    rm -rf "$root"/var/lib/apt/lists/*
}

# Runs no program: where time is measured under emulation, each costs some. Some locales have a comma there.
now_ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# --- services of our own ---------------------------------------------------------------------------------------
# A service lives in a directory: DIR/pid, DIR/log. MARKER is a word of its command line that no other process has.

service_running() { # DIR MARKER
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    # The number may belong to another program by now.
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$2"
}

# service_start DIR READY COMMAND...: starts COMMAND detached, waits (60 s) until READY, a shell command, succeeds.
service_start() {
    local dir=$1 ready=$2 pid i
    shift 2
    [ -d "$dir" ] || mkdir -p "$dir"
    : >"$dir/log"
    setsid "$@" </dev/null >>"$dir/log" 2>&1 &
    pid=$!
    disown
    echo "$pid" >"$dir/pid"
    for ((i = 0; i < 600; i++)); do
        if eval "$ready"; then return 0; fi
        [ -d "/proc/$pid" ] || break
        sleep 0.1
    done
    stop_pid "$pid" 2
    rm -f "$dir/pid"
    tail -n 5 "$dir/log" >&2
    return 1
}

service_stop() { # DIR MARKER
    if service_running "$1" "$2"; then stop_pid "$(cat "$1/pid")"; fi
    rm -f "$1/pid"
}

# --- Rust ------------------------------------------------------------------------------------------------------

rust_needed() { sed -nE 's/^rust-version = "(.*)"/\1/p' "$REPO/Cargo.toml"; }
version_at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }
rust_ok() {
    have cargo && have rustc || return 1
    # In the repository: a toolchain file or override counts.
    version_at_least "$(cd "$REPO" && rustc --version 2>/dev/null | awk '{ print $2 }')" "$(rust_needed)"
}

# --- checks ----------------------------------------------------------------------------------------------------
# Lines that scripts/test counts. check NAME COMMAND...: runs it; goes on in both cases; CHECKS_FAILED counts.
CHECKS_FAILED=0
check() {
    local name=$1 status=0
    shift
    "$@" || status=$?
    if [ "$status" = 0 ]; then
        echo "CHECK passed: $name"
    else
        echo "CHECK failed: $name (status $status)"
        CHECKS_FAILED=$((CHECKS_FAILED + 1))
    fi
}
check_skipped() { echo "CHECK skipped: $1: $2"; }

# sociblk_binary: the program to test: $SOCIBLK, else what cargo built last.
sociblk_binary() {
    local newest
    if [ -n "${SOCIBLK:-}" ]; then
        newest=$SOCIBLK
    else
        newest=$(ls -t "$REPO"/target/release/sociblk "$REPO"/target/debug/sociblk 2>/dev/null | head -n 1) || true
    fi
    [ -x "$newest" ] || die "no sociblk program: cargo build, or name one with SOCIBLK=PATH"
    realpath "$newest"
}

# wait_limited PID SECONDS: as wait, but ends what takes longer: a reader that nobody serves waits for ever.
wait_limited() {
    local tries
    for ((tries = 0; tries < $2 * 5; tries++)); do
        if ! kill -0 "$1" 2>/dev/null; then
            wait "$1"
            return
        fi
        sleep 0.2
    done
    kill -9 "$1"
    echo "process $1 did not end within $2 s"
    return 1
}

# run_in ROOT COMMAND...: runs it in ROOT with /proc, in a mount name space of its own.
run_in() {
    local root=$1
    shift
    unshare --mount --propagation private sh -c 'mount -t proc proc "$1/proc" && shift_root=$1 && shift && exec chroot "$shift_root" "$@"' sh "$root" "$@"
}

# json EXPRESSION: evaluates a Python expression with standard input's JSON as `d`.
json() { python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
