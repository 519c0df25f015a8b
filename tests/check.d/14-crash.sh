#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# Crash enumeration for the journal: a fixed set of histories, and bugs that it
# must find.  The long form is "make check-crash".
set -u
BUILD=${BUILD:-build}

if ! ninja -C "$BUILD" tests/unit/test-bsst-crash \
        >"$BUILD/test-bsst-crash.log" 2>&1; then
    tail -n 30 "$BUILD/test-bsst-crash.log" >&2
    echo "not ok crash - tests/unit/test-bsst-crash does not build"
    exit 1
fi
exec "$(dirname "$0")/run-tap" unit "$BUILD/tests/unit/test-bsst-crash" --tap -k
