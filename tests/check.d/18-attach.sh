#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
#
# Power cuts while images come and go, and while a store is made; and proof that
# the check notices a flush that is missing in between.  The long form is
# "make check-powercut ATTACH=1".
set -u
build=${BUILD:-build}

if [ "${SANITIZE-}" = thread ]; then
    echo "skip attach - the recorder cannot be preloaded before TSan"
    exit
fi
if tests/powercut/run-powercut 250 --attach --seed 1 --build "$build"; then
    echo "ok attach"
else
    echo "not ok attach - run tests/powercut/run-powercut --attach, or see the" \
         "log"
fi
for lie in make announce guard drain unguard; do
    if tests/powercut/run-powercut 60 --attach --seed 1 --lie $lie \
            --build "$build"; then
        echo "ok attach-lie/$lie"
    else
        echo "not ok attach-lie/$lie - a flush that did nothing was not noticed"
    fi
done
