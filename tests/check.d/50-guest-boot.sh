#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# timeout: 300
#
# A Linux guest that is short of memory on both levels, with interception:
# everything it reads is verified, the limit holds, writes of swapped-out pages
# become indirections, and nothing is left behind.  First it pages through an
# area, then it runs warehouses whose heaps are collected.
set -u
build=${BUILD:-build}

# guest_boot NAME ARGUMENT...: run the guest so, and judge the run
guest_boot()
{
    local name=$1 out=$build/demo/$1.json status
    shift

    mkdir -p "$build/demo"
    rm -f "$out"
    demo/run-demo --build "$build" --ways c --out "$out" --memory 256 \
        --limit 160 --timeout 140 "$@"
    status=$?
    if [ $status = 3 ]; then
        echo "skip $name - the swapper cannot run here, see the log"
        return 0
    fi
    if [ ! -f "$out" ]; then
        echo "not ok $name - run-demo ended with status $status"
        return 1
    fi
    /usr/bin/python3 -B -c "$judge" "$name" "$out" "$build"
}

judge=$(cat <<'END'
import json
import os
import sys

name, out, build = sys.argv[1:]
with open(out, encoding='utf-8') as f:
    run = json.load(f)['results'][0]
figures, failed = run['figures'], False


def test(what, fine, reason):
    global failed
    failed = failed or not fine
    print(f'ok {name}/{what}' if fine else
          f'not ok {name}/{what} - {reason}')


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
test('clean-up', not os.path.exists(f'{build}/demo/run'),
     'the work folder is still there')
sys.exit(failed)
END
)

failed=0
guest_boot guest-boot \
    --memhog pinned=32,work=96,total=272,passes=1,check=1 || failed=1
guest_boot guest-jbb --jbb \
    warehouses=7,items=8000,customers=6000,old=18,transactions=12000 || failed=1
exit $failed
