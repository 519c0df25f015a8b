# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians, ratios and their spread; no claim without both

Two contestants are compared round by round, as those runs were close in time.
The ratio is that of the medians; the spread is the range of the rounds' ratios.
A spread that is larger than the effect, which is the distance of the ratio from
1, makes the comparison noise, whatever its ratio says.
"""
import statistics
from dataclasses import dataclass

ENOUGH = 5      # runs of each


@dataclass(frozen=True)
class Summary:
    """Of one figure in the rounds of one cell"""
    values: tuple

    @property
    def median(self):
        return statistics.median(self.values)

    def text(self, form):
        low, high = min(self.values), max(self.values)
        return (f'{self.median:{form}} ({low:{form}} to {high:{form}}, '
                f'{len(self.values)})')


@dataclass(frozen=True)
class Comparison:
    """@ours against @other: values of the same rounds"""
    ours: tuple
    other: tuple

    @property
    def ratio(self):
        return ratio(statistics.median(self.ours),
                     statistics.median(self.other))

    @property
    def ratios(self):
        found = [ratio(a, b) for a, b in zip(self.ours, self.other)]
        return [r for r in found if r is not None]

    @property
    def is_noise(self):
        """Also where a round has less than nothing, as a penalty may be"""
        if self.ratio is None:
            return False
        return (min(self.ours + self.other) < 0 or
                max(self.ratios) - min(self.ratios) > abs(1 - self.ratio))

    @property
    def is_enough(self):
        return len(self.ours) >= ENOUGH

    def remarks(self):
        found = []
        if self.is_noise:
            found.append('the spread is larger than the effect')
        if not self.is_enough:
            found.append(f'{len(self.ours)} rounds, fewer than {ENOUGH}')
        return found


def ratio(over, under):
    """None where there is nothing to compare with"""
    if under <= 0:
        return 1.0 if over <= 0 else None
    return over / under


class Results:
    """The samples that count, by cell and round"""

    def __init__(self, samples):
        self.by_cell = {}
        self.failed = []            # [(cell, round, errors)]
        for cell, rounds in sorted(samples.items()):
            for number, sample in sorted(rounds.items()):
                result = sample['result']
                if result['ok']:
                    self.by_cell.setdefault(cell, {})[number] = sample
                else:
                    self.failed.append((cell, number, result))

    def figures(self, cell, name):
        """{round: value}"""
        found = {number: sample['result']['figures'].get(name)
                 for number, sample in self.by_cell.get(cell, {}).items()}
        return {n: v for n, v in found.items() if v is not None}

    def summary(self, cell, name):
        values = tuple(self.figures(cell, name).values())
        return Summary(values) if values else None

    def compare(self, ours, other, name, minus=None):
        """By @name, of rounds that both have; None where there is none

        With the cell @minus, what that took is taken off first, round by round.
        """
        a, b = self.figures(ours, name), self.figures(other, name)
        if minus:
            base = self.figures(minus, name)
            a = {n: a[n] - base[n] for n in a.keys() & base.keys()}
            b = {n: b[n] - base[n] for n in b.keys() & base.keys()}
        return comparison(a, b)

    def compare_path(self, ours, other, path):
        """The same by the average time of an I/O path"""
        return comparison(self.averages_ns(ours, path),
                          self.averages_ns(other, path))

    def histogram(self, cell, path):
        """Bins {upper bound in ns: count} of an I/O path, all rounds"""
        bins = {}
        for sample in self.by_cell.get(cell, {}).values():
            for latency in latencies(sample['result'], path):
                for entry in latency['bins']:
                    bins[entry['upto-ns']] = (bins.get(entry['upto-ns'], 0) +
                                              entry['count'])
        return dict(sorted(bins.items()))

    def averages_ns(self, cell, path):
        """{round: average of its requests}"""
        found = {}
        for number, sample in self.by_cell.get(cell, {}).items():
            of_round = latencies(sample['result'], path)
            if any(latency['count'] for latency in of_round):
                found[number] = average(of_round)
        return found

    def average_ns(self, cell, path):
        """Of all requests of all rounds; there are some"""
        return average([latency
                        for sample in self.by_cell[cell].values()
                        for latency in latencies(sample['result'], path)])


def comparison(ours, other):
    """Of the rounds that both have, or None"""
    rounds = sorted(ours.keys() & other.keys())
    if not rounds:
        return None
    return Comparison(tuple(ours[n] for n in rounds),
                      tuple(other[n] for n in rounds))


def average(found):
    return (sum(latency['count'] * latency['avg-ns'] for latency in found) /
            sum(latency['count'] for latency in found))


def latencies(result, path):
    """What query-bsst or query-host-swapper tells of @path"""
    qmp = result.get('qmp') or {}
    nodes = (qmp.get('query-bsst') or {}).get('nodes', [])
    return [entry[path]
            for entry in nodes + (qmp.get('query-host-swapper') or [])
            if path in entry]


def percentile(bins, fraction):
    """The upper bound of the bin in which it lies"""
    total, seen = sum(bins.values()), 0
    for upto, count in bins.items():
        seen += count
        if seen >= fraction * total:
            return upto
    return None
