#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# The evaluation suite: its logic, and a campaign that is killed and goes on
set -u
exec tests/matrix/test-matrix "${BUILD:-build}"
