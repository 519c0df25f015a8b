# SPDX-License-Identifier: GPL-2.0-or-later
"""What must be undone whatever happens: processes, swap, mounts, folders ...

Each is written to a state file *before* it is made.  Three parties clean:
the owner, when it ends or is interrupted; a janitor, a process that waits for
its owner to die (kill -9 included); and the next owner, when it starts.  The
lock on the state file is the owner's, so they never clean at the same time.
"""
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


class Busy(Exception):
    """Another demo runs in the same build folder"""


def start_time(pid):
    """The start time that tells a process from a later one of the same pid"""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(')') + 2:].split()
    return None if fields[0] == 'Z' else fields[19]


def kill(pid, started):
    if start_time(pid) != started:
        return
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while start_time(pid) == started and time.monotonic() < deadline:
        time.sleep(0.02)


def swap_active(path):
    return any(line.split()[0] == str(path)
               for line in Path('/proc/swaps').read_text().splitlines()[1:])


def end_swap(path):
    if swap_active(path):
        subprocess.run(['swapoff', path], check=True)
    if os.path.isfile(path):
        os.unlink(path)


def end_loop(device):
    """A loop device, which may be gone already"""
    if Path(f'/sys/block/{Path(device).name}/loop').exists():
        subprocess.run(['losetup', '-d', device], check=True)


def is_mounted(path):
    """Also if who served it is gone"""
    return any(line.split()[1] == str(path) for line in
               Path('/proc/self/mounts').read_text().splitlines())


def end_mount(path):
    if is_mounted(path):
        subprocess.run(['fusermount3', '-u', '-z', path], check=True)


def restore_setting(item):
    path, text = item
    Path(path).write_text(text)


def end_cgroup(path):
    deadline = time.monotonic() + 5
    while os.path.isdir(path):
        try:
            os.rmdir(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def end_folder(path):
    if os.path.lexists(path):
        shutil.rmtree(path)


# In this order: swap is free once nobody has pages in it, and then what it
# lies on
CLEAN = {
    'process': lambda item: kill(item[0], item[1]),
    'setting': restore_setting,
    'swap': end_swap,
    'loop': end_loop,
    'mount': end_mount,
    'daemon': lambda item: kill(item[0], item[1]),
    'cgroup': end_cgroup,
    'folder': end_folder,
}


class Leftovers:
    def __init__(self, state_path):
        self.path = Path(state_path)
        self.items = []         # [kind, value], as in the file
        self.lock = None
        self.janitor = None

    def take(self, wait=False):
        """Become the owner.  Cleans up after an earlier one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path, 'a+', encoding='utf-8')
        try:
            fcntl.flock(self.lock,
                        fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise Busy(f'another demo is running (it holds {self.path})') \
                from None
        self.lock.seek(0)
        try:
            self.items = json.loads(self.lock.read() or '[]')
        except ValueError:
            self.items = []
        found = [f'{kind} {value}' for kind, value in self.items]
        self.clean()
        return found

    def hire_janitor(self):
        # pylint: disable=consider-using-with
        script = Path(__file__).resolve()
        self.janitor = subprocess.Popen(
            [sys.executable, '-B', str(script), str(self.path.resolve())],
            stdin=subprocess.PIPE, start_new_session=True)

    def _save(self):
        self.lock.seek(0)
        self.lock.truncate()
        json.dump(self.items, self.lock)
        self.lock.flush()

    def add(self, kind, value):
        self.items.append([kind, value])
        self._save()

    def undo(self, kind, value):
        CLEAN[kind](value)
        self.items.remove([kind, value])
        self._save()

    def clean(self):
        """Undo everything; what cannot be undone stays on the list"""
        for kind in CLEAN:
            for item in [i for i in self.items if i[0] == kind]:
                try:
                    self.undo(*item)
                except (OSError, subprocess.SubprocessError) as e:
                    print(f'demo: cannot remove {kind} {item[1]}: {e}',
                          file=sys.stderr)

    def close(self):
        self.clean()
        self.lock.close()
        if self.janitor:
            self.janitor.stdin.close()
            self.janitor.wait()


def main():
    """The janitor: end of file on stdin means that the owner is gone"""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    left = Leftovers(sys.argv[1])
    left.take(wait=True)


if __name__ == '__main__':
    main()
