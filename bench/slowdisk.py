# SPDX-License-Identifier: GPL-2.0-or-later
"""Files as they would be on a slow disk: bench/slow-disk, mounted.

The store's I/O needs a file or a host device, and few machines have the nbd
kernel module.  So nbdkit runs the plugin, and nbdfuse shows each export as a
file, by the kernel's FUSE; that costs some 50 us a request, which is little
beside 10 ms.  The files have a fixed size: images must be preallocated.
"""
import os
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent / 'slow-disk'
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


class SlowDisk:
    """paths[i] is @files[i], slow; until close(), or the end of a with"""

    def __init__(self, folder, files, *parameters):
        self.folder = Path(folder)
        self.processes = []
        self.paths = []
        socket = self.folder / 'nbd'
        try:
            self.start('nbdkit', '-f', '--exit-with-parent', '-U', socket,
                       '-t', '32', build_plugin(self.folder),
                       *[f'file={f}' for f in files], *parameters)
            self.wait(socket.exists)
            for i, file in enumerate(files):
                path = self.folder / f'slow-{i}-{Path(file).name}'
                path.touch()
                self.start('nbdfuse', path,
                           f'nbd+unix:///{i}?socket={socket}')
                self.paths.append(path)
                self.wait(lambda p=path, f=file:
                          p.stat().st_size == os.stat(f).st_size)
        except BaseException:
            self.close()
            raise

    def start(self, *command):
        # pylint: disable=consider-using-with
        self.processes.append(subprocess.Popen(list(map(str, command))))

    def wait(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if self.processes[-1].poll() is not None:
                raise Failure(f'{self.processes[-1].args[0]} has ended')
            if time.monotonic() > deadline:
                raise Failure(f'{self.processes[-1].args[0]} does not answer')
            time.sleep(0.05)

    def close(self):
        for path in self.paths:
            subprocess.run(['fusermount3', '-u', path], check=False)
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
