# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory cgroup, swap, zswap: what an ordinary host offers

Both cgroup versions are served.  What the machine forbids is Unavailable,
with the reason; nothing of it is left behind then.
"""
import os
import subprocess
from pathlib import Path

# Above every other swap that the machine may have
SWAP_PRIORITY = 32767


class Unavailable(Exception):
    """The machine does not allow it; says why"""


def find_hierarchy():
    """(folder of the root of the memory controller, version)"""
    unified = None
    for line in Path('/proc/self/mounts').read_text().splitlines():
        _, folder, kind, options = line.split()[:4]
        if kind == 'cgroup' and 'memory' in options.split(','):
            return Path(folder), 1
        if kind == 'cgroup2':
            unified = Path(folder)
    if unified:
        try:
            controllers = (unified / 'cgroup.controllers').read_text()
        except OSError as e:
            raise Unavailable(f'cgroup v2: {e}') from None
        if 'memory' in controllers.split():
            return unified, 2
    raise Unavailable('no memory controller is mounted under /sys/fs/cgroup')


class Cgroup:
    def __init__(self, leftovers, name):
        root, self.version = find_hierarchy()
        self.path = root / name
        self.leftovers = leftovers
        leftovers.add('cgroup', str(self.path))
        try:
            if self.version == 2:
                self._enable(root)
            self.path.mkdir()
            self._write(self._limit_file(), str(1 << 40))
        except OSError as e:
            leftovers.undo('cgroup', str(self.path))
            raise Unavailable(f'cgroup {self.path}: {e.strerror}') from None

    @staticmethod
    def _enable(root):
        control = root / 'cgroup.subtree_control'
        if 'memory' not in control.read_text().split():
            control.write_text('+memory')

    def _write(self, name, text):
        (self.path / name).write_text(text)

    def _limit_file(self):
        return 'memory.limit_in_bytes' if self.version == 1 else 'memory.max'

    def enter(self):
        """Move the calling process in: for the child between fork and exec"""
        self._write('cgroup.procs', str(os.getpid()))

    def set_limit(self, limit_bytes):
        self._write(self._limit_file(), str(limit_bytes))

    def _stat(self):
        text = (self.path / 'memory.stat').read_text()
        return {name: int(value) for name, value in
                (line.split() for line in text.splitlines())}

    def swap_cache_bytes(self):
        """Pages in memory that are mapped nowhere: read ahead or on their way

        They lie on the lists of anonymous pages, but do not count as mapped.
        """
        stat = self._stat()
        mapped = stat['rss' if self.version == 1 else 'anon']
        return max(0, stat['inactive_anon'] + stat['active_anon'] - mapped)

    def kernel_bytes(self):
        """Page tables and the like, which count against the limit, too"""
        try:
            if self.version == 1:
                name = 'memory.kmem.usage_in_bytes'
                return int((self.path / name).read_text())
            stat = self._stat()
            return stat.get('kernel', stat.get('pagetables', 0))
        except OSError:
            return 0

    def close(self):
        self.leftovers.undo('cgroup', str(self.path))


def allocate_swap(path, size_bytes):
    """A file without holes, as swap wants it"""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        with open(fd, 'wb') as f:
            os.posix_fallocate(f.fileno(), 0, size_bytes)
            os.fsync(f.fileno())
    except OSError as e:
        raise Unavailable(f'{path}: {e.strerror}') from None


def run_tool(*command):
    """Its output; Unavailable where it fails"""
    env = dict(os.environ, LC_ALL='C',
               PATH=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')
    try:
        return subprocess.run([str(c) for c in command], check=True,
                              text=True, capture_output=True,
                              env=env).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as e:
        text = getattr(e, 'stderr', None) or str(e)
        raise Unavailable(text.strip().replace('\n', '; ')) from None


class Swap:
    """Swap on a file or a device that is there; the kernel's first choice"""

    def __init__(self, leftovers, path):
        self.path = str(Path(path).resolve())
        self.leftovers = leftovers
        leftovers.add('swap', self.path)
        try:
            run_tool('mkswap', self.path)
            run_tool('swapon', '-p', SWAP_PRIORITY, self.path)
        except Unavailable:
            leftovers.undo('swap', self.path)
            raise

    def has_rival(self):
        """Is there other swap that the kernel likes as much?"""
        lines = Path('/proc/swaps').read_text().splitlines()[1:]
        return any(line.split()[0] != self.path and
                   int(line.split()[4]) >= SWAP_PRIORITY for line in lines)

    def close(self):
        self.leftovers.undo('swap', self.path)


class Zswap:
    """zswap of the whole machine, on or off for a while

    What it has compressed must count against the limit of @cgroup: without
    that a guest holds as much as it likes.
    """
    ENABLED = Path('/sys/module/zswap/parameters/enabled')

    def __init__(self, leftovers, cgroup, wanted):
        self.wanted = 'Y' if wanted else 'N'
        if wanted and cgroup.version == 1:
            raise Unavailable('cgroup version 1 does not count what zswap has '
                              'compressed; boot with version 2')
        self.leftovers = leftovers
        self.item = [str(self.ENABLED), self.ENABLED.read_text().strip()]
        leftovers.add('setting', self.item)
        try:
            self.ENABLED.write_text(self.wanted)
        except OSError as e:
            leftovers.undo('setting', self.item)
            raise Unavailable(f'{self.ENABLED}: {e.strerror}') from None

    def is_kept(self):
        """Nobody has switched it meanwhile"""
        return self.ENABLED.read_text().strip() == self.wanted

    def close(self):
        self.leftovers.undo('setting', self.item)
