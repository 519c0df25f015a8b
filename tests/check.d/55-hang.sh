#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# A guest that pages is disturbed in every way.  The long form is
# "make check-hang".
exec tests/hang/run-hang --build "${BUILD:-build}" --scale 0.04
