#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# The block driver against a pager that is made up
set -u
BUILD=${BUILD:-build}
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=1

if ! ninja -C "$BUILD" tests/unit/test-bsst-driver \
        >"$BUILD/test-bsst-driver.log" 2>&1; then
    tail -n 30 "$BUILD/test-bsst-driver.log" >&2
    echo "not ok driver - tests/unit/test-bsst-driver does not build"
    exit 1
fi
exec "$(dirname "$0")/run-tap" unit "$BUILD/tests/unit/test-bsst-driver" --tap -k
