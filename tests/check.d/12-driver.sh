#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# The block driver against a pager that is made up; moves against all else
set -u
export ASAN_OPTIONS=${ASAN_OPTIONS-}:detect_leaks=1
exec "$(dirname "$0")/run-unit" test-bsst-driver test-bsst-defrag
