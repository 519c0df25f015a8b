#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Stores that somebody has made up are opened or refused: the corpus of the fuzz
# target "store", and random ones.  The long form is "make fuzz".
set -u
BUILD=${BUILD:-build}

if ! ninja -C "$BUILD" tests/unit/test-bsst-open \
        >"$BUILD/test-bsst-open.log" 2>&1; then
    tail -n 30 "$BUILD/test-bsst-open.log" >&2
    echo "not ok open-store - tests/unit/test-bsst-open does not build"
    exit 1
fi
export BSST_CORPUS=$PWD/tests/fuzz/corpus/store
exec "$(dirname "$0")/run-tap" unit "$BUILD/tests/unit/test-bsst-open" --tap -k
