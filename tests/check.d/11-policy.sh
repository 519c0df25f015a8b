#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The choice of pages, on records of guests: better than random
exec tests/policy-sim/run --check
