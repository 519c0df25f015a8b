#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 400
#
# A Linux guest writes under memory pressure while QEMU is killed, three times:
# what a flush has promised is there.  The long form is "make check-kill9".
set -u
build=${BUILD:-build}

tests/kill9/run-kill9 3 --build "$build" --work 3
case $? in
0) echo "ok kill9" ;;
3) echo "skip kill9 - the swapper cannot run here, see the log" ;;
*) echo "not ok kill9 - run tests/kill9/run-kill9 3, or see the log"
   exit 1 ;;
esac
