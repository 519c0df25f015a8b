# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of results: a file a run, checked when it is read

    FOLDER/state.json              what the campaign is: seed, machine, versions
    FOLDER/samples/KEY-ROUND.json  one run of one cell, all that is known of it

A file appears whole or not at all, so a campaign that was killed goes on where
it was.  Samples of other binaries or another machine are never mixed: they make
another campaign, and the old one is set aside.
"""
import hashlib
import json
import platform
import time
from pathlib import Path

from bsstdemo.report import write_json

from .cells import Cell

FORMAT = 1


class Refused(Exception):
    """Not a sample of this campaign; says why"""


def file_digest(path):
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while data := f.read(1 << 20):
            h.update(data)
    return h.hexdigest()[:16]


def fingerprint(programs, machine):
    """What must be equal for samples to be comparable"""
    return {'programs': {name: file_digest(path)
                         for name, path in sorted(programs.items())},
            'kernel': platform.release(), 'cpu': machine['cpu'],
            'cpus': machine['cpus'], 'file_system': machine['file_system']}


def differences(old, new):
    """In words"""
    flat_old = {**old, **old.get('programs', {})}
    flat_new = {**new, **new.get('programs', {})}
    return sorted(k for k in {*flat_old, *flat_new} - {'programs'}
                  if flat_old.get(k) != flat_new.get(k))


def read(path, campaign):
    """The sample in @path; raises Refused"""
    try:
        sample = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise Refused(f'unreadable: {e}') from None
    try:
        check(sample, Path(path).name, campaign)
    except (KeyError, TypeError) as e:
        raise Refused(f'incomplete: {e!r}') from None
    return sample


def check(sample, name, campaign):
    if sample['format'] != FORMAT:
        raise Refused(f"format {sample['format']}, not {FORMAT}")
    if sample['campaign'] != campaign:
        raise Refused('of another campaign')
    cell = Cell(**sample['cell'])
    if name != f"{cell.key}-{sample['round']}.json":
        raise Refused(f"it is {cell.key}, round {sample['round']}")
    if sample['options'] != cell.options:
        raise Refused('the workload was another: ' + sample['options'])
    result, figures = sample['result'], sample['result']['figures']
    if result['held_by'] != sample['held_by'] or result['way'] != cell.key:
        raise Refused('cell and result differ')
    if result['ok'] != (not result['errors'] and result['data_errors'] == 0):
        raise Refused('"ok" contradicts its errors')
    if result['ok'] and not (figures['time_s'] or 0) > 0:
        raise Refused('it has taken no time')


class Campaign:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.state = {}

    @property
    def path(self):
        return self.folder / 'state.json'

    def open(self):
        """True if there is a campaign in the folder"""
        try:
            state = json.loads(self.path.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return False
        if state.get('format') != FORMAT:
            return False
        self.state = state
        return True

    def begin(self, seed, print_of, machine):
        """Continue a campaign of the same fingerprint, or begin one

        Returns what differs from the one that was set aside, or nothing.
        """
        aside = []
        if self.open():
            aside = differences(self.state['fingerprint'], print_of)
            if not aside:
                return []
        if self.folder.exists() and any(self.folder.iterdir()):
            name = f'{self.folder.name}.until-{int(time.time())}'
            self.folder.rename(self.folder.with_name(name))
        self.state = {'format': FORMAT, 'campaign': f'{int(time.time())}-{seed}',
                      'seed': seed, 'fingerprint': print_of,
                      'machine': machine, 'skipped': {}}
        self.save()
        return aside

    def save(self):
        write_json(self.path, self.state)

    def sample_path(self, cell, number):
        return self.folder / 'samples' / f'{cell.key}-{number}.json'

    def add(self, cell, number, result, more):
        if self.state['skipped'].pop(cell.key, None):
            self.save()
        write_json(self.sample_path(cell, number), {
            'format': FORMAT, 'campaign': self.state['campaign'],
            'cell': cell.as_dict(), 'round': number,
            'held_by': result['held_by'], 'options': cell.options,
            'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            **more, 'result': result})

    def skip(self, cell, reason):
        self.state['skipped'][cell.key] = reason
        self.save()

    def load(self):
        """({cell: {round: sample}}, [(file name, why it is refused)])"""
        found, refused = {}, []
        for path in sorted((self.folder / 'samples').glob('*.json')):
            try:
                sample = read(path, self.state['campaign'])
            except Refused as e:
                refused.append((path.name, str(e)))
                continue
            cell = Cell(**sample['cell'])
            found.setdefault(cell, {})[sample['round']] = sample
        return found, refused

    def done(self, cell, number):
        """Is there a good or a failed sample?  What is refused is made anew."""
        try:
            read(self.sample_path(cell, number), self.state['campaign'])
        except Refused:
            return False
        return True
