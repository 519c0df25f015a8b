#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# The pager against real userfaultfd and a real store, without a VM
set -u
BUILD=${BUILD:-build}

if ! ninja -C "$BUILD" tests/unit/test-pager >"$BUILD/test-pager.log" 2>&1; then
    tail -n 30 "$BUILD/test-pager.log" >&2
    echo "not ok pager - tests/unit/test-pager does not build"
    exit 1
fi
exec "$(dirname "$0")/run-tap" unit "$BUILD/tests/unit/test-pager" --tap -k
