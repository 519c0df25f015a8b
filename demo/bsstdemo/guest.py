# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that obeys: the host's side of demo/guest-shell"""
import re
import subprocess
import time
from pathlib import Path

from .contest import GUEST_TROUBLE

DEMO = Path(__file__).resolve().parent.parent
TROUBLE = re.compile(GUEST_TROUBLE.pattern +
                     r'|^verify: |^fio: .*(error|bad)|MEMHOG error')
BOOT_S, ANSWER_S = 90, 60


class GuestError(Exception):
    """The guest or its QEMU has failed"""


def build(folder, build_folder, *options):
    """The files that a guest needs, in @folder"""
    done = subprocess.run(
        [DEMO / 'mkinitramfs', folder,
         '--kernel-folder', build_folder / 'demo/kernel',
         '--init', DEMO / 'guest-shell', '--fio', *options],
        check=False, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    if done.returncode:
        raise GuestError(done.stdout.strip())


class Guest:
    def __init__(self, machine, slower=1, trouble=TROUBLE):
        self.machine = machine
        self.slower = slower
        self.trouble = trouble

    def follow(self, until, seconds=ANSWER_S):
        """(line that begins with @until, lines before it)"""
        deadline = time.monotonic() + seconds * self.slower
        before = []
        while True:
            line = self.machine.next_line(deadline)
            if line is None:
                status = self.machine.wait(20)
                raise GuestError(f'QEMU has ended with status {status}: '
                                 f'{self.machine.last_words()}')
            if self.trouble.search(line):
                raise GuestError(f'guest: {line}')
            if line.startswith(until):
                return line, before
            before.append(line)

    def ready(self):
        self.follow('GUEST ready', BOOT_S)
        self.machine.qmp.greet()

    def command(self, text, seconds=ANSWER_S):
        """What @text prints, as lines"""
        self.machine.say(text)
        status, lines = self.follow('GUEST rc=', seconds)
        if status != 'GUEST rc=0':
            raise GuestError(f'guest: {text}: {status}: {" ".join(lines)}')
        return lines
