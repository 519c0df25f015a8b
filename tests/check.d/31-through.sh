#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# QEMU's iotests for NBD with the image behind a bsst node.  With those for FUSE
# it is "make check-through".
set -u

if [ -n "${SANITIZE-}" ]; then
    echo "skip through - QEMU builds its iotests without sanitizers only"
    exit
fi
exec tests/suites/run-through raw-nbd
