#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# The pager against real userfaultfd and a real store, which also fails,
# without a VM
set -u
BUILD=${BUILD:-build}
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=1
tests=(test-pager test-pager-errors)

if ! ninja -C "$BUILD" "${tests[@]/#/tests/unit/}" >"$BUILD/test-pager.log" \
        2>&1; then
    tail -n 30 "$BUILD/test-pager.log" >&2
    echo "not ok pager - tests/unit/test-pager does not build"
    exit 1
fi
status=0
for test in "${tests[@]}"; do
    "$(dirname "$0")/run-tap" unit "$BUILD/tests/unit/$test" --tap -k ||
        status=1
done
exit $status
