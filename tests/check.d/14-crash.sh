#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 900
# Crash enumeration for the journal: a fixed set of histories, and bugs that it
# must find.  The long form is "make check-crash".
set -u
exec "$(dirname "$0")/run-unit" test-bsst-crash
