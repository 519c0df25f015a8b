# SPDX-License-Identifier: GPL-2.0-or-later
# For qsd-bsst and nbd-bsst, which qemu-iotests start in the place of
# qemu-storage-daemon and qemu-nbd.  run-through sets:
#
#   BSST_BUILD  build folder, for qemu-img
#   BSST_SEED   of x-test-indirect
#   BSST_TRACE  a folder for what the driver traces

# new_store FILE: a store for one process; everything is drained at its end
new_store()
{
    "$BSST_BUILD/qemu-img" create -q -f qcow2 -o preallocation=metadata \
        "$1" 256M >&2 || exit 1
}

# the bsst node's own options
options="raw-image=allow,drain-on-close=on,defrag=off"
options+=",x-test-indirect=$BSST_SEED,discard=unmap"
trace="enable=bsst_write,file=$BSST_TRACE/$$"
