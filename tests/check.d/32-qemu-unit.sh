#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 1800
# QEMU's own unit tests, here and on unpatched QEMU.  With its qtests and iotests
# it is "make check-qemu".
set -u

if [ -n "${SANITIZE-}" ]; then
    echo "skip qemu-unit - compares builds without sanitizers"
    exit
fi
exec tests/suites/run-qemu unit
