#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 60
# The examples in the description of the format are what the code writes
exec tests/interop/check-examples "${BUILD:-build}"
