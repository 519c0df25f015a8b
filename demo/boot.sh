# SPDX-License-Identifier: GPL-2.0-or-later
#
# What every guest's init begins with.  It is sourced with /bin/busybox sh as
# the interpreter: mounts, virtio modules, the words sysctl=NAME=VALUE of the
# kernel command line.

exec </dev/console >/dev/console 2>&1
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
stty -echo

off() {
    poweroff -f
    sleep 60
}

fail() {
    echo "GUEST failed $*"
    off
}

# The device of the virtio disk with the serial $1
disk_of() {
    for serial in /sys/block/vd*/serial; do
        [ "$(cat "$serial")" = "$1" ] || continue
        serial=${serial#/sys/block/}
        echo "/dev/${serial%/serial}"
        return
    done
    return 1
}

while read -r module; do
    insmod "/modules/$module" || fail "insmod $module"
done </modules/order

for word in $(cat /proc/cmdline); do
    case $word in
    sysctl=*) sysctl -q -w "${word#sysctl=}" ;;
    esac
done
