#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
#
# Power cuts on real files, and proof that the check notices a flush that did
# nothing.  The long form is "make check-powercut".
set -u
build=${BUILD:-build}

if [ "${SANITIZE-}" = thread ]; then
    echo "skip powercut - the recorder cannot be preloaded before TSan"
    exit
fi
if tests/powercut/run-powercut 200 --seed 1 --build "$build"; then
    echo "ok powercut"
else
    echo "not ok powercut - run tests/powercut/run-powercut, or see the log"
fi
if tests/powercut/run-powercut 80 --seed 1 --lie store.qcow2 \
        --build "$build"; then
    echo "ok powercut-lie"
else
    echo "not ok powercut-lie - a flush that did nothing was not noticed"
fi
