# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a long run is, for people"""
import sys
import time


class Progress:
    """One live line on a terminal, a line every few seconds elsewhere"""
    EVERY_S = 5

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.prefix = ''
        self.last = 0

    def begin(self, prefix):
        self.prefix = prefix
        self.last = time.monotonic()

    def __call__(self, text):
        if self.live:
            print(f'\r\033[K{self.prefix}  {text}', end='', flush=True)
        elif time.monotonic() - self.last >= self.EVERY_S:
            self.last = time.monotonic()
            print(f'{self.prefix}  {text}', flush=True)

    def end(self, text):
        clear = '\r\033[K' if self.live else ''
        print(f'{clear}{self.prefix}  {text}', flush=True)
