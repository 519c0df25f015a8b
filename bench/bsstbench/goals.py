# SPDX-License-Identifier: GPL-2.0-or-later
"""The goals of the project, judged by samples

A goal is reached, missed, or not measured; reached or missed by a figure whose
spread is larger than the effect is said to be noise.  "Ours" is (f), which is
what one gets by default.
"""
from dataclasses import dataclass, field

from .cells import CONTESTANTS, Cell

OURS = 'f'


@dataclass
class Verdict:
    text: str
    against: str
    goal: str
    reached: bool = None            # None: not measured
    value: str = ''
    remarks: list = field(default_factory=list)

    @property
    def word(self):
        if self.reached is None:
            return 'not measured'
        word = 'reached' if self.reached else 'missed'
        return f'{word}, but noise' if any('spread' in r
                                           for r in self.remarks) else word


def against(letter):
    return f'({letter}) {CONTESTANTS[letter].text}'


def cell_of(workload, profile, overcommit, letter):
    """In the guest that the goals are about"""
    return Cell(workload, profile, 512, 1, overcommit, letter)


def ratio_goal(results, text, cell, other, name, most, minus=None):
    """Ours against @other, at most @most"""
    found = results.compare(cell, cell.sibling(other), name,
                            cell.sibling(minus) if minus else None)
    return judged(text, other, most, found)


def path_goal(results, text, cell, other, path, most):
    """The same of the average of an I/O path"""
    return judged(text, other, most,
                  results.compare_path(cell, cell.sibling(other), path))


def judged(text, other, most, found):
    verdict = Verdict(text, against(other), f'{most:.3g} or less')
    if not found:
        verdict.remarks.append('no round has both')
        return verdict
    if found.ratio is None:
        verdict.remarks.append(f'nothing to compare with: {against(other)} '
                               'has none')
        return verdict
    verdict.reached = found.ratio <= most
    verdict.value = f'{found.ratio:.3g}'
    if found.ratios:
        verdict.value += (f' (rounds: {min(found.ratios):.3g} to '
                          f'{max(found.ratios):.3g})')
    verdict.remarks += found.remarks()
    return verdict


def most_goal(results, text, cell, name, most, unit):
    """No run of ours above @most"""
    verdict = Verdict(text, '-', f'never above {most:g} {unit}')
    found = results.summary(cell, name)
    if found:
        verdict.reached = max(found.values) <= most
        verdict.value = f'at most {max(found.values):,.0f} {unit}'
    else:
        verdict.remarks.append('no run')
    return verdict


def matrix_goals(results):
    found = []
    for load in 'memhog', 'jbb':
        found += [
            ratio_goal(results, f'{load}: overcommit penalty, 40 %, fast disk',
                       cell_of(load, 'fast', 40, OURS), 'a', 'time_s', 0.5,
                       'h'),
            ratio_goal(results, f'{load}: time at 10 %, fast disk',
                       cell_of(load, 'fast', 10, OURS), 'a', 'time_s', 1),
            *(ratio_goal(results, f'{load}: time at {percent} %, spinning '
                         'disk', cell_of(load, 'spinning', percent, OURS),
                         'a', 'time_s', 1 / 3) for percent in (10, 40)),
            *(ratio_goal(results, f'{load}: device bytes of the whole run, '
                         f'{percent} %, fast disk',
                         cell_of(load, 'fast', percent, OURS), 'a',
                         'device_mib', 0.8) for percent in (10, 40))]
    cell = cell_of('jbb', 'fast', 40, OURS)
    for other in 'ad':
        for text, name in (('total time in pauses over 100 ms',
                            'stall_sum_ms'), ('largest pause',
                                              'stall_max_ms')):
            found.append(ratio_goal(results, f'jbb: {text}, 40 %, fast disk',
                                    cell, other, name, 1 / 5))
    found.append(most_goal(results, 'jbb: largest pause, 40 %, fast disk',
                           cell, 'stall_max_ms', 1000, 'ms'))
    for text, name in ('p99', 'touch_p99_us'), ('p99.9', 'touch_p999_us'):
        found.append(ratio_goal(
            results, f'jbb: {text} of transaction time, 40 %, fast disk',
            cell, 'a', name, 0.5))
    for load in 'memhog', 'jbb':
        found.append(path_goal(
            results, f'{load}: write prepare, average, requests with '
            'swapped pages, 40 %, fast disk',
            cell_of(load, 'fast', 40, OURS), 'd', 'write-prepare', 1 / 100))
    return found


def micro_goals(micro):
    """From the files of micro-benches: {name: document}"""
    found = []
    for text, bench, name, other, goal, least in MICRO:
        verdict = Verdict(text, other, f'{goal:g} or '
                          f'{"better" if least else "less"}')
        rows = [r for r in micro.get(bench, {}).get('results', [])
                if r['name'].startswith(name) and
                r.get('goal', goal) is not None]
        if rows:
            ratios = [r['ratio'] for r in rows]
            verdict.reached = (min(ratios) >= goal if least
                               else max(ratios) <= goal)
            verdict.value = ', '.join(f"{r['name']}: {r['ratio']:.3f}"
                                      for r in rows)
            if any(r.get('noise') for r in rows):
                verdict.remarks.append('the spread is larger than the effect')
        else:
            verdict.remarks.append(f'make bench-{bench}')
        found.append(verdict)
    return found


# (goal, bench, rows that begin with, against, goal, or more is better)
MICRO = [
    ('swap-in fault, one thread, p50 and p99', 'fault', 'fault',
     'kernel swap on the same disk', 1.2, False),
    ('faults a second, 4 threads', 'fault', 'rate', 'kernel swap', 1.0, True),
    ('swap-out bandwidth', 'fault', 'swap-out', 'fio sequential write', 0.9,
     True),
    ('no pressure: guest memory sweep', 'no-pressure', 'guest memory sweep',
     'the same QEMU without swapper and bsst', 0.99, True),
    ('no pressure: random 4K', 'no-pressure', 'random 4K',
     'the same QEMU without bsst', 0.99, True),
]


def all_goals(results, micro):
    found = matrix_goals(results) + micro_goals(micro)
    found.append(Verdict('Java heap and PostgreSQL guests', against('a'),
                         'every row holds there, too',
                         remarks=['the suite has no such guests yet']))
    return found
