# SPDX-License-Identifier: GPL-2.0-or-later
"""Files as they would be on a slow device: exports of nbdkit, mounted.

The store's I/O needs a file or a host device, and few machines have the nbd
kernel module.  So nbdkit serves the files, and nbdfuse shows each export as a
file, by the kernel's FUSE; that costs some 50 us a request, which is little
beside 10 ms.  The files have a fixed size: images must be preallocated.
"""
import os
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
HERE = TOP / 'bench/slow-disk'
sys.path.insert(0, str(TOP / 'demo'))

# pylint: disable=wrong-import-position
from bsstdemo.leftovers import end_mount, start_time            # noqa: E402
from bsstdemo.machine import read_numbers                       # noqa: E402

WAIT_S = 20


class Failure(Exception):
    pass


def build_plugin(folder):
    plugin = folder / 'slow-disk.so'
    done = subprocess.run(
        [os.environ.get('CC', 'cc'), '-std=gnu11', '-O2', '-Wall', '-fPIC',
         '-shared', '-o', plugin, HERE / 'slow-disk.c', HERE / 'disk-model.c',
         '-lm', '-lpthread'],
        check=False, text=True, stderr=subprocess.PIPE)
    if done.returncode:
        raise Failure(done.stderr)
    return plugin


class SlowFiles:
    """paths[i] is @files[i], slow; until close(), or the end of a with

    @server is what nbdkit is to run, @exports are its names for the files.  All
    is undone by @leftovers, if given, should close() never come.
    """

    def __init__(self, folder, files, server, exports, leftovers=None):
        self.folder = Path(folder)
        self.leftovers = leftovers
        self.items = []             # of the leftovers
        self.processes = []
        self.paths = []
        socket = self.folder / 'nbd'
        try:
            self.start('nbdkit', '-f', '--exit-with-parent', '-U', socket,
                       '-t', '32', *server)
            self.wait(socket.exists)
            for i, file in enumerate(files):
                path = self.folder / f'slow-{i}-{Path(file).name}'
                path.touch()
                self.note('mount', str(path))
                self.paths.append(path)
                self.start('nbdfuse', path,
                           f'nbd+unix:///{exports[i]}?socket={socket}')
                self.wait(lambda p=path, f=file:
                          p.stat().st_size == os.stat(f).st_size)
        except BaseException:
            self.close()
            raise

    def note(self, kind, value):
        if self.leftovers:
            self.leftovers.add(kind, value)
            self.items.append((kind, value))

    def start(self, *command):
        try:
            # pylint: disable=consider-using-with
            process = subprocess.Popen(list(map(str, command)))
        except OSError as e:
            raise Failure(f'{command[0]}: {e.strerror}') from None
        self.processes.append(process)
        self.note('daemon', [process.pid, start_time(process.pid)])

    def wait(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self.processes[-1].poll() is not None:
                raise Failure(f'{self.processes[-1].args[0]} has ended')
            if time.monotonic() > deadline:
                raise Failure(f'{self.processes[-1].args[0]} does not answer')
            time.sleep(0.05)

    def io_bytes(self):
        """(read, written) by nbdkit: its requests go through other calls"""
        numbers = read_numbers(f'/proc/{self.processes[0].pid}/io')
        return numbers['rchar'], numbers['wchar']

    def close(self):
        for path in self.paths:
            end_mount(path)
        for process in reversed(self.processes):
            if process.args[0] == 'nbdkit':
                process.terminate()
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for path in [*self.paths, self.folder / 'nbd']:
            path.unlink(missing_ok=True)
        while self.items:
            self.leftovers.undo(*self.items.pop())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class SlowDisk(SlowFiles):
    """One disk with one head: bench/slow-disk, with its @parameters"""

    def __init__(self, folder, files, *parameters, leftovers=None):
        super().__init__(folder, files,
                         [build_plugin(Path(folder)),
                          *[f'file={f}' for f in files], *parameters],
                         range(len(files)), leftovers)


class SlowNetwork(SlowFiles):
    """A server behind a network: each request is delayed, all share a rate"""

    def __init__(self, folder, files, delay='1ms', rate='1G',
                 leftovers=None):
        place, = {Path(f).parent for f in files}
        super().__init__(folder, files,
                         ['--filter=delay', '--filter=rate', 'file',
                          f'dir={place}', f'rdelay={delay}',
                          f'wdelay={delay}', f'rate={rate}'],
                         [Path(f).name for f in files], leftovers)
