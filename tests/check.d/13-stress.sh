#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# Pager, driver and store together under threads that page like guest kernels.
# BSST_TEST_SECONDS=N: the time for each case.
set -u
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=1
exec "$(dirname "$0")/run-unit" test-bsst-stress
