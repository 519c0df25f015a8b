#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 600
# What cannot work is refused, with a message that names cause and cure
exec tests/refusals/run "${BUILD:-build}"
