# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: contestants, workloads, profiles, and in which order

A cell is one combination of them; each round measures every cell once.  No
I/O here.
"""
import random
from dataclasses import asdict, dataclass

from bsstdemo.contest import Contestant

CONTESTANTS = {
    'a': Contestant('stock QEMU, kernel swap', 'cgroup'),
    'b': Contestant('stock QEMU, kernel swap, zswap', 'cgroup', zswap=True),
    'c': Contestant('stock QEMU, virtio-balloon', 'balloon'),
    'd': Contestant('swapper, tesseract=off', 'swapper', tesseract=False,
                    defrag='off'),
    'e': Contestant('swapper, no defragmentation', 'swapper', defrag='off'),
    'f': Contestant('swapper, guest defragmentation', 'swapper'),
    'g': Contestant('swapper, store defragmentation', 'swapper',
                    defrag='store'),
    'h': Contestant('no limit'),
}

PROFILES = {
    'fast': "this machine's disk",
    'spinning': 'a disk with one head (bench/slow-disk): 100 random requests '
                'a second, 150 MB/s in a stream',
    'network': 'a server behind a network: 1 ms a request, 1 Gbit/s',
}


@dataclass(frozen=True)
class Workload:
    """A program of the guest, sized for its RAM"""
    program: str
    text: str
    options: dict           # {profile: function(RAM in MiB) -> options}


def memhog(work, total, percent):
    def options(ram_mib):
        return (f'pinned={ram_mib * 60 // 512},work={ram_mib * work // 512},'
                f'total={ram_mib * total // 512},passes=1,percent={percent}')
    return options


def jbb(warehouses, transactions, check=0):
    """Heaps of 76 MiB, in 512 MiB of RAM; four fifths of a half live

    What transactions use is always checked, and with @check all at the end.
    """
    def options(ram_mib):
        return (f'warehouses={warehouses},items={26000 * ram_mib // 512},'
                f'customers={25000 * ram_mib // 512},'
                f'old={36 * ram_mib // 512},nursery=4,'
                f'transactions={transactions},check={check}')
    return options


# On the slow devices there is less to do, for there it takes long
WORKLOADS = {
    'memhog': Workload(
        'memhog', 'pages of 4 KiB, three of four in order, pinned and then '
        'unpinned (demo/memhog.c)',
        {'fast': memhog(320, 560, 60), 'spinning': memhog(260, 470, 1),
         'network': memhog(320, 480, 20)}),
    'jbb': Workload(
        'jbb', 'warehouses after SPECjbb2005 whose heaps are collected '
        '(demo/jbb.c)',
        {'fast': jbb(7, 10000, 1), 'spinning': jbb(13, 12),
         'network': jbb(13, 500)}),
}

OVERCOMMITS = 10, 20, 30, 40
MEMORIES_MIB = 512, 2048
CPUS = 1, 2


@dataclass(frozen=True, order=True)
class Cell:
    workload: str
    profile: str
    ram_mib: int
    cpus: int
    overcommit: int         # percent of RAM that the host lacks; 0 for h
    contestant: str

    @property
    def group(self):
        """What is compared: cells that differ in the contestant alone"""
        return (self.workload, self.profile, self.ram_mib, self.cpus)

    @property
    def key(self):
        return (f'{self.workload}-{self.profile}-{self.ram_mib}M-'
                f'{self.cpus}cpu-{self.overcommit}-{self.contestant}')

    @property
    def limit_mib(self):
        return self.ram_mib * (100 - self.overcommit) // 100

    @property
    def options(self):
        return WORKLOADS[self.workload].options[self.profile](self.ram_mib)

    def sibling(self, contestant):
        """The cell that this one is compared with"""
        overcommit = 0 if contestant == 'h' else self.overcommit
        return Cell(*self.group, overcommit, contestant)

    def as_dict(self):
        return asdict(self)


def cells(workloads, profiles, memories, cpus, overcommits, contestants):
    """All combinations; h does not depend on the overcommit"""
    found = {Cell(w, p, m, n, 0 if c == 'h' else o, c)
             for w in workloads for p in profiles for m in memories
             for n in cpus for o in overcommits for c in contestants}
    return sorted(found)


def round_order(wanted, seed, number):
    """Cells of a round in random order, but groups together

    What is compared runs within minutes, so that drift hits all alike.
    """
    dice = random.Random(f'{seed}-{number}')
    groups = {}
    for cell in sorted(wanted):
        groups.setdefault(cell.group, []).append(cell)
    order = sorted(groups)
    dice.shuffle(order)
    for group in order:
        dice.shuffle(groups[group])
    return [cell for group in order for cell in groups[group]]
