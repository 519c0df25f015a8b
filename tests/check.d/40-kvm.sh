#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
# A vCPU of KVM whose memory is swapped out: disk I/O through the firmware
exec tests/kvm/run "${BUILD:-build}"
