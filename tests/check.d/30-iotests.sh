#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
#
# The block driver: qemu-iotests bsst-*
#
# Run in the repository's root; BUILD is the build folder.  Prints one line a
# test, as in "ok NAME", "not ok NAME - reason" or "skip NAME - reason".

set -u
BUILD=${BUILD:-build}
tests='bsst-io bsst-map bsst-discard bsst-guard bsst-drive-opts bsst-durability
bsst-tool bsst-stress bsst-defrag bsst-blkverify bsst-making'
failed=0

if ! cd "$BUILD/tests/qemu-iotests" 2>/dev/null; then
    for test in $tests; do
        echo "not ok $test - there is no $BUILD/tests/qemu-iotests: run make"
    done
    exit 1
fi

for test in $tests; do
    out=$(./check -qcow2 "$test" 2>&1)
    status=$?
    case $status,$out in
    0,*"Not run: $test"*)
        echo "skip $test - $(cat "scratch/qcow2-file-$test/$test.notrun" ||
                             echo "./check says so")" ;;
    0,*"Passed all 1 iotests"*)
        echo "ok $test" ;;
    *)
        echo "not ok $test - ./check -qcow2 $test in $PWD"
        printf '%s\n' "$out" | tail -n 40 >&2
        failed=1 ;;
    esac
done
exit $failed
