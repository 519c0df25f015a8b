#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# Pager, driver and store together under threads that page like guest kernels.
# BSST_TEST_SECONDS=N: the time for each case.
set -u
BUILD=${BUILD:-build}
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=1
test=tests/unit/test-bsst-stress

if ! ninja -C "$BUILD" $test >"$BUILD/test-bsst-stress.log" 2>&1; then
    tail -n 30 "$BUILD/test-bsst-stress.log" >&2
    echo "not ok stress - $test does not build"
    exit 1
fi
exec "$(dirname "$0")/run-tap" unit "$BUILD/$test" --tap -k
