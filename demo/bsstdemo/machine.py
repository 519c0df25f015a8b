# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process with its console, its monitor and its figures

The guest's serial console is QEMU's stdin and stdout; the monitor is a socket
pair.  So a machine leaves nothing in the file system.  A machine dies with
its owner.
"""
import ctypes
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from .leftovers import kill, start_time
from .qmp import Qmp, QmpError

PR_SET_PDEATHSIG = 1
FIRMWARE = ['/usr/share/seabios', '/usr/share/qemu', '/usr/lib/ipxe/qemu']
SAMPLE_S = 0.2
QEMU_SAYS = re.compile(r'qemu-system|\*\*|ERROR:|==\d+==|.*runtime error:|'
                       r'.*Assertion')


class MachineError(Exception):
    """QEMU or the guest did not do what it should"""


class Hang(MachineError):
    """Nothing came in time"""


def read_numbers(path):
    """{name: number} of a file with lines "name number" or "name: number" """
    numbers = {}
    try:
        for line in Path(path).read_text().splitlines():
            fields = line.replace(':', ' ').split()
            if len(fields) >= 2 and fields[1].isdigit():
                numbers[fields[0]] = int(fields[1])
    except OSError:
        pass
    return numbers


class Machine:
    def __init__(self, binary, args, leftovers, log_path, enter_cgroup=None):
        ours, theirs = socket.socketpair()
        command = [str(binary), '-nodefaults', '-no-user-config',
                   '-no-reboot', '-display', 'none', '-nic', 'none',
                   '-chardev', 'stdio,id=con,signal=off',
                   '-serial', 'chardev:con',
                   '-chardev', f'socket,id=mon,fd={theirs.fileno()}',
                   '-mon', 'chardev=mon,mode=control']
        for folder in FIRMWARE:
            if os.path.isdir(folder):
                command += ['-L', folder]
        self.command = command + args
        self.leftovers = leftovers
        self.lines = queue.Queue()      # of the console; None: end
        self.log = open(log_path, 'w', encoding='utf-8')
        self.log.write(' '.join(self.command) + '\n')
        self.log.flush()
        self._start(theirs, enter_cgroup)
        self.qmp = Qmp(ours)
        self.ram = None                 # (begin, end) of guest RAM
        threading.Thread(target=self._read_console, daemon=True).start()

    def _start(self, theirs, enter_cgroup):
        libc = ctypes.CDLL(None)
        owner = os.getpid()

        def in_child():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != owner:
                os._exit(1)
            if enter_cgroup:
                enter_cgroup()

        # pylint: disable=consider-using-with,subprocess-popen-preexec-fn
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, pass_fds=[theirs.fileno()], preexec_fn=in_child,
            start_new_session=True)
        theirs.close()
        self.pid = self.process.pid
        self.started = start_time(self.pid)
        self.leftovers.add('process', [self.pid, self.started])

    def _read_console(self):
        for raw in self.process.stdout:
            line = raw.decode('utf-8', 'replace').rstrip()
            self.log.write(line + '\n')
            self.log.flush()
            self.lines.put(line)
        self.lines.put(None)

    def say(self, text):
        try:
            self.process.stdin.write(text.encode() + b'\n')
            self.process.stdin.flush()
        except OSError as e:
            raise MachineError(f'QEMU is gone: {e}') from None

    def next_line(self, deadline):
        """The next line of the console, None at its end"""
        left = deadline - time.monotonic()
        try:
            return self.lines.get(timeout=max(left, 0.001))
        except queue.Empty:
            raise Hang('the guest said nothing more') from None

    # Figures

    def find_ram(self):
        """Where guest RAM is mapped: asked once"""
        text = self.qmp.command('human-monitor-command',
                                **{'command-line': 'info ramblock'})
        for line in text.splitlines():
            match = re.match(r'\s*pc\.ram\s+.*?\s(0x[0-9a-f]+)\s+'
                             r'(0x[0-9a-f]+)\s+(0x[0-9a-f]+)\s+(0x[0-9a-f]+)',
                             line)
            if match:
                length, begin = int(match[2], 16), int(match[4], 16)
                self.ram = (begin, begin + length)
                return
        raise MachineError('cannot find guest RAM in "info ramblock":\n' +
                           text)

    def resident_bytes(self):
        """(of guest RAM, of all other anonymous memory), from smaps"""
        ram_kib = other_kib = 0
        inside = False
        try:
            with open(f'/proc/{self.pid}/smaps', encoding='ascii',
                      errors='replace') as smaps:
                for line in smaps:
                    if line.startswith('Rss:') and inside:
                        ram_kib += int(line.split()[1])
                    elif line.startswith('Anonymous:') and not inside:
                        other_kib += int(line.split()[1])
                    elif line[0] in '0123456789abcdef':
                        begin, end = line.split()[0].split('-')
                        inside = (int(begin, 16) < self.ram[1] and
                                  int(end, 16) > self.ram[0])
        except OSError:
            return None
        return ram_kib * 1024, other_kib * 1024

    def io_bytes(self):
        """Bytes that the process has had read and written"""
        numbers = read_numbers(f'/proc/{self.pid}/io')
        return numbers.get('read_bytes', 0), numbers.get('write_bytes', 0)

    def cpu_seconds(self):
        try:
            stat = Path(f'/proc/{self.pid}/stat').read_text()
        except OSError:
            return 0.0
        fields = stat[stat.rindex(')') + 2:].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    # The end

    def last_words(self):
        """What QEMU itself has said, for an error message"""
        lines = Path(self.log.name).read_text(errors='replace').splitlines()
        said = [line for line in lines[1:] if QEMU_SAYS.match(line)]
        return '\n    '.join(said[-5:] + [f'see {self.log.name}'])

    def backtrace(self, path):
        """All threads' stacks, for a hang, where there is a gdb"""
        if not shutil.which('gdb'):
            return False
        with open(path, 'w', encoding='utf-8') as f:
            try:
                subprocess.run(['gdb', '-p', str(self.pid), '-batch', '-nx',
                                '-ex', 'thread apply all bt'], stdout=f,
                               stderr=f, stdin=subprocess.DEVNULL,
                               timeout=60, check=False)
            except subprocess.TimeoutExpired:
                f.write('gdb took too long\n')
        return True

    def wait(self, timeout):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Hang('QEMU does not end') from None

    def close(self):
        kill(self.pid, self.started)
        self.process.wait()
        self.leftovers.undo('process', [self.pid, self.started])
        self.qmp.close()
        self.process.stdin.close()
        self.log.close()


class Sampler(threading.Thread):
    """Watches what a machine holds

    samples: [seconds, guest RAM bytes, cached bytes, other bytes]; cached are
    guest pages that the host holds in memory outside guest RAM.
    """

    def __init__(self, machine, cached_bytes, on_sample=None):
        super().__init__(daemon=True)
        self.machine = machine
        self.cached_bytes = cached_bytes    # a function
        self.on_sample = on_sample          # on_sample(other bytes)
        self.samples = []
        self.halt = threading.Event()
        self.begin = time.monotonic()

    def run(self):
        while not self.halt.wait(SAMPLE_S):
            resident = self.machine.resident_bytes()
            if resident is None:
                return
            ram, other = resident
            try:
                cached = self.cached_bytes()
            except (QmpError, OSError):
                cached = None
            if self.on_sample:
                self.on_sample(other)
            now = time.monotonic() - self.begin
            self.samples.append([round(now, 3), ram, cached, other])

    def stop(self):
        self.halt.set()
        self.join()
        return self.samples


def sustained_excess(samples, limit_bytes, window_s=1.0):
    """The most by which the limit was exceeded for window_s without a break

    A sample without an answer about the cache counts as if there were none.
    """
    worst = None
    begin = 0
    for end, last in enumerate(samples):
        while samples[begin + 1:] and last[0] - samples[begin + 1][0] >= window_s:
            begin += 1
        if last[0] - samples[begin][0] < window_s:
            continue
        least = min(s[1] + (s[2] or 0) for s in samples[begin:end + 1])
        excess = least - limit_bytes
        worst = excess if worst is None else max(worst, excess)
    return worst
