#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# Stores that somebody has made up are opened or refused: the corpus of the fuzz
# target "store", and random ones.  The long form is "make fuzz".
set -u
export BSST_CORPUS=$PWD/tests/fuzz/corpus/store
exec "$(dirname "$0")/run-unit" test-bsst-open
