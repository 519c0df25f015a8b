#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# A guest disk and guest RAM that is swapped out, driven by qtest
set -u
BUILD=${BUILD:-build}

if ! ninja -C "$BUILD" tests/qtest/bsst-test qemu-system-x86_64 qemu-img \
        >"$BUILD/bsst-test.log" 2>&1; then
    tail -n 30 "$BUILD/bsst-test.log" >&2
    echo "not ok qtest - tests/qtest/bsst-test does not build"
    exit 1
fi
export QTEST_QEMU_BINARY=$BUILD/qemu-system-x86_64 QTEST_QEMU_IMG=$BUILD/qemu-img
exec "$(dirname "$0")/run-tap" qtest "$BUILD/tests/qtest/bsst-test" --tap -k
