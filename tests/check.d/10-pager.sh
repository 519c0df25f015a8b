#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# The pager against real userfaultfd and a real store, which also fails,
# without a VM
set -u
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=1
exec "$(dirname "$0")/run-unit" test-pager test-pager-bound \
    test-pager-errors
