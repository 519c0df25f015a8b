# Shared by the front-door scripts; sourced, never run.
#
# Folders, all at the top of the repository and none of them tracked:
#   qemu/          the patched QEMU source, a git repository of its own:
#                  refs/bsst/base     QEMU as Debian ships it
#                  refs/bsst/applied  base plus patches/series, as last applied
#                  .git/bsst/         what the tree was made from
#   build/         QEMU's build folder (build-asan/, build-tsan/, build-core/)
#   build/.bsst/   downloads, private apt state, logs, the lock
#
# A step that fails leaves nothing that the next run takes for finished:
# results are made aside and renamed, or recorded by a stamp written last.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tree=$top/qemu
state=$top/build/.bsst
logs=$state/log
python=/usr/bin/python3

# A caller's environment must not redirect our git or our configure.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX
unset CDPATH PYTHONPATH PYTHONHOME MAKEFLAGS MAKELEVEL MFLAGS
export LC_ALL=C.UTF-8

say() { printf '%s\n' "bsst: $*"; }
die() {
    printf '%s\n' "bsst: $1" >&2
    shift
    [ $# = 0 ] || printf '      %s\n' "$@" >&2
    exit 1
}

# step LOGNAME "what" command...: one line on the screen, the rest in a log
step() {
    local log=$logs/$1.log what=$2 rc
    shift 2
    mkdir -p "$logs"
    say "$what"
    set +e
    (set -e; "$@") >"$log" 2>&1 </dev/null
    rc=$?
    set -e
    [ $rc = 0 ] && return 0
    tail -n 20 "$log" | sed 's/^/    | /' >&2
    die "failed (status $rc): $what" "the whole log: ${log#"$top"/}" \
        "mend the cause and run the same command again; this step is repeated"
}

# One front-door command at a time changes qemu/ and build/.
take_lock() {
    [ -z "${BSST_LOCKED-}" ] || return 0
    mkdir -p "$state"
    exec 9>"$state/lock"
    if ! flock -n 9; then
        say "waiting for another make in this folder"
        flock 9
    fi
    export BSST_LOCKED=1
}

git_tree() { git -C "$tree" "$@"; }

# git without the user's settings, for results that must be the same anywhere
git_plain() {
    GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null \
    GIT_AUTHOR_NAME=bsst GIT_AUTHOR_EMAIL=bsst@localhost \
    GIT_COMMITTER_NAME=bsst GIT_COMMITTER_EMAIL=bsst@localhost \
        git -C "$tree" "$@"
}

have_tree() { [ -f "$tree/.git/bsst/origin" ]; }

# The patches of a folder in the order of its series file; none is fine
series_of() {
    [ ! -f "$1/series" ] || sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "$1/series"
}

series_hash() {
    local patch
    for patch in $(series_of "$1"); do
        printf '%s\n' "$patch"
        cat "$1/$patch"
    done | sha256sum | cut -d' ' -f1
}

# apply_series FOLDER BASE: prints the commit that BASE plus the series gives.
# Works on the object database alone: no work tree, no fuzz, and the same
# commit from the same input.
apply_series() {
    local dir=$1 commit tmp patch
    commit=$(git_tree rev-parse "$2^{commit}")
    tmp=$(mktemp -d)
    export GIT_INDEX_FILE=$tmp/index
    git_plain read-tree "$commit"
    for patch in $(series_of "$dir"); do
        if ! git_plain mailinfo -u "$tmp/msg" "$tmp/diff" \
                <"$dir/$patch" >"$tmp/info" ||
           ! git_plain apply --cached --whitespace=nowarn "$tmp/diff" >&2; then
            rm -rf "$tmp"
            unset GIT_INDEX_FILE
            printf '%s\n' "$patch does not apply to $2" >&2
            return 1
        fi
        { sed -n 's/^Subject: //p' "$tmp/info"; echo; cat "$tmp/msg"; } >"$tmp/full"
        commit=$(
            export GIT_AUTHOR_DATE GIT_COMMITTER_DATE
            GIT_AUTHOR_DATE=$(sed -n 's/^Date: //p' "$tmp/info")
            GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
            author=$(sed -n 's/^Author: //p' "$tmp/info")
            email=$(sed -n 's/^Email: //p' "$tmp/info")
            GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null \
            GIT_AUTHOR_NAME=$author GIT_AUTHOR_EMAIL=$email \
            GIT_COMMITTER_NAME=bsst GIT_COMMITTER_EMAIL=bsst@localhost \
                git -C "$tree" commit-tree "$(git_plain write-tree)" \
                -p "$commit" -F "$tmp/full"
        )
    done
    rm -rf "$tmp"
    unset GIT_INDEX_FILE
    printf '%s\n' "$commit"
}

# overlay_files: the repository's files that have their place in QEMU's tree
overlay_files() {
    local dirs="block hw include qapi tests docs tools"
    cd "$top"
    if git rev-parse --git-dir >/dev/null 2>&1; then
        git ls-files --cached --others --exclude-standard -- $dirs
    else
        find $dirs -type f ! -name '*.pyc' 2>/dev/null
    fi | sort -u | { grep -v -E -f "$top/scripts/overlay-exclude" || :; } |
        while read -r file; do
            [ ! -f "$file" ] || printf '%s\n' "$file"
        done
}

# use_meson: put a meson >= 1.5 on PYTHONPATH unless the system has one
use_meson() {
    local dir=$state/meson/usr/lib/python3/dist-packages
    if [ -d "$dir/mesonbuild" ]; then
        export PYTHONPATH=$dir
        return
    fi
    if "$python" -c '
import sys
from mesonbuild.coredata import version
sys.exit(tuple(int(x) for x in version.split(".")[:2]) < (1, 5))' 2>/dev/null; then
        return
    fi
    step meson "fetching meson >= 1.5 (the system has none)" fetch_meson
    use_meson
}

fetch_meson() {
    local suite tmp
    suite=$(. /etc/os-release; echo "${VERSION_CODENAME-}")
    [ "$suite" != bookworm ] || suite=bookworm-backports
    tmp=$(mktemp -d "$state/meson.XXXXXX")
    "$top/scripts/private-apt" deb "${suite:-sid}" meson "$tmp"
    dpkg-deb -x "$tmp"/meson_*.deb "$tmp/root"
    test -d "$tmp/root/usr/lib/python3/dist-packages/mesonbuild"
    rm -rf "$state/meson"
    mv "$tmp/root" "$state/meson"
    rm -rf "$tmp"
}
