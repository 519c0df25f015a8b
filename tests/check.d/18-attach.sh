#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 500
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
# The name of the backing file has to move, or stays
for seed in 1 3; do
    if tests/powercut/run-powercut 150 --attach --seed $seed \
            --build "$build"; then
        echo "ok attach/$seed"
    else
        echo "not ok attach/$seed - run tests/powercut/run-powercut" \
             "--attach, or see the log"
    fi
done
for lie in make announce name guard drain unguard; do
    if tests/powercut/run-powercut 60 --attach --seed 1 --lie $lie \
            --build "$build"; then
        echo "ok attach-lie/$lie"
    else
        echo "not ok attach-lie/$lie - a flush that did nothing was not noticed"
    fi
done
