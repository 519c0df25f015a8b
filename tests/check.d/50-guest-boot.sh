#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
#
# A Linux guest that is short of memory on both levels, with interception:
# every page it reads is verified, the limit holds, writes of swapped-out
# pages become indirections, and nothing is left behind.
set -u
build=${BUILD:-build}
out=$build/demo/guest-boot.json

mkdir -p "$build/demo"
rm -f "$out"
demo/run-demo --build "$build" --ways c --out "$out" --memory 256 --limit 160 \
    --memhog pinned=32,work=96,total=272,passes=1,check=1 --timeout 200
status=$?

if [ $status = 3 ]; then
    echo "skip guest-boot - the swapper cannot run here, see the log"
    exit 0
fi
if [ ! -f "$out" ]; then
    echo "not ok guest-boot - run-demo ended with status $status"
    exit 1
fi

/usr/bin/python3 -B - "$out" "$build" <<'END'
import json
import os
import sys

with open(sys.argv[1], encoding='utf-8') as f:
    run = json.load(f)['results'][0]
figures, failed = run['figures'], False


def test(name, fine, reason):
    global failed
    failed = failed or not fine
    print(f'ok guest-boot/{name}' if fine else
          f'not ok guest-boot/{name} - {reason}')


test('run', not run['errors'], '; '.join(run['errors']).replace('\n', ' '))
test('data', run['data_errors'] == 0, f"data errors: {run['data_errors']}")
test('swap-out', figures.get('host_pages_out'), 'no page was swapped out')
test('swap-in', figures.get('host_pages_in'), 'no page was swapped in')
test('double-paging', figures.get('avoided_pages'),
     'no write of a swapped-out page became an indirection')
test('no-wait', figures.get('loaded_pages') == 0,
     f"writes waited for {figures.get('loaded_pages')} swapped-out pages")
excess = figures.get('excess_mib')
test('limit', excess is not None and excess <= 1.6,
     f'160 MiB exceeded by {excess} MiB for a second or longer')
test('clean-up', not os.path.exists(f'{sys.argv[2]}/demo/run'),
     'the work folder is still there')
sys.exit(failed)
END
