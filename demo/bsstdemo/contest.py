# SPDX-License-Identifier: GPL-2.0-or-later
"""The contestants, and one run of one of them

A run boots the guest, waits until it is ready, notes every counter, says
"go", follows the score lines of the load, and notes the counters again before the
guest powers off.  What a run returns is a dictionary for the JSON file.
"""
import ctypes
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .kernelswap import (Cgroup, Swap, Unavailable, Zswap, allocate_swap)
from .machine import (Hang, Machine, MachineError, Sampler, read_numbers,
                      sustained_excess)
from .qmp import QmpError

MIB = 1 << 20
PAGE = 4096
SECTOR = 512

# <linux/userfaultfd.h>, x86-64
SYS_USERFAULTFD = 323
USERFAULTFD_IOC_NEW = 0xaa00
UFFDIO_API = 0xc018aa3f
UFFD_API = 0xaa
UFFD_FEATURE_MOVE = 1 << 16

SWAP_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Contestant:
    """Who keeps the guest's RAM below the limit, and how"""
    text: str
    held_by: str = ''               # nobody, or one of HOLDERS
    zswap: bool = False             # with 'cgroup'
    tesseract: bool = True          # with 'swapper'
    defrag: str = 'auto'            # the same: 'off', 'auto', a job's mode

    @property
    def ours(self):
        return self.held_by == 'swapper'


HOLDERS = ('cgroup', 'balloon', 'swapper')

# Those of the demo
WAYS = {
    'n': Contestant('no limit'),
    'a': Contestant('stock QEMU, kernel swap', 'cgroup'),
    'b': Contestant('swapper, tesseract=off', 'swapper', tesseract=False),
    'c': Contestant('swapper, tesseract=on', 'swapper'),
}

# What a healthy guest never prints
GUEST_TROUBLE = re.compile(
    r'BUG:|Oops|Kernel panic|I/O error|Call Trace|Read-error on swap|'
    r'Write-error on swap|blocked for more than|rcu_.*stall|'
    r'Out of memory|GUEST failed')


@dataclass
class Settings:
    build: Path
    stock: Path
    guest_mib: int = 512
    limit_mib: int = 300
    overhead_mib: int = None        # None: as measured all the time
    load: str = 'memhog'            # the guest's program
    options: str = ''               # of it
    smp: int = 1
    accel: str = 'tcg'
    cache: str = 'none'
    swapper: str = ''               # more properties of host-swapper
    append: str = ''                # more words on the kernel command line
    qemu_args: list = field(default_factory=list)
    image: str = ''                 # more options of the swap disk's image
    timeout_s: int = 300            # for a whole run
    silence_s: int = 60             # the load speaks every second

    @property
    def folder(self):
        return self.build / 'demo'

    def binary(self, contestant):
        return ((self.build if contestant.ours else self.stock) /
                'qemu-system-x86_64')

    @property
    def image_tool(self):
        return self.build / 'qemu-img'


def quoted(path):
    """A file name inside a QEMU option"""
    return str(path).replace(',', ',,')


def qemu_arguments(s, contestant, place):
    drive = (f'file={quoted(place.image)},format=qcow2,'
             f'cache={s.cache},if=none,id=swap')
    args = ['-machine', 'pc', '-accel', s.accel, '-m', str(s.guest_mib),
            '-smp', str(s.smp),
            '-kernel', str(s.folder / 'vmlinuz'),
            '-initrd', str(s.folder / 'initramfs'),
            '-append', ('console=ttyS0 quiet panic=-1 '
                        f'load={s.load},{s.options} {s.append}').strip()]
    if contestant.ours:
        state = 'on' if contestant.tesseract else 'off'
        args += ['-object', 'host-swapper,id=sw0,'
                 f'path={quoted(place.store)},'
                 f'memory-limit={s.limit_mib}M,tesseract={state}' +
                 (f',{s.swapper}' if s.swapper else '')]
        drive += ',bsst=on'
        if contestant.defrag != 'auto':
            drive += ',bsst.defrag=off'
    if contestant.held_by == 'balloon':
        args += ['-device', 'virtio-balloon-pci']
    return args + ['-drive', drive, '-device',
                   'virtio-blk-pci,drive=swap,serial=guestswap', *s.qemu_args]


def disk_of(folder):
    """The name in /proc/diskstats of the device that @folder lies on"""
    number = os.stat(folder).st_dev
    want = [str(os.major(number)), str(os.minor(number))]
    for line in Path('/proc/diskstats').read_text().splitlines():
        if line.split()[:2] == want:
            return line.split()[2]
    return None


def disk_bytes(name):
    for line in Path('/proc/diskstats').read_text().splitlines():
        fields = line.split()
        if fields[2] == name:
            return int(fields[5]) * SECTOR, int(fields[9]) * SECTOR
    return 0, 0


def machine_cpu_seconds():
    """What all processors of the machine have worked"""
    for line in Path('/proc/stat').read_text().splitlines():
        if line.startswith('cpu '):
            user, nice, system, _, _, irq, softirq = map(
                int, line.split()[1:8])
            return ((user + nice + system + irq + softirq) /
                    os.sysconf('SC_CLK_TCK'))
    return 0.0


def key_values(line):
    """The key=value words of a line, numbers as numbers"""
    pairs = dict(word.split('=', 1) for word in line.split() if '=' in word)
    return {k: int(v) if v.lstrip('-').isdigit() else v
            for k, v in pairs.items()}


def progress_text(score):
    """A score line for people"""
    text = f"{score['second']:3d} s  {score['phase']:15s} "
    if 'touches' in score:
        return text + (f"{score['touches']:7,d} pages/s, "
                       f"longest {score['max_ns'] / 1e6:7.1f} ms")
    return text + f"{score['transactions']:7,d} transactions/s"


class Disk:
    """A place for the files of a @run: the disk that its folder lies on"""

    def __init__(self, run):
        self.image = run.folder / 'swap.qcow2'
        self.store = run.folder / 'store.qcow2'
        self.kernel_swap = run.folder / 'kernel'
        run.create_image(self.image)
        if run.contestant.held_by == 'cgroup':
            allocate_swap(self.kernel_swap, SWAP_DISK_BYTES)

    def io_bytes(self):
        """(read, written) so far, where the place knows better than QEMU"""

    def close(self):
        pass


class Run:
    """One run of one contestant"""

    def __init__(self, settings, way, contestant, number, leftovers,
                 progress, storage=Disk):
        self.s = settings
        self.contestant = contestant
        self.leftovers = leftovers
        self.progress = progress        # progress(text, final=False)
        self.name = f'{way}-{number}'
        self.logs = settings.folder / 'logs'
        self.folder = settings.folder / 'run'
        self.storage = storage          # makes a place in a folder
        self.disk = None
        self.place = self.machine = self.cgroup = self.swap = None
        self.zswap = None
        self.overheads = []             # as added to a cgroup's limit
        self.result = {
            'way': way, 'description': contestant.text,
            'held_by': contestant.held_by, 'round': number,
            'errors': [], 'data_errors': None, 'phases': {}, 'kinds': {},
            'scores': [],
        }

    def run(self):
        """The result; raises Unavailable where the machine forbids the way"""
        deadline = time.monotonic() + self.s.timeout_s
        self.logs.mkdir(parents=True, exist_ok=True)
        self.leftovers.add('folder', str(self.folder))
        try:
            self._prepare()
            self._boot(deadline)
            self._contest(deadline)
            self._power_off(deadline)
        except Hang as e:
            self._note_hang(str(e))
        except (MachineError, QmpError) as e:
            self._error(str(e))
        finally:
            self._close()
        self.result['ok'] = (not self.result['errors'] and
                             self.result['data_errors'] == 0)
        if not self.result['ok']:
            self._keep()
        return self.result

    def _keep(self):
        """Save what is known of a failure from the next run of this name"""
        kept = self.s.folder / 'failed' / f'{self.name}-{int(time.time())}'
        kept.mkdir(parents=True)
        for log in self.logs.glob(f'{self.name}.*'):
            shutil.copy(log, kept)
        (kept / 'result.json').write_text(
            json.dumps(self.result, indent=1, default=str) + '\n')
        self.result['kept'] = str(kept)

    def _error(self, text):
        self.result['errors'].append(text)

    def _prepare(self):
        """Fresh images, and for kernel swap a host that swaps"""
        if self.folder.exists():
            self.leftovers.undo('folder', str(self.folder))
            self.leftovers.add('folder', str(self.folder))
        self.folder.mkdir()
        self.disk = disk_of(self.folder)
        self.place = self.storage(self)
        if self.contestant.held_by == 'cgroup':
            self.cgroup = Cgroup(self.leftovers, f'bsst-demo-{os.getpid()}')
            if Zswap.ENABLED.exists():
                self.zswap = Zswap(self.leftovers, self.cgroup,
                                   self.contestant.zswap)
            self.swap = Swap(self.leftovers, self.place.kernel_swap)
        subprocess.run(['sync', '-f', str(self.folder)], check=False)

    def create_image(self, path):
        options = ['-o', self.s.image] if self.s.image else []
        subprocess.run([self.s.image_tool, 'create', '-q', '-f',
                        'qcow2', *options, path, str(SWAP_DISK_BYTES)],
                       check=True)

    def _boot(self, deadline):
        begin = time.monotonic()
        self.machine = Machine(
            self.s.binary(self.contestant),
            qemu_arguments(self.s, self.contestant, self.place),
            self.leftovers,
            self.logs / f'{self.name}.log',
            self.cgroup.enter if self.cgroup else None)
        self.result['command'] = self.machine.command
        line = self._follow('GUEST ready', min(deadline, begin + 90))
        self.result['guest_ready'] = key_values(line)
        self.result['boot_s'] = round(time.monotonic() - begin, 2)
        self.machine.qmp.greet()
        self.machine.find_ram()

    def _follow(self, until, deadline):
        """Read the console up to the line that starts with @until"""
        while True:
            line = self.machine.next_line(
                min(deadline, time.monotonic() + self.s.silence_s))
            if line is None:
                status = self.machine.wait(20)
                raise MachineError(f'QEMU has ended with status {status}: '
                                   f'{self.machine.last_words()}')
            if line.startswith(until):
                return line
            if GUEST_TROUBLE.search(line):
                self._error(f'guest: {line}')
            if line.startswith(f'{self.s.load.upper()} '):
                self._load_line(line.split()[1], key_values(line))
            if line.startswith('GUEST numbers'):
                self.result['guest_done'] = key_values(line)

    def _load_line(self, kind, values):
        if kind == 'score':
            self.result['scores'].append(values)
            self.progress(progress_text(values))
        elif kind == 'phase':
            self.result['phases'][values.pop('name')] = values
        elif kind == 'error':
            self._error(f'guest: data error: {values}')
        elif kind == 'result':
            self.result['data_errors'] = values['data_errors']
            self.result['load'] = values
        elif kind == 'kind':
            self.result['kinds'][values.pop('name')] = values

    # The measured part

    def _limit_cgroup(self, other_bytes):
        """Allow the guest as much RAM as the swapper allows it

        QEMU's own memory counts in a cgroup, so it is added to the limit; it
        grows with translated code, and the kernel swaps some of it out.
        """
        overhead = (other_bytes + self.cgroup.kernel_bytes()
                    if self.s.overhead_mib is None
                    else self.s.overhead_mib * MIB)
        try:
            self.cgroup.set_limit(self.s.limit_mib * MIB + overhead)
        except OSError:
            return      # EBUSY: reclaim is behind; the next sample tries again
        self.overheads.append(overhead)

    def _counters(self):
        m = self.machine
        read, written = m.io_bytes()
        disk_read, disk_written = disk_bytes(self.disk)
        counters = {
            'time_s': time.monotonic(),
            'process_read_bytes': read,
            'process_written_bytes': written,
            'disk_read_bytes': disk_read,
            'disk_written_bytes': disk_written,
            'cpu_s': m.cpu_seconds(),
            'machine_cpu_s': machine_cpu_seconds(),
        }
        vmstat = read_numbers('/proc/vmstat')
        if self.place.io_bytes():
            (counters['place_read_bytes'],
             counters['place_written_bytes']) = self.place.io_bytes()
        for name in ('pswpin', 'pswpout'):
            counters[f'host_{name}'] = vmstat.get(name, 0)
        return counters

    def _contest(self, deadline):
        follow = None
        if self.contestant.held_by == 'balloon':
            self._inflate(deadline)
        if self.contestant.defrag == 'store' and self.contestant.ours:
            self._start_job()
        if self.cgroup:
            follow = self._limit_cgroup
            follow(self.machine.resident_bytes()[1])
        before = self._counters()
        sampler = Sampler(self.machine, self._cached_bytes, follow)
        sampler.start()
        try:
            self.machine.say('go')
            line = self._follow('GUEST done', deadline)
        finally:
            self.result['samples'] = sampler.stop()
        after = self._counters()
        self.result['host'] = {k: round(after[k] - before[k], 3)
                               for k in after}
        self._note_answers()
        self._note_limit()
        self._check_host()
        if self.result['data_errors'] is None:
            self._error(f'{self.s.load} has failed: {line}')

    def _check_host(self):
        """Was the swap that was measured the swap that was used?"""
        if self.zswap and not self.zswap.is_kept():
            self._error('zswap has been switched by somebody else meanwhile')
        if self.swap and self.swap.has_rival():
            self._error('others have swap of the same priority: pages went '
                        'there, too')

    def _inflate(self, deadline):
        """Take from the guest what the others are not allowed to hold"""
        qmp = self.machine.qmp
        want = self.s.limit_mib * MIB
        qmp.command('balloon', value=want)
        while qmp.command('query-balloon')['actual'] > want:
            if time.monotonic() > deadline:
                raise Hang('the balloon does not grow')
            time.sleep(0.05)

    def _start_job(self):
        """Defragmentation that goes on until the end"""
        qmp = self.machine.qmp
        node = qmp.command('query-bsst')['nodes'][0]['node-name']
        qmp.command('bsst-defrag', **{'job-id': 'defrag', 'node': node,
                                      'mode': self.contestant.defrag,
                                      'continuous': True})

    def _cached_bytes(self):
        """Guest pages in memory outside guest RAM: victim or swap cache"""
        if self.cgroup:
            return self.cgroup.swap_cache_bytes()
        if not self.contestant.ours:
            return 0
        answer = self.machine.qmp.command('query-host-swapper')
        swapper = (answer or [{}])[0]
        return PAGE * (swapper.get('victim', 0) + swapper.get('writing', 0))

    def _note_answers(self):
        """All that QEMU tells"""
        names = ['query-version', 'query-blockstats']
        if self.contestant.ours:
            names += ['query-host-swapper', 'query-bsst']
        self.result['qmp'] = {name: self.machine.qmp.query(name)
                              for name in names}
        if self.overheads:
            self.result['overheads_bytes'] = self.overheads
            self.result['overhead_bytes'] = (sum(self.overheads) //
                                             len(self.overheads))

    def _note_limit(self):
        samples = self.result['samples']
        if not samples:
            return
        limit = self.s.limit_mib * MIB
        ram = [s[1] for s in samples]
        held = [s[1] + (s[2] or 0) for s in samples]
        self.result['ram_mean_bytes'] = sum(ram) // len(ram)
        self.result['held_mean_bytes'] = sum(held) // len(held)
        self.result['held_max_bytes'] = max(held)
        self.result['limit_bytes'] = (limit if self.contestant.held_by
                                      else None)
        self.result['excess_bytes'] = sustained_excess(samples, limit)

    def _power_off(self, deadline):
        begin = time.monotonic()
        self.machine.say('off')
        while self.machine.next_line(deadline) is not None:
            pass
        status = self.machine.wait(30)
        self.result['shutdown_s'] = round(time.monotonic() - begin, 2)
        if status:
            self._error(f'QEMU has ended with status {status}: '
                        f'{self.machine.last_words()}')

    # The end

    def _note_hang(self, text):
        log = self.logs / f'{self.name}.hang'
        text = f'hang: {text}'
        if self.machine and self.machine.backtrace(log):
            text += f'; stacks of all threads in {log}'
        self._error(text)

    def _close(self):
        if self.machine:
            self.machine.close()
        for thing in (self.zswap, self.swap, self.cgroup, self.place):
            if thing:
                thing.close()
        self.leftovers.undo('folder', str(self.folder))


def uffd_reason():
    """Why the swapper cannot take pages out of a guest here, or None"""
    try:
        control = os.open('/dev/userfaultfd', os.O_RDWR | os.O_CLOEXEC)
        try:
            fd = fcntl.ioctl(control, USERFAULTFD_IOC_NEW, os.O_CLOEXEC)
        finally:
            os.close(control)
    except OSError:
        fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_USERFAULTFD,
                                                       os.O_CLOEXEC)
        if fd < 0:
            return (f'userfaultfd: {os.strerror(ctypes.get_errno())}; run as '
                    'root, or allow this user to open /dev/userfaultfd')
    try:
        api = bytearray(struct.pack('=QQQ', UFFD_API, 0, 0))
        fcntl.ioctl(fd, UFFDIO_API, api)
        features = struct.unpack('=QQQ', api)[1]
    except OSError as e:
        return f'userfaultfd: {e.strerror}'
    finally:
        os.close(fd)
    return (None if features & UFFD_FEATURE_MOVE else
            'this kernel has no UFFDIO_MOVE (Linux 6.8 or later is needed)')


def unavailable_reason(contestant, settings):
    """Why @contestant cannot run here, as far as one can tell before"""
    for path in (settings.binary(contestant), settings.image_tool):
        if not os.access(path, os.X_OK):
            return f'no {path}'
    if contestant.held_by == 'cgroup' and os.geteuid() != 0:
        return 'needs root for the memory cgroup and for swapon'
    if contestant.zswap and not Zswap.ENABLED.exists():
        return 'this kernel has no zswap'
    return uffd_reason() if contestant.ours else None
