# SPDX-License-Identifier: GPL-2.0-or-later
# For qsd-bsst and nbd-bsst, which qemu-iotests start in the place of
# qemu-storage-daemon and qemu-nbd.  run-through sets:
#
#   BSST_BUILD  build folder
#   BSST_STORE  a store that is blank
#   BSST_SEED   of x-test-indirect
#   BSST_QSD    qemu-storage-daemon
#   BSST_TRACE  a folder for what the driver traces

# new_store FILE: a store for one process; everything is drained at its end.
# The tests wait for a FUSE export for half a second only, so it is a copy.
new_store()
{
    cp --sparse=always "$BSST_STORE" "$1" >&2 || exit 1
}

# the bsst node's own options
options="raw-image=allow,drain-on-close=on,defrag=off"
options+=",x-test-indirect=$BSST_SEED,discard=unmap"
trace="enable=bsst_write,file=$BSST_TRACE/$$"
