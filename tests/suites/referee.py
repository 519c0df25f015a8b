# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the same tests on two sides and compare what they say, down to subtests.

A test with a difference is repeated, on both: what fails at times fails with
either.  If the reference gives, in any of its runs, the result that the other
side gave, that is no difference; it is told as one that varies.

Results are kept together with a hash of the programs that gave them, so a run
that was interrupted goes on where it was, and only what has changed runs again.
"""
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ('qemu-system-x86_64', 'qemu-img', 'qemu-io', 'qemu-nbd',
            'storage-daemon/qemu-storage-daemon')
REPEATS = 4
# Limits on time are for idle machines
PATIENCE = 6
LINE = re.compile(r'(not ok|ok)(?: \d+)?(?: - )? *([^#]*?)\s*'
                  r'(?:# *(?:SKIP|skip)\b *(.*))?')


def hash_of(paths):
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path).encode() + b'\0' + Path(path).read_bytes())
    return digest.hexdigest()


def build(*arguments):
    """scripts/build; false if that fails"""
    return subprocess.call([str(TOP / 'scripts/build'), *arguments],
                           stdout=sys.stderr) == 0


class Side:
    """One of the two: where its build and its results are

    What a test is called, how to run it and what its result depends on is up
    to the heirs: tests(suite), command(suite, test), key(suite, test).
    """

    def __init__(self, folder, results):
        self.folder = folder
        self.results = results
        info = json.loads((folder / 'meson-info/intro-tests.json').read_text())
        self.meson = {test['name']: test for test in info}
        args = next(t['cmd'] for name, t in self.meson.items()
                    if name.startswith('io-'))
        self.iotests = Path(args[args.index('--source-dir') + 1])
        self.hash = None

    def check(self, *args):
        """The command line of qemu-iotests"""
        return [sys.executable, str(self.iotests / 'check'), *args,
                '--source-dir', str(self.iotests),
                '--build-dir', str(self.folder / 'tests/qemu-iotests')]

    def iotests_in(self, group):
        names = subprocess.run(self.check('-g', group, '-n'), check=True,
                               cwd=self.folder / 'tests/qemu-iotests',
                               text=True, stdout=subprocess.PIPE).stdout
        return set(names.split())

    def iotest_path(self, test):
        path = self.iotests / test
        return path if path.exists() else self.iotests / 'tests' / test

    def programs(self):
        """A hash of the programs that are tested"""
        self.hash = self.hash or hash_of(self.folder / p for p in PROGRAMS)
        return self.hash

    def file(self, suite, test, suffix):
        """Where the result or the log of a test is kept"""
        return self.results / suite / (test.replace('/', ',') + suffix)

    def result(self, suite, test):
        """The kept result, or that of a run"""
        path, key = self.file(suite, test, '.json'), self.key(suite, test)
        try:
            found = json.loads(path.read_text())
            if found['key'] == key:
                return found['results']
        except (OSError, ValueError, KeyError):
            pass
        results = self.run(suite, test)
        part = path.with_suffix('.part')
        part.write_text(json.dumps({'key': key, 'results': results}, indent=1))
        part.rename(path)
        return results

    def run(self, suite, test):
        """Run it now: {subtest: result}, and '' for the whole"""
        args, more, cwd, seconds = self.command(suite, test)
        log = self.file(suite, test, '.log')
        log.parent.mkdir(parents=True, exist_ok=True)
        env = dict(os.environ, **more)
        env.pop('MAKEFLAGS', None)
        with open(log, 'wb') as out:
            process = subprocess.Popen(args, cwd=cwd, env=env, stdout=out,
                                       stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL,
                                       start_new_session=True)
            try:
                status = process.wait(PATIENCE * seconds)
            except subprocess.TimeoutExpired:
                status = 'timeout'
            finally:
                end_group(process)
        results = read_tap(log.read_text(errors='replace'), test)
        results[''] = {0: 'ok', 77: 'skip'}.get(status, f'status {status}')
        if any(r not in ('ok', 'skip') for r in results.values()):
            # a repetition must not write over it
            shutil.copy(log, log.with_suffix('.failed'))
        return results


def read_tap(text, whole):
    """{subtest: result}; a test that speaks no TAP has none"""
    results = {}
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match:
            word, name, skipped = match.groups()
            results[name or whole] = 'skip' if skipped is not None else word
    return results


def end_group(process):
    """End what a test has left of its process group"""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        time.sleep(0.2)
    process.wait()


def add_results(said, results):
    """Note in @said, {subtest: what it gave in some run}, what a run gave"""
    for name in said.keys() | results.keys():
        said.setdefault(name, set()).add(results.get(name, 'missing'))


def differences(ours, reference):
    """{subtest: what it gave here and never there}"""
    wrong = {}
    for name, said in ours.items():
        # what only we have may pass
        wrong[name] = said - reference.get(name, {'ok', 'skip'})
    for name in reference.keys() - ours.keys():
        wrong[name] = {'missing'} - reference[name]
    return {name: said for name, said in wrong.items() if said}


class Referee:
    """Compares @ours with @reference"""

    def __init__(self, ours, reference, jobs):
        self.ours = ours
        self.reference = reference
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)

    def compare(self, suite, test):
        """[(subtest, ours, the reference's)], [what varies with both]"""
        ours, reference = {}, {}
        add_results(ours, self.ours.result(suite, test))
        add_results(reference, self.reference.result(suite, test))
        first = wrong = differences(ours, reference)
        for _ in range(REPEATS):
            if not wrong:
                break
            add_results(reference, self.reference.run(suite, test))
            add_results(ours, self.ours.run(suite, test))
            wrong = differences(ours, reference)
        return ([(name, sorted(said), sorted(reference.get(name, ())))
                 for name, said in sorted(wrong.items())],
                sorted(first.keys() - wrong.keys()))

    def suite(self, suite, pattern):
        """Compare all tests of @suite: a dict with what was found"""
        mine, theirs = self.ours.tests(suite), self.reference.tests(suite)
        tests = sorted(t for t in theirs if fnmatch.fnmatch(t, pattern))
        future = {self.pool.submit(self.compare, suite, test): test
                  for test in tests if test in mine}
        report = {'tests': len(tests), 'only-ours': sorted(mine - theirs),
                  'differences': {test: 'is missing' for test in tests
                                  if test not in mine}, 'varies': {}}
        for n, done in enumerate(self.finished(future)):
            test = future[done]
            wrong, varies = done.result()
            if wrong:
                report['differences'][test] = wrong
                print(f'# {suite}: {test} differs: {wrong}', flush=True)
            if varies:
                report['varies'][test] = varies
                print(f'# {suite}: {test} varies on both sides: '
                      f'{", ".join(varies)}', flush=True)
            if n % 25 == 24:
                print(f'# {suite}: {n + 1} of {len(future)}', flush=True)
        report['results'] = self.totals(suite, tests)
        return report

    def finished(self, future):
        """Those of @future as they end; if we are stopped no more begins"""
        try:
            yield from concurrent.futures.as_completed(future)
        except BaseException:
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def totals(self, suite, tests):
        """How often the reference said what; a test without subtests is one"""
        count = {}
        for test in tests:
            results = dict(self.reference.result(suite, test))
            whole = results.pop('')
            for result in results.values() or [whole]:
                count[result] = count.get(result, 0) + 1
        return count


def add_arguments(parser, suites):
    a = parser.add_argument
    a('suites', nargs='*', metavar='SUITE', default=suites,
      help=f'of {", ".join(suites)} (all)')
    a('--tests', default='*', metavar='GLOB', help='only these')
    a('--jobs', type=int, default=os.cpu_count(), help='at once (%(default)s)')
    a('--fresh', action='store_true', help='forget earlier results')


def parse_arguments(parser, results):
    args = parser.parse_args()
    suites = parser.get_default('suites')
    for suite in args.suites:
        if suite not in suites:
            parser.error(f'{suite} is none of {", ".join(suites)}')
    if args.fresh:
        shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return args
